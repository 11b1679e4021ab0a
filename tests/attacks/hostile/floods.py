"""Hostile behaviours within a session, or with objects: little to send, much to do or to hold."""

from __future__ import annotations

import contextlib
import itertools
import time

from tests.attacks.hostile import frames
from tests.attacks.hostile.connections import QUESTIONS
from tests.attacks.hostile.payloads import colliding_ints, trees
from tests.attacks.hostile.peer import Peer, drain, pour, requests, reset
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import Packet, encode_packet

#: How many bytes of pings one flood has at most.
_PINGS = 8 << 20
_PIECE = bytes(frames.NEXT_PIECE)


def _ask(peer: Peer, payload: bytes, until: float, seconds: float = 1.0) -> None:
    with peer.session() as session:
        session.sendall(frames.message(1, payload))
        session.recv(65_536)
    if len(payload) < 65_536:
        with peer.connect() as connection:
            connection.sendall(encode_packet(Packet(33, 17, payload)))
            drain(connection, min(until, time.monotonic() + seconds))


def collisions(peer: Peer, until: float) -> None:
    """Send a dict of colliding ints: 327 KB of them, or as much as a spooler accepts as a command."""
    _ask(peer, colliding_ints(1_900 if peer.kind == "spooler" else 20_000), until)


def tree_objects(peer: Peer, until: float) -> None:
    """Send a set of tuples of equal hash that hold trees, whose comparison takes 2**12 steps."""
    _ask(peer, trees(), until)


def hostile_variables(peer: Peer, until: float) -> None:
    """Send variables whose names a template's own code uses."""
    names = ("callable_", "tmpl", "str", "filters", "self", "context", "UNDEFINED", "loop", "__builtins__")
    for name in names:
        _ask(peer, dumps(("page.txt", {"name": "x", name: 1})), until)
    for name in ("../page.txt", "/etc/passwd", "page.txt\0", "a" * 60_000, "//", "."):
        _ask(peer, dumps((name, {})), until)


def ping_flood(peer: Peer, until: float) -> None:
    """Send up to 8 MB of pings, and read their answers slowly."""
    session = peer.session(receive_buffer=1_024)
    chunk = frames.ping() * 4_096
    try:
        pour(
            session, itertools.repeat(chunk, _PINGS // len(chunk)), min(until, time.monotonic() + 1.5), read=64
        )
        time.sleep(0.2)
    finally:
        reset(session)


def unfinished(peer: Peer, until: float) -> None:
    """Begin a message of 60 MB in each of three sessions, send most of it, and never its end."""
    sessions = [peer.session() for _ in range(3)]
    try:
        for session in sessions:
            first = frames.begin(1, bytes(frames.FIRST_PIECE), size=60 << 20)
            rest = itertools.repeat(frames.more(1, _PIECE), 600)
            with contextlib.suppress(OSError):
                pour(session, itertools.chain([first], rest), min(until, time.monotonic() + 1))
    finally:
        for session in sessions:
            peer.keep(session)


def large_requests(peer: Peer, until: float) -> None:
    """Send 5 requests of 20 MB, and reset the connection while they are held or run."""
    session = peer.session()
    payload = dumps(("length", bytes(20 << 20)))
    with contextlib.suppress(OSError):
        for identifier in range(5):
            session.sendall(frames.message(identifier, payload))
    reset(session)


def unknown_cancels(peer: Peer, until: float) -> None:
    """Send 640 KB of cancels of ids that nobody has, beside 1,000 requests."""
    with peer.session() as session:
        session.sendall(requests([QUESTIONS[peer.kind]] * 1_000))
        cancels = b"".join(map(frames.cancel, range(100_000, 180_000)))
        pour(session, [cancels], until)
        drain(session, min(until, time.monotonic() + 0.5))


def cancelled_requests(peer: Peer, until: float) -> None:
    """Send a request and cancel it at once, 2,000 times."""
    with peer.session() as session:
        message = QUESTIONS[peer.kind]
        both = [frames.message(number, message) + frames.cancel(number) for number in range(2_000)]
        pour(session, [b"".join(both)], until)
        drain(session, min(until, time.monotonic() + 0.5))


def small_pieces(peer: Peer, until: float) -> None:
    """Send frames byte by byte, and messages in the smallest pieces that are allowed, 1,000 at once."""
    with peer.session() as session:
        for byte in frames.message(1, QUESTIONS[peer.kind]):
            session.sendall(bytes([byte]))
        piece = bytes(4_096)
        pour(session, (frames.begin(number, piece, size=50_000) for number in range(2, 1_002)), until)
        reset(session)


def looping_handler(peer: Peer, until: float) -> None:
    """Make a worker loop until it is killed."""
    with peer.connect() as connection:
        connection.sendall(encode_packet(Packet(33, 17, dumps(("loop",)))))
        drain(connection, until)


def hungry_handler(peer: Peer, until: float) -> None:
    """Make a worker allocate all the memory it can get."""
    with peer.connect() as connection:
        connection.sendall(encode_packet(Packet(33, 17, dumps(("hungry",)))))
        drain(connection, until)
