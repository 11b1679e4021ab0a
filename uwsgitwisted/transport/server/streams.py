"""Answers that pass through a connection as streams, as fast as the peer reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITransport

from uwsgitwisted.errors import Busy, MessageTooLarge, UwsgiError
from uwsgitwisted.interfaces import StreamedAnswer
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import Writer, unacknowledged
from uwsgitwisted.wire.packet import Packet

_T = TypeVar("_T")

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


def collect(
    answer: StreamedAnswer, limit: int, hold: Callable[[int], bool] = lambda _: True
) -> Deferred[Packet]:
    """Collect a streamed answer, for a peer that takes only whole messages.

    :param limit: the most bytes that it may have.
    :param hold: called with how many bytes have arrived; returns whether there is room for them. At the end, it
        is called with the negative of them all.
    :return: fires with the whole answer; fails with ``MessageTooLarge``, with ``Busy``, or with the error that
        ended it early. Cancelling it cancels the answer.
    """
    packet, stream = answer
    chunks = [packet.payload]
    held = 0
    collected: Deferred[Packet] = Deferred(lambda _: stream.cancel())

    def release(result: _T) -> _T:
        hold(-held)
        return result

    def refusal(size: int) -> UwsgiError | None:
        """Return why *size* more bytes are too many, or None if they aren't."""
        total = len(packet.payload) + held + size
        if total > limit:
            text = f"an answer of at least {total} bytes; the peer accepts {limit}"
            return MessageTooLarge(text, size=total, limit=limit)
        if not hold(size):
            return Busy(f"no room for an answer of at least {total} bytes now; try again later")
        return None

    def go_on() -> None:
        nonlocal held
        while data := stream.take(_PIECE):
            refused = refusal(len(data))
            if refused is not None:
                stream.cancel()
                collected.errback(refused)
                return
            held += len(data)
            chunks.append(data)
        if not stream.finished:
            return
        if stream.error is not None:
            collected.errback(stream.error)
        else:
            collected.callback(packet._replace(payload=b"".join(chunks)))

    collected.addBoth(release)
    stream.on_ready(go_on)
    return collected
