"""The serving side of connections: plain requests, every time limit, and who may connect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.unit.peers import peer_at
from tests.unit.transports import CLIENT, Link
from uwsgitwisted.access import parse_network
from uwsgitwisted.errors import Busy, MessageTooLarge
from uwsgitwisted.interfaces import Reply, Request
from uwsgitwisted.transport.server.factory import ServerFactory
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.wire.packet import MAX_PAYLOAD, PING, Packet, encode_packet
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.wire.vars import encode_vars, split_vars

ASK = Packet(33, 5, b"ask")
TOLD = Packet(33, 5, b"told")


class IsA:
    """Equals whatever is of a class.

    :param kind: the class.
    """

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, self.kind)

    __hash__ = None  # type: ignore[assignment]


class Recorder(Protocol):
    """A client that keeps what it gets."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost = reason


class Bench:
    """A server of one responder, its clock, and connections to it."""

    def __init__(self, respond: Callable[[Request], Reply] = lambda _: TOLD, **options: Any) -> None:
        self.clock = Clock()
        self.requests: list[Request] = []

        def record(request: Request) -> Reply:
            self.requests.append(request)
            return respond(request)

        self.factory = ServerFactory(self.clock, record, **options)

    def connect(self) -> tuple[Recorder, Link]:
        protocol = self.factory.buildProtocol(CLIENT)
        assert protocol is not None
        client = Recorder()
        return client, Link(client, protocol)

    def ask(self, data: bytes) -> tuple[Recorder, Link]:
        client, link = self.connect()
        link.client.write(data)
        link.flush()
        return client, link


