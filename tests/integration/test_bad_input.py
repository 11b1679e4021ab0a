"""Peers that send junk, too much or too slowly, or don't read: they are closed, and affect nobody else."""

from __future__ import annotations

import contextlib
import marshal
import random
import re
import socket
import struct
import time
from collections.abc import Iterator

import pytest
import pytest_twisted

from tests.integration.handlers import FAULTS, TASKS
from tests.integration.services import (
    Launcher,
    RawSession,
    Service,
    free_port,
    marshal_packet,
    read_to_end,
    script,
    until,
)
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import NoAnswer, UnknownModifier, UnsafeObject, UwsgiError
from uwsgitwisted.wire.frame import REQUEST
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import PING, SESSION, Packet, encode_packet

pytestmark = pytest.mark.integration

#: Seconds, longer than a busy machine lets a test or the node wait for a processor in the middle of a packet.
HEADER_TIMEOUT, BODY_TIMEOUT, WRITE_TIMEOUT = 1.0, 1.0, 1.0
MAX_MESSAGE = 1 << 20
#: What 200 bad requests may add to the front's memory, in bytes: far more than noise, far less than they sent.
GROWTH = 8 << 20


@pytest.fixture(scope="module")
def shared_node(shared: Launcher) -> Service:
    """A node with short timeouts."""
    return shared.start(
        *("uwsgi-node", "--engine", "processes:2", "--max-message", str(MAX_MESSAGE)),
        *("--header-timeout", str(HEADER_TIMEOUT), "--body-timeout", str(BODY_TIMEOUT)),
        *("--write-timeout", str(WRITE_TIMEOUT)),
        handler=FAULTS,
        tcp=True,
    )


@pytest.fixture
def node(shared_node: Service) -> Iterator[Service]:
    """That node; after the test it has the workers that it had before, and answers."""
    before = shared_node.workers()
    yield shared_node
    assert shared_node.process.poll() is None, shared_node.log
    assert shared_node.exchange(marshal_packet(("echo", "here"))) == marshal_packet("here")
    assert shared_node.workers() == before
    assert shared_node.zombies() == []
    assert "Unhandled" not in shared_node.log


def _packet(payload: bytes, modifier1: int = 33) -> bytes:
    return encode_packet(Packet(modifier1, 17, payload))


# Invalid objects.


def _deep(levels: int) -> bytes:
    return b"[\x01\x00\x00\x00" * levels + b"N"


def _exponential() -> bytes:
    """Lists of two references to the list before: 2**60 items when they are followed."""
    first = b"\xdb\x02\x00\x00\x00NN"
    lists = first
    for index in range(60):
        lists = b"\xdb\x02\x00\x00\x00" + lists + b"r" + struct.pack("<I", 60 - index)
    return lists


