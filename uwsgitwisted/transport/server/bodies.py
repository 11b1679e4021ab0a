"""The bodies behind plain packets: which packets have one, how large it may be, and where its bytes go."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from uwsgitwisted.errors import ConnectionFailed, MalformedPacket, MessageTooLarge
from uwsgitwisted.stream import Stream
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.terms import MAX_MESSAGE
from uwsgitwisted.wire.vars import body_size, may_announce_body

#: The default limit of a body that is passed on as a stream, in bytes.
MAX_BODY = 1 << 30
#: A body of up to so many bytes is held until it is complete, so that a slow peer occupies no worker. The
#: request of a larger one starts when so many bytes have arrived.
HELD = 256 * 1024


@dataclass(frozen=True, slots=True)
class BodyRules:
    """Which packets are followed by a body, and how large it may be.

    :param whole: the modifiers of packets whose bodies are passed on with them, as one message. The
        CONTENT_LENGTH in the packet's vars block is the size.
    :param streamed: the values of modifier1 whose bodies, if they are large, are passed on as streams.
    :param max_message: the largest packet with a body of the first kind, in bytes.
    :param max_body: the largest body of the second kind, in bytes.
    """

    whole: Container[tuple[int, int]] = ()
    streamed: Container[int] = ()
    max_message: int = MAX_MESSAGE
    max_body: int = MAX_BODY

    def size_behind(self, packet: Packet) -> int:
        """Return how many bytes of body follow *packet*."""
        if packet.modifier1 in self.streamed:
            if not may_announce_body(packet.payload):
                return 0
        elif packet[:2] not in self.whole:
            return 0
        try:
            return body_size(packet.payload)
        except MalformedPacket:  # its responder finds the same error, and answers
            return 0

    def is_streamed(self, packet: Packet, size: int) -> bool:
        """Whether a body of *size* bytes is passed on while it arrives."""
        return size > HELD and packet.modifier1 in self.streamed

    def refusal(self, packet: Packet, size: int) -> MessageTooLarge | None:
        """Return why a body of *size* bytes is too large, or None if it isn't."""
        if packet.modifier1 in self.streamed:
            limit, option, what = self.max_body, "--max-body", "a request body"
        else:
            size += len(packet.payload)
            limit, option, what = self.max_message, "--max-message", "a request, including its body,"
        if size <= limit:
            return None
        text = f"{what} of {size} bytes; the limit is {limit} ({option})"
        return MessageTooLarge(text, size=size, limit=limit)


class HeldBody:
    """A body that is held until it is complete.

    :param packet: the packet in front of it.
    :param size: how many bytes it has.
    """

    __slots__ = ("_data", "_packet", "missing")

    def __init__(self, packet: Packet, size: int) -> None:
        self._packet = packet
        self._data = bytearray(packet.payload)
        #: How many bytes have not arrived.
        self.missing = size

    def add(self, data: bytes) -> int:
        """Add bytes to the body; return how many of them came after its end."""
        taken = min(len(data), self.missing)
        self._data += data if taken == len(data) else data[:taken]
        self.missing -= taken
        return len(data) - taken

    def message(self) -> Packet:
        """Return the packet with its body appended to its payload."""
        return self._packet._replace(payload=bytes(self._data))


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
