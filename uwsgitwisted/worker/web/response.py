"""The HTTP answer of a WSGI application: its head, and how the application's output becomes its body."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import TracebackType
from typing import Any

from uwsgitwisted.worker.exchange import AnyExchange
from uwsgitwisted.worker.web.environ import Environ

Headers = list[tuple[str, str]]
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType]
StartResponse = Callable[..., Callable[[bytes], None]]
#: A WSGI application, as PEP 3333 has it.
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

#: Statuses whose answers have no body (RFC 9110, 6.4.1).
_BODILESS = ("204", "304")
#: Headers that belong to one connection, and so to the web server (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_PROTOCOLS = frozenset({"HTTP/1.0", "HTTP/1.1"})
_STATUS = re.compile(r"[1-9][0-9]{2}( [^\r\n\0]*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: What would end a header, or the head.
_UNSAFE = re.compile(r"[\r\n\0]")
#: How many checked names and statuses are kept: an application has few.
_MOST_KEPT = 200


class FileWrapper:
    """What ``wsgi.file_wrapper`` is: a file as an answer's body, which is sent without being read if possible.

    :param file: has ``read``, and perhaps ``fileno`` and ``close``.
    :param block_size: how many bytes to read at once.
    """

    def __init__(self, file: Any, block_size: int = 65_536) -> None:
        self.file = file
        self._block_size = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        """Return the next block."""
        data: bytes = self.file.read(self._block_size)
        if not data:
            raise StopIteration
        return data

    def rest(self) -> tuple[int, int, int] | None:
        """Return the descriptor of a regular file, where its rest begins, and its size; or None."""
        if _is_converted(self.file):
            return None
        try:
            descriptor = self.file.fileno()
            status = os.fstat(descriptor)
            offset = self.file.tell()
        except (AttributeError, OSError, ValueError):  # it is no file of the system
            return None
        size = status.st_size - offset
        # A file of /proc has a size of 0, whatever can be read from it.
        if not stat.S_ISREG(status.st_mode) or size <= 0 or not hasattr(os, "sendfile"):
            return None
        return descriptor, offset, size


def _is_converted(file: Any) -> bool:
    """Whether what is read from a file is not what its descriptor has, as with compressed files."""
    raw = getattr(getattr(file, "buffer", file), "raw", file)
    return isinstance(raw, io.IOBase) and not isinstance(raw, io.FileIO)


class Response:
    """One answer.

    :param exchange: where it goes.
    :param environ: the request's environment.
    """

    __slots__ = (
        "_exchange",
        "_headers",
        "_left",
        "_method",
        "_protocol",
        "_sent",
        "_status",
        "environ",
        "log_variables",
        "size",
    )

    def __init__(self, exchange: AnyExchange, environ: Environ) -> None:
        self._exchange = exchange
        self._method = environ["REQUEST_METHOD"]
        self._protocol = environ["SERVER_PROTOCOL"]
        #: The request's environment, which the application may change.
        self.environ = environ
        #: What the application adds to the request's line in the access log.
        self.log_variables: dict[str, str] = {}
        self._status = ""
        self._headers: Headers = []
        #: Whether the head was sent.
        self._sent = False
        # How many bytes of the body may follow; None for any number.
        self._left: int | None = None
        #: How many bytes of the body were sent.
        self.size = 0

    @property
    def status(self) -> str:
        """The three digits of the status that was sent; those of a failure before that."""
        return self._status[:3] if self._sent else "500"

    def start(self, status: str, headers: Headers, exc_info: _ExcInfo | None = None) -> Callable[[bytes], None]:
        """Be the application's ``start_response``: set the status and the headers.

        :param exc_info: replaces what was set before; raised, if the head was sent already.
        :return: the ``write`` function.
        :raises ValueError: if something in the head is not allowed there.
        """
        if exc_info is not None:
            try:
                if self._sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # it refers to this frame
        elif self._status:
            raise AssertionError("start_response was called twice without exc_info")
        if not isinstance(status, str) or not _is_status(status):
            raise ValueError(f"{status!r} is no status; it must begin with three digits, as '200 OK' does")
        self._headers = [header for header in headers if _checked(*header) not in _HOP_BY_HOP]
        self._status = status
        return self.write

    def write(self, data: bytes) -> None:
        """Send a part of the body now."""
        head = b"" if self._sent else self._head(None)
        data = self._bounded(data)
        if head or data:
            self._send(head + data)
            self.size += len(data)

    def send(self, result: Iterable[bytes]) -> None:
        """Send what the application has returned, each part as soon as it is there."""
        if isinstance(result, FileWrapper) and self._send_file(result):
            return
        # The whole answer goes out at once if there is only one part.
        if isinstance(result, (list, tuple)) and not self._sent:
            self._finish(b"".join(result))
            return
        for data in result:
            if data:
                self.write(data)
                if self._left == 0:
                    break
        self._finish(b"")

    def send_file(self, descriptor: int, offset: int, size: int) -> None:
        """Send a part of a regular file now, after which the body may go on.

        :param size: how many bytes; 0 for all from *offset* on.
        :raises OSError: if there is no such file.
        """
        size = size or os.fstat(descriptor).st_size - offset
        head = b"" if self._sent else self._head(size)
        if self._left is not None:
            size = min(size, self._left)
            self._left -= size
        if head:
            self._send(head)
        if size > 0:
            self._exchange.send_file(descriptor, offset, size)
            self.size += size

    def _send(self, data: bytes) -> None:
        self._sent = True
        self._exchange.send(data)

    def _finish(self, data: bytes) -> None:
        head = b"" if self._sent else self._head(len(data))
        data = self._bounded(data)
        if self._left:
            raise ValueError(f"the application has sent {self._left} bytes less than its Content-Length says")
        whole = head + data if head else data
        self._sent = True
        self._exchange.finish(whole)
        self.size += len(data)

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Send a file without reading it; return whether that is possible."""
        rest = wrapper.rest()
        if rest is None or not self._status:
            return False
        self.send_file(*rest)
        self._finish(b"")
        return True

    def _head(self, size: int | None) -> bytes:
        """Return the bytes of the head.

        :param size: how many bytes the body has, if that is known.
        """
        if not self._status:
            raise AssertionError("the application has not called start_response")
        bodiless = self._status[:3] in _BODILESS or self._status[0] == "1"
        lines = [f"{self._protocol if self._protocol in _PROTOCOLS else 'HTTP/1.0'} {self._status}"]
        length = None
        for name, value in self._headers:
            if name.lower() == "content-length":
                if self._status[:3] == "204":
                    continue
                if length is not None:  # web servers don't agree which one counts
                    raise ValueError("the application has set Content-Length twice")
                length = _length(value)
            lines.append(f"{name}: {value}")
        if length is None and size is not None and not bodiless and self._method != "HEAD":
            length = size
            lines.append(f"Content-Length: {size}")
        self._left = 0 if bodiless or self._method == "HEAD" else length
        return "\r\n".join((*lines, "", "")).encode("latin-1")

    def _bounded(self, data: bytes) -> bytes:
        """Return as much of *data* as the body may still have."""
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        return data


