"""The server's side of a session: order, limits, cancel, shutdown notice, and peers that misbehave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.unit.peers import peer_at
from tests.unit.transports import CLIENT, Link
from uwsgitwisted.errors import Busy, MessageTooLarge, RemoteError, Unavailable
from uwsgitwisted.interfaces import Answer, Reply, Request, StreamedAnswer
from uwsgitwisted.stream import Stream
from uwsgitwisted.transport.batch import SLICE_SIZE
from uwsgitwisted.transport.server.factory import ServerFactory
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.transport.server.session import _FIRST_REQUESTS, ServerSession
from uwsgitwisted.wire.events import AnswerReceived, ErrorReceived, Event, PongReceived, ShutdownReceived
from uwsgitwisted.wire.frame import FIRST_PIECE
from uwsgitwisted.wire.outgoing import OVERHEAD
from uwsgitwisted.wire.packet import PING, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import KEEPALIVE, Terms

ASK = Packet(33, 5, b"ask")
TOLD = Packet(33, 5, b"told")


class Asker(Protocol):
    """A client that offers a session and keeps the events that come."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.decoder = PacketDecoder(count=1)
        self.session: Session = None  # type: ignore[assignment]
        self.granted: Terms | None = None
        self.events: list[Event] = []
        self.lost: Failure | None = None

    def connectionMade(self) -> None:
        self.transport.write(encode_packet(Packet(PING, 0, self.terms.encode())))  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        if self.granted is None:
            packets = self.decoder.receive(data)
            if not packets:
                return
            assert packets[0][:2] == (PING, 1), "the first that comes is not the grant"
            self.granted = Terms.decode(packets[0].payload)
            assert self.granted is not None
            self.session = Session(Role.CLIENT, self.terms, self.granted)
            data = self.decoder.rest()
        self.events += self.session.receive(data)

    def write(self) -> None:
        """Send what the session has to send."""
        while data := self.session.data_to_send():
            self.transport.write(data)  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost = reason


class Bench:
    """A server, and one session with it.

    :param respond: answers requests; without it they wait in :attr:`waiting`.
    """

    def __init__(
        self,
        respond: Callable[[Request], Reply] | None = None,
        *,
        ours: Terms | None = None,
        theirs: Terms | None = None,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        self.requests: list[Request] = []
        self.waiting: list[Deferred[Packet]] = []
        self.cancelled: list[Deferred[Packet]] = []
        self.respond = respond or self.wait
        self.factory = ServerFactory(self.clock, self.answer, terms=ours or Terms(node="n1"), **options)
        self.theirs = theirs or Terms()
        self.client, self.link = self.connect()

    def connect(self) -> tuple[Asker, Link]:
        """Return a session and its connection."""
        server = self.factory.buildProtocol(CLIENT)
        assert server is not None
        client = Asker(self.theirs)
        link = Link(client, server)
        link.flush()
        return client, link

    def wait(self, request: Request) -> Deferred[Packet]:
        deferred: Deferred[Packet] = Deferred(self.cancelled.append)
        self.waiting.append(deferred)
        return deferred

    def answer(self, request: Request) -> Reply:
        self.requests.append(request)
        return self.respond(request)

    def ask(self, *numbers: int, packet: Packet = ASK, seconds: float | None = None) -> None:
        for number in numbers:
            self.client.session.send_request(number, packet, seconds)
        self.send()

    def send(self) -> None:
        self.client.write()
        self.settle()

    def settle(self) -> None:
        """Move everything that moves, in as many turns of the reactor as that takes."""
        self.link.flush()
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)
            self.link.flush()

    def errors(self) -> list[Exception]:
        return [event.error for event in self.client.events if isinstance(event, ErrorReceived)]

    @property
    def ids(self) -> list[int]:
        return [event.id for event in self.client.events if isinstance(event, (AnswerReceived, ErrorReceived))]


