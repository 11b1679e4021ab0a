"""A driver of web requests that keeps its connections, where there is no wrk."""

from __future__ import annotations

import select
import socket
from time import perf_counter


def _length_of(head: bytes) -> int:
    """Return the size of an answer's body.

    :raises ValueError: if the answer isn't a page of known length.
    """
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"an answer begins with {head[:100]!r}")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise ValueError(f"an answer has no Content-Length: {head!r}")


class _Connection:
    """One connection; each answer is followed by the next request."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self._request = request
        self._received = b""
        self.ask()

    def ask(self) -> None:
        """Send a request."""
        self._received = b""
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Read; return whether the answer is complete."""
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionError("the server closed a connection")
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        return bool(end) and len(body) >= _length_of(head)


def run(port: int, seconds: float, path: str, connections: str) -> list[float]:
    """Return the answered requests per second."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    opened = {
        each.socket.fileno(): each for each in (_Connection(port, request) for _ in range(int(connections)))
    }
    epoll = select.epoll()
    for number in opened:
        epoll.register(number, select.EPOLLIN)
    done, start = 0, perf_counter()
    while perf_counter() - start < seconds:
        events = epoll.poll(10)
        if not events:
            raise TimeoutError("the server answered nothing for 10 s")
        for number, _ in events:
            if opened[number].receive():
                done += 1
                opened[number].ask()
    return [done / (perf_counter() - start)]