def run(application: Application, environ: Environ, response: Response) -> None:
    """Run *application* for one request, and send its answer."""
    result: Any = application(environ, response.start)
    try:
        # An application for uWSGI may return what uwsgi.sendfile() has: True.
        response.send(() if result is True else result)
    finally:
        _close(result)


def _close(result: object) -> None:
    """Close what the application has returned. The answer is out, so that an error is only logged."""
    close = getattr(result, "close", None)
    if close is not None:
        try:
            close()
        except Exception:
            traceback.print_exc(file=sys.stderr)


def _checked(name: str, value: str) -> str:
    """Return the header's name in lower case.

    :raises ValueError: if the name or the value is not allowed.
    """
    if not isinstance(name, str) or not isinstance(value, str):
        raise ValueError(f"the header {name!r}: {value!r} is not text")
    lower = _lower_name(name)
    # What is printable has nothing unsafe, and is found out in a fifth of the time.
    if not lower or not (value.isprintable() or not _UNSAFE.search(value)):
        raise ValueError(f"the header {name!r} can't be {value!r}")
    return lower


@lru_cache(_MOST_KEPT)
def _lower_name(name: str) -> str:
    """Return a header's name in lower case; an empty text if it is not allowed."""
    return name.lower() if _NAME.fullmatch(name) else ""


@lru_cache(_MOST_KEPT)
def _is_status(status: str) -> bool:
    return _STATUS.fullmatch(status) is not None


def _length(value: str) -> int:
    if not value.isascii() or not value.isdecimal() or len(value) > 20:
        raise ValueError(f"Content-Length can't be {value!r}")
    return int(value)
