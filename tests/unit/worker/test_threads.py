"""A worker that runs several requests at a time, and runs here in a thread itself."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.unit.worker.test_accepting import defer_accept
from tests.unit.worker.test_exchange import ASKED, FRONT_WINDOW, LONG, echo, read_all
from tests.unit.worker.test_worker_main import LIMIT, PATIENCE, Front
from uwsgitwisted import activity
from uwsgitwisted.activity import Activity, open_slots
from uwsgitwisted.errors import (
    MessageTooLarge,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    UnknownModifier,
)
from uwsgitwisted.wire.events import (
    AnswerReceived,
    DataReceived,
    EndReceived,
    ErrorReceived,
    Event,
    ShutdownReceived,
    StreamedAnswerReceived,
    WindowGranted,
)
from uwsgitwisted.wire.packet import WSGI, Packet, encode_packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.wire.vars import encode_vars
from uwsgitwisted.worker.accepting import Acceptor, MakeAcceptor
from uwsgitwisted.worker.exchange import AnyExchange
from uwsgitwisted.worker.handlers.handler import Handler, StreamHandler
from uwsgitwisted.worker.spec import Accepting, HandlerTable


class Gates:
    """Requests that say when they have begun, and wait until they may end."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, bytes], threading.Event] = {}

    def _event(self, what: str, name: bytes) -> threading.Event:
        return self._events.setdefault((what, name), threading.Event())

    def pass_through(self, name: bytes) -> None:
        """Be such a request."""
        self._event("begun", name).set()
        assert self._event("may end", name).wait(PATIENCE)

    def wait_for(self, *names: bytes) -> None:
        """Wait until these have begun."""
        for name in names:
            assert self._event("begun", name).wait(PATIENCE), name

    def has_begun(self, name: bytes) -> bool:
        return self._event("begun", name).is_set()

    def open(self, *names: bytes) -> None:
        """Let these end."""
        for name in names:
            self._event("may end", name).set()


class ThreadsFront(Front):
    """A worker with threads, and the front's end of its pipe; it knows what the threads do."""

    def __init__(
        self,
        handlers: HandlerTable,
        threads: int = 2,
        make_acceptor: MakeAcceptor | None = None,
        **limits: Any,
    ) -> None:
        descriptor = Activity.create()
        self.activity = Activity(descriptor, threads)
        slots = open_slots(descriptor, threads)
        os.close(descriptor)
        terms = Terms(max_message=1 << 20, window=FRONT_WINDOW)
        super().__init__(handlers, make_acceptor, slots, terms, threads=threads, **limits)
        self.session = Session(Role.CLIENT, terms, self.negotiate())

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds that another thread does."""
        pause = threading.Event()
        for _ in range(1_000 * PATIENCE):
            if condition():
                return
            pause.wait(0.001)
        raise AssertionError("not in time")


@pytest.fixture
def gates() -> Gates:
    """Give gates."""
    return Gates()


Make = Callable[..., ThreadsFront]


@pytest.fixture
def make(gates: Gates) -> Iterator[Make]:
    """Make fronts whose workers answer with the payload, each request by its gate."""

    def run(request: Packet) -> bytes:
        if request.payload.startswith(b"gate"):
            gates.pass_through(request.payload)
        if request.payload == b"memory":
            raise MemoryError
        if request.payload == b"interrupt":
            raise KeyboardInterrupt
        return request.payload * (3 * LIMIT if request.payload == b"large" else 1)

    def answer(request: Packet, value: object) -> Packet:
        assert isinstance(value, bytes)
        return Packet(33, request.modifier2, value)

    with contextlib.ExitStack() as made:

        def make(serve: Callable[[AnyExchange], None] = echo, **limits: Any) -> ThreadsFront:
            front = ThreadsFront(
                {33: Handler(run, answer), WSGI: StreamHandler(lambda exchange, _: serve(exchange))}, **limits
            )
            made.callback(front.close)
            return front

        yield make


def answered(events: list[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, AnswerReceived)]


def test_at_once(make: Make, gates: Gates) -> None:
    """As many requests run at once as there are threads, and answers come in any order; the next one waits."""
    front = make()
    front.put(3)
    front.ask(b"gate 1", b"gate 2", b"gate 3")
    gates.wait_for(b"gate 1", b"gate 2")
    front.session.send_ping()
    front.flush()
    front.events(1)
    assert not gates.has_begun(b"gate 3")
    gates.open(b"gate 2")
    assert answered(front.events(1)) == [2]
    gates.wait_for(b"gate 3")
    gates.open(b"gate 3")
    assert answered(front.events(1)) == [3]
    gates.open(b"gate 1")
    assert answered(front.events(1)) == [1]


def test_recalled(make: Make, gates: Gates) -> None:
    """A request without a token is not begun, although a thread is free, and can be recalled."""
    front = make()
    front.put(1)
    front.ask(b"gate 1", b"gate 2")
    gates.wait_for(b"gate 1")
    front.session.send_cancel(2)
    front.flush()
    (event,) = front.events(1)
    assert isinstance(event, ErrorReceived)
    assert isinstance(event.error, RequestCancelled)
    front.put(1)
    front.ask(b"next", start=3)
    assert answered(front.events(1)) == [3]
    gates.open(b"gate 1")
    assert answered(front.events(1)) == [1]
    assert not gates.has_begun(b"gate 2")


def test_activity(make: Make, gates: Gates) -> None:
    """The front sees which requests run, and that one that waits for its peer is not overdue."""
    front = make()
    front.put(2)
    front.ask(b"gate 1")
    gates.wait_for(b"gate 1")
    front.until(lambda: front.activity.overdue(0.001) == [1])
    assert front.activity.working_for > 0
    front.session.send_streamed_request(2, ASKED)
    front.flush()
    assert isinstance(front.events(1)[0], WindowGranted)
    front.until(lambda: front.activity.overdue(0.0) == [1])  # the other one waits for its body
    assert front.activity.accepted() == 0
    front.session.streams.send_end(2)
    front.flush()
    gates.open(b"gate 1")
    assert sorted(answered(front.events(2))) == [1, 2]
    front.until(lambda: not front.activity.overdue(0.0))
    assert front.activity.working_for == 0


def test_progress(make: Make, gates: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a request reads and sends is progress, also if it never waits for its peer."""
    now = [1.0]
    monkeypatch.setattr(activity, "monotonic", lambda: now[0])

    def serve(exchange: AnyExchange) -> None:
        for number, step in enumerate((lambda: exchange.send(b"x"), lambda: exchange.read(1), exchange.finish)):
            gates.pass_through(str(number).encode())
            step()
        gates.pass_through(b"3")

    front = make(serve)
    front.put(1)
    front.session.send_request(1, ASKED)
    front.flush()
    for step in (b"0", b"1", b"2"):
        gates.wait_for(step)
        assert front.activity.overdue(0.5) == []
        now[0] += 1
        assert front.activity.overdue(0.5) == [1]
        gates.open(step)
    gates.wait_for(b"3")
    assert front.activity.overdue(0.5) == []
    gates.open(b"3")