class TestRequests:
    def test_grant(self) -> None:
        """An offer is answered with the server's terms."""
        assert Bench().client.granted == Terms(node="n1")

    def test_grant_comes_first(self) -> None:
        """A request right behind the offer is answered, and its answer comes after the grant."""
        bench = Bench(lambda _: TOLD)
        server = bench.factory.buildProtocol(CLIENT)
        assert server is not None
        client = Asker(Terms())
        link = Link(client, server)
        early = Session(Role.CLIENT, Terms(), Terms())
        early.send_request(1, ASK)
        link.client.write(early.data_to_send())
        link.flush()
        assert client.events == [AnswerReceived(1, TOLD, 0.0)]

    def test_answer_at_once(self) -> None:
        """A responder's answer goes back under the request's id."""
        bench = Bench(lambda _: TOLD)
        bench.ask(3, seconds=2.5)
        assert bench.client.events == [AnswerReceived(3, TOLD, 0.0)]
        assert bench.requests == [Request(ASK, peer_at("192.0.2.7", 40001), 2.5)]
        assert bench.client.lost is None

    def test_raw_answer(self) -> None:
        """Bytes get the request's modifiers, since within a session everything is framed."""
        bench = Bench(lambda _: b"raw")
        bench.ask(1)
        assert bench.client.events == [AnswerReceived(1, Packet(33, 5, b"raw"), 0.0)]

    def test_deferred_that_has_fired(self) -> None:
        """A Deferred may have its answer already."""
        bench = Bench(lambda _: succeed(TOLD))
        bench.ask(1)
        assert bench.client.events == [AnswerReceived(1, TOLD, 0.0)]

    def test_out_of_order(self) -> None:
        """Answers go out as they come, whatever the order of the requests."""
        bench = Bench()
        bench.ask(1, 2, 3)
        for place in (2, 0, 1):
            bench.waiting[place].callback(Packet(33, place))
        bench.link.flush()
        assert [(event.id, event.packet[1]) for event in bench.client.events] == [(3, 2), (1, 0), (2, 1)]  # type: ignore[union-attr]

    def test_responder_raises(self) -> None:
        """An exception is sent with its text and traceback, and the session goes on."""

        def respond(_: Request) -> Packet:
            raise KeyError("x")

        bench = Bench(respond)
        bench.ask(1, 2)
        first, second = bench.errors()
        assert isinstance(first, RemoteError)
        assert (first.type, first.message) == ("KeyError", "'x'")
        assert "in respond" in first.traceback
        assert isinstance(second, RemoteError)

    def test_responder_fails(self) -> None:
        """So is a failure; errors of ours come back as themselves."""
        bench = Bench()
        bench.ask(1, 2)
        bench.waiting[0].errback(Busy("full"))
        bench.waiting[1].errback(KeyError("x"))
        bench.link.flush()
        assert [type(error) for error in bench.errors()] == [Busy, RemoteError]

    def test_without_tracebacks(self) -> None:
        """A server may keep tracebacks to itself."""
        bench = Bench(tracebacks=False)
        bench.ask(1)
        bench.waiting[0].errback(Failure(KeyError("x")))
        bench.link.flush()
        [error] = bench.errors()
        assert isinstance(error, RemoteError)
        assert error.traceback == ""

    def test_answer_too_large(self) -> None:
        """An answer that the peer doesn't take is an error that says so, however small its limit is."""
        bench = Bench(lambda _: TOLD, theirs=Terms(max_message=3))
        bench.ask(1, packet=Packet(33, 0, b"x"))
        assert [type(error) for error in bench.errors()] == [MessageTooLarge]
        assert bench.client.lost is None

    def test_large_ones_both_ways(self) -> None:
        """Messages of many pieces arrive, and a small one isn't held up by them."""
        bench = Bench(lambda request: request.packet.payload)
        large = Packet(101, 0, bytes(20 * FIRST_PIECE))
        bench.client.session.send_request(1, large)
        bench.client.session.send_request(2, ASK)
        bench.send()
        assert bench.ids == [2, 1]
        bench.link.client.paused = True
        bench.ask(3, packet=large)
        bench.ask(4)
        bench.link.client.paused = False
        while 3 not in bench.ids and 4 not in bench.ids:
            assert bench.link.pump(10_000)
        assert bench.ids[2:] == [4]
        bench.link.flush()
        assert bench.ids[2:] == [4, 3]

    def test_a_bug_of_ours(self) -> None:
        """An invalid answer is logged, and the connection is closed, so that nobody waits in vain."""
        bench = Bench()
        bench.ask(1)
        with capturedLogs() as logs:
            bench.waiting[0].callback(None)  # type: ignore[arg-type]
        bench.link.flush()
        assert bench.client.lost is not None
        assert logs[0]["log_format"] == "while answering {peer}"


