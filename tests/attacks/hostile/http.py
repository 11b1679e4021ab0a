"""Hostile clients of a router: too slow, with requests that can be understood in two ways, or never reading."""

from __future__ import annotations

import contextlib
import itertools
import time

from tests.attacks.hostile.peer import Peer, drain, pour, reset
from tests.attacks.hostile.web import drip

_GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
_POST = b"POST /digest HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"

#: Requests whose end can be understood in two ways, or that no client sends.
LIES = (
    _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    _POST + b"Content-Length: 40\r\nContent-Length: 0\r\n\r\n",
    _POST + b"Content-Length: 4\r\n 0\r\n\r\n",
    _POST + b"Content-Length: %s\r\n\r\n" % (b"9" * 5_000),
    _POST + b"Content-Length: -1\r\n\r\n",
    _POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    _POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n",
    _CHUNKED + b"0x5\r\n12345\r\n0\r\n\r\n",
    _CHUNKED + b"fffffffffffffffff\r\n",
    b"GET /%00/../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 2_000 + b"\r\n",
    b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 60_000),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)


def slow_heads(peer: Peer, until: float) -> None:
    """Send heads byte by byte, on several connections, and leave them there."""
    made = [peer.connect() for _ in range(20)]
    drip(made, _GET, until)
    for connection in made:
        peer.keep(connection)


def slow_bodies(peer: Peer, until: float) -> None:
    """Send bodies byte by byte, of known and of unknown size, and leave them there."""
    made = []
    for head in (_POST + b"Content-Length: 10000\r\n\r\n", _CHUNKED + b"1000\r\n", _CHUNKED + b"1;") * 4:
        connection = peer.connect()
        connection.sendall(head)
        made.append(connection)
        peer.keep(connection)
    drip(made, b"x" * 100, until)


def endless_chunks(peer: Peer, until: float) -> None:
    """Send chunks, and never the last one."""
    with contextlib.suppress(OSError), peer.connect() as connection:
        connection.sendall(_CHUNKED)
        pour(connection, itertools.repeat(_CHUNK, 64), min(until, time.monotonic() + 0.5))
        drain(connection, min(until, time.monotonic() + 0.3))


def lies(peer: Peer, until: float) -> None:
    """Send requests that can be understood in two ways, with another one behind each."""
    for lie in LIES:
        with contextlib.suppress(OSError), peer.connect() as connection:
            connection.sendall(lie + _GET)
            drain(connection, min(until, time.monotonic() + 0.1))


def pipelines(peer: Peer, until: float) -> None:
    """Send many requests at once, and read none of the answers."""
    connection = peer.connect(receive_buffer=1_024)
    with contextlib.suppress(OSError):
        pour(connection, itertools.repeat(_GET * 100, 10), min(until, time.monotonic() + 0.5))
    peer.keep(connection)


def unread_pages(peer: Peer, until: float) -> None:
    """Ask for pages of some size, and read none of them."""
    for size in (10_000, 50_000):
        connection = peer.connect(receive_buffer=1_024)
        connection.sendall(b"GET /size?size=%d HTTP/1.1\r\nHost: a\r\n\r\n" % size)
        peer.keep(connection)


def left_requests(peer: Peer, until: float) -> None:
    """Leave in the middle of a head, of a body and of a page."""
    for piece in (_GET[:9], _CHUNKED + _CHUNK, _GET, b"GET /size?size=4000000 HTTP/1.1\r\nHost: a\r\n\r\n"):
        connection = peer.connect(receive_buffer=1_024)
        with contextlib.suppress(OSError):
            connection.sendall(piece)
        reset(connection)
