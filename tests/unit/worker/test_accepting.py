"""Web requests that a worker takes from ports: which ones, how they end, and what goes to the front."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.test_worker_main import PATIENCE, Front
from uwsgitwisted.activity import Activity, Slot, open_slots
from uwsgitwisted.errors import MalformedPacket, RemoteError, RequestCancelled, UwsgiError
from uwsgitwisted.wire.events import (
    AnswerReceived,
    ErrorReceived,
    Event,
    PingReceived,
    PongReceived,
    ShutdownReceived,
)
from uwsgitwisted.wire.packet import MARSHAL, WSGI, Packet, encode_packet
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.wire.vars import encode_vars
from uwsgitwisted.worker import accepting
from uwsgitwisted.worker.accepting import Acceptor, DirectExchange, ListeningSocket
from uwsgitwisted.worker.exchange import AnyExchange, ClientGone
from uwsgitwisted.worker.handlers.handler import StreamHandler
from uwsgitwisted.worker.spec import NO_REQUEST, Accepting

GET = encode_packet(Packet(WSGI, 0, encode_vars([(b"REQUEST_METHOD", b"GET"), (b"CONTENT_LENGTH", b"")])))
RESET = struct.pack("ii", 1, 0)
Serve = Callable[[AnyExchange], None]


def post(body: bytes, size: int | None = None) -> bytes:
    """Return a request with a body."""
    length = len(body) if size is None else size
    return encode_packet(Packet(WSGI, 0, encode_vars([(b"CONTENT_LENGTH", length)]))) + body


def hello(exchange: AnyExchange) -> None:
    """Answer with a short page."""
    exchange.finish(b"hello")


def defer_accept(listener: socket.socket) -> None:
    """Have no connection accepted before its request is there: the worker would hand it over.

    A service does so for a second, in which a test's client may not run.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10 * PATIENCE)


class Bench:
    """An acceptor with one port, driven by hand."""

    def __init__(
        self,
        serve: Serve = hello,
        *,
        path: Path | None = None,
        networks: list[str] | None = None,
        **options: Any,
    ) -> None:
        self.listener = ListeningSocket(socket.AF_UNIX if path else socket.AF_INET)
        self.listener.bind(str(path) if path else ("127.0.0.1", 0))
        self.listener.listen()
        self.listener.setblocking(False)
        self.front, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.front.settimeout(PATIENCE)
        self.theirs = theirs
        descriptor = Activity.create()
        self.activity = Activity(descriptor)
        (self.slot,) = open_slots(descriptor)
        os.close(descriptor)
        self.reports: list[UwsgiError] = []
        self.blamed: list[str] = []
        told: dict[str, Any] = {"ports": 1, "networks": networks, "write_timeout": 0.2, "max_body": 100_000}
        self.acceptor = Acceptor(
            Accepting(**(told | options)),
            [self.listener],
            theirs,
            {WSGI: StreamHandler(lambda exchange, _: serve(exchange), refused=self._refused)},
            "n1 worker 1",
            self._report,
            self.slot,
        )
        self._clients: list[socket.socket] = []

    def _refused(self, *about: object) -> None:
        raise AssertionError("the handler knows of its own failures")

    def _report(self, error: UwsgiError, peer: str) -> None:
        self.reports.append(error)
        self.blamed.append(peer)

    def connect(self, data: bytes = b"") -> socket.socket:
        """Connect a client, which sends bytes."""
        client = socket.socket(self.listener.family)
        client.settimeout(PATIENCE)
        client.connect(self.listener.getsockname())
        client.sendall(data)
        self._clients.append(client)
        return client

    def accept(self) -> bool:
        """Accept a connection, and run its request if that is the worker's."""
        accepted = self.acceptor.accept(self.listener.fileno())
        if accepted is not None:
            self.acceptor.run(accepted, self.slot)
        return accepted is not None

    def handed_over(self) -> tuple[bytes, socket.socket]:
        """Return the bytes and the connection that were handed over."""
        data, (descriptor,), _, _ = socket.recv_fds(self.front, 300_000, 1)
        connection = socket.socket(fileno=descriptor)
        self._clients.append(connection)
        assert data[:1] == b"\0"
        return data[1:], connection

    def close(self) -> None:
        for each in (self.listener, self.front, self.theirs, *self._clients):
            each.close()
        self.activity.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Make acceptors."""
    with contextlib.ExitStack() as made:

        def make(*arguments: Any, **options: Any) -> Bench:
            each = Bench(*arguments, **options)
            made.callback(each.close)
            return each

        yield make


def everything(client: socket.socket) -> bytes:
    """Read to the end."""
    return b"".join(iter(lambda: client.recv(65_536), b""))


def reset(client: socket.socket) -> None:
    """Have a client go with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