OBJECTS = {
    "nothing": b"",
    "a code object": marshal.dumps(compile("import os; os.abort()", "x", "exec")),
    "a code object in a list": marshal.dumps([compile("1", "x", "eval")]),
    "two billion items": b"(\xff\xff\xff\x7f",
    "two billion items of a list": b"[\xff\xff\xff\x7fN",
    "a negative count": b"(\xff\xff\xff\xff",
    "a string of two gigabytes": b"s\xff\xff\xff\x7fx",
    "a string of a negative length": b"s\xff\xff\xff\xffx",
    "a number of two billion digits": b"l\xff\xff\xff\x7f\x01\x00",
    "thousands of levels": _deep(12_000),
    "a list in itself": b"\xdb\x01\x00\x00\x00r\x00\x00\x00\x00",
    "references that multiply": _exponential(),
    "a reference to nothing": b"r\x05\x00\x00\x00",
    "a dict that doesn't end": b"{sN",
    "an unhashable key": b"{[\x00\x00\x00\x00N0",
    "bytes behind the object": marshal.dumps(1, 2) + b"N",
    "an object cut short": marshal.dumps(["a" * 100], 2)[:-5],
    "an unknown type": b"\x7f",
    "StopIteration": b"S",
    "text that isn't UTF-8": b"u\x02\x00\x00\x00\xff\xfe",
    "a vars block": b"\x03\x00key\x05\x00value",
    "a pickle": b"\x80\x04\x95\x00cos\nsystem\n(S'true'\ntR.",
    "text": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("payload", OBJECTS.values(), ids=OBJECTS.keys())
def test_a_bad_object_plain(node: Service, payload: bytes) -> None:
    """Broken or dangerous marshalled bytes close a plain connection, and affect nothing else."""
    assert node.exchange(_packet(payload)) == b""


@pytest.mark.parametrize("payload", OBJECTS.values(), ids=OBJECTS.keys())
@pytest_twisted.ensureDeferred
async def test_a_bad_object_in_a_session(node: Service, client: Client, payload: bytes) -> None:
    """In a session the caller gets the reason, and the session stays open."""
    await client.ping(node.address)
    (peer,) = client._nodes.values()
    with pytest.raises(UwsgiError) as caught:
        await peer.call(Packet(33, 17, payload), 20)
    assert isinstance(caught.value, UnsafeObject) or getattr(caught.value, "type", "") == "UnsafeObject"
    assert await client.send_message(node.address, 33, 17, ("echo", 1)) == 1


def test_random_objects(node: Service) -> None:
    """Two hundred random payloads get nothing, or an answer where they happen to be an object."""
    generator = random.Random(2)
    for _ in range(200):
        answer = node.exchange(_packet(generator.randbytes(generator.randrange(200))))
        assert answer == b""


def test_memory_after_bad_requests(node: Service) -> None:
    """The front's memory doesn't grow with bad requests, whatever they announce or send."""
    bad = [
        _packet(b"(\xff\xff\xff\x7f" + bytes(60_000)),
        _packet(_deep(12_000)),
        _packet(bytes(65_535), modifier1=99),
        b"\x21\xff\xff\x11" + bytes(30_000),
    ]
    for data in bad * 10:
        node.exchange(data, end=True)
    before = node.memory()
    for data in bad * 50:
        node.exchange(data, end=True)
    assert node.memory() - before < GROWTH


# Invalid packets.


@pytest.mark.parametrize("data", [b"", b"\x21", b"\x21\x05\x00", b"\x21\x05\x00\x11", b"\x21\x05\x00\x11abcd"])
def test_a_truncated_packet(node: Service, data: bytes) -> None:
    """A peer that ends in the middle of its packet is closed at once, without an answer."""
    start = time.monotonic()
    assert node.exchange(data, end=True) == b""
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("data", [b"\x21", b"\x21\x05\x00\x11abcd"])
def test_a_peer_that_goes_away(node: Service, data: bytes) -> None:
    """A connection that is reset in the middle of a packet leaves nothing behind."""
    logged = len(node.log)
    connection = node.connect()
    connection.sendall(data)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert node.ask(("echo", "afterwards")) == "afterwards"
    assert "Traceback" not in node.log[logged:]


def test_a_packet_that_announces_too_much(node: Service) -> None:
    """A plain connection that sends less than its header announces is closed after --body-timeout."""
    start = time.monotonic()
    assert node.exchange(b"\x21\xff\xff\x11" + bytes(100)) == b""
    assert BODY_TIMEOUT * 0.9 < time.monotonic() - start < BODY_TIMEOUT + 5
    assert "did not send the rest of its packet" in node.log


def test_bytes_behind_the_packet(node: Service) -> None:
    """Bytes after a plain request are ignored; a flood of them is cut off."""
    assert node.exchange(marshal_packet(("echo", 1)) + b"more") == marshal_packet(1)
    with node.connect() as connection:
        connection.sendall(marshal_packet(("wait_for", "ignored", "never")))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(bytes(64 << 20))
    (node.directory / "never").touch()


def test_random_packets(node: Service) -> None:
    """Two hundred random byte strings, with the end behind them, leave the node as it was."""
    generator = random.Random(3)
    for _ in range(200):
        data = bytearray(generator.randbytes(generator.randrange(1, 300)))
        data[0] = generator.choice([0, 17, 33, 34, 99, 173, 255])
        assert node.exchange(bytes(data), end=True) == b""


@pytest.mark.parametrize(
    "payload",
    [b"\xff\xffkey\x05\x00value", b"\x03\x00key\xff\xffvalue", b"\x03\x00key", b"\x00\x00\x01\x00x", b"\x01"],
)
def test_an_offer_that_lies(node: Service, payload: bytes) -> None:
    """A ping whose vars block lies about its lengths is a ping: its payload means nothing to uWSGI either."""
    assert node.exchange(_packet(payload, modifier1=100)) == b"\x64\x00\x00\x01"


def test_an_unknown_modifier(node: Service) -> None:
    """A request with an unknown modifier1 is closed, and logged at a limited rate."""
    before, began = len(node.log), time.monotonic()

    def lines() -> int:
        assert node.exchange(_packet(b"", modifier1=77)) == b""
        return len(re.findall("nothing here answers modifier1 77", node.log[before:]))

    until(lines, "the line of this second, which another modifier of another test may have had")
    for _ in range(20):
        lines()
    assert lines() <= time.monotonic() - began + 1


@pytest_twisted.ensureDeferred
async def test_an_unknown_modifier_in_a_session(node: Service, client: Client) -> None:
    """In a session the error names the known modifiers."""
    with pytest.raises(UnknownModifier) as caught:
        await client.send_message(node.address, 79, 0, b"")
    assert "the known ones are 33, 35, 100, 101, 110" in str(caught.value)


def test_a_task_for_a_node(node: Service) -> None:
    """A node is no spooler, although its port is one."""
    with pytest.raises((NoAnswer, UnknownModifier)):
        script(blocking.spool, node.address, {"key": "value"})


# Slow peers.


def _trickle(connection: socket.socket, data: bytes, interval: float) -> None:
    """Send a byte at a time until the peer closes, which it has to do before the last one."""
    connection.settimeout(interval)
    for byte in data:
        try:
            connection.sendall(bytes([byte]))
            if not connection.recv(1):
                return
        except TimeoutError:
            continue
        except OSError:
            return
    pytest.fail("the peer let every byte come")


def test_a_silent_peer(node: Service) -> None:
    """A connection without a header is closed after --header-timeout."""
    start = time.monotonic()
    assert node.exchange(b"") == b""
    assert HEADER_TIMEOUT * 0.9 < time.monotonic() - start < HEADER_TIMEOUT + 5


def test_a_slow_header(node: Service) -> None:
    """A byte from time to time doesn't prolong the header's time."""
    with node.connect() as connection:
        _trickle(connection, b"\x21\xff\xff", HEADER_TIMEOUT * 0.9)
    node.wait_for("sent no complete header")


def test_a_slow_body(node: Service) -> None:
    """A byte from time to time doesn't prolong the body's time either; others are answered meanwhile."""
    with node.connect() as connection:
        connection.sendall(b"\x21\xff\xff\x11")
        assert node.ask(("echo", "meanwhile")) == "meanwhile"
        _trickle(connection, bytes(1_000), 0.05)


def test_a_slow_but_timely_packet(node: Service) -> None:
    """A packet that comes byte by byte within its time is answered."""
    with node.connect() as connection:
        for byte in marshal_packet(("echo", [1])):
            connection.sendall(bytes([byte]))
        assert read_to_end(connection) == marshal_packet([1])


# Peers that don't read.


def test_a_session_that_does_not_read(launch: Launcher) -> None:
    """A peer that reads none of its large answers is cut off; the bytes that wait for it are limited."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", "--write-timeout", "2", handler=FAULTS)
    before = node.memory()
    peaks = []

    def is_cut_off() -> bool:
        peaks.append(node.memory())
        return "did not read its answers" in node.log

    with contextlib.closing(RawSession(node, receive_buffer=4_096)) as session:
        for number in range(200):
            session.session.send_request(number, Packet(33, 17, dumps(("big", 900_000))))
        session.flush()
        until(is_cut_off, "the end of the connection")
    # 180 MB were asked for; what waits is bounded by --max-message, 64 MiB, and a few answers are on their way.
    assert max(peaks) - before < 96 << 20
    assert node.ask(("echo", "afterwards")) == "afterwards"


def test_a_plain_peer_that_does_not_read(launch: Launcher) -> None:
    """A plain peer that doesn't read its answer is closed after --write-timeout."""
    node = launch.start("uwsgi-node", "--engine", "reactor", "--write-timeout", "0.3", handler=FAULTS, tcp=True)
    connections = [node.connect(receive_buffer=1_024) for _ in range(3)]
    try:
        for connection in connections:
            connection.sendall(marshal_packet(("big", 65_000)))
        # The kernel may have room for the whole answer, so the end of the connections is what counts.
        until(lambda: _open_connections(node) == 0, "the end of every connection")
        assert node.ask(("echo", 1)) == 1
    finally:
        for connection in connections:
            connection.close()


def _open_connections(node: Service) -> int:
    """Return how many sockets the front has open besides those it listens on and its own."""
    port = node.address[1]
    established = 0
    for line in _tcp_table():
        local, state = line[1], line[3]
        if int(local.rpartition(":")[2], 16) == port and state == "01":
            established += 1
    return established


def _tcp_table() -> list[list[str]]:
    with open("/proc/net/tcp") as table:
        return [line.split() for line in table.readlines()[1:]]


# Sessions that break the rules.


def _frame(kind: int, payload: bytes) -> bytes:
    return encode_packet(Packet(SESSION, kind, payload))


def _begin(number: int, size: int, piece: bytes) -> bytes:
    return _frame(REQUEST, struct.pack("<IBBII", number, 33, 17, size, 0) + piece)


BROKEN_SESSIONS = {
    "no frame of a session": _packet(b"", modifier1=33),
    "an unknown kind of frame": _frame(99, bytes(20)),
    "an answer nobody asked for": _frame(2, struct.pack("<IBBII", 1, 33, 17, 0, 0)),
    "a frame without its head": _frame(REQUEST, b"\x01"),
    "more than --max-message": _begin(1, MAX_MESSAGE + 1, b"x"),
    "more than --max-message together": _begin(1, MAX_MESSAGE - 10, b"x") + _begin(2, 100, b"x"),
    "a message that begins twice": _begin(1, 100, b"x") + _begin(1, 100, b"x"),
    "a piece that is too long": _begin(1, 10, b"x" * 11),
    "pieces that don't add up": _begin(1, 10, b"x") + _frame(4, struct.pack("<I", 1) + b"x" * 10),
    "an empty piece": _begin(1, 10, b"x") + _frame(4, struct.pack("<I", 1)),
    "text": b"GET / HTTP/1.1\r\n\r\n" + bytes(65_536),
}


@pytest.mark.parametrize("data", BROKEN_SESSIONS.values(), ids=BROKEN_SESSIONS.keys())
def test_a_broken_session(node: Service, data: bytes) -> None:
    """A peer that breaks the rules of its session is cut off."""
    with contextlib.closing(RawSession(node)) as session:
        with contextlib.suppress(OSError):
            session.connection.sendall(data)
        assert read_to_end(session.connection) == b""
    node.wait_for("violated the session protocol")


def test_an_id_that_is_in_use(node: Service) -> None:
    """Two requests of one id are a broken session too, though both are whole."""
    with contextlib.closing(RawSession(node)) as session:
        session.ask(1, ("wait_for", "first", "id_in_use"))
        session.session.send_request(1, Packet(33, 17, marshal_packet(("echo", 1))[4:]))
        session.flush()
        assert read_to_end(session.connection) == b""
    (node.directory / "id_in_use").touch()


def test_an_idle_session(launch: Launcher) -> None:
    """A session without a request for --idle-timeout gets a shutdown notice and is closed."""
    node = launch.start("uwsgi-node", "--engine", "reactor", "--idle-timeout", "0.2", handler=FAULTS)
    with contextlib.closing(RawSession(node)) as session:
        (shutdown,) = session.events()
        assert type(shutdown).__name__ == "ShutdownReceived"


# Limits of connections.


def test_too_many_connections(launch: Launcher) -> None:
    """Over --max-connections a new connection is closed at once; when one ends, there is room again."""
    node = launch.start(
        *("uwsgi-node", "--engine", "threads:5"),
        *("--max-connections", "5", "--max-connections-per-peer", "5"),
        handler=FAULTS,
    )
    with contextlib.ExitStack() as stack:
        open_ones = [stack.enter_context(node.connect()) for _ in range(5)]
        for number, busy in enumerate(open_ones):
            busy.sendall(marshal_packet(("wait_for", f"started {number}", "go")))
            until((node.directory / f"started {number}").exists, "the start of the request")  # no more idle
        for _ in range(3):
            assert node.exchange(marshal_packet(("echo", 1))) == b""
        assert node.log.count("5 connections from its address are already open") == 1
        open_ones[0].close()
        ping, pong = (encode_packet(Packet(PING, modifier2)) for modifier2 in (0, 1))
        until(lambda: node.exchange(ping) == pong, "room for one more")
        (node.directory / "go").touch()


def test_many_connections_at_once(node: Service) -> None:
    """Hundreds of connections that send nothing don't keep a request from its answer, and are all closed."""
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(node.connect()) for _ in range(300)]
        assert node.ask(("echo", "through the crowd")) == "through the crowd"
        assert [read_to_end(connection) for connection in idle] == [b""] * 300


