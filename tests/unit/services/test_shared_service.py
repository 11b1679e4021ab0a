"""Signals on their way to workers: whose requests they are, and what is answered if there is no room."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from tests.unit.peers import peer_at
from uwsgitwisted.access import Peer, parse_network
from uwsgitwisted.errors import Busy
from uwsgitwisted.interfaces import Request
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.services.shared.service import Shared, SharedSettings
from uwsgitwisted.wire.packet import NO, SIGNAL, YES, Packet
from uwsgitwisted.worker.spec import WorkerSpec

PEER = peer_at("10.0.0.5")


class Engine:
    """An engine that keeps what it is given, or refuses it."""

    def __init__(self) -> None:
        self.given: list[tuple[int, int, Peer]] = []
        self.answers: list[Deferred[Packet]] = []
        self.full = False

    def submit(self, request: Request, worker: int) -> Deferred[Packet]:
        if self.full:
            return fail(Busy("there is no room"))
        self.given.append((worker, request.packet.modifier2, request.peer))
        self.answers.append(Deferred())
        return self.answers[-1]

    def reports(self) -> list[object]:
        return []


def make() -> tuple[Engine, Any]:
    """Return an engine, and what its processes share; any worker handles the signals 1 and 2."""
    engine = Engine()
    shares = SharedSettings(signal_networks=[parse_network("10.0.0.0/8")])
    reactor: Any = Clock()
    given: Any = engine
    shared = Shared(reactor, given, WorkerSpec(()), ServerSettings(listen=()), shares)
    state = shared._state
    for number in (b"1", b"2"):
        state.call(state.connect(1), [b"signal_register", number, b""], lambda _: None)
    return engine, shared


def test_each_signal_takes_its_own_turn() -> None:
    """The service's signals wait as the requests of a peer each, and a peer's as its own."""
    engine, shared = make()
    for number in (b"1", b"2", b"1"):
        shared._state.call(shared._state.connect(1), [b"signal", number], lambda _: None)
    assert shared.signal_responder.respond(Request(Packet(SIGNAL, 1), PEER)) == YES
    assert [(worker, number) for worker, number, _ in engine.given] == [(0, 1), (0, 2), (0, 1), (0, 1)]
    one, two, again, theirs = (peer.group for _, _, peer in engine.given)
    assert one == again
    assert len({one, two, theirs}) == 3
    assert theirs == PEER.group


def test_an_engine_without_room() -> None:
    """A peer whose signal the engine refuses gets a no, and its place is free again."""
    engine, shared = make()
    engine.full = True
    for _ in range(2_000):
        assert shared.signal_responder.respond(Request(Packet(SIGNAL, 1), PEER)) == NO
    engine.full = False
    assert shared.signal_responder.respond(Request(Packet(SIGNAL, 1), PEER)) == YES
    engine.answers[0].callback(Packet(SIGNAL, 1))
    assert len(engine.given) == 1
