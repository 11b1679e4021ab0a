"""A stream within a process: bytes on their way from the one who has them to the one who passes them on.

The body of a web request goes from its connection to a worker in a stream, and the answer goes back in another.
The consumer takes bytes when it can use them, so a stream holds no more than its producer is allowed to write
ahead.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios
from collections import deque
from collections.abc import Callable


def unacknowledged_by(connection: socket.SocketType) -> int:
    """Return how many bytes the system still keeps for the peer of *connection*; 0 if it is closed.

    On a UNIX socket, the number includes the memory that they take.
    """
    if connection.fileno() == -1:
        return 0
    kept = array.array("i", [0])
    fcntl.ioctl(connection, termios.TIOCOUTQ, kept)
    return kept[0]


#: Chunks of up to so many bytes are put together: a peer that sends single bytes must not make this keep an
#: object for each.
_SMALL = 4_096


class Stream:
    """A queue of bytes, with an end.

    :param on_taken: tells the producer that so many bytes were taken.
    :param on_cancel: tells the producer that nobody wants the rest.
    """

    __slots__ = ("_chunks", "_on_cancel", "_on_ready", "_on_taken", "_start", "ended", "error", "size", "took")

    def __init__(
        self, on_taken: Callable[[int], None] = lambda _: None, on_cancel: Callable[[], None] = lambda: None
    ) -> None:
        self._chunks: deque[bytes] = deque()
        # How much of the first chunk is taken: cutting it off would copy the rest of a large one each time.
        self._start = 0
        self._on_taken = on_taken
        self._on_cancel = on_cancel
        self._on_ready: Callable[[], None] = lambda: None
        #: How many bytes wait to be taken.
        self.size = 0
        #: Whether nothing more will be written.
        self.ended = False
        #: Why it ended early, if it did.
        self.error: Exception | None = None
        #: At the end of an answer, how long its handler ran, in seconds; 0 if that is not known.
        self.took = 0.0

    @property
    def finished(self) -> bool:
        """Whether it has ended, and all its bytes are taken."""
        return self.ended and not self.size

    def write(self, data: bytes) -> None:
        """Add bytes. After the end, or a cancel, they are dropped."""
        if data and not self.ended:
            if self._chunks and len(self._chunks[-1]) + len(data) <= _SMALL:
                self._chunks[-1] += data
            else:
                self._chunks.append(data)
            self.size += len(data)
            self._on_ready()

    def end(self, error: Exception | None = None, took: float = 0.0) -> None:
        """Write nothing more.

        :param error: why the stream is not complete, if it isn't.
        :param took: how long the handler of an answer ran, in seconds.
        """
        if not self.ended:
            self.ended = True
            self.error = error
            self.took = took
            self._on_ready()

    def on_ready(self, call: Callable[[], None]) -> None:
        """Call *call* whenever there are bytes to take, or the stream has ended; now, if that is so already."""
        self._on_ready = call
        if self.size or self.ended:
            call()

    def take(self, limit: int) -> bytes:
        """Remove and return up to *limit* bytes; none if there are none."""
        if not self._chunks or limit <= 0:
            return b""
        chunk = self._chunks[0]
        end = self._start + limit
        data = chunk if not self._start and len(chunk) <= limit else chunk[self._start : end]
        self._start = end
        if end >= len(chunk):
            self._start = 0
            self._chunks.popleft()
        self.size -= len(data)
        self._on_taken(len(data))
        return data

    def cancel(self) -> None:
        """Drop what waits, and tell the producer to stop, unless it has ended the stream."""
        self._chunks.clear()
        self.size = self._start = 0
        self._on_ready = lambda: None
        if not self.ended:
            self.ended = True
            self._on_cancel()