Make = Callable[..., Bench]


def test_request(bench: Make) -> None:
    """A web request is answered, and its connection closed; the worker is idle before and after."""
    seen: list[object] = []

    def serve(exchange: AnyExchange) -> None:
        assert made.activity.overdue(0.0) == [NO_REQUEST]
        seen.append((exchange.packet, exchange.streamed, exchange.read(10)))
        exchange.finish(b"hello")

    made = bench(serve)
    client = made.connect(GET)
    assert made.activity.accepted() == 0
    assert made.accept()
    assert made.activity.accepted() == 0
    assert everything(client) == b"hello"
    assert seen == [(Packet(WSGI, 0, GET[4:]), False, b"")]
    assert made.reports == []
    requests, failed, *_, sent, _ = made.slot.counts
    assert (requests, failed, sent) == (1, 0, 5)


@pytest.mark.parametrize("size", [5, 5_000])
def test_connection_of_another_process(bench: Make, size: int) -> None:
    """An answer ends, although a process that the application has forked keeps the connection open."""
    forked: list[int] = []

    def serve(exchange: AnyExchange) -> None:
        assert isinstance(exchange, DirectExchange)
        forked.append(os.dup(exchange._connection.fileno()))  # as a fork does it
        exchange.finish(bytes(size))

    made = bench(serve)
    client = made.connect(GET)
    assert made.accept()
    assert everything(client) == bytes(size)
    os.close(forked.pop())


def test_body(bench: Make) -> None:
    """A small body comes with the request."""
    made = bench(lambda exchange: exchange.finish(exchange.packet.payload[-5:]))
    client = made.connect(post(b"a body"))
    assert made.accept()
    assert everything(client) == b" body"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GET[:3],
        GET[:-1],
        GET + b"x",
        post(b"half", size=8),
        post(b"more than that", size=8),
        post(b"", size=100_001),
        encode_packet(Packet(WSGI, 0, encode_vars([(b"CONTENT_LENGTH", b"x")]))),
        encode_packet(Packet(WSGI, 0, b"CONTENT_LENGTH CONTENT_LENGTH")),
        encode_packet(Packet(MARSHAL, 0, b"N")),
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(2_000_000)[:131_074],
    ],
    ids=range(12),
)
def test_left_to_the_front(bench: Make, data: bytes) -> None:
    """What isn't exactly one complete web request goes to the front, with each byte that was read."""
    made = bench()
    client = made.connect(data)
    assert not made.accept()
    arrived, connection = made.handed_over()
    while len(arrived) < len(data):
        arrived += connection.recv(65_536)
    assert arrived == data
    connection.sendall(b"by the front")
    connection.close()
    assert everything(client) == b"by the front"


def test_peer_that_has_gone(bench: Make) -> None:
    """A connection that is gone already, in whichever way, does no harm."""
    made = bench()
    made.connect(GET).close()
    assert made.accept()
    reset(made.connect())
    assert not made.accept()
    assert not made.accept(), "another worker was faster"


def test_silent_connections_are_waited_for_once(bench: Make) -> None:
    """After a connection without bytes, the next ones are handed over without a wait, for a while."""
    made = bench()
    for _ in range(3):
        made.connect()
        assert not made.accept()
        assert made.handed_over()[0] == b""
    assert made.acceptor._no_wait_until > 0


def test_a_retired_worker(bench: Make) -> None:
    """What connects after the front has retired the worker is its successor's, whose code may be newer."""
    made = bench()
    made.connect(GET)
    assert made.accept()
    client = made.connect(GET)
    made.activity.retire()
    assert not made.accept()
    data, connection = made.handed_over()
    assert data == GET
    assert connection.getpeername() == client.getsockname()


