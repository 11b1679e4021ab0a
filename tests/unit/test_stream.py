"""The queue of bytes between a producer and a consumer."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.stream import Stream


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(1, 30), min_size=1))
def test_take(chunks: list[bytes], limits: list[int]) -> None:
    """However it is taken, each byte comes once, in order, and never more than asked for."""
    taken: list[int] = []
    stream = Stream(taken.append)
    for chunk in chunks:
        stream.write(chunk)
    stream.end()
    received = b""
    for number in range(sum(map(len, chunks))):
        if stream.finished:
            break
        limit = limits[number % len(limits)]
        data = stream.take(limit)
        assert 0 < len(data) <= limit
        received += data
        assert stream.size == sum(map(len, chunks)) - len(received)
    assert received == b"".join(chunks)
    assert stream.finished
    assert sum(taken) == len(received)
    assert stream.take(1) == b""


def test_large_chunk() -> None:
    """A large chunk is taken in time that grows with its size only, however small the pieces."""
    stream = Stream()
    stream.write(bytes(64 << 20))
    started = time.perf_counter()
    while stream.take(16 << 10):
        pass
    assert time.perf_counter() - started < 5  # copying the rest for each piece takes a minute


def test_cancel() -> None:
    """A cancel drops what waits, once, and what is written later."""
    cancelled: list[bool] = []
    stream = Stream(on_cancel=lambda: cancelled.append(True))
    stream.write(b"12")
    assert stream.take(1) == b"1"
    stream.cancel()
    stream.cancel()
    stream.write(b"3")
    assert (stream.size, stream.take(5), cancelled) == (0, b"", [True])


def test_on_ready() -> None:
    """The consumer is called for bytes that are there, each further write, and the end."""
    calls: list[int] = []
    stream = Stream()
    stream.on_ready(lambda: calls.append(stream.size))
    assert calls == []
    stream.write(b"1")
    stream.write(b"23")
    stream.end()
    assert calls == [1, 3, 3]
    stream.on_ready(lambda: calls.append(-1))
    assert calls[-1] == -1
