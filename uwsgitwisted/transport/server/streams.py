"""Answers that pass through a connection as streams, as fast as the peer reads."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITransport

from uwsgitwisted.errors import MessageTooLarge
from uwsgitwisted.interfaces import StreamedAnswer
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import Writer
from uwsgitwisted.wire.packet import Packet

#: How many bytes are given to the transport at once.
_PIECE = 256 * 1024


class StreamSender:
    """Sends an answer as it arrives, as fast as its peer reads.

    :param transport: the connection.
    :param clock: for the time limit.
    :param answer: the answer.
    :param write_timeout: for how many seconds the peer may read nothing while bytes wait.
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
        self._stream = answer.stream
        self._write_timeout = write_timeout
        self._timer = Timer(clock, on_stalled)
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
            self._timer.set(self._write_timeout)

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


def collect(answer: StreamedAnswer, limit: int) -> Deferred[Packet]:
    """Collect a streamed answer, for a peer that takes only whole messages.

    :param limit: the most bytes that it may have.
    :return: fires with the whole answer; fails with ``MessageTooLarge``, or with the error that ended it early.
        Cancelling it cancels the answer.
    """
    packet, stream = answer
    chunks = [packet.payload]
    size = len(packet.payload)
    collected: Deferred[Packet] = Deferred(lambda _: stream.cancel())

    def go_on() -> None:
        nonlocal size
        while data := stream.take(_PIECE):
            chunks.append(data)
            size += len(data)
            if size > limit:
                stream.cancel()
                text = f"an answer of at least {size} bytes; the peer accepts {limit}"
                collected.errback(MessageTooLarge(text, size=size, limit=limit))
                return
        if not stream.finished:
            return
        if stream.error is not None:
            collected.errback(stream.error)
        else:
            collected.callback(packet._replace(payload=b"".join(chunks)))

    stream.on_ready(go_on)
    return collected