def test_networks(bench: Make) -> None:
    """A peer that may not connect is left to the front, which logs and refuses it."""
    made = bench(networks=["10.0.0.0/8", "fd00::/8"])
    made.connect(GET)
    assert not made.accept()
    assert made.handed_over()[0] == GET
    allowed = bench(networks=["127.0.0.0/8"])
    allowed.connect(GET)
    assert allowed.accept()


@pytest.mark.parametrize("bound", [None, "peer", f"\0peer-of-a-test-{os.getpid()}"])
def test_unix_socket(bench: Make, tmp_path: Path, bound: str | None) -> None:
    """The peers of a UNIX socket may connect, whatever address they have bound."""
    made = bench(path=tmp_path / "socket", networks=["10.0.0.0/8"])
    client = socket.socket(socket.AF_UNIX)
    if bound is not None:
        client.bind(bound if bound[0] == "\0" else str(tmp_path / bound))
    client.settimeout(PATIENCE)
    client.connect(str(tmp_path / "socket"))
    client.sendall(GET)
    assert made.accept()
    assert everything(client) == b"hello"
    client.close()


def test_handler_fails(bench: Make) -> None:
    """A handler that raises is answered with 500, and reported."""

    def serve(exchange: AnyExchange) -> None:
        raise KeyError("secret")

    made = bench(serve)
    client = made.connect(GET)
    port = client.getsockname()[1]
    assert made.accept()
    answer = everything(client)
    assert answer.startswith(b"HTTP/1.0 500 ")
    assert b"secret" not in answer
    (error,) = made.reports
    assert isinstance(error, RemoteError)
    assert error.type == "KeyError"
    assert error.node == "n1 worker 1"
    assert made.slot.counts.failed == 1
    assert made.blamed == [f"127.0.0.1:{port}"]


def test_client_that_reads_slowly(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes on reading is not taken for one that has gone, however slow it is."""
    size = 20_000_000
    now = [0.0]  # it goes on only as the client reads, so that nobody is late who isn't run for a while
    monkeypatch.setattr(accepting, "monotonic", lambda: now[0])
    made = bench(lambda exchange: exchange.finish(bytes(size)), write_timeout=0.5)
    client = made.connect(GET)
    received: list[int] = []

    def read() -> None:
        for _ in range(140):  # longer than the limit, and too little for the system to say that there is room
            received.append(len(client.recv(5_000)))
            time.sleep(0.005)
            now[0] += 0.005
        while data := client.recv(1 << 20):
            received.append(len(data))

    reading = threading.Thread(target=read)
    reading.start()
    assert made.accept()
    reading.join(PATIENCE)
    assert sum(received) == size
    assert made.reports == []


def test_request_that_cannot_be_read(bench: Make) -> None:
    """A request that can't be decoded is answered with 400, and its handler hears of that for its log."""

    def read(exchange: AnyExchange) -> None:
        raise MalformedPacket("no method")

    refused: list[object] = []
    made = bench()
    handler = StreamHandler(lambda exchange, _: hello(exchange), read, lambda *about: refused.append(about))
    made.acceptor._handlers[WSGI] = handler
    client = made.connect(GET)
    assert made.accept()
    assert everything(client).startswith(b"HTTP/1.0 400 ")
    assert refused == [(Packet(WSGI, 0, GET[4:]), 400, len("400 Bad Request\n"))]
    assert len(made.reports) == 1


def test_handler_fails_in_the_middle(bench: Make) -> None:
    """A handler that raises when a part of its answer is out has the connection reset."""

    def serve(exchange: AnyExchange) -> None:
        exchange.send(b"a part")
        raise KeyError("x")

    made = bench(serve)
    client = made.connect(GET)
    assert made.accept()
    with pytest.raises(ConnectionResetError):
        everything(client)
    assert len(made.reports) == 1


def test_handler_fails_at_the_end(bench: Make) -> None:
    """A handler that raises behind its whole answer is reported, and its answer is not disturbed."""

    def serve(exchange: AnyExchange) -> None:
        exchange.finish(b"all")
        raise KeyError("x")

    made = bench(serve)
    client = made.connect(GET)
    assert made.accept()
    assert everything(client) == b"all"
    assert len(made.reports) == 1


def test_peer_of_a_failure_has_gone(bench: Make) -> None:
    """The worker survives a peer that is gone when its error is to be answered."""

    def serve(exchange: AnyExchange) -> None:
        reset(client)
        raise KeyError("x")

    made = bench(serve)
    client = made.connect(GET)
    assert made.accept()
    assert len(made.reports) == 1
    assert made.activity.accepted() == 0


@pytest.mark.parametrize("file", [False, True])
def test_client_goes(bench: Make, tmp_path: Path, file: bool) -> None:
    """A handler that sends to a client that has gone gets an error, which nobody needs to hear of."""
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000_000))
    caught: list[Exception] = []

    def serve(exchange: AnyExchange) -> None:
        exchange.send(b"begun")
        reset(client)
        try:
            with path.open("rb") as opened:
                while True:
                    if file:
                        exchange.send_file(opened.fileno(), 0, 10_000_000)
                    else:
                        exchange.send(bytes(1_000_000))
        except ClientGone as error:
            caught.append(error)
            raise

    made = bench(serve)
    client = made.connect(GET)
    assert made.accept()
    assert len(caught) == 1
    assert made.reports == []


