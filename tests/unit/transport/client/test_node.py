"""What a client finds out about a peer, how long it believes it, and one time limit over all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from tests.unit.transports import Link, MemoryEndpoint, ScriptedServer, ServedEndpoint
from uwsgitwisted.errors import (
    ConnectionFailed,
    MessageTooLarge,
    NoAnswer,
    RequestCancelled,
    RequestTimeout,
    Unavailable,
    UnsafeObject,
)
from uwsgitwisted.interfaces import Reply, Request
from uwsgitwisted.transport.client.node import OFFER_TIMEOUT, PLAIN_FOR, SILENT_FOR, Node
from uwsgitwisted.transport.server.factory import ServerFactory
from uwsgitwisted.wire.message import decode_answer
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import MARSHAL, MAX_PAYLOAD, PING, Packet, encode_packet
from uwsgitwisted.wire.terms import KEEPALIVE, Terms

ASK = Packet(MARSHAL, 5, b"ask")
TOLD = Packet(MARSHAL, 5, dumps("told"))
ANSWER = encode_packet(TOLD)
PONG = encode_packet(Packet(PING, 1))


class Bench:
    """A peer, and what is at its address.

    :param accept: makes the server's protocol of each connection; without it there is one of ours, whose
        requests wait in :attr:`waiting`.
    """

    def __init__(self, accept: Callable[[], Protocol] | None = None, **options: Any) -> None:
        self.clock = Clock()
        self.requests: list[Request] = []
        self.waiting: list[Deferred[Packet]] = []
        self.factory = ServerFactory(self.clock, self.respond, terms=Terms())
        self.endpoint = ServedEndpoint(self.factory) if accept is None else MemoryEndpoint(accept)
        self.node = Node(self.clock, self.endpoint, Terms(), **options)  # type: ignore[arg-type]

    def respond(self, request: Request) -> Reply:
        self.requests.append(request)
        deferred: Deferred[Packet] = Deferred()
        self.waiting.append(deferred)
        return deferred

    def start(self, timeout: float = 30, packet: Packet = ASK) -> tuple[Deferred[Any], list[Any]]:
        results: list[Any] = []
        deferred = self.node.call(packet, timeout, decode=decode_answer)
        deferred.addBoth(results.append)
        self.endpoint.flush()
        return deferred, results

    def ask(self, timeout: float = 30, packet: Packet = ASK) -> list[Any]:
        """Ask; what becomes of it is put in the list that is returned."""
        return self.start(timeout, packet)[1]

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.endpoint.flush()

    def tell(self, place: int, packet: Packet = TOLD) -> None:
        self.waiting[place].callback(packet)
        self.endpoint.flush()

    def shut_down_unseen(self) -> Link:
        """Have the server shut its session down; the client reads that when it is no longer paused."""
        [link] = self.endpoint.links
        link.client.paused = True
        link.server.protocol.finish()  # type: ignore[attr-defined]
        return link


class UwsgiServer(ScriptedServer):
    """Speaks plain uwsgi, as a real uWSGI does: pongs, or the answer to anything else."""

    def dataReceived(self, data: bytes) -> None:
        self.answer = PONG if data[0] == PING else ANSWER
        super().dataReceived(data)


def uwsgi_bench(**options: Any) -> tuple[Bench, list[UwsgiServer]]:
    """Return a peer of a plain uwsgi server, and what is at the server's end of each connection."""
    servers: list[UwsgiServer] = []

    def accept() -> UwsgiServer:
        servers.append(UwsgiServer())
        return servers[-1]

    return Bench(accept, **options), servers


class NoPingServer(ScriptedServer):
    """Closes the connection when it is pinged."""

    def dataReceived(self, data: bytes) -> None:
        self.answer = None if data[0] == PING else ANSWER
        super().dataReceived(data)


class BusyServer(ScriptedServer):
    """Doesn't answer pings."""

    def dataReceived(self, data: bytes) -> None:
        self.close = data[0] != PING
        self.answer = None if data[0] == PING else ANSWER
        super().dataReceived(data)


