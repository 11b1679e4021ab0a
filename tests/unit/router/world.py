"""A router in memory for tests: a clock, nodes that do what they are told, and clients' connections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IHalfCloseableDescriptor
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.unit.transports import MemoryEndpoint
from uwsgitwisted.router.channel import RouterChannel, RouterFactory
from uwsgitwisted.router.nodes import Nodes, RoutedNode
from uwsgitwisted.router.shared import RouterSettings, Shared
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.wire.packet import PING, WSGI, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.vars import decode_vars

CLIENT = IPv4Address("TCP", "192.0.2.7", 40_001)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class NodeConnection(Protocol):
    """The node's end of a connection: answers pings at once, and requests with what it is told.

    :param answer: what it sends when the packet has come; None for nothing.
    :param close: whether it closes then.
    """

    def __init__(self, answer: bytes | None, *, close: bool = True) -> None:
        self._answer = answer
        self._close = close
        self._decoder = PacketDecoder(count=1)
        self.packet: Packet | None = None
        #: The bytes behind the packet.
        self.body = b""
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        if self.packet is not None:
            self.body += data
            return
        for packet in self._decoder.receive(data):
            self.packet = packet
            self.body = self._decoder.rest()
            if packet.modifier1 == PING:
                self.send(encode_packet(Packet(PING, 1)))
            elif self._answer is not None:
                self.send(self._answer, close=self._close)
            elif self._close:
                self.send(b"")

    def send(self, data: bytes, *, close: bool = True) -> None:
        assert self.transport is not None
        self.transport.write(data)
        if close:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.lost = True

    @property
    def variables(self) -> dict[str, str]:
        """The variables of the request."""
        assert self.packet is not None
        return {key.decode(): value.decode() for key, value in decode_vars(self.packet.payload).items()}


class FakeNode:
    """A node: what it answers, and the connections that were made to it."""

    def __init__(self, name: str) -> None:
        #: What it answers to requests, and whether it closes the connection then.
        self.answer: bytes | None = OK
        self.closes = True
        self.endpoint = MemoryEndpoint(self._accept)
        self.node = RoutedNode(name, self.endpoint)
        self.connections: list[NodeConnection] = []

    def _accept(self) -> Protocol:
        connection = NodeConnection(self.answer, close=self.closes)
        self.connections.append(connection)
        return connection

    @property
    def requests(self) -> list[NodeConnection]:
        """The connections on which a web request came."""
        return [each for each in self.connections if each.packet is not None and each.packet.modifier1 == WSGI]


@implementer(IHalfCloseableDescriptor)
class ClientTransport(StringTransport):
    """The router's end of a client's connection."""

    half_closed = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def unregisterProducer(self) -> None:  # a socket's transport doesn't mind a second time
        if self.producer is not None:
            super().unregisterProducer()


class Client:
    """A client's connection, as the router sees it."""

    def __init__(self, world: World, address: IAddress = CLIENT) -> None:
        self._world = world
        protocol = world.factory.buildProtocol(address)
        assert protocol is not None, "the connection was refused"
        self.channel: RouterChannel = protocol
        self.transport = ClientTransport(peerAddress=address)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes, size: int | None = None) -> Client:
        """Send bytes, in pieces of *size* bytes if it is given, and let everything move."""
        step = size or len(data)
        for start in range(0, len(data), step):
            self.channel.dataReceived(data[start : start + step])
        self._world.flush()
        return self

    def get(self, path: str = "/") -> Client:
        """Send a request."""
        return self.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

    def take(self) -> bytes:
        """Return what the router has written since the last time."""
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def lose(self, error: Exception | None = None) -> None:
        """End the connection."""
        self.channel.connectionLost(Failure(error or ConnectionDone()))

    @property
    def state(self) -> str:
        """``open``, ``closing``, ``half-closed`` or ``aborted``."""
        if self.transport.disconnected:
            return "aborted"
        if self.transport.half_closed:
            return "half-closed"
        return "closing" if self.transport.disconnecting else "open"


class World:
    """A router.

    :param nodes: how many nodes it has.
    :param limits: its limits that are not the defaults.
    :param in_flight: how many requests a node may have.
    :param settings: its settings that are not the defaults; bodies are passed on as they come.
    """

    def __init__(
        self, nodes: int = 1, *, limits: dict[str, Any] | None = None, in_flight: int = 100, **settings: Any
    ) -> None:
        self.clock = Clock()
        self.nodes = [FakeNode(f"node{number}") for number in range(nodes)]
        self.balanced = Nodes(self.clock, [each.node for each in self.nodes], in_flight)
        known = RouterSettings(**{"buffer_body": 0, **settings})
        chosen: Limits = replace(known.limits, **(limits or {}))
        self.shared = Shared(self.clock, self.balanced, replace(known, limits=chosen))
        self.factory = RouterFactory(self.shared)

    @property
    def node(self) -> FakeNode:
        """The first node."""
        return self.nodes[0]

    def client(self, address: IAddress = CLIENT) -> Client:
        """Connect a client."""
        return Client(self, address)

    def flush(self) -> None:
        """Move everything that moves between the router and its nodes."""
        moved = True
        while moved:
            links = [link for node in self.nodes for link in node.endpoint.links]
            moved = any([link.pump() for link in links])  # noqa: C419 - each of them

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        self.flush()


def status(data: bytes) -> int:
    """Return the status of an answer."""
    return int(data.split(b" ", 2)[1])
