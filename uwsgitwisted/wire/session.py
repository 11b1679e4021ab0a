"""The session: many requests on one connection, of any size, answered in any order.

A sans-IO state machine: bytes in, events out; values in, bytes out. Client connections, server connections and
the pipe to a worker process all run this one. ``docs/protocol.md`` describes the bytes.

The client's first packet is a ping whose payload offers a session. The session starts when the server answers
with a ping whose payload has the server's :class:`Terms`. Any other server ignores a ping's payload, so the
offer costs nothing if the server doesn't understand it.

All frames of a session are uwsgi packets of modifier1 34; modifier2 is the kind of frame. A message that
doesn't fit one frame is sent in pieces, and the pieces of several messages take turns. A stream may follow a
message: see :mod:`uwsgitwisted.wire.streams`.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from io import BytesIO

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, PacketTooLarge
from uwsgitwisted.wire.events import (
    AnswerReceived,
    CancelReceived,
    ErrorReceived,
    Event,
    PingReceived,
    PongReceived,
    RequestReceived,
    RequestRefused,
    ShutdownReceived,
    StreamedAnswerReceived,
    StreamedRequestReceived,
)
from uwsgitwisted.wire.failure import decode_failure, decode_peer
from uwsgitwisted.wire.frame import (
    ANSWER,
    BEGIN,
    CANCEL,
    ERROR,
    FIRST_PIECE,
    FRAME,
    ID,
    IDEMPOTENT,
    MIN_PIECE,
    MORE,
    REQUEST,
    SHORT_FRAME,
    SHUTDOWN,
    STREAMED_ANSWER,
    STREAMED_REQUEST,
)
from uwsgitwisted.wire.outgoing import Message, Outgoing
from uwsgitwisted.wire.packet import (
    HEADER_SIZE,
    PING,
    SESSION,
    Packet,
    ReceiveBuffer,
    encode_packet,
    new_tuple,
    unpack_header,
)
from uwsgitwisted.wire.streams import Streams
from uwsgitwisted.wire.terms import Terms

_pack_frame = FRAME.pack
_unpack_frame = FRAME.unpack_from
_FRAME_SIZE = FRAME.size
_unpack_begin = BEGIN.unpack_from
_BEGIN_SIZE = BEGIN.size
_ID_SIZE = ID.size

#: No limit to the number of frames.
_ALL = sys.maxsize

MAX_ID = 0xFFFFFFFF
#: The field for a message's size is a u32.
_MAX_SIZE = 0xFFFFFFFF
_MAX_TIME = 0xFFFFFFFF


class Role(enum.Enum):
    """Which side of a session this is."""

    CLIENT = "client"
    SERVER = "server"


@dataclass(slots=True)
class _Incoming:
    """A message that has arrived in part."""

    kind: int
    head: tuple[int, int, int, int, int]
    have: int = 0
    #: Collects the pieces as they arrive: memory for each piece and then for the whole would cost more than the
    #: rest.
    payload: BytesIO = field(default_factory=BytesIO)


class Session:
    """One side of a session.

    Pass received bytes to :meth:`receive`, and handle the events that it returns. Queue frames with the
    ``send_`` methods, and write the bytes that :meth:`data_to_send` returns until it returns none.

    :param role: which side this is.
    :param ours: the terms of this side.
    :param theirs: the terms of the peer, from its ping.
    :param awaited: the ids of a client's requests that still need an answer. A large or streamed answer to any
        other request has raced with its cancel, and is dropped: the peer, once it knows of the cancel, may
        never finish it.
    :param admits: says whether a server has room for a message of so many bytes that comes in pieces; called
        when the first piece has arrived. None to admit any.
    """

    def __init__(
        self,
        role: Role,
        ours: Terms,
        theirs: Terms,
        *,
        awaited: Container[int] | None = None,
        admits: Callable[[int], bool] | None = None,
    ) -> None:
        self.theirs = theirs
        self.ours = ours
        self._limit = min(theirs.max_message, _MAX_SIZE)
        self._awaited = awaited
        self._admits = admits
        self._buffer = ReceiveBuffer()
        self._incoming: dict[int, _Incoming] = {}
        #: The sizes of all unfinished incoming messages together, in bytes.
        self.announced = 0
        #: How many bytes of them have arrived.
        self.unfinished = 0
        self._outgoing = Outgoing(self._limit)
        self._add_frame = self._outgoing.add
        #: Returns the next bytes to write, if any: see :meth:`~uwsgitwisted.wire.outgoing.Outgoing.take`.
        self.data_to_send = self._outgoing.take
        #: What follows messages as a stream.
        self.streams = Streams(ours.window, theirs.window, self._add_frame)
        self._whole_kinds = {ANSWER} if role is Role.CLIENT else {REQUEST, IDEMPOTENT}
        self._readers: dict[int, Callable[[bytes, int], Event | None]] = {
            MORE: self._read_more,
            SHUTDOWN: self._read_shutdown,
        }
        if role is Role.SERVER:
            self._readers |= {
                REQUEST: self._read_begin,
                IDEMPOTENT: self._read_begin,
                CANCEL: self._read_cancel,
            }
        else:
            self._readers |= {ANSWER: self._read_begin, ERROR: self._read_begin}
        self._readers |= self.streams.readers
        if ours.window:
            self._readers[STREAMED_REQUEST if role is Role.SERVER else STREAMED_ANSWER] = self._read_streamed

    # Receiving

    def receive(self, data: bytes = b"", most: int = _ALL) -> list[Event]:
        """Handle *data* from the connection; return the events that it completes.

        :param most: the most frames to read. If :attr:`more` is true afterwards, further frames are left to
            read.
        :raises ProtocolError: if the peer violates the protocol; close the connection then.
        """
        events: list[Event] = []
        position = 0
        if self._buffer.size:
            data, position = self._buffer.take(data)
        # Nearly all frames of a busy session are complete requests and answers: this is the fast path for them.
        whole, limit, available = self._whole_kinds, self.ours.max_message, len(data)
        while available - position >= _FRAME_SIZE and len(events) < most:
            session, size, kind, request, modifier1, modifier2, length, time = _unpack_frame(data, position)
            start = position + _FRAME_SIZE
            end = start + length
            if session != SESSION or kind not in whole or size != length + _BEGIN_SIZE:
                break
            if end > available or length > limit:
                break
            packet = new_tuple(Packet, (modifier1, modifier2, data[start:end]))
            if kind == ANSWER:
                events.append(new_tuple(AnswerReceived, (request, packet, time / 1_000_000)))
            else:
                seconds = time / 1000 if time else None
                events.append(new_tuple(RequestReceived, (request, packet, seconds, kind == IDEMPOTENT)))
            position = end
        if position < available:
            self._receive_others(data, position, most - len(events), events)
        return events

    def _receive_others(self, data: bytes, position: int, most: int, events: list[Event]) -> None:
        """Handle frames of any kind, and keep the bytes that are left."""
        available = len(data)
        needed = HEADER_SIZE
        for _ in range(most):
            if available - position < HEADER_SIZE:
                break
            modifier1, size, kind = unpack_header(data, position)
            end = position + HEADER_SIZE + size
            if end > available:
                needed = HEADER_SIZE + size
                break
            event = self._read(modifier1, kind, data[position + HEADER_SIZE : end])
            if event is not None:
                events.append(event)
            position = end
        if position < available:
            self._buffer.keep(data, position, needed)

    @property
    def more(self) -> bool:
        """Whether :meth:`receive` has left frames, so that it can go on without new data."""
        return self._buffer.size >= self._buffer.needed

    def _read(self, modifier1: int, kind: int, payload: bytes) -> Event | None:
        """Handle a frame of any kind."""
        if modifier1 == SESSION and kind in self._readers:
            return self._readers[kind](payload, kind)
        if modifier1 == PING:
            return self._read_ping(kind)
        raise MalformedPacket(f"a packet with the modifiers {modifier1} and {kind} within a session")

    def _read_begin(self, payload: bytes, kind: int) -> Event | None:
        have = len(payload) - _BEGIN_SIZE
        if have < 0:
            raise MalformedPacket("a session's frame ends within its head")
        head = _unpack_begin(payload)
        size = head[3]
        if have == size:
            return self._complete_message(kind, head, payload[_BEGIN_SIZE:])
        if have > size:
            raise MalformedPacket(f"a message of {size} bytes has a piece of {have}")
        if have < MIN_PIECE:
            raise MalformedPacket(f"a message of {size} bytes begins with a piece of {have}")
        if self._awaited is not None and head[0] not in self._awaited:
            return None
        announced = self.announced + size
        if announced > self.ours.max_message:
            raise PacketTooLarge(
                f"unfinished messages announce {announced} bytes, {self.ours.max_message} are accepted",
                size=announced,
                limit=self.ours.max_message,
            )
        if head[0] in self._incoming:
            raise MalformedPacket(f"message {head[0]} begins twice")
        if self._admits is not None and not self._admits(size):
            return RequestRefused(head[0], size)
        self.announced = announced
        incoming = self._incoming[head[0]] = _Incoming(kind, head)
        self._add(incoming, memoryview(payload)[_BEGIN_SIZE:])
        return None

    def _check_received(self, size: int) -> None:
        if size > self.ours.max_message:
            raise PacketTooLarge(
                f"a message of {size} bytes, {self.ours.max_message} are accepted",
                size=size,
                limit=self.ours.max_message,
            )

    def _read_more(self, payload: bytes, kind: int) -> Event | None:
        incoming = self._incoming.get(_id_of(payload))
        if incoming is None:  # the rest of a message that was cancelled or refused
            return None
        piece = memoryview(payload)[_ID_SIZE:]
        size = incoming.head[3]
        if incoming.have + len(piece) > size:
            raise MalformedPacket(f"the pieces of a message of {size} bytes are too long")
        self._add(incoming, piece)
        if incoming.have < size:
            if len(piece) < MIN_PIECE:
                raise MalformedPacket(f"a message of {size} bytes has a piece of {len(piece)}")
            return None
        self._forget_incoming(incoming.head[0])
        return self._complete_message(incoming.kind, incoming.head, incoming.payload.getvalue())

    def _add(self, incoming: _Incoming, piece: memoryview) -> None:
        incoming.payload.write(piece)
        incoming.have += len(piece)
        self.unfinished += len(piece)

    def _complete_message(self, kind: int, head: tuple[int, int, int, int, int], payload: bytes) -> Event:
        request, modifier1, modifier2, size, time = head
        if kind != ERROR:
            self._check_received(size)
        if kind == ERROR:
            self._outgoing.cancel(request)  # the peer may have refused it before its last piece
            self.streams.forget(request)
            peer = "" if request else decode_peer(payload)
            return ErrorReceived(request, decode_failure(payload), time / 1_000_000, peer)
        packet = Packet(modifier1, modifier2, payload)
        if kind == ANSWER:
            return AnswerReceived(request, packet, time / 1_000_000)
        return RequestReceived(request, packet, time / 1000 if time else None, kind == IDEMPOTENT)

    def _read_streamed(self, payload: bytes, kind: int) -> Event | None:
        """Read a message that is whole, and that a stream follows."""
        if len(payload) < _BEGIN_SIZE:
            raise MalformedPacket("a session's frame ends within its head")
        request, modifier1, modifier2, size, time = _unpack_begin(payload)
        if size != len(payload) - _BEGIN_SIZE:
            raise MalformedPacket(f"a message of {size} bytes in front of a stream is not in one frame")
        self._check_received(size)
        if kind == STREAMED_ANSWER and self._awaited is not None and request not in self._awaited:
            return None
        self.streams.open_incoming(request)
        packet = Packet(modifier1, modifier2, payload[_BEGIN_SIZE:])
        if kind == STREAMED_ANSWER:
            return StreamedAnswerReceived(request, packet)
        return StreamedRequestReceived(request, packet, time / 1000 if time else None)

    def _read_cancel(self, payload: bytes, kind: int) -> Event:
        request = _id_of(payload)
        self.streams.forget(request)
        self._forget_incoming(request)
        self._outgoing.cancel(request)
        return CancelReceived(request)

    def _read_shutdown(self, payload: bytes, kind: int) -> Event:
        return ShutdownReceived()

    def _read_ping(self, modifier2: int) -> Event:
        if modifier2:
            return PongReceived()
        self._outgoing.add_pong()
        return PingReceived()

    def _forget_incoming(self, request: int) -> None:
        incoming = self._incoming.pop(request, None)
        if incoming is not None:
            self.announced -= incoming.head[3]
            self.unfinished -= incoming.have

    # Sending

    def abandon(self) -> None:
        """Drop what has arrived in part, and what is not sent: the connection is closed.

        The owner is often part of a cycle of references, which Python frees late. What a peer has made this
        session hold must not wait for that.
        """
        self._buffer = ReceiveBuffer()
        self._incoming.clear()
        self.announced = self.unfinished = 0
        self._outgoing.clear()

    def check_size(self, size: int) -> None:
        """Check that the peer accepts a message of *size* bytes.

        :raises MessageTooLarge: if it doesn't.
        """
        if size > self._limit:
            raise MessageTooLarge(
                f"a message of {size} bytes; the peer accepts {self._limit}", size=size, limit=self._limit
            )

    def send_request(
        self, request: int, packet: Packet, seconds: float | None = None, *, idempotent: bool = False
    ) -> None:
        """Queue a request.

        :param request: an id that no request in flight has, at most :data:`MAX_ID`.
        :param seconds: the time until its deadline; None for no deadline.
        :param idempotent: whether it may run again if its worker dies.
        :raises MessageTooLarge: if the peer doesn't accept a message of this size; nothing is sent.
        """
        self._send(IDEMPOTENT if idempotent else REQUEST, request, packet, _milliseconds(seconds))

    def send_answer(self, request: int, packet: Packet, took: float = 0.0) -> None:
        """Queue the answer to a request.

        :param took: how long the handler ran, in seconds.
        :raises MessageTooLarge: if the peer doesn't accept a message of this size; nothing is sent.
        """
        self._send(ANSWER, request, packet, min(int(took * 1_000_000), _MAX_TIME) if took else 0)

    def send_streamed_request(self, request: int, packet: Packet, seconds: float | None = None) -> None:
        """Queue a request that a stream follows; its parameters and errors are those of :meth:`send_request`.

        :raises MessageTooLarge: also if the message in front of the stream doesn't fit one frame.
        :raises MisuseError: if the peer accepts no streams.
        """
        self._send_streamed(STREAMED_REQUEST, request, packet, _milliseconds(seconds))

    def send_streamed_answer(self, request: int, packet: Packet) -> None:
        """Queue the begin of an answer that a stream follows; its errors are those of a streamed request."""
        self._send_streamed(STREAMED_ANSWER, request, packet, 0)

    def _send_streamed(self, kind: int, request: int, packet: Packet, time: int) -> None:
        size = len(packet.payload)
        self.check_size(size)
        if size > FIRST_PIECE:
            raise MessageTooLarge(
                f"a message of {size} bytes in front of a stream; the limit is {FIRST_PIECE}",
                size=size,
                limit=FIRST_PIECE,
            )
        self.streams.open_outgoing(request)
        self._send(kind, request, packet, time)

    def send_error(self, request: int, failure: bytes, took: float = 0.0) -> None:
        """Answer a request with a failure, encoded by :mod:`~uwsgitwisted.wire.failure`; end its streams."""
        self.streams.forget(request)
        self._send(ERROR, request, Packet(0, 0, failure), min(int(took * 1_000_000), _MAX_TIME))

    def send_cancel(self, request: int) -> None:
        """Cancel a request. An answer may still arrive, if it raced with the cancel."""
        self._forget_incoming(request)
        self._outgoing.cancel(request)
        self.streams.forget(request)
        self._add_frame(SHORT_FRAME.pack(SESSION, _ID_SIZE, CANCEL, request))

    def send_shutdown(self) -> None:
        """Send a shutdown notice: this side sends, or accepts, no further requests."""
        self._add_frame(encode_packet(Packet(SESSION, SHUTDOWN)))

    def send_pong(self) -> None:
        """Send a keep-alive, whether the peer has sent a ping or not."""
        self._outgoing.add_pong()

    def send_ping(self) -> None:
        """Ping the peer, which answers with a keep-alive."""
        self._add_frame(encode_packet(Packet(PING, 0)))

    def _send(self, kind: int, request: int, packet: Packet, time: int) -> None:
        modifier1, modifier2, payload = packet
        size = len(payload)
        if size <= FIRST_PIECE and (size <= self._limit or kind == ERROR):
            head = _pack_frame(SESSION, _BEGIN_SIZE + size, kind, request, modifier1, modifier2, size, time)
            self._add_frame(head + payload)
            return
        self.check_size(size)
        self._outgoing.add_message(Message(kind, request, packet, time))

    def is_sending(self, request: int) -> bool:
        """Whether a message with this id is being sent in pieces."""
        return request in self._outgoing

    @property
    def sending(self) -> bool:
        """Whether :meth:`data_to_send` has bytes to write."""
        return bool(self._outgoing)

    @property
    def backlog(self) -> int:
        """Roughly how many bytes wait to be sent."""
        return self._outgoing.size

    @property
    def backlog_memory(self) -> int:
        """Roughly how much memory the waiting bytes take. A message is freed when its last piece is sent."""
        return self._outgoing.memory


def _milliseconds(seconds: float | None) -> int:
    """Return the time until a deadline as a request has it."""
    if seconds is None:
        return 0
    milliseconds = seconds * 1000
    if 1 <= milliseconds <= _MAX_TIME:
        return int(milliseconds)
    return _MAX_TIME if milliseconds > 1 else 1


def _id_of(payload: bytes) -> int:
    if len(payload) < _ID_SIZE:
        raise MalformedPacket("a session's frame ends within its head")
    request: int = ID.unpack_from(payload)[0]
    return request
