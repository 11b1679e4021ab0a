"""Streams within a process: order, sizes, ends, and what producer and consumer tell each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import Busy
from uwsgitwisted.stream import Stream


class Recorder:
    """A stream, and all that was called."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.stream = Stream(self.calls.append, lambda: self.calls.append("cancel"))

    def listen(self) -> None:
        self.stream.on_ready(lambda: self.calls.append("ready"))


def test_bytes_and_end() -> None:
    """What was written is taken in order, at most as much as asked for; then the stream is finished."""
    stream = Stream()
    assert stream.take(5) == b""
    stream.write(b"abc")
    stream.write(b"")
    stream.write(b"de")
    assert stream.size == 5
    assert stream.take(0) == b""
    assert stream.take(-1) == b""
    assert stream.take(2) == b"ab"
    assert stream.take(1) == b"c"
    stream.end()
    assert stream.ended
    assert not stream.finished
    assert stream.take(5) == b"de"
    assert stream.finished
    assert stream.error is None
    assert stream.take(5) == b""


def test_calls() -> None:
    """The consumer hears of bytes and of the end, the producer of what was taken."""
    seen = Recorder()
    seen.listen()
    assert seen.calls == []
    seen.stream.write(b"")
    seen.stream.write(b"abc")
    seen.stream.take(2)
    seen.stream.take(2)
    seen.stream.take(2)
    seen.stream.end()
    assert seen.calls == ["ready", 2, 1, "ready"]


def test_late_listener() -> None:
    """Who listens late hears at once of what is there."""
    for act in (lambda stream: stream.write(b"a"), lambda stream: stream.end()):
        seen = Recorder()
        act(seen.stream)
        seen.listen()
        assert seen.calls == ["ready"]


def test_error() -> None:
    """The first end counts; what is written or ended after it is dropped."""
    stream = Stream()
    stream.write(b"a")
    error = Busy("no")
    stream.end(error)
    stream.end()
    stream.write(b"b")
    assert stream.error is error
    assert stream.take(5) == b"a"
    assert stream.finished


def test_cancel() -> None:
    """A cancel drops what waits, and tells the producer once; what it still writes is dropped."""
    seen = Recorder()
    seen.stream.write(b"abc")
    seen.listen()
    seen.calls.clear()
    seen.stream.cancel()
    seen.stream.cancel()
    seen.stream.write(b"more")
    seen.stream.end(Busy("no"))
    assert seen.calls == ["cancel"]
    assert seen.stream.finished
    assert seen.stream.size == 0
    assert seen.stream.error is None


def test_cancel_after_the_end() -> None:
    """The producer of a stream that has ended isn't told."""
    seen = Recorder()
    seen.stream.write(b"abc")
    seen.stream.end()
    seen.stream.cancel()
    assert seen.calls == []
    assert seen.stream.finished


@given(st.lists(st.one_of(st.binary(max_size=20), st.integers(-1, 30)), max_size=50))
def test_any_order(steps: list[bytes | int]) -> None:
    """However writes and takes alternate, all bytes come out in order, and the sizes are right."""
    taken: list[int] = []
    stream = Stream(taken.append)
    written = read = b""
    for step in steps:
        if isinstance(step, bytes):
            written += step
            stream.write(step)
        else:
            data = stream.take(step)
            assert len(data) <= max(0, step)
            read += data
        assert stream.size == len(written) - len(read)
        assert sum(taken) == len(read)
    while data := stream.take(7):
        read += data
    assert read == written


def test_single_bytes() -> None:
    """However small the chunks are that a peer sends, a stream keeps few objects."""
    stream = Stream()
    data = bytes(range(256)) * 400
    for position in range(len(data)):
        stream.write(data[position : position + 1])
    assert len(stream._chunks) <= len(data) // 2_000
    assert b"".join(iter(lambda: stream.take(1_000), b"")) == data
