"""The session: many requests on one connection, of any size, answered in any order.

A sans-IO state machine: bytes in, events out; values in, bytes out. Client connections, server connections and
the pipe to a worker process all run this one. ``docs/protocol.md`` describes the bytes.

A session begins after the client's first packet, a ping whose payload offers it, was answered with a ping whose
payload has the server's :class:`Terms`. Every other server ignores a ping's payload, so that the offer costs
nothing where it isn't understood.

Within it everything is a uwsgi packet of modifier1 34; modifier2 tells the kind of frame. A message that
doesn't fit one frame is sent in pieces, and the pieces of several messages take turns.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from io import BytesIO
from typing import NamedTuple

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, PacketTooLarge, UwsgiError
from uwsgitwisted.wire.failure import decode_failure
from uwsgitwisted.wire.packet import (
    MAX_PAYLOAD,
    PING,
    SESSION,
    Packet,
    PacketDecoder,
    encode_packet,
)
from uwsgitwisted.wire.terms import Terms

REQUEST, ANSWER, ERROR, MORE, CANCEL, GOODBYE, IDEMPOTENT = range(1, 8)


# A frame that begins a message: the packet's header (modifier1 34, size, kind), then the request's id, the
# message's modifiers, its whole size, and a time: for a request the milliseconds that its sender goes on
# waiting (0 = no limit), for an answer the microseconds that its handler took.
_FRAME = struct.Struct("<BHBIBBII")
_BEGIN = struct.Struct("<IBBII")
_pack_frame = _FRAME.pack
_unpack_frame = _FRAME.unpack_from
_FRAME_SIZE = _FRAME.size
_unpack_begin = _BEGIN.unpack_from
# A frame about a message that has begun: the packet's header, then the request's id.
_SHORT_FRAME = struct.Struct("<BHBI")
_ID = struct.Struct("<I")

_BEGIN_SIZE = _BEGIN.size
_ID_SIZE = _ID.size
#: The most of a message that its first frame, and each later one, takes.
FIRST_PIECE = MAX_PAYLOAD - _BEGIN_SIZE
NEXT_PIECE = MAX_PAYLOAD - _ID_SIZE

#: The least that a frame brings of a message that it doesn't finish, so that what it costs to take a piece
#: stays small beside the piece.
MIN_PIECE = 4_096

# glibc gives the memory of a large message back to the system and takes it anew for the next, which costs more
# than all else that is done with a message of 1 MB. Once a block of this size was freed, it keeps up to twice
# as much. The block's pages are never touched.
bytes(8 * 1024 * 1024)

# Makes a named tuple in half the time that calling its class takes.
_new = tuple.__new__

MAX_ID = 0xFFFFFFFF
#: The field for a message's size is a u32.
_MAX_SIZE = 0xFFFFFFFF
_MAX_TIME = 0xFFFFFFFF


class Role(enum.Enum):
    """Which side of a session this is."""

    CLIENT = "client"
    SERVER = "server"


class RequestReceived(NamedTuple):
    """A whole request arrived.

    ``seconds`` is how long its sender goes on waiting, None for no limit; ``idempotent`` whether it may be run
    again if the worker that runs it dies.
    """

    id: int
    packet: Packet
    seconds: float | None
    idempotent: bool = False


class AnswerReceived(NamedTuple):
    """A whole answer arrived. ``took`` is how long its handler ran, in seconds; 0 if that isn't told."""

    id: int
    packet: Packet
    took: float


class ErrorReceived(NamedTuple):
    """The answer is that the request failed. ``took`` is as for an answer."""

    id: int
    error: UwsgiError
    took: float


class CancelReceived(NamedTuple):
    """The sender of the request doesn't wait for its answer any more."""

    id: int


class GoodbyeReceived(NamedTuple):
    """The peer takes no further request, or sends none; what is in flight will still be answered."""


class PingReceived(NamedTuple):
    """The peer wants to know whether this side lives; the session has queued the answer."""


class PongReceived(NamedTuple):
    """The peer lives."""


Event = (
    RequestReceived
    | AnswerReceived
    | ErrorReceived
    | CancelReceived
    | GoodbyeReceived
    | PingReceived
    | PongReceived
)


@dataclass(slots=True)
class _Incoming:
    """A message of which some pieces have arrived."""

    kind: int
    head: tuple[int, int, int, int, int]
    have: int = 0
    #: Takes each piece at once: new memory for the pieces and then for the whole would cost more than all else.
    payload: BytesIO = field(default_factory=BytesIO)


