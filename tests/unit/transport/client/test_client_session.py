"""The client's side of a session: Deferreds, time limits, cancel, shutdown notice, loss; and how one begins."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.unit.transports import Link, ScriptedServer
from uwsgitwisted.errors import (
    Busy,
    ConnectionFailed,
    MalformedPacket,
    MessageTooLarge,
    NoAnswer,
    RequestCancelled,
    RequestTimeout,
)
from uwsgitwisted.transport.client.call import Call
from uwsgitwisted.transport.client.session import ClientSession, negotiate
from uwsgitwisted.wire.events import CancelReceived, Event, PingReceived, RequestReceived, ShutdownReceived
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.frame import FIRST_PIECE
from uwsgitwisted.wire.packet import PING, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.session import MAX_ID, Role, Session
from uwsgitwisted.wire.terms import KEEPALIVE, Terms

ASK = Packet(33, 5, b"ask")
TOLD = Packet(33, 5, b"told")


class Answerer(Protocol):
    """A server that grants a session, keeps the events that come, and answers when it is told to."""

    def __init__(self, terms: Terms | None = None) -> None:
        self.terms = terms or Terms(node="n1")
        self.decoder = PacketDecoder(count=1)
        self.session: Session = None  # type: ignore[assignment]
        self.events: list[Event] = []
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        if self.session is None:
            [packet] = self.decoder.receive(data)
            theirs = Terms.decode(packet.payload)
            assert theirs is not None
            self.session = Session(Role.SERVER, self.terms, theirs)
            self.transport.write(encode_packet(Packet(PING, 1, self.terms.encode())))  # type: ignore[union-attr]
            data = self.decoder.rest()
        self.events += self.session.receive(data)

    def write(self) -> None:
        while data := self.session.data_to_send():
            self.transport.write(data)  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost = True


class Bench:
    """An asking session in memory, and the server that it asks."""

    def __init__(self, ours: Terms | None = None, theirs: Terms | None = None) -> None:
        self.clock = Clock()
        self.server = Answerer(theirs)
        self.protocol = negotiate(self.clock, ours or Terms())
        sessions: list[Any] = []
        self.protocol.negotiated.addCallback(sessions.append)
        self.link = Link(self.protocol, self.server)
        self.link.flush()
        self.session: ClientSession = sessions[0]

    def request(
        self, packet: Packet = ASK, seconds: float | None = None, *, idempotent: bool = False
    ) -> Deferred[Any]:
        """Send a call as the client does, and return the Deferred of its answer."""
        deadline = math.inf if seconds is None else self.clock.seconds() + seconds
        call = Call(packet, deadline, seconds or 0.0, idempotent=idempotent)
        self.session.send(call)
        return call.answer

    def ask(self, packet: Packet = ASK, seconds: float | None = None) -> list[Any]:
        """Ask; what becomes of it is put in the list that is returned."""
        results: list[Any] = []
        self.request(packet, seconds).addBoth(results.append)
        self.link.flush()
        return results

    @property
    def asked(self) -> list[int]:
        return [event.id for event in self.server.events if isinstance(event, RequestReceived)]

    def tell(self, request: int, packet: Packet = TOLD) -> None:
        self.server.session.send_answer(request, packet)
        self.send()

    def send(self) -> None:
        self.server.write()
        self.link.flush()


class TestRequests:
    def test_answers_in_any_order(self) -> None:
        """Each answer fires the Deferred of its request."""
        bench = Bench()
        first, second = bench.ask(), bench.ask()
        assert bench.session.pending == 2
        bench.tell(bench.asked[1], Packet(33, 2))
        assert (first, second) == ([], [Packet(33, 2)])
        bench.tell(bench.asked[0], Packet(33, 1))
        assert first == [Packet(33, 1)]
        assert bench.session.pending == 0

    def test_error(self) -> None:
        """What the peer says went wrong fails the Deferred."""
        bench = Bench()
        results = bench.ask()
        bench.server.session.send_error(1, encode_failure(Busy("full")))
        bench.send()
        assert results[0].check(Busy)

    def test_deadline_travels(self) -> None:
        """The peer learns how long the answer is waited for."""
        bench = Bench()
        bench.ask(seconds=2.5)
        assert bench.server.events == [RequestReceived(1, ASK, 2.5)]

    def test_too_large(self) -> None:
        """What the peer doesn't take is refused at once, and nothing is pending."""
        bench = Bench(theirs=Terms(max_message=2))
        with pytest.raises(MessageTooLarge):
            bench.request(ASK)
        assert bench.session.pending == 0

    def test_requests_of_a_callback(self) -> None:
        """A callback may ask again, and its request goes out."""
        bench = Bench()
        again: list[Deferred[Packet]] = []
        bench.request(ASK).addCallback(lambda _: again.append(bench.request(ASK)))
        bench.link.flush()
        bench.tell(1)
        assert bench.asked == [1, 2]
        assert len(again) == 1

    def test_ids_wrap(self) -> None:
        """After the last id the first ones are used again, but for those in flight."""
        bench = Bench()
        for _ in range(2):
            bench.ask()
        bench.session._ids = itertools.count(MAX_ID)
        bench.ask()
        bench.ask()
        bench.ask()
        assert bench.asked == [1, 2, MAX_ID, 0, 3]

    def test_large_ones_wait_for_the_connection(self) -> None:
        """A large request is given to the connection piece by piece, so that a later small one passes it."""
        bench = Bench()
        bench.link.server.paused = True
        bench.ask(Packet(33, 0, bytes(10 * FIRST_PIECE)))
        assert len(bench.link.client.outgoing) < 3 * FIRST_PIECE
        bench.ask()
        bench.link.server.paused = False
        bench.link.flush()
        assert bench.asked == [2, 1]

    def test_ping(self) -> None:
        """The peer's ping is answered."""
        bench = Bench()
        bench.server.session.send_ping()
        bench.send()
        assert len(bench.server.events) == 1

    def test_idempotent(self) -> None:
        """A request that may be run again says so."""
        bench = Bench()
        bench.request(ASK, idempotent=True)
        bench.request(ASK)
        bench.link.flush()
        assert [getattr(event, "idempotent", None) for event in bench.server.events] == [True, False]