@pytest.mark.parametrize("server", [None, UwsgiServer])
def test_packets(server: Callable[[], Protocol] | None) -> None:
    """Without a decoder, a call returns the packet."""
    bench = Bench(server)
    results: list[Any] = []
    bench.node.call(ASK, 30).addCallback(results.append)
    bench.endpoint.flush()
    if server is None:
        bench.tell(0)
    assert results == [TOLD]


class TestSessions:
    def test_one_for_all(self) -> None:
        """Requests share one session, also those that come before there is one."""
        bench = Bench()
        bench.endpoint.held = []
        results = [bench.ask(), bench.ask()]
        bench.endpoint.go_on()
        bench.endpoint.flush()
        results.append(bench.ask())
        assert bench.endpoint.attempts == 1
        assert len(bench.requests) == 3
        for place in (2, 0, 1):
            bench.tell(place)
        assert results == [["told"]] * 3
        assert bench.endpoint.links[0].client.nodelay

    def test_lost(self) -> None:
        """With a lost session its requests fail, and the next one makes a new session."""
        bench = Bench()
        results = bench.ask()
        bench.endpoint.links[0].cut()
        assert results[0].check(NoAnswer)
        results = bench.ask()
        bench.tell(1)
        assert results == ["told"]
        assert bench.endpoint.attempts == 2

    def test_a_request_that_races_with_a_shutdown(self) -> None:
        """It is asked again, once, on a new connection, within the same time."""
        bench = Bench()
        first = bench.ask()
        link = bench.shut_down_unseen()
        racing = bench.ask(20)
        bench.clock.advance(5)
        link.client.paused = False
        bench.endpoint.flush()
        assert bench.endpoint.attempts == 2
        assert len(bench.requests) == 2
        assert bench.requests[1].seconds == 15
        bench.tell(0)
        bench.tell(1)
        assert (first, racing) == (["told"], ["told"])
        assert link.server.connected is False

    def test_a_request_that_races_with_a_shutdown_too_late(self) -> None:
        """A refused call that has timed out fails with the peer's error, or with a timeout."""
        bench = Bench()
        bench.ask()
        link = bench.shut_down_unseen()
        racing = bench.ask(5)
        bench.advance(5)
        link.client.paused = False
        bench.endpoint.flush()
        assert racing[0].check(RequestTimeout)
        assert bench.endpoint.attempts == 1

    def test_unavailable(self) -> None:
        """A node that refuses a request and stays has its refusal passed on."""
        bench = Bench()
        results = bench.ask()
        bench.waiting[0].errback(Unavailable("not now"))
        bench.endpoint.flush()
        assert results[0].check(Unavailable)
        assert bench.endpoint.attempts == 1

    def test_unsafe_answer(self) -> None:
        """An answer that is no plain object is an error."""
        bench = Bench()
        results = bench.ask()
        bench.tell(0, Packet(MARSHAL, 0, b"junk"))
        assert results[0].check(UnsafeObject)