class TestPlain:
    def test_answer(self) -> None:
        """A packet is answered with a packet, and the connection is closed."""
        bench = Bench()
        client, _ = bench.ask(encode_packet(ASK))
        assert client.received == encode_packet(TOLD)
        assert client.lost is not None
        assert not bench.clock.getDelayedCalls()
        assert bench.requests == [Request(ASK, peer_at("192.0.2.7", 40001), None)]

    def test_raw_answer(self) -> None:
        """Bytes go out as they are."""
        client, _ = Bench(lambda request: request.packet.payload).ask(encode_packet(ASK))
        assert client.received == b"ask"

    @pytest.mark.parametrize(("modifier1", "modifier2"), [(0, 0), (30, 0), (173, 1), (173, 2)])
    def test_raw_packets(self, modifier1: int, modifier2: int) -> None:
        """A packet goes out without its header where plain uwsgi has none, and may be larger than usual."""
        page = b"x" * (MAX_PAYLOAD + 1)
        bench = Bench(lambda request: request.packet._replace(payload=page))
        client, _ = bench.ask(encode_packet(Packet(modifier1, modifier2, b"")))
        assert client.received == page
        assert client.lost is not None

    @pytest.mark.parametrize(
        ("answer", "head"),
        [
            (Packet(173, 0, b"x"), b"\xad\x01\x00\x00"),
            (Packet(173, 0, b"x" * 65_536), b"\xad\x17\x00\x05\x0e\x00CONTENT_LENGTH\x05\x0065536"),
            (Packet(173, 0), b""),
            (Packet(173, 255), b""),
        ],
    )
    def test_results(self, answer: Packet, head: bytes) -> None:
        """A call's result has uWSGI's long form if it fits no packet; an empty one ends the connection."""
        client, _ = Bench(lambda _: answer).ask(encode_packet(Packet(173, 0, b"")))
        assert client.received == head + answer.payload
        assert client.lost is not None

    def test_later_answer(self) -> None:
        """An answer may come later, and nothing limits the time until then here."""
        later: Deferred[Packet] = Deferred()
        bench = Bench(lambda _: later)
        client, link = bench.ask(encode_packet(ASK))
        bench.clock.advance(10_000)
        link.flush()
        assert client.lost is None
        later.callback(TOLD)
        link.flush()
        assert client.received == encode_packet(TOLD)
        assert client.lost is not None

    def test_byte_by_byte(self) -> None:
        """A request may come in any pieces."""
        client, link = Bench().connect()
        link.client.write(encode_packet(ASK))
        link.flush(1)
        assert client.received == encode_packet(TOLD)

    def test_responder_raises(self) -> None:
        """A responder that raises has the connection closed without an answer."""

        def respond(_: Request) -> Packet:
            raise KeyError("x")

        client, _ = Bench(respond).ask(encode_packet(ASK))
        assert client.received == b""
        assert client.lost is not None

    def test_responder_fails(self) -> None:
        """So does a Deferred that fails."""
        later: Deferred[Packet] = Deferred()
        client, link = Bench(lambda _: later).ask(encode_packet(ASK))
        later.errback(KeyError("x"))
        link.flush()
        assert client.received == b""
        assert client.lost is not None

    def test_answer_too_large(self) -> None:
        """An answer that fits no packet is logged, and the connection closed."""
        with capturedLogs() as logs:
            client, _ = Bench(lambda _: Packet(33, 0, bytes(MAX_PAYLOAD + 1))).ask(encode_packet(ASK))
        assert client.received == b""
        assert client.lost is not None
        assert [event["log_format"] for event in logs] == ["the answer for {peer} is too large: {error}"]

    def test_a_ping_without_an_offer(self) -> None:
        """A ping that offers nothing is a request like any other."""
        bench = Bench(terms=Terms())
        client, _ = bench.ask(encode_packet(Packet(PING, 0)))
        assert client.received == encode_packet(TOLD)

    def test_an_offer_to_a_plain_server(self) -> None:
        """A server without terms takes an offer for a ping."""
        bench = Bench()
        client, _ = bench.ask(encode_packet(Packet(PING, 0, Terms().encode())))
        assert client.received == encode_packet(TOLD)
        assert client.lost is not None

    def test_bytes_after_the_request(self) -> None:
        """Bytes after a plain request, such as uWSGI's spooler bodies, are ignored up to a limit."""
        later: Deferred[Packet] = Deferred()
        bench = Bench(lambda _: later, limits=Limits(max_ignored=10))
        client, link = bench.ask(encode_packet(ASK) + b"67890")
        link.client.write(b"12345")
        link.flush()
        assert client.lost is None
        link.client.write(b"0")
        link.flush()
        assert client.lost is not None
        assert len(bench.requests) == 1

    @pytest.mark.parametrize("end", ["close", "too much", "time", "stop"])
    def test_bytes_after_the_answered_request(self, end: str) -> None:
        """They don't turn its answer into a reset: the connection stays until the peer closes it."""
        bench = Bench(limits=Limits(max_ignored=10))
        client, link = bench.ask(encode_packet(ASK) + b"67890")
        assert client.received == encode_packet(TOLD)
        assert client.lost is None
        assert link.server.half_closed
        link.client.write(b"12345")
        link.flush()
        assert client.lost is None
        if end == "close":
            link.client.loseConnection()
        elif end == "too much":
            link.client.write(b"0")
        elif end == "time":
            bench.clock.advance(30)
        else:
            bench.factory.finish()
        link.flush()
        assert client.lost is not None
        assert not bench.clock.getDelayedCalls()

    def test_larger_than_allowed(self) -> None:
        """A header that announces too much has the connection closed at once, and logged."""
        bench = Bench(limits=Limits(max_packet=2))
        with capturedLogs() as logs:
            client, _ = bench.ask(encode_packet(ASK)[:4])
        assert client.lost is not None
        assert "3 bytes" in str(logs[0]["error"])

    def test_half_close(self) -> None:
        """A peer that has closed its sending side behind its request gets its answer."""
        later: Deferred[Packet] = Deferred()
        client, link = Bench(lambda _: later).ask(encode_packet(ASK))
        link.server.protocol.readConnectionLost()  # type: ignore[attr-defined]
        later.callback(TOLD)
        link.server.protocol.writeConnectionLost()  # type: ignore[attr-defined]
        link.flush()
        assert client.received == encode_packet(TOLD)

    def test_half_close_ends_a_request(self) -> None:
        """Where that is said of a modifier, a peer that closes its sending side has gone."""
        cancelled: list[object] = []
        client, link = Bench(lambda _: Deferred(cancelled.append), ended_by_peer=(33,)).ask(encode_packet(ASK))
        link.server.protocol.readConnectionLost()  # type: ignore[attr-defined]
        link.flush()
        assert client.lost is not None
        assert len(cancelled) == 1

    @pytest.mark.parametrize("sent", [b"", encode_packet(ASK)[:2], encode_packet(ASK)[:6]])
    def test_half_close_before_the_request(self, sent: bytes) -> None:
        """One whose request can't become whole any more is dropped."""
        client, link = Bench().ask(sent)
        link.server.protocol.readConnectionLost()  # type: ignore[attr-defined]
        link.flush()
        assert client.lost is not None

    def test_disconnect(self) -> None:
        """When a peer disconnects, its request is cancelled."""
        cancelled: list[object] = []
        later: Deferred[Packet] = Deferred(cancelled.append)
        later.addErrback(lambda failure: failure.trap(CancelledError) and failure)
        _, link = Bench(lambda _: later).ask(encode_packet(ASK))
        link.client.abortConnection()
        link.flush()
        assert cancelled == [later]


