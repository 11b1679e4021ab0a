"""Connecting, deadlines and cleaning up, against a real server on loopback."""

from __future__ import annotations

import marshal
import selectors
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.unit.servers import (
    ENOUGH,
    ScriptedServer,
    answering,
    closed_port,
    dripping,
    frame,
    idle,
    nothing_left_open,  # noqa: F401 - a fixture
    outside_the_reactor,  # noqa: F401 - a fixture
    plain_peers,  # noqa: F401 - a fixture
    reset,
    silent,
)
from uwsgitwisted import blocking
from uwsgitwisted.address import parse_address
from uwsgitwisted.blocking import sessions, sockets
from uwsgitwisted.errors import (
    ConnectionFailed,
    InvalidAddress,
    NoAnswer,
    RequestTimeout,
)
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.packet import Packet

MESSAGE = ("mytemplate.txt", {"fib_sequence": [1, 1, 2], "whattimeisit": 1.5})
ANSWER = frame(33, 17, marshal.dumps("page", 2))

#: Short, for tests in which the time does run out.
SHORT = 0.2

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("outside_the_reactor", "plain_peers", "nothing_left_open"),
]


def test_the_next_address_is_tried_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a name's first address refuses, the second one is tried."""
    refused = closed_port()
    with ScriptedServer(answering(ANSWER)) as server:
        _resolve_to(monkeypatch, [("127.0.0.1", refused), server.address])
        assert blocking.send_message("node:1", 33, 17, MESSAGE, 10) == "page"


def test_an_address_that_swallows_everything_gets_only_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a name's first address never completes a connection, there is time left for the second one."""
    with _full_listener() as full, ScriptedServer(answering(ANSWER)) as server:
        _resolve_to(monkeypatch, [full.getsockname(), server.address])
        assert blocking.send_message("node:1", 33, 17, MESSAGE, 2 * ENOUGH) == "page"


def _resolve_to(monkeypatch: pytest.MonkeyPatch, places: list[tuple[str, int]]) -> None:
    """Make every name stand for *places*."""

    def getaddrinfo(host: str, port: int, *, flags: int = 0, **_: object) -> list[tuple[object, ...]]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


