"""The minimal framing for objects on a plain socket: eight bytes of size, then the bytes."""

from __future__ import annotations

import socket
import struct

_SIZE = struct.Struct("<Q")


def send(sock: socket.socket, data: bytes) -> None:
    """Send *data*."""
    sock.sendall(_SIZE.pack(len(data)))
    sock.sendall(data)


def receive(sock: socket.socket) -> bytearray | None:
    """Return the peer's next bytes, None at the end of the stream."""
    head = _exactly(sock, _SIZE.size)
    return None if head is None else _exactly(sock, _SIZE.unpack(head)[0])


def _exactly(sock: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return data