class TestHolding:
    def test_as_many_as_the_peer_works_on(self) -> None:
        """No more requests are sent than the peer works on at once; the rest follows as answers come."""
        bench = Bench(theirs=Terms(max_requests=2))
        results = [bench.ask() for _ in range(4)]
        assert bench.asked == [1, 2]
        assert bench.session.pending == 4
        bench.tell(2)
        bench.tell(1)
        assert bench.asked == [1, 2, 3, 4]
        bench.tell(3)
        bench.tell(4)
        assert results == [[TOLD]] * 4

    def test_withdrawn(self) -> None:
        """A held request is cancelled silently; the cancel of a sent one makes room."""
        bench = Bench(theirs=Terms(max_requests=1))
        answers = [bench.request(ASK) for _ in range(3)]
        for answer in answers:
            answer.addErrback(lambda failure: failure.trap(RequestCancelled) and None)
        answers[1].cancel()
        bench.link.flush()
        assert bench.asked == [1]
        answers[0].cancel()
        bench.link.flush()
        assert bench.asked == [1, 3]
        assert [event.id for event in bench.server.events if isinstance(event, CancelReceived)] == [1]

    def test_what_is_left_of_its_time(self) -> None:
        """A held request is sent with the time left until its deadline."""
        bench = Bench(theirs=Terms(max_requests=1))
        bench.ask()
        bench.ask(seconds=10)
        bench.clock.advance(4)
        bench.tell(1)
        assert bench.server.events[-1] == RequestReceived(2, ASK, 6.0)

    def test_too_large(self) -> None:
        """A request that is too large for the peer fails at once, even if it would be held."""
        bench = Bench(theirs=Terms(max_requests=1, max_message=10))
        bench.ask()
        with pytest.raises(MessageTooLarge):
            bench.request(Packet(33, 0, bytes(11)))


class TestTime:
    def test_how_long_the_handler_ran(self) -> None:
        """A call that is answered has the time that its handler took, as the node tells it."""
        bench = Bench()
        call = Call(ASK)
        bench.session.send(call)
        bench.link.flush()
        bench.server.session.send_answer(bench.asked[0], TOLD, 0.25)
        bench.send()
        assert call.took == 0.25


