"""The engine `reactor`: values, coroutines, Deferreds, exceptions, time limits and the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock, deferLater

from uwsgitwisted.engines.inline import InlineEngine
from uwsgitwisted.errors import (
    Busy,
    Interrupted,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    Unavailable,
    UnknownModifier,
)
from uwsgitwisted.interfaces import Request
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.spec import HandlerTable, Loader, WorkerSpec

TIMEOUT = 10.0
LIMIT = 3

#: What the handler under test does with a request's payload.
_run: Callable[[bytes], object] = bytes


def load(**arguments: object) -> HandlerTable:
    """Load the handlers, as an engine does."""
    return {
        33: Handler(
            lambda request: _run(request.payload),
            lambda request, value: Packet(33, request.modifier2, dumps(value)),
        )
    }


class Running:
    """An engine on a clock, whose handler the test controls."""

    def __init__(self, run: Callable[[bytes], object]) -> None:
        globals()["_run"] = run
        self.clock = Clock()
        spec = WorkerSpec((Loader(f"{__name__}:load"),))
        self.engine = InlineEngine(self.clock, spec, timeout=TIMEOUT, max_queue=LIMIT, node="n1")
        self.engine.start()

    def ask(self, payload: bytes = b"", *, seconds: float | None = None, modifier1: int = 33) -> Outcome:
        request = Request(Packet(modifier1, 5, payload), seconds=seconds)
        return Outcome(maybeDeferred(self.engine.submit, request))


class Outcome:
    """What becomes of a Deferred."""

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.deferred = deferred
        self.results: list[Any] = []
        deferred.addCallbacks(self.results.append, lambda failure: self.results.append(failure.value))

    @property
    def value(self) -> Any:
        """Its one result."""
        (result,) = self.results
        return result


def _answer(value: object) -> Packet:
    return Packet(33, 5, dumps(value))


def test_a_value() -> None:
    """What a handler returns is the answer, at once."""
    assert Running(lambda payload: [payload]).ask(b"x").value == _answer([b"x"])


def test_a_coroutine() -> None:
    """A coroutine's value is the answer, once it is there."""
    running = Running(lambda payload: wait(payload))

    async def wait(payload: bytes) -> bytes:
        await deferLater(running.clock, 1)
        return payload * 2

    outcome = running.ask(b"x")
    assert outcome.results == []
    running.clock.advance(1)
    assert outcome.value == _answer(b"xx")


def test_a_deferred() -> None:
    """So is what a Deferred fires with."""
    deferred: Deferred[object] = Deferred()
    outcome = Running(lambda _: deferred).ask()
    assert outcome.results == []
    deferred.callback({"late": True})
    assert outcome.value == _answer({"late": True})


def _exit() -> None:
    sys.exit("leaving")


async def _exit_later() -> None:
    sys.exit("leaving")


async def _raise_later() -> None:
    raise KeyError("x")


def _raise() -> None:
    raise KeyError("x")


def _raise_in_a_callback() -> Deferred[None]:
    return succeed(None).addCallback(lambda _: _raise())


@pytest.mark.parametrize(
    ("run", "type_", "message"),
    [
        (_raise, "KeyError", "'x'"),
        (_raise_later, "KeyError", "'x'"),
        (_raise_in_a_callback, "KeyError", "'x'"),
        (_exit, "SystemExit", "leaving"),
        (_exit_later, "SystemExit", "leaving"),
    ],
)
def test_an_exception(run: Callable[[], object], type_: str, message: str) -> None:
    """A handler's exception, sys.exit() as well, is described; the engine goes on."""
    running = Running(lambda payload: run() if payload else 1)
    error = running.ask(b"x").value
    assert isinstance(error, RemoteError)
    assert (error.type, error.message, error.node) == (type_, message, "n1")
    assert run.__name__.partition("_in_a")[0] in error.traceback
    assert running.ask().value == _answer(1)


@pytest.mark.parametrize("later", [False, True])
def test_what_can_not_travel(later: bool) -> None:
    """A value that can't be sent is the handler's fault, whether it returns it now or later."""
    deferred: Deferred[object] = Deferred()
    running = Running(lambda _: deferred if later else object())
    outcome = running.ask()
    if later:
        deferred.callback(object())
    assert isinstance(outcome.value, RemoteError)
    assert outcome.value.type == "UnencodableMessage"


def test_an_unknown_modifier() -> None:
    """A modifier that no handler answers is named."""
    with pytest.raises(UnknownModifier, match="no handler for modifier1 9"):
        raise Running(lambda _: 1).ask(modifier1=9).value


