"""Streams in a worker, which runs here in a thread: windows, files, clients that go, and recalled requests."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.worker.test_worker_main import PATIENCE, Front
from uwsgitwisted.errors import RemoteError, RequestCancelled, RequestTimeout
from uwsgitwisted.wire.events import (
    AnswerReceived,
    DataReceived,
    EndReceived,
    ErrorReceived,
    Event,
    StreamedAnswerReceived,
    WindowGranted,
)
from uwsgitwisted.wire.frame import FIRST_PIECE
from uwsgitwisted.wire.packet import RPC, WSGI, Packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import STREAM_WINDOW, Terms
from uwsgitwisted.worker.exchange import AnyExchange, ClientGone
from uwsgitwisted.worker.handlers.handler import Handler, StreamHandler

ASKED = Packet(WSGI, 0, b"vars")
FRONT_WINDOW = 100_000
#: More than the window of either side.
LONG = bytes(range(256)) * 2_000


def _answer(request: Packet, result: object) -> Packet:
    assert isinstance(result, bytes)
    return request._replace(payload=result)


class WebFront(Front):
    """A worker that answers web requests with a function, and the front's end of its pipe."""

    def __init__(self, serve: Callable[[AnyExchange], None]) -> None:
        terms = Terms(max_message=1 << 20, window=FRONT_WINDOW)
        streams = StreamHandler(lambda exchange, _: serve(exchange))
        calls = Handler(lambda _: b"whole", _answer, streams={1: streams})
        super().__init__({WSGI: streams, RPC: calls}, terms=terms)
        self.granted = self.negotiate()
        self.session = Session(Role.CLIENT, terms, self.granted)
        self._pending: list[Event] = []

    def next(self) -> Event:
        """Return the next event, other than a grant."""
        while not self._pending:
            self.wait()
        return self._pending.pop(0)

    def wait(self) -> None:
        """Wait for bytes of the worker."""
        self._pending += [event for event in self.events(1) if not isinstance(event, WindowGranted)]

    def begin(self, request: int = 1, seconds: float | None = None) -> None:
        """Give a request that a body follows, and wait until it has begun."""
        self.put(1)
        self.session.send_streamed_request(request, ASKED, seconds)
        self.flush()

    def upload(self, data: bytes, request: int = 1) -> None:
        """Send a part of a body, as the worker grants it."""
        streams = self.session.streams
        position = 0
        while position < len(data):
            size = min(streams.credit(request), 60_000, len(data) - position)
            if not size:
                self.wait()
                continue
            streams.send(request, data[position : position + size])
            position += size
            self.flush()

    def end_body(self, request: int = 1) -> None:
        self.session.streams.send_end(request)
        self.flush()

    def download(self, request: int = 1) -> tuple[bytes, Event]:
        """Return the bytes of an answer, and the event that ended it."""
        data = b""
        while isinstance(event := self.next(), (StreamedAnswerReceived, DataReceived)):
            assert event.id == request
            if isinstance(event, DataReceived):
                data += event.data
                self.session.streams.grant(request, len(event.data))
                self.flush()
            else:
                data += event.packet.payload
        return data, event


Make = Callable[[Callable[[AnyExchange], None]], WebFront]


@pytest.fixture
def front() -> Iterator[Make]:
    """Make fronts of workers with a given function."""
    with contextlib.ExitStack() as made:

        def make(serve: Callable[[AnyExchange], None]) -> WebFront:
            each = WebFront(serve)
            made.callback(each.close)
            return each

        yield make


def read_all(exchange: AnyExchange) -> bytes:
    return b"".join(iter(lambda: exchange.read(10_000), b""))


def echo(exchange: AnyExchange) -> None:
    """Answer with the body."""
    exchange.finish(read_all(exchange))


def error_of(event: Event) -> Exception:
    assert isinstance(event, ErrorReceived), event
    return event.error


def test_small_answer(front: Make) -> None:
    """An answer that fits one frame is whole; its modifiers are the request's."""
    made = front(echo)
    made.begin()
    made.upload(b"body")
    made.end_body()
    event = made.next()
    assert isinstance(event, AnswerReceived)
    assert event.packet == Packet(WSGI, 0, b"body")
    assert 0 <= event.took < PATIENCE


def test_streams_of_one_modifier2(front: Make) -> None:
    """A handler may answer the requests of one modifier2 as streams, and all others whole."""

    def serve(exchange: AnyExchange) -> None:
        exchange.send(b"part")
        exchange.finish()

    made = front(serve)
    for modifier2, answer in ((0, b"whole"), (1, b"part"), (2, b"whole")):
        made.put(1)
        made.session.send_request(modifier2 + 1, Packet(RPC, modifier2, b""))
        made.flush()
        event = made.next()
        kind = StreamedAnswerReceived if modifier2 == 1 else AnswerReceived
        assert isinstance(event, kind)
        assert event.packet == Packet(RPC, modifier2, answer)
        if modifier2 == 1:
            assert isinstance(made.next(), EndReceived)