class TestKeepalive:
    def test_a_peer_that_neither_reads_nor_speaks(self) -> None:
        """A server that neither reads nor sends is treated as dead: data for it would pile up."""
        bench = Bench()
        bench.link.server.paused = True
        results = bench.ask(Packet(33, 0, bytes(10_000_000)))
        bench.clock.advance(KEEPALIVE)
        assert results == []
        bench.clock.advance(KEEPALIVE)
        assert isinstance(results[0].value, NoAnswer)

    @pytest.mark.parametrize("how", ["reads a little", "says that it lives"])
    def test_a_peer_that_hardly_reads(self, how: str) -> None:
        """A server that reads slowly, or is full but sends keep-alives, is kept."""
        bench = Bench()
        bench.link.server.paused = True
        results = bench.ask(Packet(33, 0, bytes(10_000_000)))
        for _ in range(10):
            bench.clock.advance(KEEPALIVE)
            if how == "reads a little":
                bench.link.server.paused = False
                bench.link.pump()
                bench.link.server.paused = True
            else:
                bench.server.session.send_pong()
                bench.send()
        assert results == []

    def test_a_peer_that_lives(self) -> None:
        """A peer that is busy with a long request is pinged, and kept as long as it answers."""
        bench = Bench()
        results = bench.ask()
        for _ in range(10):
            bench.clock.advance(KEEPALIVE)
            bench.link.flush()
            bench.send()
        assert sum(isinstance(event, PingReceived) for event in bench.server.events) == 10
        assert results == []
        bench.tell(bench.asked[0])
        assert results == [TOLD]

    def test_a_dead_peer(self) -> None:
        """A server that doesn't even answer pings is treated as dead, and its calls fail."""
        bench = Bench()
        results = bench.ask()
        bench.clock.advance(KEEPALIVE)
        assert results == []
        bench.clock.advance(KEEPALIVE)
        assert isinstance(results[0].value, NoAnswer)
        assert "sent nothing for 10 s, not even the answer to a ping" in str(results[0].value)
        assert bench.protocol.transport.aborted  # type: ignore[union-attr]
        assert bench.clock.getDelayedCalls() == []

    def test_nothing_pending(self) -> None:
        """While nothing is waited for, nothing is sent, and a peer may be silent."""
        bench = Bench()
        bench.ask()
        bench.tell(bench.asked[0])
        bench.clock.advance(KEEPALIVE)
        bench.clock.advance(10 * KEEPALIVE)
        bench.link.flush()
        assert [type(event) for event in bench.server.events] == [RequestReceived]
        assert not bench.session.draining


class TestWithdrawal:
    def test_cancel(self) -> None:
        """A cancel is sent to the peer, and an answer that raced with it is dropped."""
        bench = Bench()
        results: list[Any] = []
        deferred = bench.request(ASK).addErrback(results.append)
        bench.link.flush()
        deferred.cancel()
        bench.link.flush()
        assert results[0].check(RequestCancelled)
        assert bench.server.events[-1] == CancelReceived(1)
        bench.tell(1)
        assert bench.session.pending == 0

    def test_cancel_crosses_large_answers(self) -> None:
        """First pieces of cancelled answers take nothing of the window."""
        large = Packet(33, 0, bytes(3 * FIRST_PIECE))
        bench = Bench(ours=Terms(max_message=len(large.payload)))
        for number in (1, 2, 3):
            deferred = bench.request(ASK)
            deferred.addErrback(lambda failure: failure.trap(RequestCancelled) and None)
            bench.link.flush()
            bench.server.session.send_answer(number, large)
            first_piece = bench.server.session.data_to_send()
            deferred.cancel()
            bench.link.server.write(first_piece)
            bench.send()
        results = bench.ask()
        bench.tell(4, large)
        assert results == [large]

    def test_timeout(self) -> None:
        """A request that times out fails and is cancelled at the peer; others go on."""
        bench = Bench()
        late, early, endless = bench.ask(seconds=8), bench.ask(seconds=4), bench.ask()
        bench.clock.advance(3.9)
        assert early == []
        bench.clock.advance(0.1)
        assert early[0].check(RequestTimeout)
        assert (early[0].value.seconds, str(early[0].value)) == (4, "no answer within 4 s")
        bench.link.flush()
        assert bench.server.events[-1] == CancelReceived(2)
        assert late == []
        bench.clock.advance(4)
        assert late[0].check(RequestTimeout)
        assert endless == []

    def test_timeout_names_what_was_allowed(self) -> None:
        """A request that had a part of its time before names all of it."""
        bench = Bench()
        results: list[Any] = []
        call = Call(ASK, bench.clock.seconds() + 3, 30)
        call.answer.addErrback(results.append)
        bench.session.send(call)
        bench.clock.advance(3)
        assert results[0].value.seconds == 30

    def test_the_alarm_after_an_answer(self) -> None:
        """Answered requests don't time out."""
        bench = Bench()
        first = bench.ask(seconds=10)
        bench.tell(1)
        bench.clock.advance(5)
        second = bench.ask(seconds=10)
        bench.clock.advance(9)
        assert (first, second) == ([TOLD], [])
        bench.clock.advance(1)
        assert second[0].check(RequestTimeout)

    @pytest.mark.parametrize("end", ["timeout", "loss"])
    def test_one_that_fails_cancels_the_others(self, end: str) -> None:
        """A callback may cancel other requests while they all fail together."""
        bench = Bench()
        results: list[Any] = []
        deferreds = [bench.request(ASK, 5) for _ in range(3)]

        def cancel_others(failure: Failure) -> None:
            results.append(failure.type)
            for deferred in deferreds:
                deferred.cancel()

        deferreds[0].addErrback(cancel_others)
        for deferred in deferreds[1:]:
            deferred.addErrback(lambda failure: results.append(failure.type))
        if end == "timeout":
            bench.clock.advance(5)
            assert results == [RequestTimeout, RequestCancelled, RequestCancelled]
        else:
            bench.link.cut()
            assert results == [NoAnswer, RequestCancelled, RequestCancelled]
        assert bench.session.pending == 0


