"""The responder of calls: what an engine's failures are to a web server, and to others."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from tests.unit.responders.test_simple_responders import Engine
from uwsgitwisted.errors import (
    Busy,
    MalformedPacket,
    MessageTooLarge,
    RemoteError,
    RequestTimeout,
    UnknownFunction,
)
from uwsgitwisted.interfaces import IResponder, Request
from uwsgitwisted.responders.rpc import RpcResponder
from uwsgitwisted.wire.packet import RPC, Packet

HTTP = Request(Packet(RPC, 2, b"vars"))


def respond(request: Request) -> tuple[Deferred[Any], list[Any]]:
    """Return the engine's Deferred, and where the answer will be."""
    engine = Engine()
    responder = RpcResponder(engine)
    assert verifyObject(IResponder, responder)
    answers: list[Any] = []
    answer = responder.respond(request)
    assert engine.submitted == [request]
    answer.addBoth(answers.append)  # type: ignore[union-attr]
    return engine.answer, answers


@pytest.mark.parametrize("modifier2", [0, 1, 2])
def test_answer(modifier2: int) -> None:
    """The engine's answer is passed on."""
    engine, answers = respond(Request(Packet(RPC, modifier2, b"x")))
    engine.callback(Packet(RPC, modifier2, b"y"))
    assert answers == [Packet(RPC, modifier2, b"y")]


@pytest.mark.parametrize("modifier2", [0, 1])
def test_failure(modifier2: int) -> None:
    """A failure stays one: it becomes an error in a session, and the end of a plain connection."""
    engine, answers = respond(Request(Packet(RPC, modifier2, b"x")))
    engine.errback(UnknownFunction("f"))
    assert answers[0].check(UnknownFunction)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownFunction("f"), 404),
        (MalformedPacket("no function"), 500),
        (RemoteError(type="KeyError"), 500),
        (Busy("full"), 503),
        (RequestTimeout("late"), 504),
    ],
)
def test_http_failure(error: Exception, status: int) -> None:
    """A web server gets a status, and the log the reason."""
    with capturedLogs() as logs:
        engine, answers = respond(HTTP)
        engine.errback(error)
    assert int(answers[0].split()[1]) == status
    assert len(logs) == 1


def test_cancelled() -> None:
    """A request that was cancelled has no answer."""
    engine, answers = respond(HTTP)
    engine.errback(CancelledError())
    assert answers == [b""]


def test_refused_body() -> None:
    """A request whose body is too large is refused before the engine has it."""
    engine = Engine()
    answer = RpcResponder(engine).respond(HTTP._replace(refused=MessageTooLarge("large")))
    assert isinstance(answer, bytes)
    assert answer.split()[1] == b"413"
    assert engine.submitted == []