class TestWithdrawal:
    def test_cancel(self) -> None:
        """A cancelled request's Deferred is cancelled, and nothing is answered."""
        bench = Bench()
        bench.ask(1, 2)
        bench.client.session.send_cancel(1)
        bench.client.session.send_cancel(99)
        bench.send()
        assert bench.cancelled == bench.waiting[:1]
        bench.waiting[1].callback(TOLD)
        bench.link.flush()
        assert bench.client.events == [AnswerReceived(2, TOLD, 0.0)]

    def test_a_late_answer(self) -> None:
        """The answer of a responder that ignores its cancel is dropped."""
        bench = Bench()
        inner: Deferred[Packet] = Deferred(lambda deferred: deferred.callback(TOLD))
        bench.respond = lambda _: succeed(None).addCallback(lambda _: inner)
        bench.ask(1)
        bench.client.session.send_cancel(1)
        bench.send()
        assert inner.called
        assert bench.client.events == []

    def test_a_late_answer_to_an_id_that_is_used_again(self) -> None:
        """It is not taken for the answer of the request that has the id now."""
        bench = Bench()
        late: Deferred[Packet] = Deferred()
        stubborn: Deferred[Packet] = Deferred(lambda _: None)
        stubborn.addErrback(lambda _: late)
        bench.respond = lambda _: stubborn
        bench.ask(1)
        bench.client.session.send_cancel(1)
        bench.respond = bench.wait
        bench.ask(1)
        late.callback(Packet(33, 5, b"of the one that was cancelled"))
        bench.settle()
        assert bench.client.events == []
        bench.waiting[0].callback(TOLD)
        bench.settle()
        assert bench.client.events == [AnswerReceived(1, TOLD, 0.0)]

    def test_disconnect(self) -> None:
        """When a connection is lost, its requests are cancelled, and late answers are dropped."""
        bench = Bench()
        bench.ask(1, 2)
        bench.link.cut()
        assert bench.cancelled == bench.waiting
        for deferred in bench.waiting:
            assert deferred.called
        assert not bench.clock.getDelayedCalls()

    def test_finish_after_the_loss(self) -> None:
        """A service that stops while a connection is lost writes nothing to it."""
        bench = Bench()
        server = bench.link.server.protocol
        bench.link.cut()
        server.finish()  # type: ignore[attr-defined]
        assert bench.link.server.outgoing == b""


class TestBrokenPeers:
    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(encode_packet(ASK), id="a plain packet"),
            pytest.param(b"\x22\xff\xff\x63" + bytes(65535), id="an unknown frame"),
        ],
    )
    def test_protocol_error(self, data: bytes) -> None:
        """A peer that violates the protocol is disconnected, and its requests are cancelled."""
        bench = Bench()
        bench.ask(1)
        bench.link.client.write(data)
        with capturedLogs() as logs:
            bench.link.flush()
        assert bench.client.lost is not None
        assert bench.cancelled == bench.waiting
        assert "violated the session protocol" in logs[0]["log_format"]

    @pytest.mark.parametrize(
        "asked", [pytest.param((1,), id="that runs"), pytest.param((7, 8), id="that is held")]
    )
    def test_asked_twice(self, asked: tuple[int, ...]) -> None:
        """The id of a request in flight can't be used for another."""
        bench = Bench(ours=Terms(max_requests=1))
        bench.ask(*asked)
        with capturedLogs() as logs:
            bench.ask(asked[-1])
        assert "sent twice" in str(logs[0]["reason"])
        assert bench.client.lost is not None
        assert len(bench.requests) == 1

    def test_asked_twice_while_it_is_answered(self) -> None:
        """Nor that of one whose answer is being sent in pieces, which those of another would get among."""
        bench = Bench(lambda _: bytes(1_000_000))
        bench.link.client.paused = True
        bench.ask(1)
        with capturedLogs() as logs:
            bench.ask(1)
        assert "sent twice" in str(logs[0]["reason"])
        bench.link.client.paused = False
        bench.settle()
        assert bench.client.lost is not None

    def test_asked_again(self) -> None:
        """An id is free again when its answer is out, or its request was cancelled."""
        bench = Bench(ours=Terms(max_requests=1))
        bench.respond = lambda _: bytes(1_000_000)
        bench.ask(1)
        bench.ask(1)
        assert bench.ids == [1, 1]
        bench.respond = bench.wait
        bench.ask(2, 3)
        for number in (3, 2):
            bench.client.session.send_cancel(number)
        bench.ask(2, 3)
        bench.waiting[1].callback(TOLD)
        bench.waiting[2].callback(TOLD)
        bench.settle()
        assert bench.ids[2:] == [2, 3]

    def test_half_close(self) -> None:
        """A peer that sends no more can't take part in a session."""
        bench = Bench()
        bench.ask(1)
        bench.link.server.protocol.readConnectionLost()  # type: ignore[attr-defined]
        bench.link.flush()
        assert bench.cancelled == bench.waiting