class TestPlain:
    def test_answer(self) -> None:
        """A peer that pongs as uWSGI does gets a connection a request, and is not offered a session again."""
        bench, servers = uwsgi_bench()
        assert bench.ask() == ["told"]
        assert bench.ask() == ["told"]
        assert [server.received[0] for server in servers] == [PING, MARSHAL, MARSHAL]
        assert servers[1].received == encode_packet(ASK)
        bench.advance(PLAIN_FOR - 1)
        bench.ask()
        assert len(servers) == 4
        bench.advance(1)
        assert bench.ask() == ["told"]
        assert [server.received[0] for server in servers[4:]] == [PING, MARSHAL]

    @pytest.mark.parametrize("server", [NoPingServer, BusyServer])
    def test_silence(self, server: type[ScriptedServer]) -> None:
        """A peer that doesn't answer the offer in time counts as plain for a short while."""
        bench = Bench(server)
        results = bench.ask()
        if server is BusyServer:
            assert results == []
            bench.advance(OFFER_TIMEOUT)
        assert results == ["told"]
        assert bench.endpoint.attempts == 2
        assert not bench.endpoint.links[0].client.connected
        bench.advance(SILENT_FOR - 1)
        bench.ask()
        assert bench.endpoint.attempts == 3
        bench.advance(1)
        bench.ask()
        bench.advance(OFFER_TIMEOUT)
        assert bench.endpoint.attempts == 5

    def test_silence_of_a_node(self) -> None:
        """One that has granted sessions hangs if it is silent; much later, it may be another server."""
        bench = Bench()
        results = bench.ask()
        bench.tell(0)
        assert results == ["told"]
        bench.endpoint.links[0].cut()
        bench.endpoint.accept = BusyServer
        for _ in range(2):
            results = bench.ask()
            bench.advance(OFFER_TIMEOUT)
            assert results == []
            bench.advance(2 * KEEPALIVE - OFFER_TIMEOUT)
            assert results[0].check(ConnectionFailed)
            assert "it hangs" in str(results[0].value)
        bench.advance(PLAIN_FOR)
        results = bench.ask()
        bench.advance(OFFER_TIMEOUT)
        assert results == ["told"]

    def test_known_beforehand(self) -> None:
        """An address that was declared plain is never offered a session."""
        bench, servers = uwsgi_bench(plain=True)
        bench.advance(10 * PLAIN_FOR)
        assert bench.ask() == ["told"]
        assert servers[0].received == encode_packet(ASK)
        assert len(servers) == 1

    def test_too_large(self) -> None:
        """More than a packet takes is refused before anything of it is sent."""
        bench = Bench(UwsgiServer)
        [failure] = bench.ask(packet=Packet(MARSHAL, 0, bytes(MAX_PAYLOAD + 1)))
        assert failure.check(MessageTooLarge)
        assert bench.endpoint.attempts == 1

    def test_no_answer(self) -> None:
        """A plain connection that is closed without an answer is an error."""
        bench = Bench(ScriptedServer, plain=True)
        assert bench.ask()[0].check(NoAnswer)


class TestFailures:
    def test_refused(self) -> None:
        """A refused connection fails every caller, and is no sign of plain uwsgi."""
        bench = Bench()
        bench.endpoint.refusing = True
        [failure] = bench.ask()
        assert failure.check(ConnectionFailed)
        assert "refused" in str(failure.value)
        bench.endpoint.refusing = False
        bench.ask()
        assert len(bench.requests) == 1

    def test_refused_plain(self) -> None:
        """So it is for a plain peer."""
        bench = Bench(plain=True)
        bench.endpoint.refusing = True
        assert bench.ask()[0].check(ConnectionFailed)

    def test_waiting_callers_may_cancel_each_other(self) -> None:
        """A caller whose request fails may cancel another one that waits for the same connection."""
        bench = Bench()
        bench.endpoint.held = []
        first, _ = bench.start()
        second, _ = bench.start()
        kinds: list[Any] = []
        first.addBoth(lambda _: second.cancel())
        bench.node.call(ASK, 5).addErrback(lambda failure: kinds.append(failure.type))
        failed = Failure(ConnectionError("no route"))
        for waiting, _ in bench.endpoint.held:
            waiting.errback(failed)
        assert kinds == [ConnectionFailed]


