"""Bodies on their way to a node."""

from __future__ import annotations

import io

import pytest

from uwsgitwisted.router.bodies import BLOCK, FileSender, SpooledBody, StreamedBody
from uwsgitwisted.transport.server.budget import Budget


class Sink:
    """Keeps what is sent; makes the sender wait after so many pieces."""

    def __init__(self, pieces: int = 1_000) -> None:
        self.data: list[bytes] = []
        self.ended = 0
        self.pieces = pieces
        self.sender: SpooledBody | None = None

    def send(self, data: bytes) -> None:
        self.data.append(data)
        self.pieces -= 1
        if not self.pieces:
            assert self.sender is not None
            self.sender.want(False)

    def sent(self) -> None:
        self.ended += 1


def test_a_streamed_body() -> None:
    """It is passed on as it comes; what has come before the connection waits."""
    reading: list[bool] = []
    body, sink = StreamedBody(6, reading.append), Sink()
    body.receive(b"1")
    body.receive(b"2")
    assert body.replayable
    body.attach(sink)
    assert not body.replayable
    body.want(False)
    body.want(True)
    body.receive(b"345")
    assert (sink.data, sink.ended) == ([b"12", b"345"], 0)
    body.receive(b"6")
    assert (b"".join(sink.data), sink.ended) == (b"123456", 1)
    body.want(False)
    assert reading == [False, True, False, True]
    body.close()


def test_an_empty_body() -> None:
    """It has ended at once, and can be sent again."""
    reading: list[bool] = []
    body = StreamedBody(0, reading.append)
    for _ in range(2):
        sink = Sink()
        body.attach(sink)
        assert (sink.data, sink.ended) == ([], 1)
    assert body.replayable
    assert reading == []


def spooled(data: bytes, budget: Budget | None = None) -> SpooledBody:
    body = SpooledBody((budget or Budget(1 << 30)).account("a"))
    assert body.add(data)
    return body


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, 5 * BLOCK])
def test_a_spooled_body(size: int) -> None:
    """It is sent as often as it is wanted."""
    body = spooled(b"x" * size)
    body.detach()
    for _ in range(2):
        sink = Sink()
        body.attach(sink)
        assert (b"".join(sink.data), sink.ended) == (b"x" * size, 1)
        assert all(len(piece) <= BLOCK for piece in sink.data)
    assert body.replayable
    body.close()


def test_back_pressure() -> None:
    """It waits for a connection that takes no more; another one gets all of it."""
    body = spooled(b"x" * 5 * BLOCK)
    body.want(False)
    sink = Sink(2)
    sink.sender = body
    body.attach(sink)
    assert len(sink.data) == 2
    body.detach()
    body.want(True)
    assert len(sink.data) == 2
    other = Sink()
    body.attach(other)
    assert (len(other.data), other.ended) == (5, 1)
    body.close()


def test_resumed_while_it_sends() -> None:
    """A connection that resumes while it gets a piece gets each piece once."""
    sent: list[bytes] = []

    def write(data: bytes) -> None:
        sent.append(data)
        sender.pause()
        sender.resume()

    ended: list[bool] = []
    sender = FileSender(io.BytesIO(b"x" * 3 * BLOCK), 3 * BLOCK, write, ended.append)
    sender.resume()
    assert len(sent) == 3
    assert ended == [True]
    sender.stop()


class Broken(io.BytesIO):
    """A file on a disk that fails."""

    def read(self, size: int | None = -1) -> bytes:
        raise OSError("broken")


@pytest.mark.parametrize("file", [io.BytesIO(b"12"), Broken(b"123")])
def test_a_file_that_is_too_short(file: io.BytesIO) -> None:
    """The owner is told."""
    ended: list[bool] = []
    FileSender(file, 3, lambda data: None, ended.append).resume()
    assert ended == [False]


def test_the_budget() -> None:
    """The bytes of all bodies have a limit, and are given back."""
    budget = Budget(200_000)
    first = spooled(bytes(100_000), budget)
    second = SpooledBody(budget.account("b"))
    assert second.add(b"small")
    assert not second.add(bytes(100_000))
    first.close()
    assert second.add(bytes(90_000))
    second.close()
    assert budget.used == 0
