"""The service of a router: its ports, its nodes, its end."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock, StringTransport

from uwsgitwisted.address import parse_address
from uwsgitwisted.errors import StartupError
from uwsgitwisted.router.shared import RouterSettings
from uwsgitwisted.services import router
from uwsgitwisted.services.descriptors import Shares
from uwsgitwisted.services.router import RouterOptions, RouterService
from uwsgitwisted.transport.server.limits import Limits


def make(reactor: Any, **options: Any) -> RouterService:
    nodes = [parse_address(address) for address in ("10.0.0.5:3031", "10.0.0.6:3031", "10.0.0.5:3031")]
    return RouterService(reactor, RouterOptions(listen=["tcp:8080", "tcp:8081"], nodes=nodes, **options))


def connect(reactor: Any) -> StringTransport:
    """Connect a client."""
    transport = StringTransport()
    reactor.tcpServers[0][1].buildProtocol(transport.getPeer()).makeConnection(transport)
    return transport


def test_start_and_stop() -> None:
    """It opens its ports, pings each node once, and stops when its connections are closed."""
    reactor: Any = MemoryReactorClock()
    service = make(reactor, drain_timeout=5.0)
    service.startService()
    assert [server[0] for server in reactor.tcpServers] == [8_080, 8_081]
    assert sorted(client[0] for client in reactor.tcpClients) == ["10.0.0.5", "10.0.0.6"]
    assert {client[3] for client in reactor.tcpClients} == {3.0}
    transport = connect(reactor)
    protocol = transport.producer
    protocol.dataReceived(b"GET / HTTP/1.1\r\n")
    stopped = service.stopService()
    assert not transport.disconnecting
    reactor.advance(5)
    assert transport.disconnected
    assert not stopped.called
    protocol.connectionLost(None)
    assert stopped.called


def test_a_second_signal() -> None:
    """It ends the drain."""
    reactor: Any = MemoryReactorClock()
    service = make(reactor)
    service.startService()
    transport = connect(reactor)
    protocol = transport.producer
    protocol.dataReceived(b"GET / HTTP/1.1\r\n")
    stopped = service.stopService()
    service.stop_at_once()
    assert transport.disconnected
    protocol.connectionLost(None)
    assert stopped.called
    assert [call for call in reactor.getDelayedCalls() if call.getTime() > reactor.seconds() + 20] == []


def test_ports_are_opened_once() -> None:
    """With privileges if there are any."""
    reactor: Any = MemoryReactorClock()
    service = make(reactor)
    service.privilegedStartService()
    service.startService()
    assert len(reactor.tcpServers) == 2


@pytest.mark.parametrize(("endpoint", "option"), [("tcp:x", "--http"), ("ssl:x", "--https")])
def test_the_option_in_errors(endpoint: str, option: str) -> None:
    """An endpoint that can't be opened is named with its option."""
    service = RouterService(
        MemoryReactorClock(), RouterOptions(listen=[endpoint], nodes=[parse_address("h:1")])
    )
    with pytest.raises(StartupError, match=f"^{option} {endpoint}: "):
        service.privilegedStartService()


def test_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection may need three."""
    wanted: list[int] = []

    def share(number: int, processes: int) -> Shares:
        wanted.append(number)
        return Shares(1_000, 0)

    monkeypatch.setattr(router, "share_descriptors", share)
    service = make(MemoryReactorClock(), requests=RouterSettings(limits=Limits(max_connections=500)))
    assert wanted == [1_500]
    assert service._shared.limits.max_connections == 333