class TestBody:
    limits = Limits(body_timeout=30, max_ignored=10)
    #: What has a body in these tests.
    bodies = frozenset({(17, 1)})

    def bench(self, respond: Callable[[Request], Reply] = lambda _: TOLD, largest: int = 1 << 20) -> Bench:
        return Bench(respond, limits=self.limits, bodies=self.bodies, terms=Terms(max_message=largest))

    @staticmethod
    def packet(size: object, modifier2: int = 1, **more: str) -> bytes:
        return encode_packet(Packet(17, modifier2, encode_vars({"CONTENT_LENGTH": str(size), **more})))

    @pytest.mark.parametrize("step", [None, 1, 7])
    @pytest.mark.parametrize("tail", [b"", b"tail"])
    def test_body(self, step: int | None, tail: bytes) -> None:
        """The body behind a packet reaches the responder with it, however it comes and whatever follows."""
        bench = self.bench()
        client, link = bench.connect()
        packet = self.packet(11, to="ann")
        link.client.write(packet + b"hello world" + tail)
        link.flush(step)
        assert client.received == encode_packet(TOLD)
        if tail:  # it is read until the peer, which has its answer, closes
            link.client.loseConnection()
            link.flush()
        assert client.lost is not None
        assert bench.requests == [
            Request(Packet(17, 1, packet[4:] + b"hello world"), peer_at("192.0.2.7", 40001))
        ]
        assert not bench.clock.getDelayedCalls()

    def test_variables_that_look_like_a_body(self) -> None:
        """All of the packet is variables, also where as many bytes of them are left as the body has."""
        bench = self.bench()
        packet = self.packet(10, to="ann!")
        assert packet[-10:] == b"\x02\x00to\x04\x00ann!"
        bench.ask(packet)
        assert bench.requests == []
        bench.ask(packet + b"0123456789")
        assert split_vars(bench.requests[0].packet.payload) == (packet[4:], b"0123456789", 0)

    @pytest.mark.parametrize(
        "packet",
        [
            encode_packet(Packet(17, 1, b"\x01")),
            encode_packet(Packet(17, 1, encode_vars({"CONTENT_LENGTH": "many"}))),
            encode_packet(Packet(17, 1, encode_vars({"CONTENT_LENGTH": "0"}))),
            encode_packet(Packet(17, 1, encode_vars({"to": "ann"}))),
            encode_packet(Packet(17, 0, encode_vars({"CONTENT_LENGTH": "5"}))),
            encode_packet(Packet(33, 1, encode_vars({"CONTENT_LENGTH": "5"}))),
        ],
    )
    def test_no_body(self, packet: bytes) -> None:
        """A packet without a size, with one that is none, or of other modifiers is answered by itself."""
        bench = self.bench()
        client, _ = bench.ask(packet)
        assert client.received == encode_packet(TOLD)
        assert bench.requests[0].packet.payload == packet[4:]

    @pytest.mark.parametrize(("room", "fits"), [(0, True), (1, False)])
    def test_largest(self, room: int, fits: bool) -> None:
        """Packet and body may be as large as a message; one byte more is refused."""
        bench = self.bench(largest=1_000)
        block = len(self.packet(100)) - 4
        packet = self.packet(1_000 - block + room)
        client, link = bench.ask(packet)
        assert len(bench.requests) == (not fits)
        link.client.write(bytes(1_000 - block + room))
        link.flush()
        assert client.received == encode_packet(TOLD)
        (request,) = bench.requests
        assert request.refused == (None if fits else IsA(MessageTooLarge))
        if fits:
            assert len(split_vars(request.packet.payload)[1]) == 1_000 - block

    def test_too_large(self) -> None:
        """A body that is too large is answered at once; what still comes of it is thrown away."""
        bench = self.bench(largest=1_000)
        client, link = bench.ask(self.packet(100_000) + bytes(49_999))
        assert client.received == encode_packet(TOLD)
        link.client.write(bytes(50_000))
        link.flush()
        assert client.lost is None
        link.client.write(bytes(1))
        link.flush()
        assert client.lost is not None
        assert client.lost.check(ConnectionDone)
        assert not bench.clock.getDelayedCalls()

    @pytest.mark.parametrize("end", ["time", "close", "half close", "too much", "stop"])
    def test_lingering(self, end: str) -> None:
        """A body that never ends is not waited for: a peer has its time for it, and may close before."""
        bench = self.bench(largest=1_000)
        client, link = bench.ask(self.packet(2_000 if end == "too much" else "9" * 20))
        assert client.received == encode_packet(TOLD)
        assert bench.requests[0].refused == IsA(MessageTooLarge)
        with capturedLogs() as logs:
            for _ in range(29):
                bench.clock.advance(1)
                link.client.write(bytes(50))
                link.flush()
            assert client.lost is None
            if end == "time":
                bench.clock.advance(1)
            elif end == "close":
                link.client.loseConnection()
            elif end == "stop":
                bench.factory.finish()
            elif end == "half close":
                link.server.protocol.readConnectionLost()  # type: ignore[attr-defined]
            else:
                link.client.write(bytes(2_000))
            link.flush()
        assert client.lost is not None
        assert [event["late"] for event in logs] == ["is still sending unexpected data"] * (end == "time")
        assert not bench.clock.getDelayedCalls()

    def test_no_answer_to_linger_for(self) -> None:
        """Where there is no answer to a body that is too large, the connection is closed at once."""

        def respond(_: Request) -> Packet:
            raise KeyError("x")

        client, _ = self.bench(respond, largest=1_000).ask(self.packet(100_000))
        assert client.lost is not None

    def test_time(self) -> None:
        """A body may take its time as long as 65535 bytes come within the limit; single bytes don't count."""
        bench = self.bench()
        client, link = bench.ask(self.packet(200_000))
        for _ in range(3):
            bench.clock.advance(29)
            link.client.write(bytes(MAX_PAYLOAD))
            link.flush()
        assert client.lost is None
        for _ in range(29):
            bench.clock.advance(1)
            link.client.write(b"x")
            link.flush()
        assert client.lost is None
        with capturedLogs() as logs:
            bench.clock.advance(1)
        link.flush()
        assert client.lost is not None
        assert logs[0]["late"] == "did not send the rest of its body"
        assert bench.requests == []
        assert not bench.clock.getDelayedCalls()

    def test_no_room(self) -> None:
        """A body for which there is no room is refused, when its size is known; a small one is taken."""
        limits = Limits(max_ignored=10, max_buffered=400_000)
        bench = Bench(limits=limits, bodies=self.bodies, terms=Terms(max_message=100_000))
        first, second, third = (bench.ask(self.packet(99_000) + bytes(98_000)) for _ in range(3))
        assert [request.refused for request in bench.requests] == [IsA(Busy)]
        assert third[0].received == encode_packet(TOLD)
        small, _ = bench.ask(self.packet(50_000) + bytes(50_000))
        assert small.received == encode_packet(TOLD)
        first[1].client.abortConnection()
        first[1].flush()
        client, link = bench.ask(self.packet(99_000) + bytes(98_000))
        link.client.write(bytes(1_000))
        link.flush()
        assert client.received == encode_packet(TOLD)
        assert bench.requests[-1].refused is None
        assert second[0].lost is None

    def test_held_until_the_answer_is_taken(self) -> None:
        """A body counts until its request is answered, and an answer until it is out."""
        answers: list[Deferred[bytes]] = [Deferred() for _ in range(4)]
        limits = Limits(max_buffered=400_000)
        bench = Bench(lambda _: answers[len(bench.requests) - 1], limits=limits, bodies=self.bodies)
        links = [bench.ask(self.packet(99_000) + bytes(99_000))[1] for _ in range(2)]
        budget = bench.factory.budget
        assert 2 * 99_000 < budget.used < 2 * 99_100
        links[0].server.capacity = 0
        answers[0].callback(bytes(90_000))
        assert 90_000 + 99_000 < budget.used < 90_000 + 99_100
        for link in links:
            link.client.abortConnection()
            link.flush()
        assert budget.used == 0

    def test_later_answer(self) -> None:
        """Once the body is there, nothing limits the time until the answer."""
        later: Deferred[Packet] = Deferred()
        bench = self.bench(lambda _: later)
        client, link = bench.ask(self.packet(5) + b"1234")
        link.client.write(b"5")
        link.flush()
        bench.clock.advance(10_000)
        link.flush()
        assert client.lost is None
        later.callback(TOLD)
        link.flush()
        assert client.received == encode_packet(TOLD)

    def test_half_close(self) -> None:
        """A peer that closes its sending side in the middle of a body is dropped, and after it is answered."""
        later: Deferred[Packet] = Deferred()
        bench = self.bench(lambda _: later)
        client, link = bench.ask(self.packet(5) + b"1234")
        link.server.protocol.readConnectionLost()  # type: ignore[attr-defined]
        link.flush()
        assert client.lost is not None
        client, link = bench.ask(self.packet(5) + b"12345")
        link.server.protocol.readConnectionLost()  # type: ignore[attr-defined]
        later.callback(TOLD)
        link.flush()
        assert client.received == encode_packet(TOLD)

    def test_stop(self) -> None:
        """A connection in the middle of a body is dropped when the server stops."""
        bench = self.bench()
        client, link = bench.ask(self.packet(5) + b"1234")
        finished = bench.factory.finish()
        link.flush()
        assert client.lost is not None
        assert finished.called
        assert not bench.clock.getDelayedCalls()

    def test_bytes_behind(self) -> None:
        """Bytes after a body are ignored up to the limit, in however many pieces."""
        later: Deferred[Packet] = Deferred()
        client, link = self.bench(lambda _: later).ask(self.packet(5) + b"12345" + b"12345")
        link.client.write(b"12345")
        link.flush()
        assert client.lost is None
        link.client.write(b"1")
        link.flush()
        assert client.lost is not None