class TestEnd:
    def test_loss(self) -> None:
        """When the connection is lost, pending calls fail, and no timer is left."""
        bench = Bench()
        results = bench.ask(seconds=10)
        bench.link.cut()
        assert results[0].check(NoAnswer)
        assert bench.session.draining
        assert bench.protocol.lost.called
        assert not bench.clock.getDelayedCalls()

    def test_protocol_error(self) -> None:
        """A peer that violates the protocol is disconnected, and pending calls fail with the reason."""
        bench = Bench()
        results = bench.ask()
        bench.link.server.write(encode_packet(ASK))
        bench.link.flush()
        assert results[0].check(MalformedPacket)
        assert bench.server.lost

    def test_the_peers_shutdown(self) -> None:
        """After the peer's shutdown notice the last answer closes the connection, with one of ours."""
        bench = Bench()
        results = bench.ask()
        bench.server.session.send_shutdown()
        bench.send()
        assert bench.session.draining
        assert not bench.server.lost
        bench.tell(1)
        assert results == [TOLD]
        assert bench.server.events[-1] == ShutdownReceived()
        assert bench.server.lost

    def test_the_peers_shutdown_with_nothing_pending(self) -> None:
        """The connection is closed at once."""
        bench = Bench()
        bench.server.session.send_shutdown()
        bench.send()
        assert bench.server.lost

    def test_close(self) -> None:
        """Closing sends a shutdown notice; pending calls fail."""
        bench = Bench()
        results = bench.ask()
        bench.protocol.close()
        bench.link.flush()
        assert bench.server.events[-1] == ShutdownReceived()
        assert bench.server.lost
        assert results[0].check(NoAnswer)


class TestOffer:
    def negotiate(self, server: Protocol) -> tuple[Any, list[Any], Link]:
        protocol = negotiate(Clock(), Terms(max_message=77))
        results: list[Any] = []
        protocol.negotiated.addBoth(results.append)
        link = Link(protocol, server)
        return protocol, results, link

    def test_bytes(self) -> None:
        """The offer is a ping with our terms."""
        server = ScriptedServer(close=False)
        _, results, link = self.negotiate(server)
        link.flush()
        assert server.received == encode_packet(Packet(PING, 0, Terms(max_message=77).encode()))
        assert results == []

    def test_granted(self) -> None:
        """The peer's terms make a session, which gets the bytes that follow in the same chunk."""
        grant = encode_packet(Packet(PING, 1, Terms().encode()))
        peer = Session(Role.SERVER, Terms(), Terms())
        peer.send_shutdown()
        protocol, results, link = self.negotiate(ScriptedServer(grant + peer.data_to_send(), close=False))
        link.flush()
        [session] = results
        assert isinstance(session, ClientSession)
        assert session.draining
        assert protocol.answered

    def test_granted_byte_by_byte(self) -> None:
        """The terms may come in any pieces."""
        _, results, link = self.negotiate(
            ScriptedServer(encode_packet(Packet(PING, 1, Terms().encode())), close=False)
        )
        link.flush(1)
        assert isinstance(results[0], ClientSession)

    @pytest.mark.parametrize(
        "answer", [Packet(PING, 1), Packet(PING, 1, b"out of memory"), Packet(33, 0, Terms().encode())]
    )
    def test_plain(self, answer: Packet) -> None:
        """Any other packet says that the peer is plain, and the connection is closed."""
        server = ScriptedServer(encode_packet(answer), close=False)
        protocol, results, link = self.negotiate(server)
        link.flush()
        assert results == [None]
        assert protocol.answered
        assert server.lost

    def test_eof(self) -> None:
        """So does the end of the connection, but less surely."""
        protocol, results, link = self.negotiate(ScriptedServer())
        link.flush()
        assert results == [None]
        assert not protocol.answered
        assert protocol.lost.called

    def test_close_before_an_answer(self) -> None:
        """Who closes an offer learns nothing of the peer."""
        server = ScriptedServer(close=False)
        protocol, results, link = self.negotiate(server)
        link.flush()
        protocol.close()
        link.flush()
        assert results[0].check(ConnectionFailed)
        assert server.lost

    @pytest.mark.parametrize("answer", [Packet(PING, 1), Packet(PING, 1, Terms().encode())])
    def test_an_answer_that_comes_too_late(self, answer: Packet) -> None:
        """A late grant changes nothing: the caller has timed out."""
        server = ScriptedServer(encode_packet(answer), close=False)
        protocol, results, link = self.negotiate(server)
        protocol.negotiated.cancel()
        link.flush()
        assert len(results) == 1
        protocol.close()
        link.flush()
        assert server.lost
