"""One hostile peer: its source address, the service that it attacks, and its open connections."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable

from tests.attacks.hostile import frames
from uwsgitwisted.wire.packet import PING, Packet, encode_packet
from uwsgitwisted.wire.terms import Terms

#: Seconds that a connection may take for one step; a service that is attacked may leave it hanging.
_STEP = 2.0
#: How many connections a peer keeps open beside what it does.
_KEPT = 150
#: Closes with a reset.
_RESET = struct.pack("ii", 1, 0)


class Peer:
    """A hostile peer.

    :param kind: of the service: ``node``, ``renderer``, ``spooler`` or ``router``.
    :param address: of the service.
    :param source: the loopback address that it comes from.
    :param seed: for its choices.
    """

    def __init__(self, kind: str, address: tuple[str, int], source: str, seed: object) -> None:
        self.kind = kind
        self.address = address
        self.source = source
        self.random = random.Random(f"{seed}")
        #: Ids of waiting or finished tasks, for queries about them.
        self.tasks: list[int] = []
        self._cached: deque[socket.socket] = deque()

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """Return a connection to the service.

        :param receive_buffer: how many bytes the kernel may hold of what isn't read.
        """
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.settimeout(_STEP)
        try:
            connection.bind((self.source, 0))
            connection.connect(self.address)
        except BaseException:
            connection.close()
            raise
        return connection

    def session(self, receive_buffer: int | None = None, window: int = 0) -> socket.socket:
        """Return a connection on which a session was granted.

        :param window: how many bytes of a stream it accepts ahead; 0 for no streams.
        """
        connection = self.connect(receive_buffer)
        try:
            connection.sendall(
                encode_packet(Packet(PING, 0, Terms(max_message=1 << 30, window=window).encode()))
            )
            if not connection.recv(65_539):
                raise ConnectionResetError("no session was granted")
        except BaseException:
            connection.close()
            raise
        return connection

    def keep(self, connection: socket.socket) -> None:
        """Leave a connection open meanwhile; close the oldest one when there are too many."""
        self._cached.append(connection)
        if len(self._cached) > _KEPT:
            self._cached.popleft().close()

    def close(self) -> None:
        """Close the open connections."""
        while self._cached:
            self._cached.pop().close()

    def payload(self, message: bytes) -> bytes:
        """Return *message* as a whole plain request for an object."""
        return encode_packet(Packet(33, 17, message))


def reset(connection: socket.socket) -> None:
    """Close a connection with a reset."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()


def pour(connection: socket.socket, data: Iterable[bytes], until: float, *, read: int = 0) -> None:
    """Send chunks while the service accepts them, until the time is up.

    :param read: how many bytes to read after each chunk, if there are some; 0 for none.
    """
    for chunk in data:
        if time.monotonic() >= until:
            return
        connection.sendall(chunk)
        if read:
            with contextlib.suppress(BlockingIOError):
                connection.recv(read, socket.MSG_DONTWAIT)


def drain(connection: socket.socket, until: float) -> int:
    """Read up to the end of the connection, or of the time; return how many bytes there were."""
    size = 0
    with contextlib.suppress(OSError):
        while time.monotonic() < until and (data := connection.recv(1 << 20)):
            size += len(data)
    return size


def requests(payloads: Iterable[bytes], modifiers: tuple[int, int] = (33, 17)) -> bytes:
    """Return the frames of a request with each payload, whose ids count from 1."""
    return b"".join(
        frames.message(identifier, payload, modifiers) for identifier, payload in enumerate(payloads, 1)
    )