def test_request_without_a_stream(front: Make) -> None:
    """A whole request has no stream, and reading from it gives nothing."""
    seen = []

    def serve(exchange: AnyExchange) -> None:
        seen.append((exchange.streamed, exchange.read(5)))
        exchange.finish(exchange.packet.payload)

    made = front(serve)
    made.put(1)
    made.session.send_request(1, ASKED)
    made.flush()
    event = made.next()
    assert isinstance(event, AnswerReceived)
    assert event.packet == ASKED
    assert seen == [(False, b"")]


def test_long_both_ways(front: Make) -> None:
    """More than the windows goes both ways, in order; the worker grants as the handler reads."""
    made = front(echo)
    assert made.granted.window == 1
    made.begin()
    made.wait()
    assert made.session.streams.credit(1) == 1 + STREAM_WINDOW
    made.upload(LONG)
    made.end_body()
    data, end = made.download()
    assert data == LONG
    assert isinstance(end, EndReceived)


def test_window_of_the_front(front: Make) -> None:
    """The worker sends no more than the front has granted, and waits for more."""
    made = front(lambda exchange: exchange.finish(LONG))
    made.begin()
    first = made.next()
    assert isinstance(first, StreamedAnswerReceived)
    assert len(first.packet.payload) == FIRST_PIECE
    arrived = b""
    while len(arrived) < FRONT_WINDOW:
        event = made.next()
        assert isinstance(event, DataReceived)
        arrived += event.data
    assert len(arrived) == FRONT_WINDOW
    made.session.streams.grant(1, len(arrived))
    made.flush()
    data, end = made.download()
    assert first.packet.payload + arrived + data == LONG
    assert isinstance(end, EndReceived)


def test_parts_go_out_at_once(front: Make) -> None:
    """What a handler sends arrives before it sends more."""
    go_on = threading.Event()

    def serve(exchange: AnyExchange) -> None:
        exchange.send(b"first")
        assert go_on.wait(PATIENCE)
        exchange.send(b"second")
        exchange.finish()

    made = front(serve)
    made.put(1)
    made.session.send_request(1, ASKED)
    made.flush()
    assert made.next() == StreamedAnswerReceived(1, Packet(WSGI, 0, b"first"))
    go_on.set()
    data, end = made.download()
    assert data == b"second"
    assert isinstance(end, EndReceived)


def test_body_is_not_read(front: Make) -> None:
    """A handler may answer without reading the body; what still arrives of it is dropped."""
    made = front(lambda exchange: exchange.finish(b"no"))
    made.begin()
    assert isinstance(made.next(), AnswerReceived)
    made.upload(b"late")
    made.end_body()
    made.begin(2)
    assert isinstance(made.next(), AnswerReceived)


def test_client_goes_while_sending(front: Make) -> None:
    """A handler that sends to nobody gets an error, the front an answer to its cancel; the worker goes on."""
    caught: list[Exception] = []

    def serve(exchange: AnyExchange) -> None:
        if caught:
            exchange.finish(b"next")
            return
        try:
            while True:
                exchange.send(bytes(10_000))
        except ClientGone as error:
            caught.append(error)
            raise

    made = front(serve)
    made.begin()
    assert isinstance(made.next(), StreamedAnswerReceived)
    made.session.send_cancel(1)
    made.flush()
    while isinstance(event := made.next(), DataReceived):
        pass  # what raced with the cancel
    error = error_of(event)
    assert isinstance(error, RemoteError)
    assert error.type == "ClientGone"
    assert len(caught) == 1
    made.begin(2)
    assert isinstance(made.next(), AnswerReceived)


def test_error_is_ignored(front: Make) -> None:
    """A handler may ignore that its client has gone: the front gets the answer to its cancel all the same."""

    def serve(exchange: AnyExchange) -> None:
        exchange.send(b"begun")
        with contextlib.suppress(ClientGone):
            read_all(exchange)

    made = front(serve)
    made.begin()
    assert isinstance(made.next(), StreamedAnswerReceived)
    made.session.send_cancel(1)
    made.flush()
    assert isinstance(error_of(made.next()), RequestCancelled)


def test_client_goes_at_the_end(front: Make) -> None:
    """A cancel that races with the end of the answer is confirmed, and disturbs nobody."""

    def serve(exchange: AnyExchange) -> None:
        exchange.send(b"all")
        exchange.finish()

    made = front(serve)
    made.begin()
    assert isinstance(made.download()[1], EndReceived)
    made.session.send_cancel(1)
    made.flush()
    assert isinstance(error_of(made.next()), RequestCancelled)


def test_client_goes_while_its_body_is_awaited(front: Make) -> None:
    """A handler that waits for a body that never comes, because the request was cancelled, gets an error."""
    caught: list[Exception] = []

    def serve(exchange: AnyExchange) -> None:
        exchange.send(b"begun")
        try:
            read_all(exchange)
        except ClientGone as error:
            caught.append(error)
            raise

    made = front(serve)
    made.begin()
    made.upload(b"a part")
    assert isinstance(made.next(), StreamedAnswerReceived)
    made.session.send_cancel(1)
    made.flush()
    error = error_of(made.next())
    assert isinstance(error, RemoteError)
    assert error.type == "ClientGone"
    assert len(caught) == 1


