"""Where a page's text goes: encoded, bounded, and passed on in parts where somebody wants that."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TextIO

from uwsgitwisted.worker.templates.errors import OutputTooLarge

#: How many bytes of a page are passed on at once.
PART = 32 * 1024


def too_large(limit: int) -> OutputTooLarge:
    """Make the error of a page with more than *limit* bytes."""
    return OutputTooLarge(f"the output exceeds {limit} bytes (--max-output)")


class _Sink:
    """The bytes of a page, as :class:`io.TextIOWrapper` writes them.

    :param limit: how many there may be.
    """

    closed = False

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.chunks: list[bytes] = []
        self.size = 0
        self.send: Callable[[bytes], object] = self.chunks.append

    def write(self, data: bytes) -> int:
        self.size += len(data)
        if self.size > self._limit:
            raise too_large(self._limit)
        self.send(data)
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


class Output:
    """Takes the text of one page after another.

    Python's own text file counts and encodes it at the speed of C.

    :param limit: how many bytes a page may have.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sink = _Sink(limit)
        #: Where the text is written.
        self.text: TextIO = self._open()

    def _open(self) -> TextIO:
        text = io.TextIOWrapper(self._sink, "utf-8", "surrogatepass", "")  # type: ignore[type-var]
        text._CHUNK_SIZE = PART  # type: ignore[attr-defined]
        return text

    def begin(self, send: Callable[[bytes], object] | None = None) -> TextIO:
        """Begin a page, and return where to write it.

        :param send: takes each part of it; None keeps them for :meth:`end`.
        """
        sink = self._sink
        sink.size = 0
        sink.chunks = []
        sink.send = sink.chunks.append if send is None else send
        return self.text

    def end(self) -> bytes:
        """Pass on the last part of the page; return what was kept of it."""
        self.text.flush()
        return b"".join(self._sink.chunks)

    def abandon(self) -> None:
        """Drop what was written: the text file would pass it on when it is collected as garbage."""
        self._sink.close()
        self._sink = _Sink(self._limit)
        self.text = self._open()
