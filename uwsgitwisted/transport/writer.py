"""Writes to a Twisted transport immediately where possible, with back-pressure; also sets the sockets' options.

Twisted's ``transport.write`` waits for the reactor's next turn. If nothing waits in the transport, trying the
socket right away saves that turn. Data that the socket doesn't accept goes the usual way, and the transport's
buffer never holds more than that one piece.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import termios
from collections.abc import Callable
from typing import TypeGuard, cast

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
    ITransport,
    IUNIXTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.stream import unacknowledged_by

#: How many bytes to read from a socket at once: usually, and while a large message arrives.
READ_SIZE, LARGE_READ_SIZE = FileDescriptor.bufferSize, 4 * FileDescriptor.bufferSize

#: How many received bytes the kernel buffers. Its default is megabytes, and a small message would wait for all
#: of them behind a large one. With a latency of 10 ms, this limits one connection to about 50 MB/s.
RECEIVE_BUFFER = 512 * 1024
#: How many unsent bytes the kernel buffers, for the same reason. Bytes already on the way don't count.
UNSENT = 128 * 1024


def _is_tcp(transport: object) -> TypeGuard[ITCPTransport]:
    # A UNIX socket's transport inherits from TCP's.
    return ITCPTransport.providedBy(transport) and not IUNIXTransport.providedBy(transport)


def set_nodelay(transport: object) -> None:
    """Send small packets without delay if *transport* is TCP.

    With Nagle's algorithm they would wait for the peer's delayed acknowledgements; with the kernel's default
    buffer, behind megabytes of a large message.
    """
    if _is_tcp(transport):
        transport.setTcpNoDelay(True)
        _set_option(transport, socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", None), UNSENT)


def bound_buffer(transport: object) -> None:
    """Limit the kernel's receive buffer of a TCP connection to :data:`RECEIVE_BUFFER`."""
    if _is_tcp(transport):
        _set_option(transport, socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _set_option(transport: object, level: int, option: int | None, value: int) -> None:
    """Set a socket option, if the system has it.

    A transport that gives no access to its socket, as TLS may not, is left alone.
    """
    connection = getattr(transport, "getHandle", lambda: None)()
    if option is not None and isinstance(connection, socket.socket):
        connection.setsockopt(level, option, value)


def read_more_at_once(transport: object, more: bool) -> None:
    """Make a socket's transport read larger chunks, for the time in which a large message arrives."""
    if isinstance(transport, FileDescriptor):
        transport.bufferSize = LARGE_READ_SIZE if more else READ_SIZE


def set_keepalive(transport: object) -> None:
    """Enable TCP keep-alive, which detects within minutes a peer whose machine has lost power."""
    if _is_tcp(transport):
        transport.setTcpKeepAlive(True)
        for option, value in _PROBES:
            _set_option(transport, socket.IPPROTO_TCP, option, value)


def enable_keepalive(listener: socket.socket) -> None:
    """Enable TCP keep-alive on the connections that *listener* accepts."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES:
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def has_unread(transport: object) -> bool:
    """Whether a socket has received bytes that have not been read yet."""
    connection = getattr(transport, "getHandle", lambda: None)()
    if not isinstance(connection, socket.socket):
        return False
    unread = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, unread)
    return unread[0] > 0


def read_unread(transport: object) -> bytes:
    """Return bytes that a socket has received and that have not been read yet; no bytes if there are none."""
    connection = getattr(transport, "getHandle", lambda: None)()
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):
            return connection.recv(LARGE_READ_SIZE, socket.MSG_DONTWAIT)
    return b""


def unacknowledged(transport: object) -> int:
    """Return how many bytes the system still keeps for the peer; 0 if that can't be known."""
    transport = getattr(transport, "transport", transport)  # TLS wraps the socket's own
    connection = getattr(transport, "getHandle", lambda: None)()
    return unacknowledged_by(connection) if isinstance(connection, socket.socket) else 0


#: After a minute of silence, a probe every 15 seconds; after four unanswered probes, the connection is lost.
_PROBES = (
    (getattr(socket, "TCP_KEEPIDLE", None), 60),
    (getattr(socket, "TCP_KEEPINTVL", None), 15),
    (getattr(socket, "TCP_KEEPCNT", None), 4),
)


@implementer(IPushProducer)
class Writer:
    """Owns the writing side of one connection.

    :param transport: the transport to write to. A socket's own transport is written immediately; another, such
        as TLS, when it is ready.
    :param on_drained: called when the transport has written the bytes that waited.
    """

    __slots__ = (
        "_closed",
        "_eager",
        "_ended",
        "_half_closing",
        "_on_drained",
        "_size",
        "_transport",
        "waiting",
    )

    def __init__(self, transport: ITransport, on_drained: Callable[[], None] = lambda: None) -> None:
        self._transport = transport
        self._on_drained = on_drained
        self._closed = False
        # With TLS, the data must be encrypted first.
        self._eager: FileDescriptor | None = None
        if isinstance(transport, FileDescriptor) and not getattr(transport, "TLS", False):
            self._eager = transport
        self._ended = False
        self._half_closing = False
        self._size = 0
        #: Whether bytes wait in the transport: write nothing large until ``on_drained`` is called.
        self.waiting = False
        if self._eager is None:
            transport.registerProducer(self, True)  # type: ignore[attr-defined]

    def write(self, data: bytes) -> None:
        """Write *data*, immediately if nothing waits before it."""
        if self._eager is None or self.waiting:
            self._size = len(data)
            self._transport.write(data)
            return
        written = self._eager.writeSomeData(data)
        if isinstance(written, int) and written == len(data):
            return
        # Only a part was written; or the connection is broken, which the transport will find out and report.
        self._eager.write(data[written:] if isinstance(written, int) else data)
        self._size = len(data)
        # A transport calls a pull producer whenever its buffer is empty, and once at the registration.
        self._eager.registerProducer(self, False)
        self.waiting = True

    @property
    def pending(self) -> int:
        """Roughly how many bytes wait in the transport: the size of the last write, if it has not finished."""
        return self._size if self.waiting else 0

    def pauseProducing(self) -> None:
        """Stop writing: the transport's buffer is full. A socket's transport never calls this."""
        self.waiting = True

    def resumeProducing(self) -> None:
        """Go on: the transport's buffer is empty."""
        if not self.waiting:
            return
        self.waiting = False
        if self._eager is not None:
            self._eager.unregisterProducer()
        if self._half_closing:
            self.half_close()
        self._on_drained()

    def stopProducing(self) -> None:
        """Do nothing: the protocol's ``connectionLost`` is called too."""

    def half_close(self) -> None:
        """Close the sending side when all data is written. TLS can't."""
        transport = self._transport
        if self.waiting:
            self._half_closing = True
        elif IHalfCloseableDescriptor.providedBy(transport) and not getattr(transport, "TLS", False):
            transport.loseWriteConnection()  # type: ignore[attr-defined]

    def close(self) -> bool:
        """Close the connection when all data is written.

        :return: whether nothing waits, so that the connection closes in this turn of the reactor.
        """
        if self._closed:
            return self._ended
        self._closed = True
        if self._eager is not None and not self.waiting:
            # loseConnection would wait until the socket is writable, only to find nothing to write.
            self._ended = True
            self._eager.stopReading()
            clock = cast(IReactorTime, self._eager.reactor)
            clock.callLater(0, self._eager.connectionLost, Failure(ConnectionDone()))
            return True
        if self._eager is None:
            self._transport.unregisterProducer()  # type: ignore[attr-defined]
        self._transport.loseConnection()
        return False

    def abort(self) -> None:
        """Close the connection now and drop the data that waits."""
        if not self._ended:  # otherwise it closes in this turn of the reactor
            self._transport.abortConnection()  # type: ignore[attr-defined]