@pytest.mark.parametrize("file", [False, True])
def test_client_that_reads_nothing(bench: Make, tmp_path: Path, file: bool) -> None:
    """A client that reads nothing for the write timeout is cut off; the worker waits for it meanwhile."""
    path = tmp_path / "file"
    path.write_bytes(bytes(50_000_000))
    caught: list[Exception] = []

    def serve(exchange: AnyExchange) -> None:
        try:
            with path.open("rb") as opened:
                if file:
                    exchange.send_file(opened.fileno(), 0, 50_000_000)
                else:
                    exchange.send(bytes(50_000_000))
        except ClientGone as error:
            caught.append(error)
            assert made.activity.accepted() == 1
            assert made.activity.overdue(0.0) == []
            raise

    made = bench(serve)
    made.connect(GET)
    assert made.accept()
    assert "0.2 s" in str(caught[0])
    assert made.reports == []


@pytest.mark.parametrize("file", [False, True])
def test_large_answer(bench: Make, tmp_path: Path, file: bool) -> None:
    """An answer that is larger than the system's buffers goes out as its client reads."""
    path = tmp_path / "file"
    content = bytes(range(256)) * 40_000
    path.write_bytes(content)

    def serve(exchange: AnyExchange) -> None:
        exchange.send(b"head")
        if file:
            with path.open("rb") as opened:
                exchange.send_file(opened.fileno(), 0, len(content))
        else:
            exchange.send(content)
        exchange.finish(b"tail")

    made = bench(serve, write_timeout=PATIENCE)
    client = made.connect(GET)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(everything(client)))
    reader.start()
    assert made.accept()
    reader.join(PATIENCE)
    assert received == [b"head" + content + b"tail"]


def test_file_becomes_shorter(bench: Make, tmp_path: Path) -> None:
    """A file that ends early has its connection reset, and is reported."""
    path = tmp_path / "file"
    path.write_bytes(b"short")

    def serve(exchange: AnyExchange) -> None:
        with path.open("rb") as opened:
            exchange.send_file(opened.fileno(), 0, 1_000)

    made = bench(serve)
    client = made.connect(GET)
    assert made.accept()
    with pytest.raises(ConnectionResetError):
        everything(client)
    assert len(made.reports) == 1


def test_file_that_cannot_be_sent(bench: Make) -> None:
    """A descriptor that the system can't send from is the application's failure, and is reported as that."""
    reader, writer = os.pipe()

    def serve(exchange: AnyExchange) -> None:
        exchange.send_file(reader, 0, 1_000)

    made = bench(serve)
    client = made.connect(GET)
    assert made.accept()
    with pytest.raises(ConnectionResetError):
        everything(client)
    os.close(reader)
    os.close(writer)
    (error,) = made.reports
    assert isinstance(error, RemoteError)
    assert error.type == "OSError"