class _full_listener:  # noqa: N801 - used as a function
    """A listener whose queue is full, so that a connection to it is never completed."""

    def __init__(self, family: int = socket.AF_INET, place: str | tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._sockets = [socket.socket(family)]
        self._sockets[0].bind(place)
        self._sockets[0].listen(0)

    def __enter__(self) -> socket.socket:
        listener = self._sockets[0]
        for _ in range(8):
            filler = socket.socket(listener.family)
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            self._sockets.append(filler)
        return listener

    def __exit__(self, *exception: object) -> None:
        for sock in self._sockets:
            sock.close()


def test_the_source_address_can_be_chosen() -> None:
    """The bindAddress of an endpoint description is where the connection comes from."""

    def script(server: ScriptedServer, connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(frame(33, 0, marshal.dumps(connection.getpeername()[0], 2)))

    with ScriptedServer(script) as server:
        address = f"tcp:127.0.0.1:{server.port}:bindAddress=127.0.0.5"
        assert blocking.send_message(address, 33, 0, None, 10) == "127.0.0.5"


def test_a_unix_socket(tmp_path: Path) -> None:
    """A path, alone or in a description, is a unix socket."""
    path = str(tmp_path / "node.sock")
    with ScriptedServer(answering(ANSWER), path=path):
        assert blocking.send_message(path, 33, 17, MESSAGE, 10) == "page"
        assert blocking.send_message(f"unix:{path}", 33, 17, MESSAGE, 10) == "page"


def test_a_unix_socket_whose_queue_is_full(tmp_path: Path) -> None:
    """A call waits for a unix listener that doesn't accept, up to its timeout and not longer."""
    path = str(tmp_path / "node.sock")
    with _full_listener(socket.AF_UNIX, path), pytest.raises(RequestTimeout, match="no connection within"):
        blocking.send_message(path, 33, 17, MESSAGE, SHORT)


@pytest.mark.parametrize("path", ["/nonexistent/node.sock", "/" + "x" * 200])
def test_a_unix_socket_that_is_not_there(path: str) -> None:
    """A path on which nobody listens, or which is too long, raises ConnectionFailed."""
    with pytest.raises(ConnectionFailed):
        blocking.send_message(path, 33, 17, MESSAGE, 10)


def test_a_reset_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset within the answer breaks the connection; a part of a raw answer is not an answer."""
    received = threading.Event()

    def script(server: ScriptedServer, connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(b"HTTP/1.0 ")
        assert received.wait(10)
        reset(connection)

    class Receiver(PlainExchange):
        def receive(self, data: bytes) -> None:
            super().receive(data)
            received.set()

    monkeypatch.setattr(sessions, "PlainExchange", Receiver)
    with (
        ScriptedServer(script) as server,
        pytest.raises(ConnectionFailed, match="reset the connection in the middle") as caught,
    ):
        blocking.send_message(server.address, 0, 0, b"", 10)
    assert not isinstance(caught.value, NoAnswer)


def test_an_answer_before_the_request_was_read() -> None:
    """An answer that a server sends before it refuses the rest of a request counts."""

    def script(server: ScriptedServer, connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(ANSWER)

    with ScriptedServer(script) as server:
        exchange = PlainExchange(Packet(33, 0))
        exchange.outgoing = b"x" * 50_000_000
        steps = sockets.converse(parse_address(server.address), exchange, sockets.Deadline.after(10))
        assert sockets.run([steps]) == [None]
    assert exchange.result() == "page"


def test_small_packets_are_not_held_back() -> None:
    """A TCP connection has TCP_NODELAY, without which an answer waits for a delayed acknowledgement."""
    with ScriptedServer(lambda server, connection: None) as server:
        steps = sockets._connect(parse_address(server.address), sockets.Deadline.after(10))
        (sock,) = sockets.run([steps])
        assert isinstance(sock, socket.socket)
        with sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_name_that_does_not_exist() -> None:
    """A name without addresses raises ConnectionFailed."""
    with pytest.raises(ConnectionFailed):
        blocking.send_message("nobody.invalid:3033", 33, 0, MESSAGE, 10)


def test_a_name_that_can_not_exist() -> None:
    """A name that can't exist in DNS raises InvalidAddress."""
    with pytest.raises(InvalidAddress, match="can't be a host's name"):
        blocking.send_message("x" * 70 + ":3033", 33, 0, MESSAGE, 10)


@pytest.mark.parametrize("script", [silent, dripping])
def test_the_timeout_covers_everything(script: object) -> None:
    """A call to a server that sends nothing, or a byte now and then, times out and closes the connection."""
    with ScriptedServer(script) as server:  # type: ignore[arg-type]
        start = time.monotonic()
        with pytest.raises(RequestTimeout, match=f"no whole answer within {ENOUGH:g} seconds") as caught:
            blocking.send_message(server.address, 33, 0, MESSAGE, ENOUGH)
        assert ENOUGH <= time.monotonic() - start < 10
        assert caught.value.seconds == ENOUGH
        if script is silent:
            assert server.gone.wait(10)


def test_the_timeout_covers_connecting() -> None:
    """A call to a server that never completes the connection times out."""
    with _full_listener() as full, pytest.raises(RequestTimeout, match="no connection within"):
        blocking.send_message(full.getsockname(), 33, 0, MESSAGE, SHORT)


def test_the_endpoint_timeout_covers_connecting_only() -> None:
    """The timeout in an endpoint description limits the time to connect, within the call's own."""
    with _full_listener() as full, pytest.raises(ConnectionFailed, match="timed out"):
        blocking.send_message(f"tcp:127.0.0.1:{full.getsockname()[1]}:timeout=0", 33, 0, MESSAGE, 10)


def test_the_timeout_covers_sending() -> None:
    """A call to a server that reads nothing times out."""
    with ScriptedServer(idle) as server:
        place = parse_address(server.address)
        exchange = PlainExchange(Packet(33, 0))
        exchange.outgoing = b"x" * 50_000_000
        deadline = sockets.Deadline.after(ENOUGH)
        (outcome,) = sockets.run([sockets.converse(place, exchange, deadline)])
    assert isinstance(outcome, RequestTimeout)
    assert "could not be sent" in str(outcome)


def test_the_timeout_covers_the_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call times out if the name server doesn't answer."""
    release = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *, type: int, flags: int = 0) -> object:  # noqa: A002
        if not flags & socket.AI_NUMERICHOST:
            release.wait(10)
        return real(host, port, type=type, flags=flags)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        with pytest.raises(RequestTimeout, match="localhost:1: the host's name was not resolved within"):
            blocking.send_message("localhost:1", 33, 0, MESSAGE, SHORT)
    finally:
        release.set()
        for thread in threading.enumerate():
            if thread.name == "look up localhost":
                assert thread.daemon
                thread.join(10)


def test_no_thread_for_the_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system gives no thread, the call fails with our error and leaves nothing open."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ConnectionFailed, match="no thread to look up 'localhost'"):
        blocking.send_message("localhost:1", 33, 0, MESSAGE, 10)


def test_no_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process may open nothing more, the call fails with our error."""

    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(selectors, "DefaultSelector", full)
        nodes = [("127.0.0.1", 1, MESSAGE)] * 2
        with pytest.raises(ConnectionFailed, match="Too many open files"):
            blocking.send_multi_uwsgi_message(nodes, 33, 0, 10)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", full)
        with pytest.raises(ConnectionFailed, match="Too many open files"):
            blocking.send_message("127.0.0.1:1", 33, 0, MESSAGE, 10)


def test_an_exception_from_a_signal_handler_closes_everything() -> None:
    """A signal handler that raises ends the call with its exception; one that returns doesn't disturb it."""

    class Interrupted(Exception):
        pass

    seen = []

    def handler(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) == 2:
            raise Interrupted

    def script(server: ScriptedServer, connection: socket.socket) -> None:
        server.read_request(connection)
        main = threading.main_thread().ident
        assert main is not None
        # Again and again: one that comes just before poll() begins is not looked at until poll() ends.
        while len(seen) < 2:
            signal.pthread_kill(main, signal.SIGUSR1)
            assert not server.stopping.wait(0.001)
        if not connection.recv(1):
            server.gone.set()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with ScriptedServer(script) as server:
            exchange = PlainExchange(Packet(33, 0))
            steps = [sockets.converse(parse_address(server.address), exchange, sockets.Deadline.after(10))]
            with pytest.raises(Interrupted):
                sockets.run(steps)
            assert server.gone.wait(10)
    finally:
        signal.signal(signal.SIGUSR1, before)
