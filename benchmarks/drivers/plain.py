"""A driver of plain uwsgi, one connection per request, 16 at a time."""

from __future__ import annotations

import marshal
import select
import socket
import struct
from time import perf_counter

from benchmarks.messages import ECHO, SMALL

_CONNECTIONS = 16
_DATA = marshal.dumps(SMALL, 2)


def _packet(modifier1: int, modifier2: int, payload: bytes) -> bytes:
    return struct.pack("<BHB", modifier1, len(payload), modifier2) + payload


def _item(data: bytes) -> bytes:
    return struct.pack("<H", len(data)) + data


#: The requests, each with the beginning of its answer.
_REQUESTS = {
    "object": (_packet(33, ECHO, _DATA), b"\x21"),
    "rpc": (_packet(173, 0, _item(b"echo") + _item(_DATA)), b"\xad"),
    "ping": (_packet(100, 0, b""), b"\x64"),
    "echo": (_packet(101, 0, _DATA), _DATA[:1]),
}


class Load:
    """Sixteen connections; each is replaced by another as soon as it is answered.

    :param port: the server's port.
    :param request: the bytes to send.
    :param begins: the beginning of each answer.
    """

    def __init__(self, port: int, request: bytes, begins: bytes) -> None:
        self._address = ("127.0.0.1", port)
        self._request = request
        self._begins = begins
        self._epoll = select.epoll()
        self._open: dict[int, tuple[socket.socket, list[bytes]]] = {}
        self._done = 0

    def run(self, seconds: float) -> list[float]:
        """Return the rate of answered requests per second, and their number."""
        self._done = 0
        start = perf_counter()
        for _ in range(_CONNECTIONS):
            self._begin()
        while perf_counter() - start < seconds:
            self._turn(again=True)
        while self._open:
            self._turn(again=False)
        return [self._done / (perf_counter() - start), float(self._done)]

    def _turn(self, *, again: bool) -> None:
        events = self._epoll.poll(10)
        if not events:
            raise TimeoutError("the server answered nothing for 10 s")
        for number, _ in events:
            sock, chunks = self._open[number]
            data = sock.recv(65_536)
            if data:
                chunks.append(data)
                continue
            del self._open[number]
            sock.close()
            if not b"".join(chunks).startswith(self._begins):
                raise ValueError(f"an answer is {chunks}")
            self._done += 1
            if again:
                self._begin()

    def _begin(self) -> None:
        # Connecting to a local listener doesn't block, and neither does sending so small a packet.
        sock = socket.socket()
        sock.connect(self._address)
        sock.send(self._request)
        self._open[sock.fileno()] = (sock, [])
        self._epoll.register(sock.fileno(), select.EPOLLIN)


def run(port: int, seconds: float, kind: str) -> list[float]:
    """Return the rate of answered requests of a kind per second, and their number."""
    return Load(port, *_REQUESTS[kind]).run(seconds)