class SharingFront(Front):
    """A worker in a thread that accepts connections, and the front's end of its pipe."""

    def __init__(self, serve: Serve = hello, **limits: Any) -> None:
        self.bench = Bench(serve)
        defer_accept(self.bench.listener)

        def make(report: Callable[[UwsgiError, str], None], _: Slot) -> Acceptor:
            self.bench.acceptor._report = report
            return self.bench.acceptor

        handler = StreamHandler(lambda exchange, _: serve(exchange))
        super().__init__({WSGI: handler}, make, [self.bench.slot], Terms(window=1_000), **limits)
        self.negotiate()

    def connect(self, data: bytes = GET) -> socket.socket:
        return self.bench.connect(data)

    def next(self) -> Event:
        (event,) = self.events(1)
        return event

    def close(self) -> None:
        super().close()
        self.bench.close()


@pytest.fixture
def front() -> Iterator[Callable[..., SharingFront]]:
    """Make workers that accept connections."""
    with contextlib.ExitStack() as made:

        def make(*arguments: Any, **limits: Any) -> SharingFront:
            each = SharingFront(*arguments, **limits)
            made.callback(each.close)
            return each

        yield make


MakeFront = Callable[..., SharingFront]


def test_both_ways(front: MakeFront) -> None:
    """A worker answers what comes on its pipe and what comes on its ports."""
    made = front()
    for number in range(1, 4):
        assert everything(made.connect()) == b"hello"
        made.put(1)
        made.session.send_request(number, Packet(WSGI, 0, b"vars"))
        made.flush()
        assert isinstance(made.next(), AnswerReceived)


def test_failures_are_reported_on_the_pipe(front: MakeFront) -> None:
    """The failure of a request of a port goes to the front as an error of no request."""

    def serve(exchange: AnyExchange) -> None:
        raise KeyError("x")

    made = front(serve)
    assert everything(made.connect()).startswith(b"HTTP/1.0 500 ")
    event = made.next()
    assert isinstance(event, ErrorReceived)
    assert event.id == NO_REQUEST
    assert isinstance(event.error, RemoteError)


def test_max_requests(front: MakeFront) -> None:
    """Requests of ports count, and those that are handed over don't; the worker goes on for now."""
    made = front(max_requests=2)
    assert everything(made.connect()) == b"hello"
    made.connect(b"\x21")
    made.bench.handed_over()
    made.put(1)
    made.session.send_request(1, Packet(WSGI, 0, b"vars"))
    made.flush()
    assert {type(event) for event in made.events(2)} == {AnswerReceived, ShutdownReceived}
    assert everything(made.connect()) == b"hello"


def test_out_of_memory(front: MakeFront) -> None:
    """A worker whose request of a port ran out of memory asks to be replaced."""

    def serve(exchange: AnyExchange) -> None:
        raise MemoryError

    made = front(serve)
    assert everything(made.connect()).startswith(b"HTTP/1.0 500 ")
    assert {type(event) for event in made.events(2)} == {ErrorReceived, ShutdownReceived}


def test_accepts_no_more(front: MakeFront) -> None:
    """After the front's shutdown notice, connections are left to others; the pipe is still served."""
    made = front()
    made.session.send_shutdown()
    made.session.send_ping()
    made.flush()
    assert isinstance(made.next(), (PingReceived, PongReceived))
    waiting = made.connect()
    made.put(1)
    made.session.send_request(1, Packet(WSGI, 0, b"vars"))
    made.flush()
    assert isinstance(made.next(), AnswerReceived)
    waiting.setblocking(False)
    with pytest.raises(BlockingIOError):
        waiting.recv(1)


def test_recalled_while_busy_with_a_port(front: MakeFront) -> None:
    """A request that comes on the pipe while one of a port runs may be recalled."""
    go_on, began = threading.Event(), threading.Event()

    def serve(exchange: AnyExchange) -> None:
        began.set()
        assert go_on.wait(PATIENCE)
        exchange.finish(b"hello")

    made = front(serve)
    client = made.connect()
    assert began.wait(PATIENCE)
    made.session.send_request(1, Packet(WSGI, 0, b"vars"))  # without a token: it was taken
    made.session.send_cancel(1)
    made.flush()
    go_on.set()
    assert everything(client) == b"hello"
    event = made.next()
    assert isinstance(event, ErrorReceived)
    assert isinstance(event.error, RequestCancelled)


def test_the_end(front: MakeFront) -> None:
    """The worker ends when the front closes the pipe."""
    made = front()
    made.ours.shutdown(socket.SHUT_RDWR)
    made.thread.join(PATIENCE)
    assert made.ended == [None]
