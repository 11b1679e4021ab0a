"""A small real server in threads, for tests of code that blocks: each connection runs a script."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uwsgitwisted.address import Address
from uwsgitwisted.blocking import sessions

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds in which something has to happen before the time runs out: the threads of a server, or all of this
#: process, may not run for a while meanwhile.
ENOUGH = 1.0
#: What a connection does: it gets the server and the connected socket, which is closed when it returns.
Script = Callable[["ScriptedServer", socket.socket], None]


class ScriptedServer:
    """Listens on loopback, or on a unix socket, and runs *script* for each connection in a thread of its own.

    :param script: see :data:`Script`; the functions below make some.
    :param path: a unix socket's path, instead of a port of 127.0.0.1.
    :param context: TLS settings, if connections are to be wrapped.
    """

    def __init__(
        self, script: Script, *, path: str | None = None, context: ssl.SSLContext | None = None
    ) -> None:
        self._script = script
        self._context = context
        self._listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
        self._listener.bind(("127.0.0.1", 0) if path is None else path)
        self._listener.listen()
        name = self._listener.getsockname()
        #: Its ``(host, port)``; for a unix socket its path.
        self.address: tuple[str, int] = name
        self.port: int = 0 if path is not None else name[1]
        self._threads = [threading.Thread(target=self._accept)]
        #: Set when the test is over; scripts that would wait for ever wait for this.
        self.stopping = threading.Event()
        #: The requests that came, header included.
        self.requests: list[bytes] = []
        #: Set by some scripts when their client has gone.
        self.gone = threading.Event()
        self.errors: list[BaseException] = []

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(15)
            assert not thread.is_alive(), "a script did not end"
        self._listener.close()
        if exception[1] is None and self.errors:
            raise self.errors[0]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)  # so that a client that hangs fails its test instead of holding it up
        with connection:
            try:
                if self._context is None:
                    self._script(self, connection)
                else:
                    with self._context.wrap_socket(connection, server_side=True) as secured:
                        self._script(self, secured)
            except (ConnectionError, ssl.SSLError):
                return  # the client went away, as some tests have it
            except BaseException as error:
                self.errors.append(error)

    def read_request(self, connection: socket.socket) -> bytes:
        """Read one packet and keep it in ``requests``."""
        header = read_exactly(connection, 4)
        (size,) = struct.unpack("<H", header[1:3])
        request = header + read_exactly(connection, size)
        self.requests.append(request)
        return request


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Read *size* bytes."""
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ConnectionResetError("the client closed early")
        data += chunk
    return data


def frame(modifier1: int, modifier2: int, payload: bytes = b"") -> bytes:
    """Return a packet's bytes, put together without the code under test."""
    return struct.pack("<BHB", modifier1, len(payload), modifier2) + payload


def answering(*pieces: bytes) -> Script:
    """Read the request, send *pieces* one by one, close."""

    def script(server: ScriptedServer, connection: socket.socket) -> None:
        server.read_request(connection)
        if connection.family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)

    return script


def echoing(server: ScriptedServer, connection: socket.socket) -> None:
    """Send the request back as it came, but with the modifier2 that a node answers with: the same."""
    connection.sendall(server.read_request(connection))


def idle(server: ScriptedServer, connection: socket.socket) -> None:
    """Read nothing and say nothing."""
    server.stopping.wait(10)


def silent(server: ScriptedServer, connection: socket.socket) -> None:
    """Read the request and never answer; notes when the client goes."""
    server.read_request(connection)
    if not connection.recv(1):
        server.gone.set()


def dripping(server: ScriptedServer, connection: socket.socket) -> None:
    """Send a byte of a long answer every few milliseconds until the client goes."""
    server.read_request(connection)
    connection.sendall(frame(33, 0, b"i")[:1] + b"\xff\xff\x00")
    while not server.stopping.wait(0.01):
        connection.sendall(b"i")


def resetting(server: ScriptedServer, connection: socket.socket) -> None:
    """Close with a reset, as uWSGI does with more than its buffer-size."""
    connection.recv(1)
    reset(connection)


def reset(connection: socket.socket) -> None:
    """Have *connection* reset when it is closed, which happens after the script."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
def outside_the_reactor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test call as a script does: pytest-twisted runs the reactor in this thread."""
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor", raising=False)


class _Everywhere(dict[Address, float]):
    """As if every address were known to grant no session."""

    def get(self, address: object, default: object = None) -> float:  # type: ignore[override]
        return math.inf


@pytest.fixture
def plain_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no call offer a session to the servers here, which speak plain uwsgi."""
    monkeypatch.setattr(sessions, "_plain_until", _Everywhere())


@pytest.fixture
def nothing_left_open() -> Iterator[None]:
    """Check that a test leaves no socket open, whatever it did."""
    before = _open_sockets()
    yield
    assert _open_sockets() - before == set()


def _open_sockets() -> set[str]:
    """Return what names this process's sockets and selectors; empty on a system that has no ``/proc``."""
    targets = set()
    for link in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # the one by which the directory is read
            targets.add(f"{link.name} {link.readlink()}")
    return {target for target in targets if "socket:" in target or "eventpoll" in target}
