"""The statistics that a service gives."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport

from uwsgitwisted.access import parse_network
from uwsgitwisted.engines.inline import InlineEngine
from uwsgitwisted.interfaces import Request
from uwsgitwisted.services import stats as module
from uwsgitwisted.services.backlog import Backlog, read_backlog
from uwsgitwisted.services.server import ServerService
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.services.stats import MAX_CONNECTIONS, Stats, StatsFactory, Tally
from uwsgitwisted.wire.packet import MARSHAL, PING, Packet
from uwsgitwisted.worker.spec import WorkerSpec

REQUEST = Request(Packet(MARSHAL, 0, b"x"))


def make_factory(clock: Clock, **options: Any) -> StatsFactory:
    numbers = iter(range(100))
    return StatsFactory(clock, lambda: b"%d" % next(numbers), options.get("networks"), 30.0)


def connect(factory: StatsFactory, host: str = "127.0.0.1") -> StringTransport | None:
    """Connect somebody, and return the transport; None if the connection is refused."""
    protocol = factory.buildProtocol(IPv4Address("TCP", host, 1))
    if protocol is None:
        return None
    transport = StringTransport()
    protocol.makeConnection(transport)
    return transport


def test_one_answer() -> None:
    """Whoever connects gets the statistics, which are made again only when they are a little old."""
    clock = Clock()
    factory = make_factory(clock)
    for expected in (b"0", b"0", b"1"):
        transport = connect(factory)
        assert transport is not None
        assert transport.value() == expected
        assert transport.disconnecting
        transport.producer.connectionLost() if transport.producer else None
        clock.advance(0.06)


def test_bounds() -> None:
    """A peer that doesn't read is cut off, and there are only so many at once."""
    clock = Clock()
    factory = make_factory(clock)
    transports = [connect(factory) for _ in range(MAX_CONNECTIONS + 1)]
    assert [bool(each and each.disconnected) for each in transports] == [False] * MAX_CONNECTIONS + [True]
    clock.advance(30)
    assert all(each and each.disconnected for each in transports)
    for connection in list(factory.connections):
        connection.connectionLost()
    assert not factory.connections


def test_networks() -> None:
    """With --allow, others get nothing."""
    factory = make_factory(Clock(), networks=[parse_network("10.0.0.0/8")])
    assert connect(factory, "192.0.2.1") is None
    assert connect(factory, "10.1.2.3") is not None


def test_tally() -> None:
    """Without worker processes, the service counts its requests, but for pings."""
    clock = Clock()
    tally = Tally(clock)
    pending: Deferred[Any] = Deferred()
    answers = iter([Packet(MARSHAL, 0, b"four"), b"raw", pending])

    def respond(request: Request) -> Any:
        if request.packet.modifier2:
            raise ValueError("refused")
        return next(answers)

    watched = tally.watch(respond)
    watched(REQUEST)
    watched(Request(Packet(PING, 0)))
    with pytest.raises(ValueError, match="refused"):
        watched(Request(Packet(MARSHAL, 1)))
    answer = watched(REQUEST)
    assert tally.report().in_flight == 1
    clock.advance(2)
    pending.callback(Packet(MARSHAL, 0, b"12345"))
    assert isinstance(answer, Deferred)
    report = tally.report()
    assert (report.in_flight, report.pid) == (0, os.getpid())
    (counts,) = report.threads
    assert counts == (3, 1, 2_000_000, 9, 1_000_000)
    failing = tally.watch(lambda _: Deferred())(REQUEST)
    assert isinstance(failing, Deferred)
    failing.errback(ValueError("failed"))
    failing.addErrback(lambda _: None)
    assert tally.report().threads[0][:2] == (4, 2)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_backlog(family: int, tmp_path: Path) -> None:
    """The system says how many connections wait on a socket to be accepted."""
    address: Any = ("127.0.0.1", 0) if family == socket.AF_INET else f"{tmp_path}/socket"
    with socket.socket(family) as listener:
        assert read_backlog(listener) in (None, Backlog(0, 0))
        listener.bind(address)
        listener.listen(7)
        waiting = [socket.socket(family) for _ in range(3)]
        for each in waiting:
            each.connect(listener.getsockname())
        assert read_backlog(listener) == Backlog(3, 7)
        listener.accept()[0].close()
        assert read_backlog(listener) == Backlog(2, 7)
        for each in waiting:
            each.close()
    assert read_backlog(listener) is None


def test_draining() -> None:
    """A service that stops says so to those who ping it."""
    reactor = MemoryReactorClock()
    engine = InlineEngine(reactor, WorkerSpec(()), timeout=1, max_queue=1)  # type: ignore[arg-type]
    service = ServerService(reactor, ServerSettings(listen=("tcp:3033",), stats=("tcp:1717",)), engine, {})
    service.startService()
    assert [port[0] for port in reactor.tcpServers] == [3033, 1717]
    ping = Request(Packet(PING, 0))
    assert service._factory.respond(ping) == Packet(PING, 1)
    service.stopService()
    assert service._factory.respond(ping) == Packet(PING, 1, b"draining")
    assert json.loads(service._stats._encode())["workers"][0]["id"] == 1


def test_ports_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load and the sockets of one answer are from one look at each port."""
    looks = iter([Backlog(3, 9), Backlog(5, 9)])
    monkeypatch.setattr(module, "read_backlog", lambda _: next(looks))
    monkeypatch.setattr(module, "opened_port", lambda _: SimpleNamespace(socket=None))
    monkeypatch.setattr(module, "place_of", lambda _: None)
    reactor = MemoryReactorClock()
    engine = InlineEngine(reactor, WorkerSpec(()), timeout=1, max_queue=1)  # type: ignore[arg-type]
    ports = [SimpleNamespace(description="unix:socket")]
    stats = Stats(reactor, ServerSettings(listen=()), engine, ports)  # type: ignore[arg-type]
    found = json.loads(stats._encode())
    assert (found["load"], found["sockets"][0]["queue"]) == (3, 3)
