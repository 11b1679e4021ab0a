"""One web request in a worker: the stream of its body, and its answer, which may be a stream too.

A handler reads and writes like with a file. Meanwhile the worker's other frames, such as requests that wait
behind this one, arrive on the same pipe; :class:`Pipe` is what the worker does for that.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Protocol

from uwsgitwisted.wire.frame import DATA, FIRST_PIECE, ID, NEXT_PIECE, SHORT_FRAME
from uwsgitwisted.wire.packet import SESSION, Packet
from uwsgitwisted.wire.session import Session
from uwsgitwisted.wire.terms import STREAM_WINDOW

#: A window is granted again in parts of this size.
_GRANT = STREAM_WINDOW // 4


class ClientGone(BrokenPipeError):
    """Nobody waits for the answer any more. An application gets it from what it calls to send."""


class Body:
    """The bytes of a request's body that have arrived, and are not read yet."""

    __slots__ = ("chunks", "ended", "used")

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.ended = False
        #: How many bytes were read, and not granted again.
        self.used = 0

    def take(self, size: int) -> bytes:
        """Remove and return up to *size* bytes of the first chunk."""
        data = self.chunks.popleft()
        if len(data) > size:
            self.chunks.appendleft(data[size:])
            data = data[:size]
        self.used += len(data)
        return data


class Pipe(Protocol):
    """What an exchange needs of the worker."""

    session: Session
    connection: socket.socket

    def receive(self, *, wait: bool) -> None:
        """Handle what has arrived on the pipe.

        :param wait: whether to wait if nothing has.
        :raises BrokenPipeError: if the front has closed it.
        """

    def flush(self) -> None:
        """Write the queued frames."""


class AnyExchange(Protocol):
    """What a handler of streams has of a request: see :class:`Exchange`."""

    packet: Packet

    @property
    def streamed(self) -> bool:
        """Whether a stream follows the request's message."""

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes of the request's stream."""

    def send(self, data: bytes) -> None:
        """Send a part of the answer now."""

    def send_file(self, descriptor: int, offset: int, size: int) -> None:
        """Send a part of a file."""

    def finish(self, data: bytes = b"") -> None:
        """Send the last part of the answer, or all of it."""


class Exchange:
    """A web request that is being handled.

    :param pipe: the worker.
    :param request: the id of the request.
    :param packet: its packet.
    :param body: the stream behind it; None if there is none.
    """

    __slots__ = ("_begun", "_body", "_finished", "_pipe", "_started", "cancelled", "id", "packet", "sent")

    def __init__(self, pipe: Pipe, request: int, packet: Packet, body: Body | None) -> None:
        self._pipe = pipe
        self._body = body
        self._begun = False
        self._finished = False
        self._started = monotonic()
        self.id = request
        #: The request's packet.
        self.packet = packet
        #: Whether nobody waits for the answer any more.
        self.cancelled = False
        #: How many bytes of the answer were given to the front.
        self.sent = 0

    @property
    def streamed(self) -> bool:
        """Whether a stream follows the request's message."""
        return self._body is not None

    @property
    def took(self) -> float:
        """For how many seconds it has been handled."""
        return monotonic() - self._started

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes of the request's stream; wait for some. At its end, return none.

        :raises ClientGone: if nobody waits for the answer any more.
        :raises BrokenPipeError: if the front is gone.
        """
        body = self._body
        if body is None:
            return b""
        while not body.chunks:
            if body.ended:
                return b""
            if self.cancelled:  # its stream is forgotten, and never ends
                raise ClientGone("the client has gone")
            self._pipe.receive(wait=True)
        data = body.take(size)
        if body.used >= _GRANT and not body.ended:
            self._pipe.session.streams.grant(self.id, body.used)
            body.used = 0
            self._pipe.flush()
        return data

    def send(self, data: bytes) -> None:
        """Send a part of the answer now; wait until the front has room for it.

        :raises ClientGone: if nobody waits for the answer any more.
        """
        position = self._begin(data)
        for size in self._windows(len(data) - position):
            piece = data if size == len(data) else data[position : position + size]
            self._pipe.session.streams.send(self.id, piece)
            position += size
            self._pipe.flush()
        self.sent += len(data)

    def send_file(self, descriptor: int, offset: int, size: int) -> None:
        """Send *size* bytes of a file, from *offset*, without reading them into this process.

        :raises ClientGone: if nobody waits for the answer any more.
        :raises RuntimeError: if the file has become shorter.
        :raises OSError: if the system can't send from it.
        """
        self._begin(b"")
        self._pipe.flush()
        for window in self._windows(size):
            for start in range(0, window, NEXT_PIECE):
                piece = min(NEXT_PIECE, window - start)
                self._pipe.session.streams.spend(self.id, piece)
                self._send_piece(descriptor, offset, piece)
                offset += piece
        self.sent += size

    def _send_piece(self, descriptor: int, offset: int, size: int) -> None:
        self._pipe.connection.sendall(SHORT_FRAME.pack(SESSION, ID.size + size, DATA, self.id))
        try:
            while size:
                sent = os.sendfile(self._pipe.connection.fileno(), descriptor, offset, size)
                if not sent:
                    raise RuntimeError("a file became shorter while it was being sent")
                offset += sent
                size -= sent
        finally:
            # The head has announced so many bytes: without them, the next frames would be taken for the file's.
            self._pipe.connection.sendall(bytes(size))

    def finish(self, data: bytes = b"") -> None:
        """Send the last part of the answer, or all of it."""
        if not self._begun and len(data) <= FIRST_PIECE:
            self._begun = True
            answer = Packet(self.packet.modifier1, self.packet.modifier2, data)
            self._pipe.session.send_answer(self.id, answer, self.took)
            self.sent += len(data)
        else:
            if data:
                self.send(data)
            self._pipe.session.streams.send_end(self.id, self.took)
        self._finished = True
        self._pipe.flush()

    def _begin(self, data: bytes) -> int:
        """Begin the answer, if that wasn't done; return how many bytes of *data* went with it.

        :raises RuntimeError: if the answer has ended: no window would ever be granted for more.
        """
        if self._finished:
            raise RuntimeError("the answer has ended, so nothing can be added to it")
        if self._begun:
            self._pipe.receive(wait=False)  # the caller may have gone
            return 0
        self._begun = True
        size = min(len(data), FIRST_PIECE)
        answer = Packet(self.packet.modifier1, self.packet.modifier2, data[:size])
        self._pipe.session.send_streamed_answer(self.id, answer)
        self._pipe.flush()
        return size

    def _windows(self, size: int) -> Iterator[int]:
        """Yield how many bytes may be sent now, until they are *size*; wait for that."""
        while size:
            while not self.cancelled and not (credit := self._pipe.session.streams.credit(self.id)):
                self._pipe.receive(wait=True)
            if self.cancelled:
                raise ClientGone("the client has gone")
            part = min(size, credit)
            yield part
            size -= part
