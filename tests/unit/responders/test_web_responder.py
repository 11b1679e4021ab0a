"""The responder of web requests: what it forwards, and how failures are answered and logged."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from tests.unit.peers import peer_at
from tests.unit.responders.test_simple_responders import Engine
from uwsgitwisted.access_log import Entry
from uwsgitwisted.errors import (
    Busy,
    MalformedPacket,
    MessageTooLarge,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    WorkerDied,
)
from uwsgitwisted.interfaces import IResponder, Request, StreamedAnswer, TimedAnswer
from uwsgitwisted.responders.web import WebResponder
from uwsgitwisted.stream import Stream
from uwsgitwisted.wire.packet import WSGI, Packet
from uwsgitwisted.wire.vars import encode_vars

VARS = encode_vars({"REQUEST_METHOD": "GET", "PATH_INFO": "/a", "CONTENT_LENGTH": "4"})
ASKED = Request(Packet(WSGI, 0, VARS + b"body"), peer_at("192.0.2.7"))


class Bench:
    """A responder with a recording engine and an access log."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.entries: list[Entry] = []
        self.responder = WebResponder(self.engine, self.entries.append)

    def ask(self, request: Request = ASKED) -> list[Any]:
        """Return a list that gets the answer."""
        answer = self.responder.respond(request)
        assert isinstance(answer, Deferred)
        results: list[Any] = []
        answer.addBoth(results.append)
        return results


@pytest.fixture
def bench() -> Bench:
    """Give a responder."""
    return Bench()


def test_interface(bench: Bench) -> None:
    """It implements the dispatcher's interface."""
    assert verifyObject(IResponder, bench.responder)


@pytest.mark.parametrize(
    "answer", [TimedAnswer(Packet(WSGI, 0, b"page"), 0.5), StreamedAnswer(Packet(WSGI, 0, b"page"), Stream())]
)
def test_forwarded(bench: Bench, answer: Any) -> None:
    """The engine gets the request unchanged, and its answer is passed on; the worker logs it."""
    results = bench.ask()
    assert bench.engine.submitted == [ASKED]
    bench.engine.answer.callback(answer)
    assert results == [answer]
    assert bench.entries == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(Busy("x"), "503"), (RequestTimeout("x"), "504"), (WorkerDied("x"), "502"), (MalformedPacket("x"), "400")],
)
def test_failure(bench: Bench, error: Exception, status: str) -> None:
    """A failure is answered with its status, and logged in both logs; its text stays here."""
    results = bench.ask()
    with capturedLogs() as logs:
        bench.engine.answer.errback(error)
    (answer,) = results
    assert answer.startswith(f"HTTP/1.0 {status} ".encode())
    assert b"x\n" not in answer
    assert len(logs) == 1
    (entry,) = bench.entries
    assert (entry.status, entry.worker) == (status, 0)
    assert entry.size == len(answer.partition(b"\r\n\r\n")[2])
    assert entry.variables["PATH_INFO"] == "/a"


def test_application_fails(bench: Bench) -> None:
    """The failure of an application is answered with 500; its traceback is in the log only."""
    results = bench.ask()
    with capturedLogs() as logs:
        bench.engine.answer.errback(RemoteError("secret", type="KeyError", traceback="Traceback: there"))
    assert results[0].startswith(b"HTTP/1.0 500 ")
    assert b"secret" not in results[0]
    assert any("Traceback: there" in str(event) for event in logs)
    assert bench.entries == []


@pytest.mark.parametrize("error", [RequestCancelled("x"), CancelledError()])
def test_cancelled(bench: Bench, error: Exception) -> None:
    """Nobody reads the answer to a cancelled request, and nobody needs to hear of it."""
    results = bench.ask()
    with capturedLogs() as logs:
        bench.engine.answer.errback(error)
    assert results == [b""]
    assert logs == []
    assert bench.entries == []


@pytest.mark.parametrize("payload", [VARS, b"\xff", b""])
def test_refused(bench: Bench, payload: bytes) -> None:
    """A request that the server has refused isn't forwarded, whatever it consists of."""
    refused = Request(Packet(WSGI, 0, payload), refused=MessageTooLarge("x"))
    answer = bench.responder.respond(refused)
    assert isinstance(answer, bytes)
    assert answer.startswith(b"HTTP/1.0 413 ")
    assert bench.engine.submitted == []
    assert [entry.status for entry in bench.entries] == ["413"]


def test_without_an_access_log() -> None:
    """The access log may be left out."""
    responder = WebResponder(Engine())
    answer = responder.respond(Request(Packet(WSGI, 0, VARS), refused=Busy("x")))
    assert isinstance(answer, bytes)
    assert answer.startswith(b"HTTP/1.0 503 ")
