"""Attacks within a session: floods of frames that cost little to send, and what callers beside them notice."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest
import pytest_twisted

from tests.attacks.callers import limit_beside
from tests.attacks.witness import assert_within, pinging, watching
from tests.integration.services import Launcher, RawSession, Service, until
from uwsgitwisted.client import Client
from uwsgitwisted.wire.frame import CANCEL, MIN_PIECE, MORE, REQUEST, SHUTDOWN
from uwsgitwisted.wire.packet import ECHO, MARSHAL, PING, SESSION, Packet, encode_packet

pytestmark = pytest.mark.integration

#: A request of modifier2 1 waits until the file ``go`` is there.
HANDLER = """
import os, time, uwsgi

def handle(message, modifier2):
    while modifier2 == 1 and not os.path.exists("go"):
        time.sleep(0.01)
    return message

uwsgi.message_manager_marshal = handle
"""
#: What a ping beside a flood may always take, in seconds, and the most memory that a flood may cost.
FLOOR, MEMORY = 0.05, 32 * 1024 * 1024
#: The limit is short for a machine that does other things as well: one of so many tries has to keep it.
TRIES = 6
#: Seconds that a flood lasts, and the most bytes that it sends.
FLOOD_TIME, FLOOD_SIZE = 2.0, 8_000_000
#: How often it is pinged after that, while the service works on what it has.
CALLS = 50
_CHUNK = 256 * 1024


def frame(kind: int, payload: bytes = b"") -> bytes:
    return encode_packet(Packet(SESSION, kind, payload))


def begin(request: int, modifier1: int, size: int = 0, piece: bytes = b"") -> bytes:
    """Return the frame that begins a request, of modifier2 1."""
    return frame(REQUEST, struct.pack("<IBBII", request, modifier1, 1, size, 0) + piece)


#: By name, the frame that a flood repeats.
FLOODS = {
    "pings": encode_packet(Packet(PING, 0)),
    "pongs": encode_packet(Packet(PING, 1)),
    "shutdowns": frame(SHUTDOWN),
    "cancels of ids that nobody has": frame(CANCEL, struct.pack("<I", 77_777)),
    "pieces of ids that nobody has": frame(MORE, struct.pack("<I", 77_777)),
}


@contextlib.contextmanager
def raw_session(service: Service, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """Give a connection on which a session is granted."""
    session = RawSession(service, receive_buffer)
    try:
        yield session.connection
    finally:
        session.close()


def flood(connections: list[socket.socket], data: bytes, *, reading: bool = False) -> None:
    """Send *data* on each connection, as fast as the service takes it, for a while."""
    rest = {connection: memoryview(data)[:FLOOD_SIZE] for connection in connections}
    for connection in connections:
        connection.setblocking(False)
    deadline = time.monotonic() + FLOOD_TIME
    while rest and time.monotonic() < deadline:
        readable, writable, _ = select.select(list(rest) if reading else [], list(rest), [], 0.05)
        for connection in readable:
            connection.recv(_CHUNK)
        for connection in writable:
            sent = 0
            with contextlib.suppress(ConnectionError):  # a shutdown notice ends it
                sent = connection.send(rest[connection][:_CHUNK])
            rest[connection] = rest[connection][sent:]
            if not sent or not rest[connection]:
                del rest[connection]


def start(launch: Launcher, *options: str) -> Service:
    """Start a node with one worker."""
    return launch.start("uwsgi-node", "--engine", "processes:1", *options, handler=HANDLER, tcp=True)


def slowest_beside(service: Service, connections: list[socket.socket], data: bytes, *, reading: bool) -> float:
    """Return the slowest ping beside a flood."""
    with watching(pinging(service.address)) as witness:
        flood(connections, data, reading=reading)
        called = len(witness.durations)
        until(lambda: len(witness.durations) > called + CALLS, "more pings")
    assert not witness.errors
    return witness.slowest


@pytest.mark.parametrize("name", FLOODS)
def test_frames(name: str, launch: Launcher) -> None:
    """Frames of a few bytes, of which nothing is read that comes back, neither pile up nor hold up others."""
    node = start(launch)
    before = node.memory()

    limit = limit_beside(FLOOR, pinging(node.address))

    def attack() -> float:
        with raw_session(node, 4_096) as connection:
            # While a large message is on its way, more is read at once.
            connection.sendall(begin(1, ECHO, 1_000_000, bytes(MIN_PIECE)))
            data = FLOODS[name] * (FLOOD_SIZE // len(FLOODS[name]))
            return slowest_beside(node, [connection], data, reading=False)

    assert_within(limit, attack, "a ping beside the flood", TRIES)
    assert node.memory() - before < MEMORY


@pytest.mark.parametrize("reading", [True, False], ids=["read", "unread"])
@pytest.mark.parametrize("modifier1", [ECHO, MARSHAL], ids=["echoes", "refused"])
def test_tiny_requests(modifier1: int, reading: bool, launch: Launcher) -> None:
    """Empty requests from several connections, answered at once or refused, don't hold up others."""
    node = start(launch, "--max-queue", "1")
    before = node.memory()
    data = b"".join(begin(request, modifier1) for request in range(FLOOD_SIZE // 180))

    limit = limit_beside(FLOOR, pinging(node.address))

    def attack() -> float:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(raw_session(node, 4_096)) for _ in range(8)]
            return slowest_beside(node, connections, data, reading=reading)

    assert_within(limit, attack, "a ping beside the flood", TRIES)
    assert node.memory() - before < 2 * MEMORY


def test_cancels_beside_held_requests(launch: Launcher) -> None:
    """Cancels of ids that nobody has cost the same, however many requests of the session are held."""
    node = start(launch)

    limit = limit_beside(FLOOR, pinging(node.address))

    def attack() -> float:
        with raw_session(node) as connection:
            connection.sendall(b"".join(begin(request, MARSHAL, 1, b"N") for request in range(1_000)))
            cancels = FLOODS["cancels of ids that nobody has"] * 80_000
            return slowest_beside(node, [connection], cancels, reading=False)

    assert_within(limit, attack, "a ping beside the cancels", TRIES)
    (node.directory / "go").touch()


@pytest_twisted.ensureDeferred
async def test_small_limit(launch: Launcher, client: Client) -> None:
    """All of many requests at once are answered by a node that takes small messages only."""
    node = start(launch, "--max-message", "2000")
    await client.ping(node.address)
    bodies = [bytes([number]) * 500 for number in range(20)]
    asked = [client.send_message(node.address, ECHO, 0, body, timeout=5) for body in bodies]
    assert [await answer for answer in asked] == bodies
