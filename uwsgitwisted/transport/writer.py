"""Writes to a Twisted transport at once where it can, and says when it can't.

Twisted's ``transport.write`` waits for the reactor's next turn. Where nothing waits in the transport, trying
the socket right away saves that turn. What the socket doesn't take goes the usual way, and the transport's
buffer never holds more than that one piece.
"""

from __future__ import annotations

import array
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

#: How many bytes a socket is read for at once: usually, and while a large message arrives.
READ_SIZE, LARGE_READ_SIZE = FileDescriptor.bufferSize, 4 * FileDescriptor.bufferSize

#: How many bytes the kernel takes ahead, where it would take megabytes, for which a small message would wait
#: behind a large one. On a way of 10 ms, this bounds one connection to about 50 MB/s.
RECEIVE_BUFFER = 512 * 1024
#: How many bytes the kernel takes ahead that it can't send yet, for the same reason; what is on its way is not
#: bounded by this.
UNSENT = 128 * 1024


def _is_tcp(transport: object) -> TypeGuard[ITCPTransport]:
    # A UNIX socket's transport inherits from TCP's.
    return ITCPTransport.providedBy(transport) and not IUNIXTransport.providedBy(transport)


def set_nodelay(transport: object) -> None:
    """Have small packets go out at once where *transport* is TCP.

    With Nagle's algorithm they wait for the peer's delayed acknowledgements; with the kernel's usual buffer,
    behind megabytes of a large message.
    """
    if _is_tcp(transport):
        transport.setTcpNoDelay(True)
        _set(transport, socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", None), UNSENT)


def bound_buffer(transport: object) -> None:
    """Have the kernel take no more than :data:`RECEIVE_BUFFER` of a TCP connection ahead of us."""
    if _is_tcp(transport):
        _set(transport, socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _set(transport: object, level: int, option: int | None, value: int) -> None:
    """Set an option of a socket, if the system has it and the transport, which may be TLS, has the socket."""
    connection = getattr(transport, "getHandle", lambda: None)()
    if option is not None and isinstance(connection, socket.socket):
        connection.setsockopt(level, option, value)


def read_more_at_once(transport: object, more: bool) -> None:
    """Have a socket's transport read larger chunks while a large message arrives."""
    if isinstance(transport, FileDescriptor):
        transport.bufferSize = LARGE_READ_SIZE if more else READ_SIZE


def set_keepalive(transport: object) -> None:
    """Have a TCP connection probed, so that a peer whose machine lost its power is noticed in minutes."""
    if _is_tcp(transport):
        transport.setTcpKeepAlive(True)
        for option, value in _PROBES:
            _set(transport, socket.IPPROTO_TCP, option, value)


def enable_keepalive(listener: socket.socket) -> None:
    """Have the TCP connections probed that *listener* accepts."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES:
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def has_unread(transport: object) -> bool:
    """Whether bytes have arrived on a socket that were not read yet."""
    connection = getattr(transport, "getHandle", lambda: None)()
    if not isinstance(connection, socket.socket):
        return False
    unread = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, unread)
    return unread[0] > 0


#: After a minute of silence a probe every 15 seconds, and the end after four that nobody answers.
_PROBES = (
    (getattr(socket, "TCP_KEEPIDLE", None), 60),
    (getattr(socket, "TCP_KEEPINTVL", None), 15),
    (getattr(socket, "TCP_KEEPCNT", None), 4),
)


@implementer(IPushProducer)
class Writer:
    """Owns the writing side of one connection.

    :param transport: what to write to. A socket's own transport is written eagerly; another, such as TLS, in
        its own time.
    :param drained: called when the transport has passed on what waited.
    """

    __slots__ = ("_closed", "_drained", "_eager", "_ended", "_half_closing", "_size", "_transport", "waiting")

    def __init__(self, transport: ITransport, drained: Callable[[], None] = lambda: None) -> None:
        self._transport = transport
        self._drained = drained
        self._closed = False
        # Under TLS, what is written must pass through the encryption first.
        self._eager: FileDescriptor | None = None
        if isinstance(transport, FileDescriptor) and not getattr(transport, "TLS", False):
            self._eager = transport
        self._ended = False
        self._half_closing = False
        self._size = 0
        #: Whether bytes wait in the transport: write nothing large until ``drained`` is called.
        self.waiting = False
        if self._eager is None:
            transport.registerProducer(self, True)  # type: ignore[attr-defined]

    def write(self, data: bytes) -> None:
        """Write *data*, at once if nothing waits before it."""
        if self._eager is None or self.waiting:
            self._size = len(data)
            self._transport.write(data)
            return
        written = self._eager.writeSomeData(data)
        if isinstance(written, int) and written == len(data):
            return
        # Only a part went out; or the connection is broken, which the transport will find out and report.
        self._eager.write(data[written:] if isinstance(written, int) else data)
        self._size = len(data)
        # A pull producer is asked for more whenever the buffer is empty, and once at its registration.
        self._eager.registerProducer(self, False)
        self.waiting = True

    @property
    def pending(self) -> int:
        """About how many bytes wait in the transport: the last write, if it could not be passed on."""
        return self._size if self.waiting else 0

    def pauseProducing(self) -> None:
        """Note that the transport's buffer is full; a socket's transport never calls this."""
        self.waiting = True

    def resumeProducing(self) -> None:
        """Note that the transport's buffer is empty, and say so."""
        if not self.waiting:
            return
        self.waiting = False
        if self._eager is not None:
            self._eager.unregisterProducer()
        if self._half_closing:
            self.half_close()
        self._drained()

    def stopProducing(self) -> None:
        """Do nothing: the protocol learns of the loss of its connection by itself."""

    def half_close(self) -> None:
        """Tell the peer, when all that was written is out, that nothing more comes. TLS can't say that."""
        transport = self._transport
        if self.waiting:
            self._half_closing = True
        elif IHalfCloseableDescriptor.providedBy(transport) and not getattr(transport, "TLS", False):
            transport.loseWriteConnection()  # type: ignore[attr-defined]

    def close(self) -> bool:
        """Close the connection when all that was written is out.

        :return: whether that is so already, so that it closes with this turn of the reactor.
        """
        if self._closed:
            return self._ended
        self._closed = True
        if self._eager is not None and not self.waiting:
            # loseConnection would wait until the socket is writable, to find that there is nothing to write.
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
        """Close the connection now, whatever waits."""
        if not self._ended:  # else it is closed with this turn of the reactor
            self._transport.abortConnection()  # type: ignore[attr-defined]