class TestTime:
    @pytest.mark.parametrize("plain", [False, True])
    def test_connecting(self, plain: bool) -> None:
        """The time includes connecting."""
        bench = Bench(plain=plain)
        bench.endpoint.held = []
        results = bench.ask(10)
        bench.advance(10)
        assert results[0].check(RequestTimeout)
        assert results[0].value.seconds == 10

    def test_offering(self) -> None:
        """It includes the offer."""
        bench = Bench(BusyServer)
        results = bench.ask(OFFER_TIMEOUT / 2)
        bench.advance(OFFER_TIMEOUT / 2)
        assert results[0].check(RequestTimeout)

    def test_answer(self) -> None:
        """The node gets the time left, the caller's error the whole timeout."""
        bench = Bench()
        bench.endpoint.held = []
        results = bench.ask(10)
        bench.advance(4)
        bench.endpoint.go_on()
        bench.endpoint.flush()
        assert bench.requests[0].seconds == 6
        bench.advance(6)
        assert results[0].check(RequestTimeout)
        assert (results[0].value.seconds, str(results[0].value)) == (10, "no answer within 10 s")

    def test_plain_answer(self) -> None:
        """It includes all of a plain request, after an offer that was not answered."""
        bench = Bench(lambda: ScriptedServer(close=False))
        results = bench.ask(10)
        bench.advance(OFFER_TIMEOUT)
        assert bench.endpoint.attempts == 2
        bench.advance(10 - OFFER_TIMEOUT)
        assert results[0].check(RequestTimeout)
        assert results[0].value.seconds == 10
        assert not bench.endpoint.links[1].client.connected

    @pytest.mark.parametrize("make", [TCP4ClientEndpoint, HostnameEndpoint])
    @pytest.mark.parametrize("cancel", [False, True])
    def test_real_endpoints(self, make: Callable[..., Any], cancel: bool) -> None:
        """Twisted's endpoints, which fail in their own way when cancelled, time out and cancel as others do."""
        reactor = MemoryReactorClock()
        node = Node(reactor, make(reactor, "192.0.2.1", 3_033), Terms(), plain=True)
        results: list[Any] = []
        deferred = node.call(ASK, 5)
        deferred.addBoth(results.append)
        reactor.advance(0)
        if cancel:
            deferred.cancel()
        else:
            reactor.advance(5)
        assert results[0].check(RequestCancelled if cancel else RequestTimeout)


class TestCancel:
    @pytest.mark.parametrize("plain", [False, True])
    def test_connecting(self, plain: bool) -> None:
        """A request can be cancelled while its connection is made."""
        bench = Bench(plain=plain)
        bench.endpoint.held = []
        deferred, results = bench.start()
        deferred.cancel()
        assert results[0].check(RequestCancelled)
        bench.endpoint.go_on()
        bench.endpoint.flush()
        assert bench.requests == []

    def test_offering(self) -> None:
        """And while a session is offered; others that wait for the same offer go on."""
        bench = Bench(BusyServer)
        deferred, results = bench.start()
        _, others = bench.start()
        deferred.cancel()
        assert results[0].check(RequestCancelled)
        bench.advance(OFFER_TIMEOUT)
        assert others == ["told"]

    @pytest.mark.parametrize("first", [True, False])
    def test_asked(self, first: bool) -> None:
        """And in a session, which goes on."""
        bench = Bench()
        if not first:
            bench.ask()
        deferred, results = bench.start()
        deferred.cancel()
        bench.endpoint.flush()
        assert results[0].check(RequestCancelled)
        assert bench.waiting[-1].called
        bench.ask()
        assert bench.endpoint.attempts == 1

    def test_plain(self) -> None:
        """And on a connection of its own, which is closed."""
        bench = Bench(lambda: ScriptedServer(close=False), plain=True)
        deferred, results = bench.start()
        deferred.cancel()
        bench.endpoint.flush()
        assert results[0].check(RequestCancelled)
        assert not bench.endpoint.links[0].server.connected


class TestClose:
    def close(self, bench: Bench) -> None:
        closed = bench.node.close()
        bench.endpoint.flush()
        assert closed.called
        assert all(not link.client.connected for link in bench.endpoint.links)
        assert bench.endpoint.attempts == 1

    def test_session(self) -> None:
        """Calls in flight fail, and no more are sent."""
        bench = Bench()
        results = bench.ask()
        self.close(bench)
        assert results[0].check(ConnectionFailed)
        assert bench.ask()[0].check(ConnectionFailed)
        assert bench.endpoint.attempts == 1

    def test_plain(self) -> None:
        """So it is with plain requests."""
        bench = Bench(lambda: ScriptedServer(close=False), plain=True)
        results = bench.ask()
        self.close(bench)
        assert results[0].check(ConnectionFailed)

    @pytest.mark.parametrize("plain", [False, True])
    def test_connecting(self, plain: bool) -> None:
        """And while a connection is made."""
        bench = Bench(plain=plain)
        bench.endpoint.held = []
        results = bench.ask()
        self.close(bench)
        assert results[0].check(ConnectionFailed)

    def test_offering(self) -> None:
        """And while a session is offered: the request is not sent in plain uwsgi then."""
        bench = Bench(BusyServer)
        results = bench.ask()
        self.close(bench)
        assert results[0].check(ConnectionFailed)