@dataclass(slots=True)
class _Outgoing:
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
            head = _pack_frame(
                SESSION, MAX_PAYLOAD, self.kind, self.id, modifier1, modifier2, len(payload), self.time
            )
            return head + payload[:FIRST_PIECE]
        piece = memoryview(payload)[start : start + NEXT_PIECE]
        self.position = start + len(piece)
        return b"".join((_SHORT_FRAME.pack(SESSION, len(piece) + _ID_SIZE, MORE, self.id), piece))

    @property
    def remaining(self) -> int:
        return len(self.packet.payload) - self.position


class Session:
    """One side of a session.

    Give :meth:`receive` what the connection brings and act on its events; say what to send with the ``send_``
    methods, and write what :meth:`data_to_send` returns until it returns nothing.

    :param role: which side this is.
    :param ours: what this side takes.
    :param theirs: what the peer takes, from its ping.
    :param awaited: the ids of a client's requests that still want an answer. What begins to arrive for another
        one, whose cancel it has crossed, is not kept: the peer, told so, may never finish it.
    """

    def __init__(
        self, role: Role, ours: Terms, theirs: Terms, *, awaited: Container[int] | None = None
    ) -> None:
        self.theirs = theirs
        self.ours = ours
        self._limit = min(theirs.max_message, _MAX_SIZE)
        self._awaited = awaited
        self._decoder = PacketDecoder()
        self._decoder_empty = True
        self._incoming: dict[int, _Incoming] = {}
        self._announced = 0
        #: How many bytes have arrived of messages that are not whole yet.
        self.unfinished = 0
        self._frames: list[bytes] = []
        self._frames_size = 0
        self._waiting: deque[_Outgoing] = deque()
        self._sending: deque[_Outgoing] = deque()
        self._sending_size = 0
        self._whole_kinds = {ANSWER} if role is Role.CLIENT else {REQUEST, IDEMPOTENT}
        self._readers: dict[int, Callable[[bytes, int], Event | None]] = {
            MORE: self._read_more,
            GOODBYE: self._read_goodbye,
        }
        if role is Role.SERVER:
            self._readers |= {
                REQUEST: self._read_begin,
                IDEMPOTENT: self._read_begin,
                CANCEL: self._read_cancel,
            }
        else:
            self._readers |= {ANSWER: self._read_begin, ERROR: self._read_begin}

    # Receiving

    def receive(self, data: bytes) -> list[Event]:
        """Take *data* from the connection and return what it completes.

        :raises ProtocolError: if the peer breaks the protocol; the connection must be closed then.
        """
        events: list[Event] = []
        position = 0
        if self._decoder_empty:
            # Whole requests and answers are nearly all of a busy session's frames: they are taken at once.
            whole, limit, available = self._whole_kinds, self.ours.max_message, len(data)
            while available - position >= _FRAME_SIZE:
                session, size, kind, request, modifier1, modifier2, length, time = _unpack_frame(data, position)
                start = position + _FRAME_SIZE
                end = start + length
                if session != SESSION or kind not in whole or size != length + _BEGIN_SIZE:
                    break
                if end > available or length > limit:
                    break
                packet = _new(Packet, (modifier1, modifier2, data[start:end]))
                if kind == ANSWER:
                    events.append(_new(AnswerReceived, (request, packet, time / 1_000_000)))
                else:
                    seconds = time / 1000 if time else None
                    events.append(_new(RequestReceived, (request, packet, seconds, kind == IDEMPOTENT)))
                position = end
        if position < len(data):
            self._receive_others(data[position:], events)
        return events

    def _receive_others(self, data: bytes, events: list[Event]) -> None:
        """Take frames of any kind, and parts of frames."""
        readers = self._readers
        for modifier1, kind, payload in self._decoder.receive(data):
            if modifier1 == SESSION and kind in readers:
                event = readers[kind](payload, kind)
                if event is not None:
                    events.append(event)
            elif modifier1 == PING:
                events.append(self._read_ping(kind))
            else:
                raise MalformedPacket(f"a packet with the modifiers {modifier1} and {kind} within a session")
        self._decoder_empty = self._decoder.empty

    def _read_begin(self, payload: bytes, kind: int) -> Event | None:
        have = len(payload) - _BEGIN_SIZE
        if have < 0:
            raise MalformedPacket("a session's frame ends within its head")
        head = _unpack_begin(payload)
        size = head[3]
        if have == size:
            return self._whole(kind, head, payload[_BEGIN_SIZE:])
        if have > size:
            raise MalformedPacket(f"a message of {size} bytes has a piece of {have}")
        if have < MIN_PIECE:
            raise MalformedPacket(f"a message of {size} bytes begins with a piece of {have}")
        if self._awaited is not None and head[0] not in self._awaited:
            return None
        self._announced += size
        if self._announced > self.ours.max_message:
            raise PacketTooLarge(
                f"unfinished messages announce {self._announced} bytes, {self.ours.max_message} are accepted",
                size=self._announced,
                limit=self.ours.max_message,
            )
        if head[0] in self._incoming:
            raise MalformedPacket(f"message {head[0]} begins twice")
        incoming = self._incoming[head[0]] = _Incoming(kind, head)
        self._add(incoming, memoryview(payload)[_BEGIN_SIZE:])
        return None

    def _read_more(self, payload: bytes, kind: int) -> Event | None:
        incoming = self._incoming.get(_id_of(payload))
        if incoming is None:  # the rest of a message whose request was cancelled
            return None
        piece = memoryview(payload)[_ID_SIZE:]
        size = incoming.head[3]
        if incoming.have + len(piece) > size:
            raise MalformedPacket(f"the pieces of a message don't add up to its {size} bytes")
        self._add(incoming, piece)
        if incoming.have < size:
            if len(piece) < MIN_PIECE:
                raise MalformedPacket(f"a message of {size} bytes has a piece of {len(piece)}")
            return None
        self._forget_incoming(incoming.head[0])
        return self._whole(incoming.kind, incoming.head, incoming.payload.getvalue())

    def _add(self, incoming: _Incoming, piece: memoryview) -> None:
        incoming.payload.write(piece)
        incoming.have += len(piece)
        self.unfinished += len(piece)

    def _whole(self, kind: int, head: tuple[int, int, int, int, int], payload: bytes) -> Event:
        request, modifier1, modifier2, size, time = head
        if size > self.ours.max_message and kind != ERROR:
            raise PacketTooLarge(
                f"a message of {size} bytes, {self.ours.max_message} are accepted",
                size=size,
                limit=self.ours.max_message,
            )
        if kind == ERROR:
            return ErrorReceived(request, decode_failure(payload), time / 1_000_000)
        packet = Packet(modifier1, modifier2, payload)
        if kind == ANSWER:
            return AnswerReceived(request, packet, time / 1_000_000)
        return RequestReceived(request, packet, time / 1000 if time else None, kind == IDEMPOTENT)

    def _read_cancel(self, payload: bytes, kind: int) -> Event:
        request = _id_of(payload)
        self._forget_incoming(request)
        self._forget_outgoing(request)
        return CancelReceived(request)

    def _read_goodbye(self, payload: bytes, kind: int) -> Event:
        return GoodbyeReceived()

    def _read_ping(self, modifier2: int) -> Event:
        if modifier2:
            return PongReceived()
        self._queue(encode_packet(Packet(PING, 1)))
        return PingReceived()

    def _forget_incoming(self, request: int) -> None:
        incoming = self._incoming.pop(request, None)
        if incoming is not None:
            self._announced -= incoming.head[3]
            self.unfinished -= incoming.have

    # Sending

    def check_size(self, size: int) -> None:
        """See that the peer takes a message of *size* bytes.

        :raises MessageTooLarge: if it doesn't.
        """
        if size > self._limit:
            raise MessageTooLarge(
                f"a message of {size} bytes; the peer takes {self._limit}", size=size, limit=self._limit
            )

    def send_request(
        self, request: int, packet: Packet, seconds: float | None = None, *, idempotent: bool = False
    ) -> None:
        """Ask.

        :param request: an id that no request in flight has, at most :data:`MAX_ID`.
        :param seconds: how long the answer is waited for; None for ever.
        :param idempotent: whether it may be run again if the worker that runs it dies.
        :raises MessageTooLarge: if the peer doesn't take a message of that size; nothing is sent.
        """
        milliseconds = 0 if seconds is None else min(max(1, int(seconds * 1000)), _MAX_TIME)
        self._send(IDEMPOTENT if idempotent else REQUEST, request, packet, milliseconds)

    def send_answer(self, request: int, packet: Packet, took: float = 0.0) -> None:
        """Answer a request.

        :param took: how long its handler ran, in seconds.
        :raises MessageTooLarge: if the peer doesn't take a message of that size; nothing is sent.
        """
        self._send(ANSWER, request, packet, min(int(took * 1_000_000), _MAX_TIME) if took else 0)

    def send_error(self, request: int, failure: bytes, took: float = 0.0) -> None:
        """Answer a request with a failure, in the form of :mod:`~uwsgitwisted.wire.failure`."""
        self._send(ERROR, request, Packet(0, 0, failure), min(int(took * 1_000_000), _MAX_TIME))

    def send_cancel(self, request: int) -> None:
        """Tell the peer that nobody waits for an answer any more. None may come all the same."""
        self._forget_incoming(request)
        self._forget_outgoing(request)
        self._queue(_SHORT_FRAME.pack(SESSION, _ID_SIZE, CANCEL, request))

    def send_goodbye(self) -> None:
        """Tell the peer that no further request is sent, or taken."""
        self._queue(encode_packet(Packet(SESSION, GOODBYE)))

    def send_ping(self) -> None:
        """Ask the peer for a sign of life."""
        self._queue(encode_packet(Packet(PING, 0)))

    def _send(self, kind: int, request: int, packet: Packet, time: int) -> None:
        modifier1, modifier2, payload = packet
        size = len(payload)
        if size <= FIRST_PIECE and (size <= self._limit or kind == ERROR):
            head = _pack_frame(SESSION, _BEGIN_SIZE + size, kind, request, modifier1, modifier2, size, time)
            self._frames.append(head + payload)
            self._frames_size += _FRAME_SIZE + size
            return
        self.check_size(size)
        self._waiting.append(_Outgoing(kind, request, packet, time))

    def _queue(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._frames_size += len(frame)

    def _forget_outgoing(self, request: int) -> None:
        for queue in (self._waiting, self._sending):
            for outgoing in queue:
                if outgoing.id == request:
                    queue.remove(outgoing)
                    if queue is self._sending:
                        self._sending_size -= len(outgoing.packet.payload)
                    return

    @property
    def sending(self) -> bool:
        """Whether :meth:`data_to_send` has something."""
        return bool(self._frames or self._sending or self._waiting)

    @property
    def backlog(self) -> int:
        """About how many bytes wait to be sent."""
        if not self._sending and not self._waiting:
            return self._frames_size
        large = sum(outgoing.remaining for queue in (self._sending, self._waiting) for outgoing in queue)
        return large + self._frames_size

    def data_to_send(self, size: int = MAX_PAYLOAD) -> bytes:
        """Return bytes to write, or none.

        :param size: about how many; a piece of a large message comes among them if there is one.
        """
        if not self._sending and not self._waiting:
            frames = self._frames
            if len(frames) == 1:
                self._frames = []
                self._frames_size = 0
                return frames[0]
            return self._take_frames(size) if frames else b""
        self._start_waiting()
        while self._sending:
            outgoing = self._sending.popleft()
            self._queue(outgoing.next_frame())
            if not outgoing.remaining:
                self._sending_size -= len(outgoing.packet.payload)
                self._start_waiting()
            else:
                self._sending.append(outgoing)
            if self._frames_size >= size:
                break
        return self._take_frames(size)

    def _take_frames(self, size: int) -> bytes:
        """Return frames of about *size* bytes together, or all if there are not many more."""
        frames = self._frames
        if self._frames_size <= 4 * size:
            self._frames = []
        else:
            count = taken = 0
            while taken < size:
                taken += len(frames[count])
                count += 1
            self._frames = frames[count:]
            frames = frames[:count]
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        self._frames_size -= len(data)
        return data

    def _start_waiting(self) -> None:
        """Let waiting messages begin while all that have begun are together within what the peer takes."""
        while self._waiting:
            size = len(self._waiting[0].packet.payload)
            if self._sending and self._sending_size + size > self._limit:
                break
            self._sending.append(self._waiting.popleft())
            self._sending_size += size


def _id_of(payload: bytes) -> int:
    if len(payload) < _ID_SIZE:
        raise MalformedPacket("a session's frame ends within its head")
    request: int = _ID.unpack_from(payload)[0]
    return request