def _hanging() -> tuple[Running, list[Deferred[object]], list[str]]:
    """Return an engine whose requests wait for ever, those Deferreds, and what was cancelled."""
    waiting: list[Deferred[object]] = []
    cancelled: list[str] = []

    def run(payload: bytes) -> object:
        waiting.append(Deferred(lambda _: cancelled.append(payload.decode())))
        return waiting[-1]

    return Running(run), waiting, cancelled


def test_the_time_limit() -> None:
    """A Deferred that takes too long is cancelled, and its request fails with the limit."""
    running, _, cancelled = _hanging()
    outcome = running.ask(b"a")
    running.clock.advance(TIMEOUT - 0.1)
    assert outcome.results == []
    running.clock.advance(0.2)
    assert isinstance(outcome.value, RequestTimeout)
    assert outcome.value.seconds == TIMEOUT
    assert cancelled == ["a"]


@pytest.mark.parametrize(("seconds", "limit"), [(2.0, 2.0), (60.0, TIMEOUT)])
def test_the_callers_time(seconds: float, limit: float) -> None:
    """A caller who waits less long has its request ended earlier; one who waits longer has not."""
    running, _, cancelled = _hanging()
    outcome = running.ask(b"a", seconds=seconds)
    running.clock.advance(limit - 0.1)
    assert outcome.results == []
    running.clock.advance(0.2)
    assert outcome.value.seconds == limit
    assert cancelled == ["a"]


def test_a_coroutine_over_the_limit() -> None:
    """A coroutine learns of it by the CancelledError that Twisted raises where it waits."""
    seen: list[str] = []
    running = Running(lambda _: wait())

    async def wait() -> None:
        try:
            await deferLater(running.clock, 1_000)
        except CancelledError:
            seen.append("cancelled")
            raise

    outcome = running.ask()
    running.clock.advance(TIMEOUT)
    assert isinstance(outcome.value, RequestTimeout)
    assert seen == ["cancelled"]
    assert running.clock.getDelayedCalls() == []


def test_busy() -> None:
    """Over the limit a request is refused; as soon as one is done there is room again."""
    running, waiting, _ = _hanging()
    outcomes = [running.ask() for _ in range(LIMIT)]
    assert isinstance(running.ask().value, Busy)
    assert len(waiting) == LIMIT
    waiting[0].callback(1)
    assert outcomes[0].value == _answer(1)
    assert running.ask().results == []


def test_cancelling() -> None:
    """Cancelling a request cancels the handler's Deferred."""
    running, _, cancelled = _hanging()
    outcome = running.ask(b"a")
    outcome.deferred.cancel()
    assert isinstance(outcome.value, RequestCancelled)
    assert cancelled == ["a"]


def test_stopping_drains() -> None:
    """What runs when the engine is stopped is finished; nothing more is taken."""
    running, waiting, _ = _hanging()
    outcome = running.ask()
    stopped = Outcome(running.engine.stop(5))
    refused = running.ask().value
    assert isinstance(refused, Unavailable)
    assert not isinstance(refused, Busy)
    assert stopped.results == []
    waiting[0].callback(1)
    assert outcome.value == _answer(1)
    assert stopped.results == [None]
    assert running.clock.getDelayedCalls() == []


def test_stopping_with_nothing_to_do() -> None:
    """An engine at rest is stopped at once, and may be stopped again."""
    running, _, _ = _hanging()
    assert Outcome(running.engine.stop(5)).results == [None]
    assert Outcome(running.engine.stop(0)).results == [None]


@pytest.mark.parametrize("again", [False, True])
def test_stopping_interrupts(again: bool) -> None:
    """Requests still in flight are interrupted when the time is up or cut short."""
    running, _, cancelled = _hanging()
    outcome = running.ask(b"a")
    stopped = Outcome(running.engine.stop(5))
    if again:
        running.engine.stop(0)
        running.clock.advance(0)
    else:
        running.clock.advance(4.9)
        assert outcome.results == []
        running.clock.advance(0.2)
    assert isinstance(outcome.value, Interrupted)
    assert cancelled == ["a"]
    assert stopped.results == [None]
    assert running.clock.getDelayedCalls() == []


@pytest.mark.parametrize("later", [False, True])
def test_another_nodes_errors(later: bool) -> None:
    """The Busy of a node that the handler asked is its own exception: this node has run the request."""
    busy = Busy("the other node is busy")
    deferred: Deferred[object] = Deferred()

    def run(_: bytes) -> object:
        if not later:
            raise busy
        return deferred

    outcome = Running(run).ask()
    if later:
        deferred.errback(busy)
    assert isinstance(outcome.value, RemoteError)
    assert (outcome.value.type, outcome.value.message) == ("Busy", "the other node is busy")