class TestTime:
    limits = Limits(header_timeout=4, body_timeout=30, write_timeout=20)

    @pytest.mark.parametrize("sent", [b"", encode_packet(ASK)[:3]])
    def test_header(self, sent: bytes) -> None:
        """A connection without a whole header is closed in time, also if some of it came."""
        bench = Bench(limits=self.limits)
        client, link = bench.ask(sent)
        bench.clock.advance(3.9)
        link.flush()
        assert client.lost is None
        with capturedLogs() as logs:
            bench.clock.advance(0.2)
        link.flush()
        assert client.lost is not None
        assert logs[0]["late"] == "sent no complete header"

    def test_a_byte_a_second(self) -> None:
        """A slow body has as long as a missing one: bytes don't extend the time."""
        bench = Bench(limits=self.limits)
        client, link = bench.ask(encode_packet(Packet(33, 0, bytes(100)))[:5])
        for _ in range(29):
            bench.clock.advance(1)
            link.client.write(b"x")
            link.flush()
        assert client.lost is None
        bench.clock.advance(1)
        link.flush()
        assert client.lost is not None
        assert bench.requests == []

    def test_a_peer_that_does_not_read(self) -> None:
        """An answer that nobody takes is given up, with its connection."""
        bench = Bench(limits=self.limits)
        client, link = bench.connect()
        link.client.paused = True
        link.client.write(encode_packet(ASK))
        link.flush()
        bench.clock.advance(19)
        link.flush()
        assert client.lost is None
        with capturedLogs() as logs:
            bench.clock.advance(1)
        link.flush()
        assert client.lost is not None
        assert logs[0]["late"] == "did not read its answer"