class TestBackPressure:
    def test_requests(self) -> None:
        """While as many requests run as were granted, as many more are held; then nothing more is read."""
        bench = Bench(ours=Terms(max_requests=2))
        bench.ask(1, 2, 3, 4)
        assert len(bench.requests) == 2
        assert not bench.link.server.paused
        bench.ask(5)
        assert bench.link.server.paused
        bench.waiting[1].callback(TOLD)
        assert not bench.link.server.paused
        assert len(bench.requests) == 3

    def test_held_requests(self) -> None:
        """A held request can be cancelled, and doesn't start when it has timed out."""
        bench = Bench(ours=Terms(max_requests=1))
        bench.ask(1)
        bench.client.session.send_request(2, ASK, 5.0)
        bench.client.session.send_request(3, ASK, 50.0)
        bench.client.session.send_request(4, ASK)
        bench.client.session.send_cancel(4)
        bench.send()
        bench.clock.advance(10)
        bench.waiting[0].callback(TOLD)
        bench.link.flush()
        assert [request.seconds for request in bench.requests] == [None, 40.0]

    def test_pings_while_full(self) -> None:
        """A ping is answered while requests are held."""
        bench = Bench(ours=Terms(max_requests=1))
        bench.ask(1, 2)
        bench.client.session.send_ping()
        bench.send()
        assert any(isinstance(event, PongReceived) for event in bench.client.events)

    @pytest.mark.parametrize("taken", [100_000, 1 << 60])
    def test_answers(self, taken: int) -> None:
        """While many answers wait, nothing more is read, whatever the peer says that it takes."""
        bench = Bench(
            lambda request: request.packet.payload,
            ours=Terms(max_message=100_000),
            theirs=Terms(max_message=taken),
        )
        bench.link.client.paused = True
        request = Packet(101, 0, bytes(30_000))
        bench.ask(*range(1, 4), packet=request)
        assert not bench.link.server.paused
        for number in range(4, 100):
            bench.ask(number, packet=request)
        assert bench.link.server.paused
        assert len(bench.requests) < 15
        bench.link.client.paused = False
        bench.settle()
        assert bench.ids == list(range(1, 100))

    def test_much_at_once(self) -> None:
        """Of many frames in one chunk some are read at once, the rest later, and nothing more until then."""
        bench = Bench()
        bench.client.session.send_ping()
        for number in range(3 * SLICE_SIZE):
            bench.client.session.send_request(number, ASK)
        bench.client.session.send_cancel(0)
        bench.client.write()
        bench.link.pump()
        assert len(bench.requests) == SLICE_SIZE - 1
        assert bench.link.server.paused
        bench.settle()
        assert len(bench.waiting) == _FIRST_REQUESTS + 2
        assert bench.cancelled == bench.waiting[:1]
        assert not bench.link.server.paused
        for deferred in bench.waiting:  # it grows meanwhile
            if not deferred.called:
                deferred.callback(TOLD)
        bench.settle()
        assert sorted(bench.ids) == list(range(1, 3 * SLICE_SIZE))

    def test_a_long_answer_to_a_fast_peer(self) -> None:
        """The data written in one turn is bounded, however fast the peer reads."""
        bench = Bench(lambda _: bytes(10_000_000))
        bench.link.server.capacity = 1 << 30
        bench.link.client.paused = True
        bench.client.session.send_request(1, ASK)
        bench.client.write()
        bench.link.pump()
        assert 500_000 < len(bench.link.server.outgoing) < 2_000_000
        bench.link.client.paused = False
        bench.settle()
        assert bench.ids == [1]

    def test_lost_with_much_to_do(self) -> None:
        """A connection that is lost, or cut off, has no more of its frames read."""
        bench = Bench(lambda _: TOLD)
        for number in range(3 * SLICE_SIZE):
            bench.client.session.send_request(number, ASK)
        bench.client.write()
        bench.link.pump()
        bench.link.cut()
        bench.settle()
        assert len(bench.requests) == SLICE_SIZE
        assert not bench.clock.getDelayedCalls()

    def test_cut_off_with_much_to_do(self) -> None:
        """Nor has one that violated the protocol, even before its loss is noticed."""
        bench = Bench()
        for number in (0, *range(3 * SLICE_SIZE)):
            bench.client.session.send_request(number, ASK)
        bench.client.write()
        bench.link.pump()
        bench.clock.advance(0)
        assert len(bench.requests) < SLICE_SIZE

    def test_many_held(self) -> None:
        """Of many requests that are held some are started at once when there is room, the rest later."""
        bench = Bench(ours=Terms(max_requests=1_000))
        bench.ask(*range(_FIRST_REQUESTS + 1))
        bench.respond = lambda _: TOLD
        bench.ask(*range(1_000, 1_000 + 3 * SLICE_SIZE))
        started = len(bench.requests)
        bench.waiting[0].callback(TOLD)
        assert len(bench.requests) == started + SLICE_SIZE
        bench.settle()
        assert len(bench.requests) == started + 3 * SLICE_SIZE

    def test_shutdown_behind_much(self) -> None:
        """A shutdown notice that follows many requests ends the session when they are answered."""
        bench = Bench(lambda _: TOLD)
        for number in range(3 * SLICE_SIZE):
            bench.client.session.send_request(number, ASK)
        bench.client.session.send_shutdown()
        bench.send()
        assert bench.ids == list(range(3 * SLICE_SIZE))
        assert bench.client.lost is not None

    def test_tiny_requests_are_counted(self) -> None:
        """An empty held request counts with its memory."""
        bench = Bench(ours=Terms(max_message=20 * OVERHEAD))
        for number in range(_FIRST_REQUESTS + 30):
            bench.ask(number, packet=Packet(33, 0))
        assert bench.link.server.paused
        assert len(bench.requests) == _FIRST_REQUESTS + 1

    def test_our_pause_is_not_the_peers(self) -> None:
        """A peer in the middle of a message isn't late while it is we who don't read."""
        bench = Bench(ours=Terms(max_requests=1), limits=Limits(body_timeout=30, write_timeout=999))
        unfinished = Session(Role.CLIENT, Terms(), Terms())
        unfinished.send_request(9, Packet(33, 0, bytes(3 * FIRST_PIECE)))
        bench.link.client.write(unfinished.data_to_send())
        bench.ask(1, 2, 3)
        assert bench.link.server.paused
        bench.clock.advance(31)
        bench.settle()
        assert bench.client.lost is None
        bench.waiting[0].callback(TOLD)
        assert not bench.link.server.paused
        bench.clock.advance(31)
        bench.settle()
        assert bench.client.lost is not None

    def test_a_peer_that_does_not_read(self) -> None:
        """A peer that reads none of its answers for too long is disconnected."""
        bench = Bench(lambda _: bytes(200_000), limits=Limits(write_timeout=20))
        bench.link.client.paused = True
        bench.ask(1)
        bench.clock.advance(19)
        bench.link.flush()
        assert bench.client.lost is None
        with capturedLogs() as logs:
            bench.clock.advance(1)
        bench.link.flush()
        assert bench.client.lost is not None
        assert "did not read" in logs[0]["log_format"]

    def test_a_slow_peer(self) -> None:
        """A peer that reads a piece now and then is not."""
        bench = Bench(lambda _: bytes(1_000_000), limits=Limits(write_timeout=20))
        bench.link.client.paused = True
        bench.ask(1)
        bench.link.client.paused = False
        while not bench.ids:
            assert bench.link.pump(80_000)
            bench.clock.advance(15)
        assert bench.client.lost is None


