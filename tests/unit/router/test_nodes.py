"""The nodes behind a router: which are well."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.testing import MemoryReactorClock

from tests.unit.router.world import World, status
from uwsgitwisted.address import parse_address
from uwsgitwisted.errors import StartupError
from uwsgitwisted.router.nodes import PING_INTERVAL, PING_TIMEOUT, make_endpoint
from uwsgitwisted.wire.packet import Packet, encode_packet


def pings(world: World) -> list[int]:
    """Return how many connections were made to each node."""
    return [node.endpoint.attempts for node in world.nodes]


def start(world: World) -> None:
    world.balanced.start()
    world.flush()


def test_pings() -> None:
    """Each node is pinged at the start, and again and again."""
    world = World(2)
    start(world)
    assert pings(world) == [1, 1]
    world.advance(PING_INTERVAL)
    assert pings(world) == [2, 2]
    assert world.balanced.stop().called
    world.advance(10 * PING_INTERVAL)
    assert pings(world) == [2, 2]
    assert world.clock.getDelayedCalls() == []


def test_a_node_that_is_away() -> None:
    """It is left out, looked after in pauses that grow, and used when it is back."""
    world = World(2)
    world.node.endpoint.refusing = True
    start(world)
    for _ in range(3):
        assert status(world.client().get().take()) == 200
    assert pings(world) == [1, 4]
    for pause, attempts in ((0.5, 2), (1, 3), (2, 4), (4, 5), (8, 6), (8, 7)):
        world.advance(pause)
        assert world.node.endpoint.attempts == attempts
    world.node.endpoint.refusing = False
    world.advance(8)
    world.client().get()
    world.client().get()
    assert len(world.node.requests) == 1


def test_a_node_whose_connections_fail() -> None:
    """After a request's connection has failed, it is pinged after the pause."""
    world = World(2)
    start(world)
    world.node.endpoint.refusing = True
    world.client().get()
    assert pings(world)[0] == 2
    world.node.endpoint.refusing = False
    world.advance(0.5)
    assert pings(world)[0] == 3
    world.client().get()
    assert len(world.node.requests) == 1


def test_a_node_that_closes_connections() -> None:
    """It is pinged at once, and left out if that fails."""
    world = World(2)
    start(world)
    world.node.answer = None
    world.client().get()
    assert pings(world)[0] == 3
    world.client().get()
    world.client().get()
    assert len(world.node.requests) == 3  # it has answered the pings


def test_an_endpoint_that_raises() -> None:
    """Whatever a ping fails with, the node is looked after again."""
    world = World(2)

    def fail(factory: object) -> None:
        raise ValueError("no such name")

    world.node.endpoint.connect = fail  # type: ignore[assignment,method-assign]
    start(world)
    world.client().get()
    assert len(world.nodes[1].requests) == 1
    del world.node.endpoint.connect
    world.advance(0.5)
    assert pings(world)[0] == 1


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_ping_that_is_late(nodes: int) -> None:
    """It leaves a node out only while there is another one."""
    world = World(nodes)
    accept = world.node.endpoint.accept

    def silent() -> Any:
        connection: Any = accept()
        connection.dataReceived = lambda data: None
        return connection

    world.node.endpoint.accept = silent
    start(world)
    world.advance(PING_TIMEOUT)
    world.node.endpoint.accept = accept
    world.client().get()
    assert [len(node.requests) for node in world.nodes] == ([1] if nodes == 1 else [0, 1])


def test_what_is_no_ping() -> None:
    """A node that answers a ping with something else is left out."""
    world = World(2)
    accept = world.node.endpoint.accept

    def odd() -> Any:
        connection: Any = accept()
        connection.dataReceived = lambda data: connection.send(encode_packet(Packet(72, 0, b"TP")))
        return connection

    world.node.endpoint.accept = odd
    start(world)
    world.client().get()
    assert len(world.nodes[1].requests) == 1


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("10.0.0.5:3031", TCP4ClientEndpoint),
        ("[fd00::1]:3031", TCP6ClientEndpoint),
        ("tcp:10.0.0.5:3031:timeout=9", TCP4ClientEndpoint),
        ("tcp:10.0.0.5:3031:bindAddress=10.0.0.1", TCP4ClientEndpoint),
        ("node:3031", HostnameEndpoint),
        ("/run/node.sock", UNIXClientEndpoint),
    ],
)
def test_endpoints(address: str, kind: type) -> None:
    """An IP address needs no resolver."""
    assert type(make_endpoint(MemoryReactorClock(), parse_address(address), 3.0)) is kind


@pytest.mark.parametrize(
    ("error", "advice"),
    [(ImportError("ssl"), "install uwsgitwisted"), (ValueError("no such file"), "no such file")],
)
def test_an_address_that_can_not_be_used(
    monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    """It stops the service with its reason."""

    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("uwsgitwisted.router.nodes.clientFromString", refuse)
    with pytest.raises(StartupError, match=advice) as caught:
        make_endpoint(MemoryReactorClock(), parse_address("tls:node:3031"), 3.0)
    assert str(caught.value).startswith("--nodes tls:node:3031: ")


@pytest.mark.parametrize(("address", "seconds"), [("10.0.0.5:1", 2.5), ("tcp:10.0.0.5:1:timeout=9", 9.0)])
def test_the_time_for_connecting(address: str, seconds: float) -> None:
    """It is the option's, unless the address has its own."""
    reactor: Any = MemoryReactorClock()
    make_endpoint(reactor, parse_address(address), 2.5).connect(None).addErrback(lambda _: None)  # type: ignore[arg-type]
    assert reactor.tcpClients[0][3] == seconds