def test_networks_that_may_not_connect(launch: Launcher) -> None:
    """With --allow, a connection from another network is closed at once, and logged once."""
    port = free_port()
    node = launch.start("uwsgi-node", "-l", f"tcp:{port}", "--allow", "10.0.0.0/8", handler=FAULTS)
    for _ in range(3):
        with pytest.raises((NoAnswer, ConnectionError)):
            script(blocking.send_uwsgi_message, "127.0.0.1", port, 33, 17, ("echo", 1))
    assert node.log.count("its address is in none of the allowed networks") == 1
    # A UNIX socket is ruled by its file's permissions.
    assert node.ask(("echo", 1)) == 1


def test_networks_that_may_connect(launch: Launcher) -> None:
    """With --allow, the port is on every interface for those that may connect."""
    port = free_port()
    launch.start("uwsgi-node", "-l", f"tcp:{port}", "--allow", "127.0.0.0/30", handler=FAULTS)
    assert script(blocking.send_uwsgi_message, "127.0.0.2", port, 33, 17, ("echo", 1)) == 1
    with socket.socket() as connection:
        connection.bind(("127.0.0.9", 0))
        connection.settimeout(20)
        connection.connect(("127.0.0.2", port))
        connection.sendall(marshal_packet(("echo", 1)))
        assert read_to_end(connection) == b""


# The other services.


@pytest.mark.parametrize("payload", OBJECTS.values(), ids=OBJECTS.keys())
def test_a_bad_object_for_a_spooler(spooler: Service, payload: bytes) -> None:
    """A spooler answers no objects: it closes the connection and stays up."""
    assert spooler.exchange(_packet(payload)) == b""


@pytest.fixture(scope="module")
def spooler(shared: Launcher) -> Iterator[Service]:
    """A spooler, which at the end still accepts tasks."""
    service = shared.start("uwsgi-spooler", "--engine", "processes:1", "--spool", "sqlite:s", handler=TASKS)
    yield service
    assert service.exchange(b"\x11\x00\x00\x00") == b"\xff\x00\x00\x01"
