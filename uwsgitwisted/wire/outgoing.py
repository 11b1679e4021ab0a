"""The send queue of one side of a session: single frames, and large messages whose pieces take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from uwsgitwisted.wire.frame import FIRST_PIECE, FRAME, ID, MORE, NEXT_PIECE, SHORT_FRAME
from uwsgitwisted.wire.packet import MAX_PAYLOAD, PING, SESSION, Packet, encode_packet

#: Roughly how many bytes Python's objects take for a frame or a held message, in addition to its payload.
#: Without this, a peer could make us use much more memory than it sends.
OVERHEAD = 128

_PONG = encode_packet(Packet(PING, 1))


@dataclass(slots=True)
class Message:
    """A message that is sent in pieces."""

    kind: int
    id: int
    packet: Packet
    time: int
    position: int = field(default=0)

    def next_frame(self) -> bytes:
        """Return the frame of the next piece."""
        modifier1, modifier2, payload = self.packet
        start = self.position
        if not start:
            self.position = FIRST_PIECE
            head = FRAME.pack(
                SESSION, MAX_PAYLOAD, self.kind, self.id, modifier1, modifier2, len(payload), self.time
            )
            return head + payload[:FIRST_PIECE]
        piece = memoryview(payload)[start : start + NEXT_PIECE]
        self.position = start + len(piece)
        return b"".join((SHORT_FRAME.pack(SESSION, len(piece) + ID.size, MORE, self.id), piece))

    @property
    def remaining(self) -> int:
        """How many bytes are in no frame yet."""
        return len(self.packet.payload) - self.position


class Outgoing:
    """The queue: frames in their order, and behind them the pieces of large messages, which take turns.

    :param limit: the most bytes that unfinished messages may have together, by the peer's terms.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: deque[bytes] = deque()
        self._frames_size = 0
        self._pong_due = False
        # Large messages by id, so that cancelling one takes the same time however many there are.
        self._waiting: OrderedDict[int, Message] = OrderedDict()
        self._sending: OrderedDict[int, Message] = OrderedDict()
        self._sending_size = 0
        self._remaining = 0
        self._messages_size = 0

    def __bool__(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._frames or self._sending or self._waiting or self._pong_due)

    def __contains__(self, request: object) -> bool:
        """Whether the message with this id has unsent pieces."""
        return request in self._sending or request in self._waiting

    @property
    def size(self) -> int:
        """Roughly how many bytes wait to be sent."""
        return self._frames_size + OVERHEAD * len(self._frames) + self._remaining

    @property
    def memory(self) -> int:
        """Roughly how many bytes of memory the queue takes."""
        return self._frames_size + OVERHEAD * len(self._frames) + self._messages_size

    def add(self, frame: bytes) -> None:
        """Queue a frame behind the other frames, ahead of the pieces of large messages."""
        self._frames.append(frame)
        self._frames_size += len(frame)

    def add_message(self, message: Message) -> None:
        """Queue a message that is sent in pieces."""
        self._waiting[message.id] = message
        self._remaining += len(message.packet.payload)
        self._messages_size += len(message.packet.payload)

    def add_pong(self) -> None:
        """Queue a keep-alive; one is enough for all pings that have come."""
        self._pong_due = True

    def cancel(self, request: int) -> None:
        """Drop the unsent pieces of the message with this id."""
        message = self._waiting.pop(request, None)
        if message is None:
            message = self._sending.pop(request, None)
            if message is None:
                return
            self._sending_size -= len(message.packet.payload)
        self._remaining -= message.remaining
        self._messages_size -= len(message.packet.payload)

    def clear(self) -> None:
        """Drop everything."""
        self._frames.clear()
        self._waiting.clear()
        self._sending.clear()
        self._frames_size = self._sending_size = self._remaining = self._messages_size = 0
        self._pong_due = False

    def take(self, size: int = MAX_PAYLOAD) -> bytes:
        """Remove and return the next bytes to write, or none.

        :param size: roughly how many. They include a piece of a large message, if there is one.
        """
        frames = self._frames
        if self._pong_due:
            self._pong_due = False
            frames.appendleft(_PONG)
            self._frames_size += len(_PONG)
        if not self._sending and not self._waiting:
            if len(frames) == 1:
                self._frames_size = 0
                return frames.popleft()
            return self._take_frames(size) if frames else b""
        self._begin_waiting()
        self._add_piece()  # at least one, however many small frames there are
        while self._sending and self._frames_size < size:
            self._add_piece()
        return self._take_frames(size)

    def _add_piece(self) -> None:
        """Queue the next piece of the message whose turn it is."""
        request, message = self._sending.popitem(last=False)
        position = message.position
        self.add(message.next_frame())
        self._remaining -= message.position - position
        if message.remaining:
            self._sending[request] = message
        else:
            self._sending_size -= len(message.packet.payload)
            self._messages_size -= len(message.packet.payload)
            self._begin_waiting()

    def _begin_waiting(self) -> None:
        """Start waiting messages while the peer's limit has room for them."""
        while self._waiting:
            request, message = next(iter(self._waiting.items()))
            size = len(message.packet.payload)
            if self._sending and self._sending_size + size > self._limit:
                break
            del self._waiting[request]
            self._sending[request] = message
            self._sending_size += size

    def _take_frames(self, size: int) -> bytes:
        """Remove and return frames of roughly *size* bytes together, or all if there are not many more."""
        frames = self._frames
        if self._frames_size <= 4 * size:
            data = b"".join(frames)
            frames.clear()
        else:
            taken: list[bytes] = []
            left = size
            while left > 0:
                taken.append(frames.popleft())
                left -= len(taken[-1])
            data = b"".join(taken)
        self._frames_size -= len(data)
        return data
