"""What peers cause, in a bounded number of log lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure

from tests.unit.peers import peer_at
from uwsgitwisted.errors import Busy, NotAllowed, RemoteError
from uwsgitwisted.interfaces import Request
from uwsgitwisted.transport.reports import INTERVAL, MAX_INTERVAL, Reports
from uwsgitwisted.wire.packet import Packet

PEER = peer_at("192.0.2.7", 40001)
WHERE = "192.0.2.7:40001: "


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reports(clock: Clock) -> Reports:
    return Reports(Logger(), clock.seconds)


@pytest.fixture
def logs() -> Iterator[list[dict[str, Any]]]:
    with capturedLogs() as events:
        yield events  # type: ignore[misc]


def lines(logs: list[dict[str, Any]]) -> list[str]:
    return [str(formatEvent(event)) for event in logs]


def test_a_line_a_second(reports: Reports, clock: Clock, logs: list[dict[str, Any]]) -> None:
    """The first of each kind is logged at once; the next, a second later, counts those between."""
    for number in range(100):
        reports.report("late", "{peer} is late ({number})", peer=PEER, number=number)
        reports.report("early", "{peer} is early", level=LogLevel.info, peer=PEER)
    clock.advance(INTERVAL)
    reports.report("late", "{peer} is late ({number})", peer=PEER, number=100)
    assert lines(logs) == [
        "192.0.2.7:40001 is late (0)",
        "192.0.2.7:40001 is early",
        "192.0.2.7:40001 is late (100) (100 of this kind since the last such line)",
    ]
    assert [event["log_level"] for event in logs] == [LogLevel.warn, LogLevel.info, LogLevel.warn]


def test_failed_requests(reports: Reports, clock: Clock, logs: list[dict[str, Any]]) -> None:
    """Failed requests have a line for each class, and a handler's exceptions one for each line that raises."""

    def fail(error: Exception) -> None:
        reports.failed(Failure(error), Request(Packet(33, 0), PEER))

    for _ in range(100):
        fail(Busy("full"))
        fail(NotAllowed("no"))
        fail(RemoteError(type="KeyError", message="x", traceback='Traceback:\n  File "y", line 3\nKeyError: x'))
        fail(RemoteError(type="KeyError", message="z", traceback='Traceback:\n  File "y", line 4\nKeyError: z'))
    clock.advance(INTERVAL)
    fail(Busy("still full"))
    assert lines(logs) == [
        f"{WHERE}modifier1 33: full",
        f"{WHERE}modifier1 33: no",
        f'{WHERE}the handler of modifier1 33 raised KeyError: x\nTraceback:\n  File "y", line 3\nKeyError: x',
        f'{WHERE}the handler of modifier1 33 raised KeyError: z\nTraceback:\n  File "y", line 4\nKeyError: z',
        f"{WHERE}modifier1 33: still full (100 of this kind since the last such line)",
    ]


def test_what_goes_on(reports: Reports, clock: Clock, logs: list[dict[str, Any]]) -> None:
    """An hour of a kind leaves a line a minute; after a minute of silence it is news again."""
    for _ in range(36_000):
        reports.report("late", "{peer} is late", peer=PEER)
        clock.advance(0.1)
    assert 60 < len(logs) < 70
    assert sum(event["count"] for event in logs) > 36_000 - 700
    clock.advance(2 * MAX_INTERVAL)
    logs.clear()
    for _ in range(21):
        reports.report("late", "{peer} is late", peer=PEER)
        clock.advance(0.1)
    assert len(logs) == 2


def test_a_traceback_a_minute(reports: Reports, clock: Clock, logs: list[dict[str, Any]]) -> None:
    """A traceback is logged once a minute, its error more often."""
    told = RemoteError(type="KeyError", message="x", traceback='Traceback:\n  File "y", line 3\nKeyError: x')
    for error in (told, ZeroDivisionError("ours")):
        logs.clear()
        for _ in range(int(MAX_INTERVAL / INTERVAL)):
            reports.failed(Failure(error), Request(Packet(33, 0), PEER))
            clock.advance(INTERVAL)
        assert len(logs) == 6
        assert sum("log_failure" in event or "Traceback" in str(formatEvent(event)) for event in logs) == 1
        clock.advance(INTERVAL)
        reports.failed(Failure(error), Request(Packet(33, 0), PEER))
        reports.failed(Failure(error), Request(Packet(33, 0), PEER))
        clock.advance(2 * MAX_INTERVAL)
        reports.failed(Failure(error), Request(Packet(33, 0), PEER))
        assert "log_failure" in logs[-1] or "Traceback" in lines(logs)[-1]


def test_new_kinds_are_bounded(reports: Reports, clock: Clock, logs: list[dict[str, Any]]) -> None:
    """A peer whose texts look like other lines of code can't fill the log with ever new kinds."""
    for number in range(36_000):
        forged = f'Traceback:\n  File "y", line 3\nValueError: x\n  File "{number}", line 4\n'
        error = RemoteError(type="ValueError", message="x", traceback=forged)
        reports.failed(Failure(error), Request(Packet(33, 0), PEER))
        clock.advance(0.1)
    assert len(logs) < 900


def test_kinds_are_bounded(reports: Reports, clock: Clock, logs: list[dict[str, Any]]) -> None:
    """However many kinds there are, the earliest is forgotten, and is new when it comes again."""
    for kind in range(1_001):
        reports.report(kind, "{peer}", peer=PEER)
        clock.advance(6)
    logs.clear()
    for kind in (1_000, 0):
        clock.advance(6)
        reports.report(kind, "{peer}", peer=PEER)
    assert len(logs) == 2
    assert len(reports._kinds) == 1_000
