"""The decisions of a map."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.planner.map import MapPlanner, Settings
from uwsgitwisted.planner.piece import Result, Sending


class Farm:
    """A shell without nodes: the test says what becomes of each request."""

    def __init__(self, items: Iterable[Any], nodes: str = "ab", **settings: Any) -> None:
        self.now = 0.0
        self.planner = MapPlanner(items, Settings(**settings), self.now)
        self.flying: list[Sending] = []
        self.cancelled: list[Sending] = []
        self.results: list[Result] = []
        self.wake: float | None = None
        for node in nodes:
            self.planner.add_node(node, self.now, workers=1)
        self.poll()

    def poll(self) -> None:
        """Do what the planner says, until nothing is ready."""
        while True:
            actions = self.planner.poll(self.now)
            self.wake = actions.wake
            for sending in actions.cancel:
                self.flying.remove(sending)
                self.cancelled.append(sending)
            self.flying += actions.send
            result = self.planner.take()
            if result is None:
                return
            self.results.append(result)

    def sent(self, node: str = "") -> list[Any]:
        """Return what is in flight, at *node* or anywhere."""
        return [sending.message for sending in self.flying if node in ("", sending.node)]

    def find(self, message: Any) -> Sending:
        """Return the first request in flight that carries *message*."""
        return next(sending for sending in self.flying if sending.message == message)

    def answer(self, message: Any, took: float = 0.0, *, later: float = 0.0) -> None:
        """Let *later* seconds pass, and answer the request that carries *message*."""
        sending = self.find(message)
        self.now += later
        self.flying.remove(sending)
        self.planner.answered(sending, ("answer", message), self.now, took)
        self.poll()

    def fail(self, message: Any, error: BaseException, *, later: float = 0.0) -> None:
        """Let *later* seconds pass, and fail the request that carries *message*."""
        sending = self.find(message)
        self.now += later
        self.flying.remove(sending)
        self.planner.failed(sending, error, self.now)
        self.poll()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.poll()

    @property
    def values(self) -> list[Any]:
        return [result.error or result.value for result in self.results]


def test_values_in_order() -> None:
    """Results come in the order of the items, whichever is answered first."""
    farm = Farm([10, 20])
    assert farm.sent("a") == [10]
    assert farm.sent("b") == [20]
    farm.answer(20, later=1)
    assert farm.results == []
    assert not farm.planner.finished
    farm.answer(10)
    assert farm.values == [("answer", 10), ("answer", 20)]
    assert [result.index for result in farm.results] == [0, 1]
    assert [result.node for result in farm.results] == ["a", "b"]
    assert [result.seconds for result in farm.results] == [1, 1]
    assert farm.planner.finished
    assert farm.wake is None


def test_as_completed() -> None:
    """Without an order, a result comes as soon as it is there."""
    farm = Farm([10, 20], ordered=False)
    farm.answer(20)
    assert [result.index for result in farm.results] == [1]


def test_misuse() -> None:
    """Settings that can't be meant are refused."""
    for settings in ({"chunk": 0, "chunked": True}, {"chunk": 1.5, "chunked": True}, {"chunk": 2}):
        with pytest.raises(MisuseError, match="chunk"):
            Farm([], **settings)
    with pytest.raises(MisuseError, match="can't be iterated over"):
        Farm(5)  # type: ignore[arg-type]
