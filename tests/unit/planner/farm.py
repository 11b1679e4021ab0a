"""A shell over the planner of a map, in which tests say what becomes of each request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.planner.map import MapPlanner
from uwsgitwisted.planner.piece import Result, Sending
from uwsgitwisted.planner.settings import Settings
from uwsgitwisted.wire.bundle import Outcome
from uwsgitwisted.wire.message import encode_request
from uwsgitwisted.wire.objects import loads
from uwsgitwisted.wire.packet import MARSHAL, Packet


def encode(item: object) -> Packet:
    """Make the request of an item."""
    return encode_request(MARSHAL, 17, item)


def content(sending: Sending) -> Any:
    """Return the item that a request carries; of a bundle, the list of its items."""
    requests = sending.piece.requests
    if not requests:
        return sending.message
    items = [loads(request.payload) for request in requests]
    return items if sending.bundled else items[0]


class Farm:
    """A shell without nodes: the test says what becomes of each request.

    :param bundle: how many items each node accepts in a bundle.
    """

    def __init__(self, items: Iterable[Any], nodes: str = "ab", *, bundle: int = 0, **settings: Any) -> None:
        self.now = 0.0
        self.planner = MapPlanner(items, Settings(bundled=bundle > 0, **settings), self.now, encode)
        #: How many items each second copy had.
        self.copied: list[int] = []
        self.flying: list[Sending] = []
        self.cancelled: list[Sending] = []
        self.results: list[Result] = []
        self.wake: float | None = None
        for node in nodes:
            self.planner.add_node(node, self.now, workers=1, bundle=bundle)
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
            self.copied += [each.piece.count for each in actions.send if each.piece.sent[0] is not each]
            result = self.planner.take()
            if result is None:
                return
            self.results.append(result)

    def sent(self, node: str = "") -> list[Any]:
        """Return what is in flight, at *node* or anywhere."""
        return [content(sending) for sending in self.flying if node in ("", sending.node)]

    def sent_to(self, node: Any) -> list[Sending]:
        """Return what is in flight at *node*."""
        return [sending for sending in self.flying if sending.node == node]

    def find(self, message: Any) -> Sending:
        """Return the first request in flight that carries *message*."""
        return next(sending for sending in self.flying if content(sending) == message)

    def answer(self, message: Any, took: float = 0.0, *, later: float = 0.0) -> None:
        """Let *later* seconds pass, and answer the request that carries *message*."""
        sending = self.find(message)
        self.now += later
        self.flying.remove(sending)
        self.planner.answered(sending, ("answer", message), self.now, took)
        self.poll()

    def answer_bundle(self, sending: Sending, *outcomes: Any, took: float = 0.0, later: float = 0.0) -> None:
        """Let *later* seconds pass, and answer a bundle; an outcome that is an error is one."""
        self.now += later
        self.flying.remove(sending)
        errors = [each if isinstance(each, UwsgiError) else None for each in outcomes]
        made = [Outcome(None if error else value, error) for value, error in zip(outcomes, errors, strict=True)]
        self.planner.answered(sending, made, self.now, took)
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
