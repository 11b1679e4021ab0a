"""Connections in memory, for tests of protocols: two ends, what is on its way, and every way to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableDescriptor,
    IProtocolFactory,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

CLIENT = IPv4Address("TCP", "192.0.2.7", 40_001)
SERVER = IPv4Address("TCP", "192.0.2.1", 3_033)


@implementer(ITCPTransport, IHalfCloseableDescriptor)
class MemoryTransport:
    """One end of a :class:`Link`.

    :param peer: the other end's address.
    """

    def __init__(self, protocol: Protocol, host: IAddress, peer: IAddress) -> None:
        self.protocol = protocol
        self.host = host
        self.peer = peer
        #: What was written and is not delivered yet.
        self.outgoing = b""
        #: How many bytes it holds before it asks its producer to pause.
        self.capacity = 65_536
        self.connected = True
        self.disconnecting = False
        self.aborted = False
        self.nodelay = False
        self.keepalive = False
        #: Whether the protocol has said that it writes nothing more.
        self.half_closed = False
        #: Whether the protocol has asked for no more data.
        self.paused = False
        self.producer: Any = None

    def connect(self) -> None:
        self.protocol.makeConnection(self)  # type: ignore[arg-type]

    def write(self, data: bytes) -> None:
        if not self.connected or self.disconnecting or self.aborted:
            return
        self.outgoing += data
        if self.producer is not None and len(self.outgoing) > self.capacity:
            self.producer.pauseProducing()

    def take(self, size: int | None) -> bytes:
        """Return up to *size* bytes of what was written, as the network would take them."""
        data, self.outgoing = self.outgoing[:size], b"" if size is None else self.outgoing[size:]
        if data and not self.outgoing and self.producer is not None:
            self.producer.resumeProducing()
        return data

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None, "a second producer"
        self.producer = producer

    def unregisterProducer(self) -> None:
        assert self.producer is not None, "there is no producer"
        self.producer = None

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.aborted = True

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.nodelay = enabled

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.keepalive = enabled

    def getHost(self) -> IAddress:
        return self.host

    def getPeer(self) -> IAddress:
        return self.peer

    def lose(self, error: Exception) -> None:
        """Tell the protocol that the connection is gone."""
        if self.connected:
            self.connected = False
            self.outgoing = b""
            self.protocol.connectionLost(Failure(error))


class Link:
    """A connection between two protocols; bytes move when :meth:`pump` is called.

    :param client: the end that connected.
    :param server: the end that accepted.
    """

    def __init__(self, client: Protocol, server: Protocol, *, client_address: IAddress = CLIENT) -> None:
        self.client = MemoryTransport(client, client_address, SERVER)
        self.server = MemoryTransport(server, SERVER, client_address)
        self.server.connect()
        self.client.connect()

    def pump(self, size: int | None = None) -> bool:
        """Move up to *size* bytes in each direction, or end the connection; say whether anything happened."""
        ends = ((self.client, self.server), (self.server, self.client))
        moved = [self._carry(source, destination, size) for source, destination in ends]
        return any(moved) or any(self._end(source, destination) for source, destination in ends)

    def flush(self, size: int | None = None) -> None:
        """Move everything that moves."""
        while self.pump(size):
            pass

    def cut(self) -> None:
        """Break the connection, as a pulled cable does."""
        for end in (self.client, self.server):
            end.lose(ConnectionLost())

    def _carry(self, source: MemoryTransport, destination: MemoryTransport, size: int | None) -> bool:
        if source.aborted or destination.paused or not destination.connected or destination.aborted:
            return False
        data = source.take(size)
        # Twisted reads no more from a connection that is being closed.
        if data and not destination.disconnecting:
            destination.protocol.dataReceived(data)
        return bool(data)

    def _end(self, source: MemoryTransport, destination: MemoryTransport) -> bool:
        if not source.connected or not (source.aborted or (source.disconnecting and not source.outgoing)):
            return False
        source.lose(ConnectionAborted() if source.aborted else ConnectionDone())
        destination.lose(ConnectionLost() if source.aborted else ConnectionDone())
        return True


class ScriptedServer(Protocol):
    """A server that answers its first bytes with what it is told, and may close.

    :param answer: what it sends; None for nothing.
    :param close: whether it closes then.
    """

    def __init__(self, answer: bytes | None = None, *, close: bool = True) -> None:
        self.answer = answer
        self.close = close
        self.received = b""
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        first = not self.received
        self.received += data
        if first and self.answer is not None:
            self.transport.write(self.answer)
        if first and self.close:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.lost = True


@implementer(IStreamClientEndpoint)
class MemoryEndpoint:
    """Connects to servers in memory.

    :param accept: makes the server's protocol of each connection.
    """

    def __init__(self, accept: Callable[[], Protocol]) -> None:
        self.accept = accept
        #: Every connection that was made, in order.
        self.links: list[Link] = []
        #: Whether connections are refused.
        self.refusing = False
        #: Attempts that wait for :meth:`go_on`; None to connect at once.
        self.held: list[tuple[Deferred[Any], IProtocolFactory]] | None = None
        self.attempts = 0

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803
        self.attempts += 1
        if self.held is not None:
            waiting: Deferred[Any] = Deferred()
            self.held.append((waiting, protocolFactory))
            return waiting
        if self.refusing:
            return fail(ConnectError(string="refused"))
        return succeed(self._connect(protocolFactory))

    def go_on(self) -> None:
        """Let the attempts that were held connect."""
        held, self.held = self.held or [], None
        for waiting, factory in held:
            if not waiting.called:
                waiting.callback(self._connect(factory))

    def _connect(self, factory: IProtocolFactory) -> Any:
        client: Any = factory.buildProtocol(SERVER)
        self.links.append(Link(client, self.accept()))
        return client

    def flush(self) -> None:
        """Move everything that moves, on connections that are made meanwhile as well."""
        while any(link.pump() for link in list(self.links)):
            pass


class ServedEndpoint(MemoryEndpoint):
    """Connects to a server's factory.

    :param factory: makes the server's protocols.
    """

    def __init__(self, factory: Factory) -> None:
        super().__init__(self._build)
        self.factory = factory

    def _build(self) -> Protocol:
        protocol = self.factory.buildProtocol(CLIENT)
        assert protocol is not None, "the server refused the connection"
        return protocol