def test_failures(make: Make) -> None:
    """What fails in a thread fails as without one: unknown modifiers, large answers, too little memory."""
    front = make()
    front.put(3)
    front.session.send_request(1, Packet(9, 0, b""))
    front.session.send_request(2, Packet(33, 0, b"large"))
    front.session.send_request(3, Packet(33, 0, b"memory"))
    front.flush()
    events = front.events(4)
    found = {event.id: event.error for event in events if isinstance(event, ErrorReceived)}
    assert isinstance(found[1], UnknownModifier)
    assert isinstance(found[2], MessageTooLarge)
    assert isinstance(found[3], RemoteError)
    assert found[3].type == "MemoryError"
    # Whoever is to blame for it, what holds the memory goes with the process.
    assert any(isinstance(event, ShutdownReceived) for event in events)


def test_a_deadline_that_is_over(make: Make, gates: Gates) -> None:
    """A request whose caller has given up while it waited for a thread is not begun."""
    front = make()
    front.put(3)
    front.ask(b"gate 1", b"gate 2")
    gates.wait_for(b"gate 1", b"gate 2")
    front.session.send_request(3, Packet(33, 0, b"gate 3"), 0.001)
    front.session.send_ping()
    front.flush()
    front.events(1)  # the worker has read the request, and its time runs
    over = time.monotonic() + 0.001
    front.until(lambda: time.monotonic() > over)
    gates.open(b"gate 1", b"gate 2")
    failed = [event for event in front.events(3) if isinstance(event, ErrorReceived)]
    assert isinstance(failed[0].error, RequestTimeout)
    assert not gates.has_begun(b"gate 3")


def test_max_requests(make: Make) -> None:
    """The requests of all threads count; after the last one the worker asks to be replaced, and goes on."""
    front = make(max_requests=3)
    front.put(5)
    front.ask(*(str(number).encode() for number in range(5)))
    events = front.events(6)
    assert sorted(answered(events)) == [1, 2, 3, 4, 5]
    at = [isinstance(event, ShutdownReceived) for event in events].index(True)
    assert at >= 2