class TestAcceptance:
    def test_limit(self) -> None:
        """One connection more than allowed is refused until another has gone; that is logged once a peer."""
        later: Deferred[Packet] = Deferred()
        bench = Bench(lambda _: later, limits=Limits(max_connections=1))
        _, link = bench.ask(encode_packet(ASK))
        with capturedLogs() as logs:
            assert bench.factory.buildProtocol(CLIENT) is None
            assert bench.factory.buildProtocol(CLIENT) is None
            assert bench.factory.buildProtocol(IPv4Address("TCP", "192.0.2.8", 1)) is None
        assert [event["peer"].name for event in logs] == ["192.0.2.7:40001", "192.0.2.8:1"]
        assert logs[0]["reason"] == "1 connections from its address are already open"
        assert logs[1]["reason"] == "1 connections are already open"
        link.client.abortConnection()
        link.flush()
        assert bench.factory.buildProtocol(CLIENT) is not None

    def test_half_closed(self) -> None:
        """A half-closed connection makes room for another, and its request is cancelled."""
        cancelled: list[Deferred[Packet]] = []
        bench = Bench(lambda _: Deferred(cancelled.append), limits=Limits(max_connections=1))
        client, link = bench.ask(encode_packet(ASK))
        link.server.protocol.readConnectionLost()  # type: ignore[attr-defined]
        link.flush()
        assert client.lost is None
        bench.connect()
        link.flush()
        assert client.lost is not None
        assert len(cancelled) == 1

    def test_networks(self) -> None:
        """Only connections from the networks that are allowed are taken."""
        bench = Bench(networks=[parse_network("10.0.0.0/8")])
        with capturedLogs() as logs:
            assert bench.factory.buildProtocol(CLIENT) is None
        assert "none of the allowed networks" in logs[0]["reason"]
        assert bench.factory.buildProtocol(IPv4Address("TCP", "10.9.9.9", 1)) is not None


class TestEnd:
    def test_finish_without_connections(self) -> None:
        """There is nothing to wait for."""
        assert Bench().factory.finish().called

    def test_finish(self) -> None:
        """Requests in flight are answered; connections without one are closed."""
        later: Deferred[Packet] = Deferred()
        bench = Bench(lambda _: later)
        idle, idle_link = bench.ask(encode_packet(ASK)[:5])
        busy, busy_link = bench.ask(encode_packet(ASK))
        finished = bench.factory.finish()
        idle_link.flush()
        busy_link.flush()
        assert idle.lost is not None
        assert busy.lost is None
        assert not finished.called
        later.callback(TOLD)
        busy_link.flush()
        assert busy.received == encode_packet(TOLD)
        assert finished.called

    def test_abort(self) -> None:
        """Everything can be closed at once."""
        bench = Bench(lambda _: Deferred())
        client, link = bench.ask(encode_packet(ASK))
        bench.factory.abort()
        link.flush()
        assert client.lost is not None
        assert client.received == b""
