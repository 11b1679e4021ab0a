"""Answers that pass through a connection as streams, as fast as the peer reads."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime, ITransport

from uwsgitwisted.interfaces import StreamedAnswer
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import Writer, unacknowledged

#: How many bytes are given to the transport at once.
_PIECE = 256 * 1024
#: How often to look in the time limit whether the peer has read anything.
_LOOKS = 4


class StreamSender:
    """Sends an answer as it arrives, as fast as its peer reads.

    :param transport: the connection.
    :param clock: for the time limit.
    :param answer: the answer.
    :param write_timeout: for how many seconds the peer may read nothing while bytes wait. A peer that reads
        slowly may take any number of seconds.
    :param on_end: called when all was written, or with the error that has ended the answer early.
    :param on_stalled: called when the time limit has passed.
    """

    def __init__(
        self,
        transport: ITransport,
        clock: IReactorTime,
        answer: StreamedAnswer,
        write_timeout: float,
        on_end: Callable[[Exception | None], None],
        on_stalled: Callable[[], None],
    ) -> None:
        self.writer = Writer(transport, self._on_drained)
        self._transport = transport
        self._clock = clock
        self._stream = answer.stream
        self._write_timeout = write_timeout
        self._timer = Timer(clock, self._look)
        self._on_stalled = on_stalled
        # How many bytes the system kept for the peer, and since when it was so many.
        self._kept, self._since = 0, 0.0
        self._on_end = on_end
        self._ended = False
        self._first = answer.packet.payload

    def start(self) -> None:
        """Send what there is, and the rest as it arrives."""
        if self._first:
            self._write(self._first)
        self._stream.on_ready(self._go_on)

    def _write(self, data: bytes) -> None:
        self.writer.write(data)
        if self.writer.waiting:
            self._kept, self._since = unacknowledged(self._transport), self._clock.seconds()
            self._timer.set(self._write_timeout / _LOOKS)

    def _look(self) -> None:
        """See whether the peer has read anything, and end the answer if it has not for too long."""
        now, kept = self._clock.seconds(), unacknowledged(self._transport)
        if kept != self._kept:
            self._kept, self._since = kept, now
        left = self._since + self._write_timeout - now
        if left > 0:
            self._timer.set(min(left, self._write_timeout / _LOOKS))
        else:
            self._on_stalled()

    def _on_drained(self) -> None:
        self._timer.clear()
        self._go_on()

    def _go_on(self) -> None:
        while not self.writer.waiting and (data := self._stream.take(_PIECE)):
            self._write(data)
        if self._stream.finished and not self.writer.waiting and not self._ended:
            self._ended = True
            self._on_end(self._stream.error)

    def cancel(self) -> None:
        """Send nothing more: the connection is closed."""
        self._ended = True
        self._timer.clear()
        self._stream.cancel()
