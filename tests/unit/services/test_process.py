"""The changes that a service makes in its own process when it starts."""

from __future__ import annotations

import time
from typing import Any

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.task import Clock
from twisted.python import runtime

from uwsgitwisted.services import process
from uwsgitwisted.services.process import prepare_process


class Reactor(ReactorBase):
    """A reactor that has timers and does nothing else."""

    def installWaker(self) -> None:
        """Need none."""


def test_a_monotonic_clock() -> None:
    """Timers use a clock that doesn't step with the wall clock."""
    reactor = Reactor()
    assert reactor.seconds is runtime.seconds
    prepare_process(reactor)
    assert reactor.seconds is time.monotonic
    prepare_process(reactor)
    assert reactor.seconds is time.monotonic


def test_timers_that_run_already() -> None:
    """A reactor with timers keeps its clock."""
    reactor = Reactor()
    reactor.callLater(5, print)
    prepare_process(reactor)
    assert reactor.seconds is runtime.seconds


def test_a_clock_of_its_own() -> None:
    """A reactor with a clock of its own, such as the tests', keeps it."""
    clock = Clock()
    prepare_process(clock)
    assert clock.seconds() == 0


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of large messages is kept, whatever the clock."""
    kept: list[Any] = []
    monkeypatch.setattr(process, "keep_large_blocks", lambda: kept.append(True))
    prepare_process(Clock())
    assert kept == [True]
