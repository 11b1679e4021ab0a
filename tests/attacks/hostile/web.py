"""Hostile web requests: too slow, with lengths and variables that lie, without an end, or never read."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Iterable

from tests.attacks.hostile.peer import Peer, drain, pour, reset
from uwsgitwisted.wire.packet import Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

#: Seconds between two bytes of a slow request, and how many are sent so before it is left as it is.
_DRIP, _DRIPS = 0.05, 15
_PIECE, _MANY = bytes(65_536), 64

#: What a body's length is said to be, where none is like that.
LYING_LENGTHS = (
    "-1",
    "+5",
    "1e3",
    "0x10",
    " 5",
    "5 5",
    "5,5",
    "9" * 30,
    "9" * 5_000,
    "18446744073709551621",
    "\u0665",
)
#: Variables that no web server sends.
LYING_VARIABLES: tuple[dict[str, str], ...] = (
    {"REQUEST_METHOD": "GET\r\nX-Injected: yes"},
    {"REQUEST_METHOD": ""},
    {"PATH_INFO": "\0/../../etc/passwd"},
    {"PATH_INFO": "no/slash"},
    {"SCRIPT_NAME": "/elsewhere", "PATH_INFO": "/"},
    {"SERVER_PROTOCOL": "HTTP/1.1\r\nX-Injected: yes"},
    {"SERVER_PROTOCOL": "x" * 60_000},
    {"SERVER_PORT": "no port", "SERVER_NAME": "", "REMOTE_ADDR": "::::"},
    {"HTTP_TRANSFER_ENCODING": "chunked"},
    {"HTTP_CONTENT_LENGTH": "5", "CONTENT_LENGTH": ""},
    {"wsgi.input": "text", "wsgi.errors": "text", "wsgi.url_scheme": "gopher"},
    {"UWSGI_FILE": "/etc/passwd", "UWSGI_MODULE": "os", "UWSGI_SCRIPT": "os", "UWSGI_SETENV": "PATH=/tmp"},
    {"UWSGI_PYHOME": "/tmp", "UWSGI_CHDIR": "/tmp", "UWSGI_SCHEME": "x", "UWSGI_APPID": "/x"},
    {f"HTTP_X_{number}": "x" for number in range(4_000)},
)


def request(path: str = "/", method: str = "GET", **variables: str) -> bytes:
    """Return the packet of a web request, without a body."""
    made = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path.partition("?")[0],
        "QUERY_STRING": path.partition("?")[2],
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        **variables,
    }
    return encode_packet(Packet(0, 0, encode_vars(made)))


def drip(connections: Iterable[socket.socket], data: bytes, until: float) -> None:
    """Send a few bytes on each connection, one at a time."""
    for byte in data[:_DRIPS]:
        if time.monotonic() >= until:
            return
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(bytes([byte]))
        time.sleep(_DRIP)


def slow_packets(peer: Peer, until: float) -> None:
    """Send requests byte by byte, on several connections, and leave them there."""
    made = [peer.connect() for _ in range(20)]
    drip(made, request(), until)
    for connection in made:
        peer.keep(connection)


def slow_bodies(peer: Peer, until: float) -> None:
    """Send bodies byte by byte, behind whole packets, and leave them there."""
    made = []
    for size in (100, 10_000, 1_000_000, 100_000_000) * 3:
        connection = peer.connect()
        connection.sendall(request("/digest", "POST", CONTENT_LENGTH=str(size)))
        made.append(connection)
        peer.keep(connection)
    drip(made, bytes(_DRIPS), until)


def slow_uploads(peer: Peer, until: float) -> None:
    """Send enough of large bodies that the application starts, and the rest byte by byte."""
    made = []
    for _ in range(3):
        connection = peer.connect()
        connection.sendall(request("/digest", "POST", CONTENT_LENGTH="100000000") + bytes(1_000_000))
        made.append(connection)
        peer.keep(connection)
    drip(made, bytes(_DRIPS), until)


def lying_lengths(peer: Peer, until: float) -> None:
    """Say lengths of bodies that are none."""
    for length in LYING_LENGTHS:
        with contextlib.suppress(OSError), peer.connect() as connection:
            connection.sendall(request("/echo", "POST", CONTENT_LENGTH=length) + b"five!")
            drain(connection, min(until, time.monotonic() + 0.1))


def lying_variables(peer: Peer, until: float) -> None:
    """Send variables that lie, or that would load other code in a uWSGI."""
    for variables in LYING_VARIABLES:
        with contextlib.suppress(OSError), peer.connect() as connection:
            connection.sendall(request(**{"CONTENT_LENGTH": "5", **variables}) + b"five!")
            drain(connection, min(until, time.monotonic() + 0.1))


def endless_body(peer: Peer, until: float) -> None:
    """Send much of a body, and never its end, to an application that reads it and to one that doesn't."""
    for path in ("/digest", "/unread"):
        with contextlib.suppress(OSError), peer.connect() as connection:
            connection.sendall(request(path, "POST", CONTENT_LENGTH=str(1 << 33)))
            pour(connection, itertools.repeat(_PIECE, _MANY), min(until, time.monotonic() + 0.5))
            drain(connection, min(until, time.monotonic() + 0.5))


def cut_bodies(peer: Peer, until: float) -> None:
    """End the connection in the middle of a body: by half-closing, closing, and a reset."""
    for size in (10, 100_000, 10_000_000):
        for path in ("/digest", "/unread"):
            made = [peer.connect() for _ in range(3)]
            for connection in made:
                with contextlib.suppress(OSError):
                    connection.sendall(request(path, "POST", CONTENT_LENGTH=str(size)) + b"half")
            made[0].shutdown(socket.SHUT_WR)
            peer.keep(made[0])
            made[1].close()
            reset(made[2])


def unread_pages(peer: Peer, until: float) -> None:
    """Ask for pages of some size, and read none of them."""
    for size in (10_000, 100_000, 200_000):
        connection = peer.connect(receive_buffer=1_024)
        connection.sendall(request(f"/size?size={size}&as=generator"))
        peer.keep(connection)


def left_pages(peer: Peer, until: float) -> None:
    """Ask for pages, read their beginning, and leave."""
    for number in range(6):
        with contextlib.suppress(OSError):
            connection = peer.connect(receive_buffer=1_024)
            connection.sendall(request("/size?size=4000000&as=generator"))
            if number % 2:
                connection.recv(100)
            reset(connection)
