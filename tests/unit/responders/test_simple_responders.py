"""The small responders."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.unit.peers import peer_at
from uwsgitwisted.interfaces import IEngine, IResponder, Request
from uwsgitwisted.responders.echo import EchoResponder
from uwsgitwisted.responders.forward import ForwardResponder
from uwsgitwisted.responders.ping import PingResponder
from uwsgitwisted.wire.packet import ECHO, PING, Packet


@implementer(IEngine)
class Engine:
    """Records the requests."""

    description = "recording"

    def __init__(self) -> None:
        self.submitted: list[Request] = []
        self.answer: Deferred[Packet] = Deferred()

    def start(self) -> Deferred[None]:
        return succeed(None)

    def stop(self, seconds: float) -> Deferred[None]:
        return succeed(None)

    def submit(self, request: Request) -> Deferred[Packet]:
        self.submitted.append(request)
        return self.answer


def test_interfaces() -> None:
    """Each responder implements the dispatcher's interface."""
    for responder in (PingResponder(), EchoResponder(), ForwardResponder(Engine())):
        assert verifyObject(IResponder, responder)


def test_ping() -> None:
    """A ping is answered as by uWSGI, whatever its payload."""
    assert PingResponder().respond(Request(Packet(PING, 0, b"anything"))) == Packet(PING, 1, b"")


def test_echo() -> None:
    """An echo's answer is the payload, without a header."""
    assert EchoResponder().respond(Request(Packet(ECHO, 3, b"\x00x"))) == b"\x00x"


def test_forward() -> None:
    """The engine gets the request unchanged, and its Deferred is the answer."""
    engine = Engine()
    request = Request(Packet(33, 9, b"not even marshal"), peer_at("192.0.2.7"), 2.0)
    assert ForwardResponder(engine).respond(request) is engine.answer
    assert engine.submitted == [request]