class TestBudget:
    LIMIT = 1_000_000

    def bench(self, respond: Callable[[Request], Reply] | None = None) -> Bench:
        return Bench(respond, limits=Limits(max_buffered=self.LIMIT))

    def errors(self, bench: Bench) -> list[int]:
        """Return the ids of the requests that were refused as too much."""
        refused = [event for event in bench.client.events if isinstance(event, ErrorReceived)]
        assert all(isinstance(event.error, Busy) for event in refused)
        return [event.id for event in refused]

    def test_a_large_request_without_room(self) -> None:
        """It is refused when it begins, and its sender sends no more of it; then there is room again."""
        bench = self.bench()
        large = Packet(33, 5, bytes(450_000))
        bench.ask(1, packet=large)
        first = bench.link
        bench.client, bench.link = bench.connect()
        bench.client.session.send_request(2, large)
        bench.client.transport.write(bench.client.session.data_to_send())  # type: ignore[union-attr]
        bench.settle()
        assert self.errors(bench) == [2]
        assert not bench.client.session.sending
        assert 450_000 < bench.factory.budget.used < 451_000
        bench.waiting[0].callback(TOLD)
        first.flush()
        assert bench.factory.budget.used == 0
        bench.ask(2, packet=large)
        assert len(bench.waiting) == 2

    def test_a_second_large_request_of_a_session(self) -> None:
        """It is not read before the first is answered."""
        bench = self.bench()
        for number in (1, 2):
            bench.ask(number, packet=Packet(33, 5, bytes(450_000)))
        assert (len(bench.waiting), bench.link.server.paused) == (1, True)
        bench.waiting[0].callback(TOLD)
        bench.settle()
        assert len(bench.waiting) == 2
        assert self.errors(bench) == []

    def test_unfinished(self) -> None:
        """A message counts from its beginning, whole, until it is cancelled."""
        bench = self.bench()
        bench.client.session.send_request(1, Packet(33, 5, bytes(400_000)))
        bench.client.transport.write(bench.client.session.data_to_send())  # type: ignore[union-attr]
        bench.settle()
        assert bench.factory.budget.used == 400_000
        bench.client.session.send_cancel(1)
        bench.send()
        assert bench.factory.budget.used == 0

    def test_many_small_requests(self) -> None:
        """Together they are not more than there is room for."""
        bench = self.bench()
        bench.ask(*range(1, 31), packet=Packet(33, 5, bytes(60_000)))
        assert bench.factory.budget.used < self.LIMIT
        assert len(bench.requests) + len(self.errors(bench)) == 30
        assert bench.link.server.paused

    def test_keepalives_while_nothing_is_read(self) -> None:
        """While reading is paused, and pings are not seen, the peer gets keep-alives."""
        bench = self.bench()
        bench.ask(*range(1, 31), packet=Packet(33, 5, bytes(60_000)))
        bench.client.events.clear()
        for _ in range(12):
            bench.clock.advance(KEEPALIVE / 5)
            bench.settle()
        assert bench.client.events == [PongReceived()] * 4
        while bench.waiting:
            bench.waiting.pop().callback(TOLD)
            bench.settle()
        assert not bench.link.server.paused
        bench.client.events.clear()
        bench.clock.advance(20)
        bench.settle()
        assert bench.client.events == []

    def test_an_answer_without_room(self) -> None:
        """An answer that is too much beside others that aren't taken is an error that says so."""
        bench = self.bench()
        bench.ask(1, 2, 3)
        bench.link.server.capacity = 0
        bench.waiting[0].callback(Packet(33, 5, bytes(400_000)))
        bench.waiting[1].callback(Packet(33, 5, bytes(400_000)))
        bench.waiting[2].callback(TOLD)
        bench.settle()
        assert self.errors(bench) == [2]
        assert AnswerReceived(3, TOLD, 0.0) in bench.client.events
        assert bench.factory.budget.used == 0

    def test_small_requests_beside_a_hoarder(self) -> None:
        """A session that has nothing in flight gets its small request answered, however much its peer holds."""
        bench = self.bench()
        bench.ask(*range(1, 31), packet=Packet(33, 5, bytes(60_000)))
        bench.client, bench.link = bench.connect()
        bench.ask(1)
        bench.waiting[-1].callback(TOLD)
        bench.settle()
        assert bench.client.events == [AnswerReceived(1, TOLD, 0.0)]

    def test_lost(self) -> None:
        """A connection that is gone holds nothing."""
        bench = self.bench()
        bench.ask(*range(1, 31), packet=Packet(33, 5, bytes(60_000)))
        bench.link.cut()
        bench.clock.advance(20)
        assert bench.factory.budget.used == 0


