"""The head of a web application's answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import MalformedAnswer
from uwsgitwisted.wire.http import MAX_HEAD, AnswerHead, HeadDecoder

CASES = [
    (b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n", AnswerHead(200, b"OK", [(b"X-A", b"b")], None)),
    (b"HTTP/1.0 404 Not Found\nX-A:b \n\n", AnswerHead(404, b"Not Found", [(b"X-A", b"b")], None)),
    (b"HTTP/1.1 204\r\n\r\n", AnswerHead(204, b"", [], None)),
    (b"HTTP/1.1 200 caf\xe9 \x01\r\n\r\n", AnswerHead(200, b"", [], None)),
    (b"HTTP/1.1 200 caf\xe9\r\n\r\n", AnswerHead(200, b"caf\xe9", [], None)),
    (b"Status: 404 Not Found\r\nX: y\r\n\r\n", AnswerHead(404, b"Not Found", [(b"X", b"y")], None)),
    (b"Location: /there\r\n\r\n", AnswerHead(302, b"", [(b"Location", b"/there")], None)),
    (b"X: y\r\n\r\n", AnswerHead(200, b"", [(b"X", b"y")], None)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", AnswerHead(200, b"OK", [], 5)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n", AnswerHead(200, b"OK", [], 5)),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\nTE: x\r\n\r\n", AnswerHead(200, b"OK", [], None)),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", AnswerHead(200, b"OK", [], None)),
    (b"HTTP/1.1 200 OK\r\nX:\r\nX: \t\r\n\r\n", AnswerHead(200, b"OK", [(b"X", b""), (b"X", b"")], None)),
]  # fmt: skip


@pytest.mark.parametrize(("data", "head"), CASES)
def test_heads(data: bytes, head: AnswerHead) -> None:
    """A head is read whole, byte by byte, and with a body behind it."""
    decoder = HeadDecoder()
    assert not decoder.begun
    assert decoder.receive(data) == head
    assert decoder.rest() == b""
    decoder = HeadDecoder()
    answers = [decoder.receive(data[index : index + 1]) for index in range(len(data))]
    assert answers == [None] * (len(data) - 1) + [head]
    decoder = HeadDecoder()
    assert decoder.receive(data + b"\r\n\r\nbody") == head
    assert decoder.rest() == b"\r\n\r\nbody"
    assert decoder.begun


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"not http\r\n\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"HTTP/1.1 600 High\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"Status: good\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\rz\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n" % (b"1" * 21),
        b"x" * MAX_HEAD,
        b"X: " + b"x" * MAX_HEAD + b"\r\n\r\n",
    ],
)
def test_what_is_no_head(data: bytes) -> None:
    """Anything else is refused."""
    with pytest.raises(MalformedAnswer):
        HeadDecoder().receive(data)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_junk(data: bytes, size: int) -> None:
    """Junk gives only our error."""
    decoder = HeadDecoder()
    try:
        for start in range(0, len(data), size):
            if decoder.receive(data[start : start + size]) is not None:
                break
    except MalformedAnswer:
        pass


@pytest.mark.parametrize(
    ("method", "status", "length", "size"),
    [
        (b"GET", 200, 5, 5),
        (b"GET", 200, None, None),
        (b"HEAD", 200, 5, 0),
        (b"GET", 204, 5, 0),
        (b"GET", 304, None, 0),
    ],
)
def test_body_size(method: bytes, status: int, length: int | None, size: int | None) -> None:
    """HEAD, 204 and 304 have no body, whatever the length says."""
    assert AnswerHead(status, b"", [], length).body_size(method) == size
