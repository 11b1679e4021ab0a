"""The head of a web application's answer, as a uwsgi server sends it: bytes to a status and headers.

nginx takes three forms, and so does this module: a status line, CGI's ``Status:`` header, or neither, which
means 200, or 302 if there is a ``Location:``.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import NamedTuple

from uwsgitwisted.errors import MalformedAnswer

#: The largest head to accept, in bytes. nginx accepts 4 or 8 KB unless told otherwise.
MAX_HEAD = 65_536

_END = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/\d\.\d +(\d{3})(?: +(.*))?")
_STATUS = re.compile(rb"(\d{3})(?: +(.*))?")
#: A name is a token (RFC 9110, 5.6.2); a value has no control character but the tab.
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_PRINTABLE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
#: The most digits of a Content-Length, so that no peer makes us parse a number of 60,000 digits.
_MAX_DIGITS = 20

#: The headers that concern one connection only (RFC 9110, 7.6.1), and CGI's own.
_NOT_FORWARDED = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"content-length",
        b"status",
    )
)
#: The statuses of answers that never have a body.
_WITHOUT_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class AnswerHead(NamedTuple):
    """The head of an answer.

    :param status: 200 to 599.
    :param reason: the text behind it, such as ``OK``; may be empty.
    :param headers: names and values, without those that concern the connection, and without Content-Length.
    :param length: the Content-Length; None if there is none.
    """

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    length: int | None

    def body_size(self, method: bytes) -> int | None:
        """Return how many bytes of body follow; None if the body ends with the connection.

        :param method: the request's method.
        """
        if method == b"HEAD" or self.status in _WITHOUT_BODY:
            return 0
        return self.length


class HeadDecoder:
    """Collects bytes until they have the head of the answer.

    It takes time linear in the bytes, however they are cut.
    """

    __slots__ = ("_buffer", "_searched")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    @property
    def begun(self) -> bool:
        """Whether anything has arrived."""
        return bool(self._buffer)

    def receive(self, data: bytes) -> AnswerHead | None:
        """Add *data*; return the head as soon as it is complete. Interim answers (100 to 199) are dropped.

        :raises MalformedAnswer: if the bytes are no head, or too many. Don't use the decoder after that.
        """
        self._buffer += data
        while (end := _END.search(self._buffer, self._searched)) is not None and end.start() < MAX_HEAD:
            head = _parse(bytes(self._buffer[: end.start()]))
            del self._buffer[: end.end()]
            self._searched = 0
            if head.status >= HTTPStatus.OK:
                return head
        if len(self._buffer) >= MAX_HEAD:
            raise MalformedAnswer(f"its head has more than {MAX_HEAD} bytes")
        self._searched = max(0, len(self._buffer) - 2)
        return None

    def rest(self) -> bytes:
        """Return the bytes behind the head."""
        return bytes(self._buffer)


def _parse(head: bytes) -> AnswerHead:
    lines = [line.removesuffix(b"\r") for line in head.split(b"\n")]
    match = _STATUS_LINE.fullmatch(lines[0])
    headers = [_header(line) for line in lines[1 if match else 0 :]]
    named = {name.lower(): value for name, value in headers}
    if match is None and b"status" in named:
        match = _STATUS.fullmatch(named[b"status"])
        if match is None:
            raise MalformedAnswer(f"its Status is {named[b'status'][:40]!r}")
    status, reason = _status(match, b"location" in named)
    if b"transfer-encoding" in named:
        raise MalformedAnswer("its body has a transfer encoding, which uwsgi has not; send the plain body")
    lengths = {value for name, value in headers if name.lower() == b"content-length"}
    kept = [(name, value) for name, value in headers if name.lower() not in _NOT_FORWARDED]
    return AnswerHead(status, reason, kept, _length(lengths))


def _status(match: re.Match[bytes] | None, redirects: bool) -> tuple[int, bytes]:
    if match is None:
        return (HTTPStatus.FOUND if redirects else HTTPStatus.OK), b""
    status, reason = int(match[1]), match[2] or b""
    if not HTTPStatus.CONTINUE <= status < 600 or status == HTTPStatus.SWITCHING_PROTOCOLS:
        raise MalformedAnswer(f"its status is {status}")
    return status, reason if _PRINTABLE.fullmatch(reason) else b""


def _header(line: bytes) -> tuple[bytes, bytes]:
    match = _HEADER.fullmatch(line)
    if match is None:
        raise MalformedAnswer(f"its head has the line {line[:40]!r}")
    return match[1], match[2].rstrip(b" \t")


def _length(values: set[bytes]) -> int | None:
    if not values:
        return None
    value = values.pop()
    if values or not value.isdigit() or len(value) > _MAX_DIGITS:
        raise MalformedAnswer(f"its Content-Length is {value[:40]!r}; it must be one number of bytes")
    return int(value)