class Run:
    """A session with a responder that answers in every way, and a client that keeps to the rules.

    :param ours: what the server grants.
    :param theirs: what the client takes.
    :param capacity: how many bytes the server's transport holds before it says that it is full.
    """

    def __init__(self, ours: Terms, theirs: Terms, capacity: int) -> None:
        self.bench = Bench(self.respond, ours=ours, theirs=theirs)
        self.bench.link.server.capacity = capacity
        self.theirs = theirs
        self.waiting: list[tuple[Deferred[Answer], bytes]] = []
        #: What was asked, and whether it was cancelled since, by the ids.
        self.asked: dict[int, tuple[bytes, bool]] = {}

    def respond(self, request: Request) -> Reply:
        payload = request.packet.payload
        if request.packet.modifier2 == 0:
            return payload
        if request.packet.modifier2 == 1:
            raise ValueError("refused")
        answer: Deferred[Answer] = Deferred()
        self.waiting.append((answer, payload))
        return answer

    def ask(self, size: int, how: int) -> None:
        number = len(self.asked)
        payload = bytes([number % 256]) * size
        with contextlib.suppress(MessageTooLarge):
            self.bench.client.session.send_request(number, Packet(33, how, payload))
            self.asked[number] = (payload, False)

    def cancel(self, number: int, _: int) -> None:
        if number in self.asked:
            self.asked[number] = (self.asked[number][0], True)
            self.bench.client.session.send_cancel(number)

    def move(self, size: int, _: int) -> None:
        self.bench.client.write()
        self.bench.link.pump(size + 1)

    def pause(self, _: int, how: int) -> None:
        self.bench.link.client.paused = bool(how)

    def answer(self, place: int, _: int) -> None:
        if self.waiting:
            answer, payload = self.waiting.pop(place % len(self.waiting))
            if not answer.called:
                answer.callback(payload)

    def finish(self) -> None:
        """Let everything go on until nothing is left."""
        self.pause(0, 0)
        self.bench.send()
        while self.waiting:
            self.answer(0, 0)
            self.bench.settle()

    def check(self) -> None:
        """Check that everything that was asked is answered once, with what belongs to it."""
        assert self.bench.client.lost is None
        assert len(self.bench.ids) == len(set(self.bench.ids))
        missing = set(self.asked) - set(self.bench.ids)
        assert all(self.asked[number][1] for number in missing)
        for event in self.bench.client.events:
            if isinstance(event, AnswerReceived):
                assert event.packet.payload == self.asked[event.id][0]
            elif isinstance(event, ErrorReceived) and isinstance(event.error, MessageTooLarge):
                assert len(self.asked[event.id][0]) > self.theirs.max_message
        assert not self.bench.link.server.paused