@pytest.mark.parametrize("parts", [[], [b"begun"]])
def test_sending_after_the_end(front: Make, parts: list[bytes]) -> None:
    """A handler that sends more after the end is told so, rather than kept waiting for ever."""

    def serve(exchange: AnyExchange) -> None:
        for part in parts:
            exchange.send(part)
        exchange.finish()
        exchange.send(b"more")

    made = front(serve)
    made.begin()
    assert isinstance(made.download()[1], EndReceived if parts else AnswerReceived)
    assert isinstance(error_of(made.next()), RemoteError)


@pytest.mark.parametrize("size", [0, 1, 65_531, 65_532, len(LONG) - 10])
def test_file(front: Make, tmp_path: Path, size: int) -> None:
    """A part of a file is sent from its offset on, and ordinary parts around it in their places."""
    path = tmp_path / "file"
    path.write_bytes(LONG)

    def serve(exchange: AnyExchange) -> None:
        with path.open("rb") as file:
            exchange.send(b"head")
            exchange.send_file(file.fileno(), 10, size)
            exchange.finish(b"tail")

    made = front(serve)
    made.begin()
    data, end = made.download()
    assert data == b"head" + LONG[10 : 10 + size] + b"tail"
    assert isinstance(end, EndReceived)


def test_file_first(front: Make, tmp_path: Path) -> None:
    """A file may be the whole answer."""
    path = tmp_path / "file"
    path.write_bytes(b"content")

    def serve(exchange: AnyExchange) -> None:
        with path.open("rb") as file:
            exchange.send_file(file.fileno(), 0, 7)
            exchange.finish()

    made = front(serve)
    made.begin()
    assert made.download()[0] == b"content"


def test_file_becomes_shorter(front: Make, tmp_path: Path) -> None:
    """A file that ends early ends its answer with an error, and leaves the answers of others alone."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1_000))

    def serve(exchange: AnyExchange) -> None:
        if exchange.packet.payload != ASKED.payload:
            exchange.finish(b"of another")
            return
        with path.open("rb") as file:
            exchange.send(b"head")
            exchange.send_file(file.fileno(), 0, 5_000)
            exchange.finish()

    made = front(serve)
    made.put(2)
    made.session.send_request(1, ASKED)
    made.session.send_request(2, Packet(WSGI, 0, b"other"))
    made.flush()
    data, end = made.download()
    assert isinstance(error_of(end), RemoteError)
    assert len(data) <= 4 + 5_000
    other = made.next()
    assert isinstance(other, AnswerReceived)
    assert other.packet.payload == b"of another"


def test_file_that_cannot_be_sent(front: Make) -> None:
    """A descriptor that the system can't send from fails the answer only."""
    reader, writer = os.pipe()

    def serve(exchange: AnyExchange) -> None:
        exchange.send(b"head")
        exchange.send_file(reader, 0, 500)

    made = front(serve)
    made.begin()
    _, end = made.download()
    os.close(reader)
    os.close(writer)
    assert isinstance(error_of(end), RemoteError)


def test_front_goes(front: Make) -> None:
    """A handler that waits for a front that has gone is told so."""
    caught: list[BaseException] = []

    def serve(exchange: AnyExchange) -> None:
        try:
            read_all(exchange)
        except BaseException as error:
            caught.append(error)
            raise

    made = front(serve)
    made.begin()
    made.wait()
    made.ours.shutdown(1)
    made.thread.join(PATIENCE)
    assert not made.thread.is_alive()
    assert isinstance(caught[0], BrokenPipeError)
    assert not isinstance(caught[0], ClientGone)


def test_recalled_body(front: Make) -> None:
    """A recalled request with a body is confirmed, and leaves nothing behind."""
    made = front(echo)
    made.session.send_streamed_request(1, ASKED)
    made.session.send_cancel(1)
    made.flush()
    assert isinstance(error_of(made.next()), RequestCancelled)
    assert made.worker._bodies == {}


def test_deadline_of_a_body(front: Make) -> None:
    """A request with a body that has timed out is not begun, and leaves nothing behind."""
    began = threading.Event()
    go_on = threading.Event()

    def serve(exchange: AnyExchange) -> None:
        began.set()
        assert go_on.wait(PATIENCE)
        echo(exchange)

    made = front(serve)
    made.put(2)
    made.session.send_request(1, ASKED)
    made.session.send_streamed_request(2, ASKED, 0.001)
    made.flush()
    assert began.wait(PATIENCE)
    threading.Timer(0.05, go_on.set).start()
    first, late = made.next(), made.next()
    assert isinstance(first, AnswerReceived)
    assert isinstance(error_of(late), RequestTimeout)
    assert made.worker._bodies == {}


def test_requests_that_arrive_meanwhile(front: Make) -> None:
    """A request that arrives while another one is answered is run next."""
    made = front(echo)
    made.begin(1)
    made.wait()
    made.session.send_request(2, ASKED)
    made.put(1)
    made.flush()
    made.upload(b"body")
    made.end_body()
    events = made.next(), made.next()
    assert [event.id for event in events if isinstance(event, AnswerReceived)] == [1, 2]
