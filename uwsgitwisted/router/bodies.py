"""The body of a request on its way to a node: passed on as it comes, or kept until its size is known."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import IO, Protocol

from uwsgitwisted.transport.server.budget import Account

#: How many bytes of a body are kept in memory before they go to a file.
_IN_MEMORY = 16_384
#: How many bytes to read from a file at once.
BLOCK = 65_536


class Sink(Protocol):
    """Where a body goes."""

    def send(self, data: bytes) -> None:
        """Send a piece."""

    def sent(self) -> None:
        """Note the end."""


class Body(Protocol):
    """A body with a known size."""

    @property
    def size(self) -> int:
        """How many bytes it has."""

    @property
    def replayable(self) -> bool:
        """Whether all of it can be sent to another node."""

    def attach(self, sink: Sink) -> None:
        """Start to send it to a connection."""

    def detach(self) -> None:
        """Wait for another connection: this one has failed."""

    def want(self, wanted: bool) -> None:
        """Go on, or wait: the connection takes no more now."""

    def close(self) -> None:
        """Drop it."""


class FileSender:
    """Sends the bytes of a file until it is told to wait.

    :param file: is read from where it stands, and is not closed.
    :param size: how many bytes to send.
    :param write: sends a block, and may call :meth:`pause` meanwhile.
    :param on_sent: called at the end; with False if the file has fewer bytes, or can't be read.
    """

    def __init__(
        self, file: IO[bytes], size: int, write: Callable[[bytes], object], on_sent: Callable[[bool], object]
    ) -> None:
        self._file = file
        self._missing = size
        self._write = write
        self._on_sent = on_sent
        self._running = False
        self._wanted = False
        self._ended = False

    def pause(self) -> None:
        """Wait."""
        self._wanted = False

    def resume(self) -> None:
        """Go on."""
        self._wanted = True
        if self._running:  # this was called while a block was sent
            return
        self._running = True
        while self._wanted and not self._ended:
            self._send_block()
        self._running = False

    def stop(self) -> None:
        """Send nothing more; ``on_sent`` isn't called."""
        self._ended = True

    def _send_block(self) -> None:
        if not self._missing:
            self._end(True)
            return
        try:
            block = self._file.read(min(BLOCK, self._missing))
        except OSError:
            block = b""
        self._missing -= len(block)
        if block:
            self._write(block)
        else:
            self._end(False)

    def _end(self, whole: bool) -> None:
        self._ended = True
        self._on_sent(whole)


class StreamedBody:
    """A body of an announced size, which is passed on as it comes.

    :param size: how many bytes the client has announced.
    :param read: called with whether to read more from the client.
    """

    def __init__(self, size: int, read: Callable[[bool], None]) -> None:
        self.size = size
        self._read = read
        self._missing = size
        self._early: list[bytes] = []
        self._sink: Sink | None = None
        self.replayable = True
        if size:
            read(False)

    def receive(self, data: bytes) -> None:
        """Handle a piece from the client."""
        self._missing -= len(data)
        if self._sink is None:
            self._early.append(data)
        else:
            self._send(self._sink, data)

    def attach(self, sink: Sink) -> None:
        """Send to a connection what has come, and from now on what comes."""
        self._sink = sink
        early, self._early = b"".join(self._early), []
        if self._missing:
            self._read(True)
        self._send(sink, early)

    def _send(self, sink: Sink, data: bytes) -> None:
        if data:
            self.replayable = False
            sink.send(data)
        if not self._missing:
            sink.sent()

    def detach(self) -> None:
        """Read no more until there is another connection."""
        self._sink = None
        self.want(False)

    def want(self, wanted: bool) -> None:
        """Read more from the client, or wait."""
        if self._missing:
            self._read(wanted)

    def close(self) -> None:
        """Drop what comes."""
        self._sink, self._early = None, []


class SpooledBody:
    """A body that is kept until its end, in a temporary file: its size is unknown, or it may come slowly.

    :param account: counts its bytes.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed by close()
        self._sender: FileSender | None = None
        self.size = 0
        self.replayable = True

    def add(self, data: bytes) -> bool:
        """Add a piece; return whether there was room.

        :raises OSError: if it can't be written.
        """
        if not self._account.admits(len(data)):
            return False
        self._file.write(data)
        self.size += len(data)
        self._account.set(self.size)
        return True

    def attach(self, sink: Sink) -> None:
        """Send all of it to a connection."""
        self._file.seek(0)
        # If the file can't be read, the node waits for the rest, and the request times out.
        self._sender = FileSender(self._file, self.size, sink.send, lambda _: sink.sent())
        self._sender.resume()

    def detach(self) -> None:
        """Send no more to the connection."""
        if self._sender is not None:
            self._sender.stop()

    def want(self, wanted: bool) -> None:
        """Go on sending, or wait."""
        if self._sender is not None:
            (self._sender.resume if wanted else self._sender.pause)()

    def close(self) -> None:
        """Remove the file."""
        self.detach()
        self._file.close()
        self._account.close()
