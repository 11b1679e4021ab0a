"""What the front sees to in the answers to bundles."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.unit.peers import peer_at
from uwsgitwisted.engines.inline import InlineEngine
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.errors import MalformedAnswer, RemoteError, UnsafeObject
from uwsgitwisted.interfaces import IResponder, Reply, Request, TimedAnswer
from uwsgitwisted.responders.bundles import BundleResponder
from uwsgitwisted.services.server import object_responders
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.wire.bundle import decode_outcomes, encode_error, encode_value
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.packet import BUNDLE, MARSHAL, Packet
from uwsgitwisted.worker.spec import WorkerSpec

VALUE = encode_value(b"N")
RAISED = encode_failure(RemoteError(type="KeyError", message="x", traceback="File y, line 3", node="n1"))
REQUEST = Request(Packet(BUNDLE, 17), peer_at("192.0.2.7", 40001))


@implementer(IResponder)
class Forward:
    """Answers with what the test gives.

    :param reply: the answer.
    """

    def __init__(self, reply: Deferred[Any]) -> None:
        self._reply = reply

    def respond(self, request: Request) -> Reply:
        return self._reply


def respond(reply: Deferred[Any], *, tracebacks: bool = True) -> Any:
    answer = BundleResponder(Forward(reply), tracebacks=tracebacks).respond(REQUEST)
    assert isinstance(answer, Deferred)
    results: list[Any] = []
    answer.addBoth(results.append)
    return results[0]


def test_values() -> None:
    """An answer without failures is passed on as it is."""
    assert verifyObject(IResponder, BundleResponder(Forward(Deferred()), tracebacks=True))
    answer = TimedAnswer(Packet(BUNDLE, 17, VALUE * 3), 0.5)
    with capturedLogs() as logs:
        assert respond(succeed(answer)) == answer
        assert respond(succeed(answer.packet)) == answer.packet
    assert logs == []


def test_failures_are_logged() -> None:
    """The failure of an object is logged with the peer, as that of a single object is."""
    packet = Packet(BUNDLE, 17, VALUE + encode_error(RAISED) + encode_error(encode_failure(UnsafeObject("no"))))
    with capturedLogs() as logs:
        assert respond(succeed(packet)) == packet
    raised, unsafe = map(formatEvent, logs)
    assert "192.0.2.7:40001: the handler of modifier1 35 raised KeyError: x\nFile y, line 3" in raised
    assert "modifier1 35: no" in unsafe


def test_tracebacks() -> None:
    """A service that keeps tracebacks to itself keeps those of objects in bundles too."""
    answer = TimedAnswer(Packet(BUNDLE, 17, VALUE + encode_error(RAISED) + VALUE), 0.5)
    packet, took = respond(succeed(answer), tracebacks=False)
    assert took == 0.5
    assert b"line 3" not in packet.payload
    first, second, third = decode_outcomes(packet)
    assert first == third == (None, None)
    assert isinstance(second.error, RemoteError)
    assert (second.error.type, second.error.node, second.error.traceback) == ("KeyError", "n1", "")


def test_failures_of_bundles() -> None:
    """What fails as a whole is passed on, and an answer that is none is a failure."""
    failure = respond(fail(UnsafeObject("whole")))
    assert isinstance(failure, Failure)
    assert failure.check(UnsafeObject)
    assert respond(succeed(Packet(MARSHAL, 17, b"N"))).check(MalformedAnswer)


@pytest.mark.parametrize("engine", ["processes:2", "reactor"])
def test_which_engines(engine: str) -> None:
    """Bundles are for engines that say how many workers they have."""
    reactor: Any = MemoryReactorClock()
    made = (
        InlineEngine(reactor, WorkerSpec(()), timeout=1, max_queue=1)
        if engine == "reactor"
        else ProcessEngine(reactor, WorkerSpec(()), processes=2, timeout=1, max_queue=1)
    )
    assert made.description == engine
    responders = object_responders(made, ServerSettings(listen=()))
    assert set(responders) == ({MARSHAL} if engine == "reactor" else {MARSHAL, BUNDLE})