_LIMITS = st.one_of(st.integers(1, 3_000), st.sampled_from([100_000, 300_000, 1 << 26]))
_SIZES = st.one_of(st.integers(0, 600), st.sampled_from([2_000, 60_000, FIRST_PIECE + 1, 150_000]))
_STEPS = st.one_of(
    st.tuples(st.just(Run.ask), _SIZES, st.integers(0, 2)),
    st.tuples(st.just(Run.ask), _SIZES, st.integers(0, 2)),
    st.tuples(st.just(Run.move), st.sampled_from([10, 1_000, 100_000]), st.just(0)),
    st.tuples(st.just(Run.answer), st.integers(0, 9), st.just(0)),
    st.tuples(st.just(Run.cancel), st.integers(0, 30), st.just(0)),
    st.tuples(st.just(Run.pause), st.just(0), st.integers(0, 1)),
)


class TestAnyLimits:
    @settings(max_examples=300, deadline=None)
    @given(
        _LIMITS, _LIMITS, st.sampled_from([1, 2, 5, 1_000]), st.sampled_from([0, 100, 65_536]), st.lists(_STEPS)
    )
    def test_everything_is_answered(
        self,
        ours: int,
        theirs: int,
        requests: int,
        capacity: int,
        steps: list[tuple[Callable[[Run, int, int], None], int, int]],
    ) -> None:
        """Every request is answered once, at any limits, in any order, to readers of any speed."""
        run = Run(Terms(ours, requests), Terms(theirs), capacity)
        for step, number, how in steps:
            step(run, number, how)
        run.finish()
        run.check()

    @pytest.mark.parametrize("limit", [500, 2_000, 100_000])
    @pytest.mark.parametrize("size", [0, 500])
    def test_many_at_once(self, limit: int, size: int) -> None:
        """So are many that come together, where a few are as much as may wait."""
        run = Run(Terms(limit, 5), Terms(), 65_536)
        for number in range(500):
            run.ask(size, number % 2 * 2)
        run.finish()
        run.check()


class TestEnd:
    def test_idle(self) -> None:
        """A session without a request is closed in time, with a shutdown notice."""
        bench = Bench(lambda _: TOLD, limits=Limits(idle_timeout=60))
        bench.clock.advance(50)
        bench.ask(1)
        bench.clock.advance(59)
        bench.link.flush()
        assert ShutdownReceived() not in bench.client.events
        bench.clock.advance(1)
        bench.link.flush()
        assert bench.client.events[-1] == ShutdownReceived()
        assert bench.client.lost is None
        bench.clock.advance(5)
        bench.link.flush()
        assert bench.client.lost is not None

    def test_a_running_request_is_not_idle(self) -> None:
        """While a request runs, its session is kept."""
        bench = Bench(limits=Limits(idle_timeout=60))
        bench.ask(1)
        for _ in range(20):
            bench.clock.advance(10)
            bench.link.flush()
        assert bench.client.events == []
        assert bench.client.lost is None

    def test_ping(self) -> None:
        """A ping within the session is answered, and shows that the peer is there."""
        bench = Bench(limits=Limits(idle_timeout=60))
        bench.clock.advance(50)
        bench.client.session.send_ping()
        bench.send()
        bench.clock.advance(50)
        bench.link.flush()
        assert bench.client.events == [PongReceived()]

    def test_our_shutdown(self) -> None:
        """A service that stops says so, refuses what crosses it, and answers what runs."""
        bench = Bench()
        bench.ask(1)
        finished = bench.factory.finish()
        bench.ask(2)
        assert bench.client.events[0] == ShutdownReceived()
        [error] = bench.errors()
        assert type(error) is Unavailable
        assert len(bench.requests) == 1
        bench.waiting[0].callback(TOLD)
        bench.link.flush()
        assert bench.ids == [2, 1]
        bench.link.server.protocol.finish()  # type: ignore[attr-defined]
        bench.link.flush()
        assert bench.client.events.count(ShutdownReceived()) == 1
        assert not finished.called
        bench.link.client.loseConnection()
        bench.link.flush()
        assert finished.called

    def test_a_peer_that_stays_after_our_shutdown(self) -> None:
        """It is closed when its last answer is out and some time has passed."""
        bench = Bench()
        bench.ask(1)
        finished = bench.factory.finish()
        bench.clock.advance(5)
        bench.link.flush()
        assert bench.client.lost is None
        bench.waiting[0].callback(TOLD)
        bench.link.flush()
        assert bench.ids == [1]
        bench.clock.advance(5)
        bench.link.flush()
        assert bench.client.lost is not None
        assert finished.called

    def test_the_peers_shutdown(self) -> None:
        """A peer that announces its shutdown gets its answers, then the connection is closed."""
        bench = Bench()
        bench.ask(1)
        bench.client.session.send_shutdown()
        bench.send()
        assert bench.client.lost is None
        bench.waiting[0].callback(TOLD)
        bench.link.flush()
        assert bench.ids == [1]
        assert bench.client.lost is not None

    def test_the_peers_shutdown_with_nothing_running(self) -> None:
        """It is closed at once."""
        bench = Bench()
        bench.client.session.send_shutdown()
        bench.send()
        assert bench.client.lost is not None
        assert not bench.clock.getDelayedCalls()


