"""The answering side of a session: order, limits, cancel, goodbye, and peers that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.unit.peers import peer_at
from tests.unit.transports import CLIENT, Link
from uwsgitwisted.errors import Busy, MessageTooLarge, RemoteError, Unavailable
from uwsgitwisted.interfaces import Reply, Request
from uwsgitwisted.transport.server import Limits, ServerFactory
from uwsgitwisted.wire.packet import PING, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.session import (
    FIRST_PIECE,
    AnswerReceived,
    ErrorReceived,
    Event,
    GoodbyeReceived,
    PongReceived,
    Role,
    Session,
)
from uwsgitwisted.wire.terms import Terms

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
        server = self.factory.buildProtocol(CLIENT)
        assert server is not None
        self.client = Asker(theirs or Terms())
        self.link = Link(self.client, server)
        self.link.flush()

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
        """An exception is told with its text and traceback, and the session goes on."""

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
        """An answer that is none is logged, and the connection closed, so that nobody waits in vain."""
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
        """A responder that goes on after the cancel has its answer dropped."""
        bench = Bench()
        inner: Deferred[Packet] = Deferred(lambda deferred: deferred.callback(TOLD))
        bench.respond = lambda _: succeed(None).addCallback(lambda _: inner)
        bench.ask(1)
        bench.client.session.send_cancel(1)
        bench.send()
        assert inner.called
        assert bench.client.events == []

    def test_disconnect(self) -> None:
        """A connection that is lost has all its requests withdrawn, and late answers go nowhere."""
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
        """A peer that breaks the protocol is cut off, and what it had asked is withdrawn."""
        bench = Bench()
        bench.ask(1)
        bench.link.client.write(data)
        with capturedLogs() as logs:
            bench.link.flush()
        assert bench.client.lost is not None
        assert bench.cancelled == bench.waiting
        assert "broke the protocol" in logs[0]["log_format"]

    def test_asked_twice(self) -> None:
        """The id of a running request can't be used for another."""
        bench = Bench()
        bench.ask(1)
        with capturedLogs() as logs:
            bench.ask(1)
        assert "asked twice" in str(logs[0]["reason"])
        assert bench.client.lost is not None
        assert len(bench.requests) == 1

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
        """A held request is withdrawn by its cancel, and is not begun when its caller's time is over."""
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
        bench.link.flush()
        assert bench.ids == list(range(1, 100))

    def test_a_peer_that_does_not_read(self) -> None:
        """One that takes nothing of its answers for too long is cut off."""
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
        assert "took nothing" in logs[0]["log_format"]

    def test_a_slow_peer(self) -> None:
        """One that takes a piece now and then is not."""
        bench = Bench(lambda _: bytes(1_000_000), limits=Limits(write_timeout=20))
        bench.link.client.paused = True
        bench.ask(1)
        bench.link.client.paused = False
        while not bench.ids:
            assert bench.link.pump(80_000)
            bench.clock.advance(15)
        assert bench.client.lost is None


class TestEnd:
    def test_idle(self) -> None:
        """A session without a request is closed in time, with a goodbye."""
        bench = Bench(lambda _: TOLD, limits=Limits(idle_timeout=60))
        bench.clock.advance(50)
        bench.ask(1)
        bench.clock.advance(59)
        bench.link.flush()
        assert GoodbyeReceived() not in bench.client.events
        bench.clock.advance(1)
        bench.link.flush()
        assert bench.client.events[-1] == GoodbyeReceived()
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

    def test_our_goodbye(self) -> None:
        """A service that stops says so, refuses what crosses it, and answers what runs."""
        bench = Bench()
        bench.ask(1)
        finished = bench.factory.finish()
        bench.ask(2)
        assert bench.client.events[0] == GoodbyeReceived()
        [error] = bench.errors()
        assert type(error) is Unavailable
        assert len(bench.requests) == 1
        bench.waiting[0].callback(TOLD)
        bench.link.flush()
        assert bench.ids == [2, 1]
        bench.link.server.protocol.finish()  # type: ignore[attr-defined]
        bench.link.flush()
        assert bench.client.events.count(GoodbyeReceived()) == 1
        assert not finished.called
        bench.link.client.loseConnection()
        bench.link.flush()
        assert finished.called

    def test_a_peer_that_stays_after_our_goodbye(self) -> None:
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

    def test_the_peers_goodbye(self) -> None:
        """A peer that says goodbye gets its answers, then the connection is closed."""
        bench = Bench()
        bench.ask(1)
        bench.client.session.send_goodbye()
        bench.send()
        assert bench.client.lost is None
        bench.waiting[0].callback(TOLD)
        bench.link.flush()
        assert bench.ids == [1]
        assert bench.client.lost is not None

    def test_the_peers_goodbye_with_nothing_running(self) -> None:
        """It is closed at once."""
        bench = Bench()
        bench.client.session.send_goodbye()
        bench.send()
        assert bench.client.lost is not None
        assert not bench.clock.getDelayedCalls()