class Echo:
    """A request whose body comes back while it is sent.

    :param front: the front.
    :param request: its id.
    """

    def __init__(self, front: ThreadsFront, request: int) -> None:
        self._streams = front.session.streams
        self._request = request
        self.body = bytes([request]) * request + LONG
        self._sent = 0
        self.received = b""
        self.ended = False
        front.session.send_streamed_request(request, ASKED)

    def go_on(self) -> None:
        """Send a piece of the body, a small one, as nothing is read meanwhile."""
        size = min(self._streams.credit(self._request), 20_000)
        if piece := self.body[self._sent : self._sent + size]:
            self._streams.send(self._request, piece)
            self._sent += len(piece)
            if self._sent == len(self.body):
                self._streams.send_end(self._request)

    def receive(self, event: Event) -> None:
        """Handle an event of this request."""
        if isinstance(event, StreamedAnswerReceived):
            self.received += event.packet.payload
        elif isinstance(event, DataReceived):
            self.received += event.data
            self._streams.grant(self._request, len(event.data))
        else:
            assert isinstance(event, (WindowGranted, EndReceived))
            self.ended = isinstance(event, EndReceived)


def test_streams(make: Make) -> None:
    """Bodies and answers of several threads at once, each longer than its window, are not mixed up."""

    def serve(exchange: AnyExchange) -> None:
        while data := exchange.read(30_000):
            exchange.send(data)
        exchange.finish()

    front = make(serve, threads=3)
    front.put(3)
    echoes = {request: Echo(front, request) for request in (1, 2, 3)}
    while not all(echo.ended for echo in echoes.values()):
        for each in echoes.values():
            each.go_on()
        front.flush()
        for event in front.events(1):
            echoes[event.id].receive(event)  # type: ignore[union-attr]
    assert all(each.received == each.body for each in echoes.values())


def test_a_client_that_goes(make: Make, gates: Gates) -> None:
    """A thread that waits for room is told that its client has gone; the one beside it goes on."""
    front = make(lambda exchange: exchange.send(LONG))
    front.put(2)
    front.ask(b"gate 1")
    gates.wait_for(b"gate 1")
    front.session.send_request(2, ASKED)
    front.flush()
    received = 0
    while received < FRONT_WINDOW:
        received += sum(len(event.data) for event in front.events(1) if isinstance(event, DataReceived))
    front.session.send_cancel(2)
    front.flush()
    (event,) = front.events(1)
    assert isinstance(event, ErrorReceived)
    assert event.id == 2
    gates.open(b"gate 1")
    assert answered(front.events(1)) == [1]


def test_the_end(make: Make, gates: Gates) -> None:
    """When the front closes the pipe, the worker ends after its threads; one that waits for the front fails."""
    errors: list[Exception] = []

    def serve(exchange: AnyExchange) -> None:
        try:
            read_all(exchange)
        except BrokenPipeError as error:
            errors.append(error)
            gates.pass_through(b"gate")
            raise

    front = make(serve)
    front.put(1)
    front.session.send_streamed_request(1, ASKED)
    front.flush()
    assert isinstance(front.events(1)[0], WindowGranted)
    front.ours.close()
    gates.wait_for(b"gate")
    assert front.thread.is_alive()
    gates.open(b"gate")
    front.thread.join(PATIENCE)
    assert len(errors) == 1
    assert front.ended == [None]


def test_an_interrupt(make: Make) -> None:
    """What ends a worker without threads ends it with threads too, also if the others still run."""
    front = make()
    front.put(1)
    front.ask(b"interrupt")
    front.thread.join(PATIENCE)
    assert not front.thread.is_alive()
    assert [type(error) for error in front.ended] == [KeyboardInterrupt]


# Connections


def greet(exchange: AnyExchange) -> None:
    """Answer at once."""
    exchange.finish(b"done")


class Ports:
    """A port from which a worker accepts connections, and the front's end of what it hands over."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        defer_accept(self.listener)
        self.listener.setblocking(False)
        self.front, self._workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.front.settimeout(PATIENCE)

    def make_acceptor(self, serve: Callable[[AnyExchange], None]) -> MakeAcceptor:
        accepting = Accepting(ports=1, networks=None, max_body=1_000, write_timeout=PATIENCE)
        handlers = {WSGI: StreamHandler(lambda exchange, _: serve(exchange))}
        return partial(Acceptor, accepting, [self.listener], self._workers, handlers, "n1 worker 1")

    def connect(self, path: str) -> socket.socket:
        """Send a web request on a connection of its own."""
        connection = socket.create_connection(self.listener.getsockname(), PATIENCE)
        connection.sendall(encode_packet(Packet(WSGI, 0, encode_vars({"PATH_INFO": path}))))
        return connection

    def close(self) -> None:
        for each in (self.listener, self.front, self._workers):
            each.close()


@pytest.fixture
def ports() -> Iterator[Ports]:
    """Give a port."""
    made = Ports()
    yield made
    made.close()


def test_connections(make: Make, ports: Ports, gates: Gates) -> None:
    """Threads run accepted connections and the front's requests; none is accepted while no thread is free."""

    def serve(exchange: AnyExchange) -> None:
        name = exchange.packet.payload.rpartition(b"/")[2]
        gates.pass_through(name)
        exchange.finish(name)

    front = make(serve, make_acceptor=ports.make_acceptor(serve))
    first = ports.connect("/1")
    gates.wait_for(b"1")
    assert front.activity.accepted() == 1
    front.put(1)
    front.ask(b"gate")
    gates.wait_for(b"gate")
    third = ports.connect("/3")
    front.session.send_ping()
    front.flush()
    front.events(1)
    assert front.activity.accepted() == 1
    assert not gates.has_begun(b"3")
    gates.open(b"gate")
    assert answered(front.events(1)) == [1]
    gates.wait_for(b"3")
    assert front.activity.accepted() == 2
    gates.open(b"1", b"3")
    with first, third:
        assert (first.recv(10), third.recv(10)) == (b"1", b"3")
    front.until(lambda: not front.activity.accepted())


