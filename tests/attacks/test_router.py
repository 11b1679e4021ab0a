"""Attacks on a router: slow, lying and greedy clients, with a good client beside them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attacks.callers import descriptors
from tests.attacks.test_connections import closed, connect, many
from tests.attacks.witness import assert_within, watching
from tests.integration.routers import Router, Routers, WebNode, ask, routers
from tests.integration.services import read_to_end, until
from uwsgitwisted.errors import ConnectionFailed

pytestmark = [pytest.mark.integration, pytest.mark.needs("uwsgi")]

MEBIBYTE = 1 << 20
GET = b"GET /name HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD_OF_POST = b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
HEAD_OF_CHUNKED = b"POST /count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Routers]:
    """Start nodes and routers that end with the test."""
    with routers(tmp_path) as started:
        yield started


@pytest.fixture
def node(start: Routers) -> WebNode:
    """Give a node with two workers."""
    return start.node()


def calling(router: Router) -> Callable[[], object]:
    """Return a good client's call, on a connection of its own."""

    def call() -> None:
        try:
            assert router.request("GET", "/name").body == b"node0"
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionFailed(str(error)) from error

    return call


def peek(connection: socket.socket) -> bytes:
    """Return what a connection has got so far."""
    with contextlib.suppress(OSError):
        return connection.recv(20, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return b""


@pytest.mark.parametrize(
    "first",
    [b"", b"GET / HTTP/1.1\r\n", HEAD_OF_POST, HEAD_OF_CHUNKED, GET],
    ids=["silent", "head", "body", "chunked", "idle"],
)
def test_idle_connections(start: Routers, node: WebNode, first: bytes) -> None:
    """As many connections as there may be, which then do nothing, keep nobody out, and are closed in time."""
    times = [option for name in ("header", "body", "idle") for option in (f"--{name}-timeout", "3")]
    router = start.router(node.address, options=["--max-connections", "300", *times])
    with watching(calling(router)) as witness, many(router, 300, first) as hostile:
        until(lambda: len(witness.durations) >= 20, "good calls")
        for connection in hostile:
            connection.settimeout(20)
            read_to_end(connection)
    assert witness.errors == []


def test_five_thousand_connections(start: Routers, node: WebNode) -> None:
    """Thousands of idle connections cost a good client little, and the router little memory."""
    router = start.router(node.address, options=["--idle-timeout", "60"])
    before = router.memory()

    def measure() -> float:
        with watching(calling(router)) as witness:
            until(lambda: len(witness.durations) >= 50, "good calls")
        assert witness.errors == []
        return witness.percentile(0.9)

    alone = measure()
    with (
        many(router, 1_500, GET, "127.0.0.2"),
        many(router, 1_500, GET, "127.0.0.3"),
        many(router, 1_500, GET, "127.0.0.4"),
    ):
        assert_within(max(2 * alone, 0.1), measure, "a good call beside 4,500 idle connections")
        assert router.memory() - before < 150 * MEBIBYTE


def test_a_byte_a_second(start: Routers, node: WebNode) -> None:
    """A head, a body, chunks and chunk extensions that come byte by byte end in time, whatever the pace."""
    router = start.router(node.address, options=["--header-timeout", "2", "--body-timeout", "2"])
    endless = {
        b"": b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000,
        HEAD_OF_POST: b"x" * 10_000,
        HEAD_OF_CHUNKED: b"1\r\nx\r\n" * 2_000,
        HEAD_OF_CHUNKED + b"1;": b"x" * 10_000,
        HEAD_OF_CHUNKED + b"0\r\n": b"X: y\r\n" * 2_000,
    }
    ended: list[bool] = []

    def drip(first: bytes, rest: bytes) -> None:
        with router.connect() as connection:
            connection.sendall(first)
            connection.settimeout(0.05)
            for byte in rest:
                try:
                    connection.sendall(bytes([byte]))
                    if not connection.recv(1_000):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            else:
                return
        ended.append(True)

    threads = [threading.Thread(target=drip, args=each) for each in endless.items()]
    with watching(calling(router)) as witness:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(ended) == len(endless)
    assert witness.errors == []


def test_clients_that_do_not_read(start: Routers) -> None:
    """Answers that nobody reads are neither kept nor waited for."""
    node = start.node("--processes", "8")  # each of the answers keeps a worker busy
    router = start.router(node.address, options=["--write-timeout", "2"])
    before, opened = router.memory(), descriptors(router)
    request = b"GET /zeros?100000000 HTTP/1.1\r\nHost: a\r\n\r\n"
    with watching(calling(router)) as witness, contextlib.ExitStack() as stack:
        hostile = [stack.enter_context(router.connect(receive_buffer=4_096)) for _ in range(5)]
        for connection in hostile:
            connection.sendall(request)
        router.wait_for("did not read its answer")
        until(lambda: descriptors(router) <= opened + 6, "the end of the hostile connections")
        assert router.memory() - before < 32 * MEBIBYTE
    assert witness.errors == []


def test_pipelines_that_nobody_reads(start: Routers, node: WebNode) -> None:
    """Requests that are sent without an end, whose answers nobody reads, are not read either."""
    router = start.router(node.address, options=["--write-timeout", "2"])
    before = router.memory()
    with watching(calling(router)) as witness, router.connect(receive_buffer=4_096) as hostile:
        hostile.settimeout(1)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 100 * MEBIBYTE:
                sent += hostile.send(GET * 1_000)
        assert sent < 20 * MEBIBYTE
        assert router.memory() - before < 16 * MEBIBYTE
    assert witness.errors == []


@pytest.mark.parametrize(
    "lie",
    [
        b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\nContent-Length: 0\r\n\r\n",
        b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 0,40\r\n\r\n",
        b"POST /count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST /count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"POST /count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n",
        b"POST /count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        b"POST /count HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n 0\r\n\r\n",
        b"POST /count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\n12345\r\n0\r\n\r\n",
        b"POST /count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\n12345\r\n0\r\n\r\n",
    ],
)
def test_smuggling(start: Routers, node: WebNode, lie: bytes) -> None:
    """A request whose end can be understood in two ways is refused, and nothing behind it is answered."""
    router = start.router(node.address)
    received = router.exchange(lie + GET)
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
    assert received.count(b"HTTP/1.") == 1
    assert "Traceback" not in router.log


def test_a_length_that_lies_to_the_node(start: Routers, node: WebNode) -> None:
    """A header can't give the node another length, another script or another variable than the router's."""
    router = start.router(node.address)
    headers = {"Content_Length": "100", "Content-Type": "a/b", "Script-Name": "/x", "Uwsgi-File": "/tmp/x"}
    seen = json.loads(router.request("POST", "/env", b"12", headers).body)
    assert seen["CONTENT_LENGTH"] == "2"
    assert "UWSGI_FILE" not in seen
    assert seen["SCRIPT_NAME"] == "" if "SCRIPT_NAME" in seen else True
    assert seen["HTTP_SCRIPT_NAME"] == "/x"


def test_clients_that_leave(start: Routers, node: WebNode) -> None:
    """Clients that leave in the middle of anything leave nothing behind."""
    router = start.router(node.address)
    with contextlib.closing(router.client()) as good:
        ask(good, "GET", "/name")
        before = descriptors(router)
        pieces = [
            GET[:9],
            HEAD_OF_POST + bytes(500_000),
            HEAD_OF_CHUNKED + b"ffff\r\n" + bytes(0xFFFF) + b"\r\n",
            b"GET /zeros?100000000 HTTP/1.1\r\nHost: a\r\n\r\n",
            GET * 100,
        ]
        for _ in range(10):
            for piece in pieces:
                with router.connect() as connection, contextlib.suppress(OSError):
                    connection.sendall(piece)
        until(lambda: descriptors(router) <= before + 2, "the end of all connections")
        assert ask(good, "GET", "/name").body == b"node0"
    assert "Traceback" not in router.log


def most_lines(began: float) -> float:
    """Return how many lines a router may have logged: those of its start, and one a second of each kind."""
    return 20 + 6 * (time.monotonic() - began + 2)


def test_the_log(start: Routers, node: WebNode) -> None:
    """What clients can cause at will gets a few lines."""
    router = start.router(node.address, options=["--max-connections", "50", "--header-timeout", "0.2"])
    began = time.monotonic()
    for number in range(100):
        router.exchange(b"nonsense\r\n\r\n")
        router.exchange(b"GET /%d\x01 HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        router.exchange(b"GET /../%d HTTP/1.0\r\n\r\n" % number)
        router.exchange(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n" % (b"1" * 5_000))
    with contextlib.ExitStack() as stack:
        hostile = [stack.enter_context(connect(router)) for _ in range(100)]
        for connection in hostile:
            with contextlib.suppress(OSError):  # half of them are refused
                connection.sendall(b"G")
        until(lambda: closed(hostile) == len(hostile), "the end of all")
    assert len(router.log.splitlines()) < most_lines(began)
    assert "Traceback" not in router.log


def test_files_beside_the_directory(start: Routers, node: WebNode, tmp_path: Path) -> None:
    """No path leads out of a directory of static files, also while a link is put in place of a directory."""
    root = tmp_path / "files"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_text("public")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("secret")
    router = start.router(node.address, options=["--static", f"/static={root}"])
    stopping = threading.Event()

    def swap() -> None:
        while not stopping.is_set():
            os.rename(root / "sub", root / "kept")
            os.symlink(tmp_path / "elsewhere", root / "sub")
            os.unlink(root / "sub")
            os.rename(root / "kept", root / "sub")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        with contextlib.closing(router.client()) as client:
            bodies = {ask(client, "GET", "/static/sub/file").body for _ in range(1_000)}
    finally:
        stopping.set()
        swapping.join()
    assert b"public" in bodies
    assert b"secret" not in bodies


def test_an_application_that_breaks_off(start: Routers, node: WebNode) -> None:
    """Answers that break off harm nobody else, and the client sees a reset or a missing end."""
    router = start.router(node.address)
    with watching(calling(router)) as witness:
        for _ in range(10):
            with pytest.raises((http.client.HTTPException, OSError)):
                router.request("GET", "/cut")
    assert witness.errors == []


def test_many_bodies_of_unknown_size(start: Routers, node: WebNode) -> None:
    """Chunked bodies that never end are kept only up to their limit, and others are served beside them."""
    router = start.router(node.address, options=["--max-spooled", "4M", "--body-timeout", "3"])
    before = router.memory()
    piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with watching(calling(router)) as witness, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(router.address, 20)) for _ in range(20)]
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(HEAD_OF_CHUNKED + piece * 8)
        until(lambda: any(b" 503 " in peek(connection) for connection in connections), "a refusal")
        assert router.memory() - before < 16 * MEBIBYTE
    assert witness.errors == []


def test_a_flood_of_connections(start: Routers, node: WebNode) -> None:
    """Connections of one address that send nothing, hundreds a second, keep nobody out."""
    router = start.router(node.address, options=["--max-connections", "200"])
    began = time.monotonic()
    with watching(calling(router)) as witness, contextlib.ExitStack() as stack:
        for _ in range(1_000):
            with contextlib.suppress(OSError):
                stack.enter_context(connect(router, "127.0.0.2"))
        seen = len(witness.durations)
        until(lambda: len(witness.durations) > seen + 10, "good calls")
    assert witness.errors == []
    assert len(router.log.splitlines()) < most_lines(began)
