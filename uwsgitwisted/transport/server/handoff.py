"""Connections that another process has accepted, and hands over with the bytes that it has read."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IReactorFDSet, IReadDescriptor
from twisted.internet.tcp import Port
from twisted.logger import Logger
from zope.interface import implementer

#: How many connections are taken in one turn of the reactor.
_AT_ONCE = 64
#: The largest first part of a connection: a byte, a packet, and a small body.
_MAX_DATA = 256 * 1024


@implementer(IReadDescriptor)
class Handoff:
    """Takes over connections, each in one message on a socket.

    :param reactor: reads the socket.
    :param ports: the ports on which the connections were accepted.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorFDSet, ports: Sequence[Port]) -> None:
        self._reactor = reactor
        self._ports = {port.socket.family: port for port in ports}
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._sessions = 0

    @property
    def descriptor(self) -> int:
        """The end of the socket that the other processes have."""
        return self._theirs.fileno()

    def start(self) -> None:
        """Take connections from now on."""
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Take no further connections, and close the socket."""
        self._reactor.removeReader(self)
        self._ours.close()
        self._theirs.close()

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._ours.fileno()

    def logPrefix(self) -> str:  # noqa: N802
        """Return the name of this in Twisted's own log lines."""
        return "Handoff"

    def connectionLost(self, reason: object) -> None:
        """Do nothing: this side holds both ends."""

    def doRead(self) -> None:  # noqa: N802
        """Take the connections that wait."""
        for _ in range(_AT_ONCE):
            try:
                data, descriptors, _, _ = socket.recv_fds(self._ours, _MAX_DATA, 1)
            except BlockingIOError:
                return
            for descriptor in descriptors:
                self._adopt(socket.socket(fileno=descriptor), data[1:])

    def _adopt(self, connection: socket.socket, data: bytes) -> None:
        """Give a connection its protocol, and the protocol the first bytes."""
        port: Any = self._ports.get(connection.family)
        try:
            name = connection.getpeername()
        except OSError:  # the peer has gone
            name = None
        if port is None or name is None:
            connection.close()
            return
        protocol = port.factory.buildProtocol(_address(connection.family, name))
        if protocol is None:
            connection.close()
            return
        self._sessions += 1
        transport = port.transport(connection, protocol, name, port, self._sessions, self._reactor)
        protocol.makeConnection(transport)
        if data:
            protocol.dataReceived(data)


def _address(family: int, name: Any) -> IAddress:
    if family == socket.AF_UNIX:
        return UNIXAddress(None)
    kind = IPv6Address if family == socket.AF_INET6 else IPv4Address
    return kind("TCP", *name[:2])