def without_threads(serve: Callable[[AnyExchange], None], ports: Ports) -> Front:
    """Make a worker that runs one request at a time, and accepts connections."""
    descriptor = Activity.create()
    slots = open_slots(descriptor)
    os.close(descriptor)
    front = Front({WSGI: StreamHandler(lambda exchange, _: serve(exchange))}, ports.make_acceptor(serve), slots)
    front.negotiate()
    return front


def test_a_connection_at_the_end(make: Make, ports: Ports) -> None:
    """A connection for which a worker was woken is answered, although the pipe is closed at the same time."""
    front = make(greet, make_acceptor=ports.make_acceptor(greet))
    with front.worker.changed:  # type: ignore[attr-defined] # its main thread handles nothing meanwhile
        front.session.send_ping()
        front.flush()
        connection = ports.connect("/last")
        front.ours.shutdown(socket.SHUT_WR)
    with connection:
        assert connection.recv(10) == b"done"


def test_a_connection_at_the_end_without_threads(ports: Ports, gates: Gates) -> None:
    """The same holds for a worker without threads."""

    def serve(exchange: AnyExchange) -> None:
        if b"begin" in exchange.packet.payload:
            gates.pass_through(b"gate")
        greet(exchange)

    descriptor = Activity.create()
    slots = open_slots(descriptor)
    os.close(descriptor)
    front = Front({WSGI: StreamHandler(lambda exchange, _: serve(exchange))}, ports.make_acceptor(serve), slots)
    front.negotiate()
    with ports.connect("/begin") as first:
        gates.wait_for(b"gate")
        with ports.connect("/last") as last:
            front.ours.shutdown(socket.SHUT_WR)
            gates.open(b"gate")
            assert (first.recv(10), last.recv(10)) == (b"done", b"done")
    front.close()


def test_draining(make: Make, ports: Ports, gates: Gates) -> None:
    """After a shutdown notice nothing more is accepted, and what runs is finished."""

    def serve(exchange: AnyExchange) -> None:
        gates.pass_through(b"gate")
        exchange.finish(b"done")

    front = make(serve, make_acceptor=ports.make_acceptor(serve))
    with ports.connect("/1") as first, ports.connect("/2") as second:
        gates.wait_for(b"gate")
        front.until(lambda: front.activity.accepted() == 2)
        front.session.send_shutdown()
        front.session.send_ping()
        front.flush()
        front.events(1)
        gates.open(b"gate")
        assert (first.recv(10), second.recv(10)) == (b"done", b"done")
        with ports.connect("/3"):
            front.put(1)
            front.ask(b"x")
            assert answered(front.events(1)) == [1]
            ports.listener.settimeout(PATIENCE)
            accepted, _ = ports.listener.accept()  # it is still there
            accepted.close()


def test_reports(make: Make, ports: Ports) -> None:
    """The error of an accepted request goes to the front's log."""

    def serve(exchange: AnyExchange) -> None:
        raise KeyError("x")

    front = make(serve, make_acceptor=ports.make_acceptor(serve), max_requests=1)
    with ports.connect("/") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.0 500 ")
        events = front.events(2)
    errors = [event.error for event in events if isinstance(event, ErrorReceived) and not event.id]
    assert isinstance(errors[0], RemoteError)
    assert any(isinstance(event, ShutdownReceived) for event in events)  # it counts


def test_counts(make: Make) -> None:
    """Each thread counts its own requests, and those that failed."""
    front = make()
    front.put(3)
    front.ask(b"12345", b"memory", b"123")
    front.events(3)
    front.until(lambda: sum(counts.requests for counts in front.activity.counts()) == 3)
    counted = front.activity.counts()
    assert sum(counts.failed for counts in counted) == 1
    assert sum(counts.sent for counts in counted) == 8
