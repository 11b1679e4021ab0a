"""Bodies and answers that pass through a connection as streams, with back-pressure in both directions."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITransport

from uwsgitwisted.errors import ConnectionFailed, MessageTooLarge
from uwsgitwisted.interfaces import StreamedAnswer
from uwsgitwisted.stream import Stream
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import Writer
from uwsgitwisted.wire.packet import Packet

#: A body of up to so many bytes is held until it is complete, so that a slow peer occupies no worker. The
#: request of a larger one starts when so many bytes have arrived.
HELD = 256 * 1024
#: How many bytes are given to the transport at once.
_PIECE = 256 * 1024


class StreamedBody:
    """A body that is passed on while it arrives.

    :param packet: the packet in front of it.
    :param size: how many bytes it has.
    :param set_reading: reads from the connection, or stops for now.
    """

    __slots__ = ("_set_reading", "_size", "missing", "packet", "paused", "stream")

    def __init__(self, packet: Packet, size: int, set_reading: Callable[[bool], None]) -> None:
        self.packet = packet
        self.stream = Stream(self._on_taken, self._resume)
        self._set_reading = set_reading
        self._size = size
        #: Whether its peer is not read, because nobody takes what has arrived.
        self.paused = False
        #: How many bytes have not arrived.
        self.missing = size

    @property
    def ready(self) -> bool:
        """Whether enough of it has arrived for its request to start."""
        return self._size - self.missing >= HELD

    def add(self, data: bytes) -> int:
        """Add bytes to the body; return how many of them came after its end."""
        taken = min(len(data), self.missing)
        self.missing -= taken
        self.stream.write(data if taken == len(data) else data[:taken])
        if not self.missing:
            self.stream.end()
        elif self.stream.size >= HELD and self.ready and not self.paused:
            self.paused = True
            self._set_reading(False)
        return len(data) - taken

    def _on_taken(self, _: int) -> None:
        if self.stream.size < HELD // 2:
            self._resume()

    def _resume(self) -> None:
        """Read from the peer again; also if nobody wants the rest, since its answer may wait for that."""
        if self.paused:
            self.paused = False
            self._set_reading(True)

    def abort(self) -> None:
        """End the stream early: the peer has gone."""
        self.stream.end(ConnectionFailed(f"the peer has gone; {self.missing} bytes of its body are missing"))


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

    @property
    def pending(self) -> int:
        """How many bytes are held for the peer."""
        return self._stream.size + self.writer.pending

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
