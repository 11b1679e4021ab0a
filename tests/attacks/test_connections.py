"""Attacks with connections: many, half-closed, silent, or with unexpected bytes."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator

import pytest

from tests.attacks.witness import pinging, watching
from tests.integration.handlers import TASKS
from tests.integration.services import Launcher, Service, read_to_end, script, until
from uwsgitwisted import blocking
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import ECHO, MARSHAL, PING, SPOOL, Packet, encode_packet
from uwsgitwisted.wire.terms import Terms

pytestmark = pytest.mark.integration

#: Where a hostile peer's connections come from; a good caller's come from 127.0.0.1.
ELSEWHERE = "127.0.0.2"
PING_PACKET, PONG = (encode_packet(Packet(PING, modifier2)) for modifier2 in (0, 1))
OFFER = encode_packet(Packet(PING, 0, Terms().encode()))
ECHO_HANDLER = """
import uwsgi
uwsgi.message_manager_marshal = lambda message, modifier2: message
"""


def connect(service: Service, source: str = ELSEWHERE) -> socket.socket:
    connection = socket.create_connection(service.address, timeout=20, source_address=(source, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@contextlib.contextmanager
def many(service: Service, number: int, first: bytes, source: str = ELSEWHERE) -> Iterator[list[socket.socket]]:
    """Give connections that have each sent their *first* bytes."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(service, source)) for _ in range(number)]
        for connection in connections:
            connection.sendall(first)
        yield connections


def ping(service: Service, source: str) -> bytes:
    """Ping on a connection from *source*, and return what comes back."""
    with connect(service, source) as connection:
        connection.sendall(PING_PACKET)
        return read_to_end(connection)


def closed(connections: list[socket.socket]) -> int:
    """Return how many of *connections* the service has closed."""
    number = 0
    for connection in connections:
        connection.settimeout(0.001)
        with contextlib.suppress(TimeoutError):
            read_to_end(connection)
            number += 1
    return number


def test_waits_of_a_peer_that_is_gone(launch: Launcher) -> None:
    """Plain waits whose maker half-closes and closes them, as many as there may be, keep nobody out."""
    spooler = launch.start(
        *("uwsgi-spooler", "--spool", "sqlite:spool.db", "--max-connections", "50"), handler=TASKS, tcp=True
    )
    task = script(blocking.send_message, spooler.address, SPOOL, 2, {"at": str(time.time() + 3_600)})
    wait = encode_packet(Packet(MARSHAL, 0, dumps(("wait", {"id": task}))))
    blocking.close()
    for _ in range(3):
        for _ in range(50):
            with connect(spooler) as connection, contextlib.suppress(OSError):  # one may be refused or evicted
                connection.sendall(wait)
                with contextlib.suppress(OSError):  # the server may have refused it, and reset it
                    connection.shutdown(socket.SHUT_WR)
        with watching(pinging(spooler.address)) as witness:
            until(lambda: ping(spooler, ELSEWHERE) == PONG, "room for the peer's own connections", seconds=10)
            assert script(blocking.ping, spooler.address) < 20
        assert witness.errors == []


def test_idle_sessions_of_one_peer(launch: Launcher) -> None:
    """As many idle sessions as there may be keep nobody out; the good caller's own session stays."""
    node = launch.start("uwsgi-node", "--max-connections", "100", handler=ECHO_HANDLER, tcp=True)

    def call() -> object:
        return blocking.send_message(node.address, MARSHAL, 17, "here")

    with watching(call) as witness, many(node, 100, OFFER) as hostile:
        assert script(blocking.ping, node.address) < 20
        until(lambda: ping(node, ELSEWHERE) == PONG, "room for the peer's own connections", seconds=10)
        with many(node, 20, OFFER):
            until(lambda: closed(hostile) >= 25, "the end of as many as are too many")
    assert witness.errors == []


def test_a_flood_of_connections(launch: Launcher) -> None:
    """Connections that send nothing, hundreds a second, keep nobody out."""
    node = launch.start("uwsgi-node", "--max-connections", "200", handler=ECHO_HANDLER, tcp=True)
    with watching(pinging(node.address)) as witness, contextlib.ExitStack() as stack:
        deadline = time.monotonic() + 3
        for _ in range(1_500):
            stack.enter_context(connect(node))
            if time.monotonic() > deadline:
                break
        assert script(blocking.send_message, node.address, MARSHAL, 17, "here") == "here"
    assert witness.errors == []


@pytest.mark.parametrize("tcp", [True, False], ids=["tcp", "unix"])
def test_bytes_behind_a_plain_request(launch: Launcher, tcp: bool) -> None:
    """Whatever follows a plain request, its answer arrives whole, and the connection ends without a reset."""
    node = launch.start("uwsgi-node", "--engine", "reactor", handler=ECHO_HANDLER, tcp=tcp)
    text = b"x" * 20_000
    requests = [(PING_PACKET, PONG), (encode_packet(Packet(ECHO, 0, text)), text)] * 10
    for size in (1, 1_000, 60_000, 1_000_000):
        for asked, answer in requests:
            with node.connect() as connection:
                connection.sendall(asked + bytes(size))
                ended = select.poll()
                ended.register(connection, select.POLLRDHUP)
                assert ended.poll(20_000)
                received = b""
                while data := connection.recv(65_536):
                    received += data
                assert received == answer