class TestStreamedAnswers:
    """Answers that come as streams: a session's peer gets them whole."""

    def begin(self, **options: Any) -> tuple[Bench, Stream, list[bool]]:
        """Ask for something, and let its answer begin."""
        bench = Bench(**options)
        bench.ask(1)
        cancelled: list[bool] = []
        stream = Stream(on_cancel=lambda: cancelled.append(True))
        stream.write(b"first ")
        bench.waiting[0].callback(StreamedAnswer(Packet(0, 0, b"head "), stream))  # type: ignore[arg-type]
        bench.settle()
        return bench, stream, cancelled

    def test_whole(self) -> None:
        """The answer goes out when it is complete."""
        bench, stream, _ = self.begin()
        assert bench.client.events == []
        stream.write(b"second")
        stream.end()
        bench.settle()
        assert bench.client.events == [AnswerReceived(1, Packet(0, 0, b"head first second"), 0.0)]

    def test_complete_at_once(self) -> None:
        """A stream may have ended when its answer comes."""
        stream = Stream()
        stream.end()
        bench = Bench(lambda _: succeed(StreamedAnswer(Packet(0, 0, b"all"), stream)))
        bench.ask(1)
        bench.settle()
        assert bench.client.events == [AnswerReceived(1, Packet(0, 0, b"all"), 0.0)]

    def test_fails(self) -> None:
        """An answer that ends early fails with the reason."""
        bench, stream, _ = self.begin()
        stream.end(Unavailable("no more"))
        bench.settle()
        assert [type(error) for error in bench.errors()] == [Unavailable]

    def test_a_bug_of_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A mistake at the end of such an answer is logged, and the connection is closed."""
        bench, stream, _ = self.begin()
        monkeypatch.setattr(ServerSession, "_send_error", lambda *_: 1 / 0)
        with capturedLogs() as logs:
            stream.end(Unavailable("no more"))
            bench.settle()
        assert bench.client.lost is not None
        assert [event["log_format"] for event in logs] == ["while answering {peer}"]

    def test_too_large(self) -> None:
        """An answer that is larger than the peer accepts fails, and its worker is told to stop."""
        bench, stream, cancelled = self.begin(theirs=Terms(max_message=100_000))
        stream.write(bytes(100_000))
        bench.settle()
        assert [type(error) for error in bench.errors()] == [MessageTooLarge]
        assert cancelled == [True]
        assert bench.client.lost is None

    def test_cancelled(self) -> None:
        """A peer that cancels its request ends the stream, which may have no end by itself."""
        bench, stream, cancelled = self.begin()
        bench.client.session.send_cancel(1)
        bench.send()
        assert cancelled == [True]
        stream.write(b"late")
        bench.settle()
        assert bench.client.events == []

    def test_peer_goes(self) -> None:
        """So does a peer that goes."""
        bench, _, cancelled = self.begin()
        bench.link.cut()
        assert cancelled == [True]
        assert bench.factory.budget.used == 0

    def test_budget(self) -> None:
        """What is collected counts against the budget: over it, the answer is refused, and its worker told."""
        bench, stream, cancelled = self.begin(limits=Limits(max_buffered=1_000_000))
        stream.write(bytes(200_000))
        stream.write(bytes(200_000))
        bench.settle()
        assert bench.errors() == []
        stream.write(bytes(200_000))
        bench.settle()
        assert [type(error) for error in bench.errors()] == [Busy]
        assert cancelled == [True]
        assert bench.factory.budget.used == 0

    def test_budget_of_a_whole(self) -> None:
        """The parts of an answer that is complete don't count twice."""
        bench, stream, _ = self.begin(limits=Limits(max_buffered=1_000_000))
        for _ in range(4):
            stream.write(bytes(100_000))
        stream.end()
        bench.settle()
        assert isinstance(bench.client.events[0], AnswerReceived)
        assert bench.factory.budget.used == 0
