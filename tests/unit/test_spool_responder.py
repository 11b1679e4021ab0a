"""The responder of modifier1 17: what it answers, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from uwsgitwisted.interfaces import IEngine, IResponder, Request
from uwsgitwisted.responders.spool import REPORT_INTERVAL, SpoolResponder
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.spool.sqlite import SqliteStore
from uwsgitwisted.wire.packet import NO, SPOOL, YES, Packet
from uwsgitwisted.wire.vars import encode_vars

T = TypeVar("T")


@implementer(IEngine)
class IdleEngine:
    """Runs whatever it is given for ever."""

    description = "idle"

    def start(self) -> Deferred[None]:
        return succeed(None)

    def stop(self, seconds: float) -> Deferred[None]:
        return succeed(None)

    def submit(self, request: Request) -> Deferred[Packet]:
        return Deferred()


class InlineRunner:
    """Makes the store's calls at once."""

    def start(self) -> None:
        """Nothing to begin."""

    def stop(self) -> None:
        """Nothing to end."""

    def run(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return maybeDeferred(function, *args, **kwargs)


class Bench:
    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.store = SqliteStore(str(path))
        self.spooler = Spooler(self.clock, self.store, IdleEngine(), runner=InlineRunner())
        self.spooler.start()
        self.clock.advance(0)
        self.responder = SpoolResponder(self.spooler, monotonic=self.clock.seconds)

    def ask(self, payload: bytes) -> Deferred[Any]:
        return self.responder.respond(Request(Packet(SPOOL, 9, payload), peer="10.0.0.7:5000"))


def results_of(deferred: Deferred[Any]) -> list[Any]:
    results: list[Any] = []
    deferred.addBoth(results.append)
    return results


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "spool.sqlite")
    yield bench
    bench.spooler.stop(0)


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    """The refusals that are logged meanwhile."""
    events: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        if event["log_namespace"] == "uwsgitwisted.responders.spool":
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


def test_interface(bench: Bench) -> None:
    """It is a responder."""
    assert verifyObject(IResponder, bench.responder)


def test_yes(bench: Bench) -> None:
    """The answer is yes, after the commit and not before it."""
    results = results_of(bench.ask(encode_vars({"a": "b"})))
    assert results == []
    bench.clock.advance(0)
    assert results == [YES]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x01", "ends within a length"),
        (encode_vars({"priority": "../escaped"}), "is no priority"),
        (encode_vars({"at": "inf"}), "is no time"),
    ],
)
def test_no(bench: Bench, logged: list[dict[str, Any]], payload: bytes, reason: str) -> None:
    """What can't be understood is refused; the log has the reason and the peer."""
    assert results_of(bench.ask(payload)) == [NO]
    (event,) = logged
    assert reason in event["reason"]
    assert (event["peer"], event["count"]) == ("10.0.0.7:5000", 1)


def test_refused_by_store(bench: Bench, logged: list[dict[str, Any]]) -> None:
    """When the store can't write, the answer is no."""
    bench.store._connection.execute("PRAGMA query_only = ON")
    results = results_of(bench.ask(encode_vars({"a": "b"})))
    bench.clock.advance(0)
    assert results == [NO]
    assert "readonly" in logged[0]["reason"]
    bench.store._connection.execute("PRAGMA query_only = OFF")


def test_defect(bench: Bench, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours is answered with no too, and logged with its traceback."""
    monkeypatch.setattr(bench.store, "add", lambda tasks: 1 / 0)
    results = results_of(bench.ask(encode_vars({"a": "b"})))
    bench.clock.advance(0)
    assert results == [NO]
    assert isinstance(logged[0]["log_failure"].value, ZeroDivisionError)


def test_log_is_bounded(bench: Bench, logged: list[dict[str, Any]]) -> None:
    """However many tasks are refused, the log gets a line in a while, which counts them."""
    for _ in range(100):
        bench.ask(b"\x01")
    bench.clock.advance(REPORT_INTERVAL)
    bench.ask(b"\x01")
    assert [event["count"] for event in logged] == [1, 100]


def test_cancelled(bench: Bench, logged: list[dict[str, Any]]) -> None:
    """A request that is withdrawn before its commit leaves no task and no line in the log."""
    asked = bench.ask(encode_vars({"a": "b"}))
    asked.cancel()
    (result,) = results_of(asked)
    assert isinstance(result, Failure)
    assert isinstance(result.value, CancelledError)
    bench.clock.advance(0)
    assert logged == []
    assert bench.store.advance([], 1, 1e9).claimed == []
