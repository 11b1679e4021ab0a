"""The serving side of connections: plain requests, every time limit, and who may connect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.unit.transports import CLIENT, Link
from uwsgitwisted.interfaces import Reply, Request
from uwsgitwisted.transport.peers import parse_network
from uwsgitwisted.transport.server import Limits, ServerFactory
from uwsgitwisted.wire.packet import MAX_PAYLOAD, PING, Packet, encode_packet
from uwsgitwisted.wire.terms import Terms

ASK = Packet(33, 5, b"ask")
TOLD = Packet(33, 5, b"told")


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
        assert bench.requests == [Request(ASK, "192.0.2.7:40001", None)]

    def test_raw_answer(self) -> None:
        """Bytes go out as they are."""
        client, _ = Bench(lambda request: request.packet.payload).ask(encode_packet(ASK))
        assert client.received == b"ask"

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
        """What follows a plain request, as uWSGI's spooler bodies do, is ignored up to a limit."""
        later: Deferred[Packet] = Deferred()
        bench = Bench(lambda _: later, limits=Limits(max_ignored=10))
        client, link = bench.ask(encode_packet(ASK) + b"in the same chunk")
        link.client.write(b"0123456789")
        link.flush()
        assert client.lost is None
        link.client.write(b"0")
        link.flush()
        assert client.lost is not None
        assert len(bench.requests) == 1

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

    @pytest.mark.parametrize("sent", [b"", encode_packet(ASK)[:2], encode_packet(ASK)[:6]])
    def test_half_close_before_the_request(self, sent: bytes) -> None:
        """One whose request can't become whole any more is dropped."""
        client, link = Bench().ask(sent)
        link.server.protocol.readConnectionLost()  # type: ignore[attr-defined]
        link.flush()
        assert client.lost is not None

    def test_disconnect(self) -> None:
        """A peer that goes away has its request withdrawn."""
        cancelled: list[object] = []
        later: Deferred[Packet] = Deferred(cancelled.append)
        later.addErrback(lambda failure: failure.trap(CancelledError) and failure)
        _, link = Bench(lambda _: later).ask(encode_packet(ASK))
        link.client.abortConnection()
        link.flush()
        assert cancelled == [later]


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
        assert logs[0]["late"] == "sent no whole header"

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
        assert logs[0]["late"] == "took nothing of its answer"


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
        assert [event["peer"] for event in logs] == ["192.0.2.7:40001", "192.0.2.8:1"]
        assert "1 connections are open already" in logs[0]["reason"]
        later.callback(TOLD)
        link.flush()
        assert bench.factory.buildProtocol(CLIENT) is not None

    def test_networks(self) -> None:
        """Only connections from the networks that are allowed are taken."""
        bench = Bench(networks=[parse_network("10.0.0.0/8")])
        with capturedLogs() as logs:
            assert bench.factory.buildProtocol(CLIENT) is None
        assert "none of the networks" in logs[0]["reason"]
        assert bench.factory.buildProtocol(IPv4Address("TCP", "10.9.9.9", 1)) is not None


class TestEnd:
    def test_finish_without_connections(self) -> None:
        """There is nothing to wait for."""
        assert Bench().factory.finish().called

    def test_finish(self) -> None:
        """What was asked is answered; connections that have asked nothing are dropped."""
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
