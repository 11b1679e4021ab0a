"""Hostile behaviours with connections: too slow, too many, closed too early, or full of junk."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from tests.attacks.hostile import frames
from tests.attacks.hostile.payloads import HUGE
from tests.attacks.hostile.peer import Peer, drain, requests, reset
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

#: Connections a second of a flood, and for how many seconds it lasts.
_FLOOD_RATE, _FLOOD_TIME = 500, 1.0
#: A request that each kind of service answers quickly.
QUESTIONS = {
    "node": dumps(("echo", "x" * 100)),
    "renderer": dumps(("page.txt", {"name": "x" * 100})),
    "spooler": dumps(("status", {"ids": [1]})),
}


def _question(peer: Peer) -> bytes:
    return encode_packet(Packet(33, 17, QUESTIONS[peer.kind]))


def slow_header(peer: Peer, until: float) -> None:
    """Send a header byte by byte, on several connections, and leave them there."""
    made = [peer.connect() for _ in range(10)]
    for byte in _question(peer)[:3]:
        for connection in made:
            with contextlib.suppress(OSError):
                connection.sendall(bytes([byte]))
        time.sleep(0.1)
    for connection in made:
        peer.keep(connection)


def slow_body(peer: Peer, until: float) -> None:
    """Send a large packet, and bodies behind packets, a few bytes at a time."""
    bodies = encode_vars({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": str(60 << 20)})
    starts = [b"\x21\xff\xff\x11" + b"x" * 1_000] * 5 + [encode_packet(Packet(17, 1, bodies))] * 5
    made = [peer.connect() for _ in starts]
    for connection, start in zip(made, starts, strict=True):
        connection.sendall(start)
        peer.keep(connection)
    for _ in range(3):
        time.sleep(0.1)
        for connection in made:
            with contextlib.suppress(OSError):
                connection.sendall(b"slow")


def never_read(peer: Peer, until: float) -> None:
    """Request large answers, plain and in a session, and read none of them."""
    large = dumps(("big", 65_000)) if peer.kind == "node" else QUESTIONS[peer.kind]
    for _ in range(10):
        connection = peer.connect(receive_buffer=1_024)
        connection.sendall(encode_packet(Packet(33, 17, large)))
        peer.keep(connection)
    session = peer.session(receive_buffer=1_024)
    larger = dumps(("big", 1 << 20)) if peer.kind == "node" else large
    session.sendall(requests([larger] * 20))
    peer.keep(session)


def half_close(peer: Peer, until: float) -> None:
    """Close the sending side behind a request, before its end, and at once; then leave or go."""
    question = _question(peer)
    for size in (len(question), len(question) - 1, 2, 0) * 5:
        connection = peer.connect()
        connection.sendall(question[:size])
        connection.shutdown(socket.SHUT_WR)
        if peer.random.random() < 0.5:
            connection.close()
        else:
            peer.keep(connection)


def resets(peer: Peer, until: float) -> None:
    """Reset a connection in each state that it can be in."""
    question = _question(peer)
    for size in (0, 2, 4, len(question) // 2, len(question)):
        connection = peer.connect()
        connection.sendall(question[:size])
        reset(connection)
    request = frames.message(1, QUESTIONS[peer.kind])
    unfinished = frames.begin(2, bytes(10_000), size=20_000)
    for data in (
        b"",
        request[:3],
        request[:20],
        request,
        unfinished,
        request * 1 + frames.cancel(1),
        frames.ping(),
    ):
        session = peer.session()
        session.sendall(data)
        reset(session)
    session = peer.session()  # in the middle of an answer
    session.sendall(requests([QUESTIONS[peer.kind]] * 50))
    session.recv(1)
    reset(session)


def junk(peer: Peer, until: float) -> None:
    """Send bytes at random, as requests, as packets and within sessions."""
    for _ in range(15):
        with contextlib.suppress(OSError), peer.connect() as connection:
            connection.sendall(peer.random.randbytes(peer.random.randrange(1, 3_000)))
    for _ in range(5):
        with contextlib.suppress(OSError), peer.session() as session:
            session.sendall(frames.frame(peer.random.randrange(256), peer.random.randbytes(300)))
            session.sendall(peer.random.randbytes(1_000))


def garbage(peer: Peer, until: float) -> None:
    """Send 300 invalid objects, and break 20 sessions: each may write a log line."""
    with peer.session() as session:
        session.sendall(requests([b"\x7fgarbage"] * 300))
        drain(session, min(until, time.monotonic() + 0.5))
    for _ in range(20):
        with contextlib.suppress(OSError), peer.connect() as connection:
            connection.sendall(encode_packet(Packet(33, 17, b"\x7f")))
        with contextlib.suppress(OSError), peer.session() as session:
            session.sendall(frames.frame(99))


def huge_counts(peer: Peer, until: float) -> None:
    """Announce more than is sent: items, bytes of a message, bytes of a body."""
    for payload in HUGE:
        with contextlib.suppress(OSError), peer.connect() as connection:
            connection.sendall(encode_packet(Packet(33, 17, payload)))
            drain(connection, min(until, time.monotonic() + 0.3))
    for size in (0xFFFFFFFF, 1 << 31, (64 << 20) + 1):
        with contextlib.suppress(OSError), peer.session() as session:
            session.sendall(frames.begin(1, bytes(10_000), size=size))
            drain(session, min(until, time.monotonic() + 0.3))
    for size in (b"9" * 20, b"9" * 5_000, b"-1"):
        block = encode_vars({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": size})
        with contextlib.suppress(OSError), peer.connect() as connection:
            connection.sendall(encode_packet(Packet(17, 1, block)))
            drain(connection, min(until, time.monotonic() + 0.3))


def more_behind(peer: Peer, until: float) -> None:
    """Send a megabyte behind a plain request."""
    for _ in range(5):
        with contextlib.suppress(OSError), peer.connect() as connection:
            connection.sendall(_question(peer) + bytes(1 << 20))


def connection_flood(peer: Peer, until: float) -> None:
    """Open and close 500 connections a second."""
    began = time.monotonic()
    number = 0
    while (now := time.monotonic()) < min(until, began + _FLOOD_TIME):
        if number > (now - began) * _FLOOD_RATE:
            time.sleep(0.002)
            continue
        number += 1
        with contextlib.suppress(OSError):
            connection = peer.connect()
            (reset if number % 2 else socket.socket.close)(connection)


def idle_sessions(peer: Peer, until: float) -> None:
    """Begin 60 sessions, and leave them idle."""
    for _ in range(60):
        peer.keep(peer.session())


def descriptor_flood(peer: Peer, until: float) -> None:
    """Hold 300 connections that send nothing, for a while."""
    with contextlib.ExitStack() as opened:
        for _ in range(300):
            with contextlib.suppress(OSError):
                opened.enter_context(peer.connect())
        time.sleep(max(0.0, min(1.0, until - time.monotonic())))


Behaviour = Callable[[Peer, float], None]
