"""Dispatch of requests to responders, and the log of failures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.unit.peers import peer_at
from uwsgitwisted.errors import Busy, RemoteError, RequestCancelled, UnknownModifier
from uwsgitwisted.interfaces import IResponder, Reply, Request
from uwsgitwisted.responders.dispatch import Dispatcher
from uwsgitwisted.wire.packet import Packet

TOLD = Packet(33, 0, b"told")


@implementer(IResponder)
class Responder:
    def __init__(self, respond: Callable[[Request], Reply]) -> None:
        self.respond = respond  # type: ignore[method-assign,assignment]

    def respond(self, request: Request) -> Reply:
        raise NotImplementedError


def dispatcher(respond: Callable[[Request], Reply]) -> Dispatcher:
    return Dispatcher({33: Responder(respond), 17: Responder(lambda _: TOLD)})


def ask(modifier1: int) -> Request:
    return Request(Packet(modifier1, 0), peer_at("192.0.2.7", 40001))


def test_answer() -> None:
    """The responder of the request's modifier1 answers."""
    later: Deferred[Packet] = Deferred()
    chosen = dispatcher(lambda _: later)
    assert chosen.respond(ask(33)) is later
    assert chosen.respond(ask(17)) == TOLD


def test_unknown_modifier() -> None:
    """An unknown modifier1 is refused and logged; the error names the known ones."""
    with capturedLogs() as logs, pytest.raises(UnknownModifier) as caught:
        dispatcher(lambda _: TOLD).respond(ask(173))
    assert caught.value.modifier1 == 173
    assert "17, 33" in str(caught.value)
    assert "192.0.2.7:40001: modifier1 173: nothing here answers" in str(formatEvent(logs[0]))


ERRORS = [
    (
        RemoteError(type="KeyError", message="x", traceback="File y, line 3"),
        "raised KeyError: x\nFile y, line 3",
    ),
    (Busy("full"), "modifier1 33: full"),
    (KeyError("a bug"), "modifier1 33"),
]


@pytest.mark.parametrize(("error", "text"), ERRORS)
@pytest.mark.parametrize("later", [False, True])
def test_failures_are_logged(error: Exception, text: str, later: bool) -> None:
    """Every failure is logged once, with the peer, and passed on."""

    def respond(_: Request) -> Reply:
        if later:
            return fail(error)
        raise error

    failures: list[Failure] = []
    with capturedLogs() as logs:
        if later:
            answer = dispatcher(respond).respond(ask(33))
            assert isinstance(answer, Deferred)
            answer.addErrback(failures.append)
            assert failures[0].value is error
        else:
            with pytest.raises(type(error)):
                dispatcher(respond).respond(ask(33))
    [event] = logs
    line = formatEvent(event)
    assert text in line
    assert "192.0.2.7:40001" in line
    assert ("log_failure" in event) is isinstance(error, KeyError)


@pytest.mark.parametrize("error", [CancelledError(), RequestCancelled("x")])
def test_withdrawn_requests_are_not_logged(error: Exception) -> None:
    """A cancelled request is not logged as a failure."""
    answer = dispatcher(lambda _: fail(error)).respond(ask(33))
    assert isinstance(answer, Deferred)
    with capturedLogs() as logs:
        answer.addErrback(lambda failure: None)
    assert logs == []
