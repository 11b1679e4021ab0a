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
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from io import BytesIO
from typing import NamedTuple

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, PacketTooLarge, UwsgiError
from uwsgitwisted.wire.failure import decode_failure
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
)
from uwsgitwisted.wire.outgoing import Message, Outgoing
from uwsgitwisted.wire.packet import (
    HEADER_SIZE,
    PING,
    SESSION,
    Packet,
    ReceiveBuffer,
    encode_packet,
    unpack_header,
)
from uwsgitwisted.wire.terms import Terms

_pack_frame = FRAME.pack
_unpack_frame = FRAME.unpack_from
_FRAME_SIZE = FRAME.size
_unpack_begin = BEGIN.unpack_from
_BEGIN_SIZE = BEGIN.size
_ID_SIZE = ID.size

# Makes a named tuple in half the time that calling its class takes.
_new = tuple.__new__

#: More frames than ever come at once.
_ALL = sys.maxsize

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


class RequestRefused(NamedTuple):
    """A request began to arrive that is not admitted; its pieces are thrown away."""

    id: int
    size: int


class ShutdownReceived(NamedTuple):
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
    | RequestRefused
    | ShutdownReceived
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


class Session:
    """One side of a session.

    Give :meth:`receive` what the connection brings and act on its events; say what to send with the ``send_``
    methods, and write what :meth:`data_to_send` returns until it returns nothing.

    :param role: which side this is.
    :param ours: what this side takes.
    :param theirs: what the peer takes, from its ping.
    :param awaited: the ids of a client's requests that still want an answer. What begins to arrive for another
        one, with whose cancel it raced, is not kept: the peer, told so, may never finish it.
    :param admits: whether a server has room for a message of so many bytes that comes in pieces; it is asked
        when the first piece is there. None for any.
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
        #: How many bytes the messages have that are not whole yet.
        self.announced = 0
        #: How many bytes have arrived of messages that are not whole yet.
        self.unfinished = 0
        self._outgoing = Outgoing(self._limit)
        self._add_frame = self._outgoing.add
        #: Returns bytes to write, or none: see :meth:`~uwsgitwisted.wire.outgoing.Outgoing.take`.
        self.data_to_send = self._outgoing.take
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

    # Receiving

    def receive(self, data: bytes = b"", most: int = _ALL) -> list[Event]:
        """Take *data* from the connection and return what it completes.

        :param most: how many frames to read at most. If :attr:`more` is true then, others are there to be read.
        :raises ProtocolError: if the peer breaks the protocol; the connection must be closed then.
        """
        events: list[Event] = []
        position = 0
        if self._buffer.size:
            data, position = self._buffer.take(data)
        # Whole requests and answers are nearly all of a busy session's frames: they are taken at once.
        whole, limit, available = self._whole_kinds, self.ours.max_message, len(data)
        while available - position >= _FRAME_SIZE and len(events) < most:
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
        if position < available:
            self._receive_others(data, position, most - len(events), events)
        return events

    def _receive_others(self, data: bytes, position: int, most: int, events: list[Event]) -> None:
        """Take frames of any kind, and keep what is not read."""
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
        """Whether frames have come that :meth:`receive` has not read, so that it can go on without new data."""
        return self._buffer.size >= self._buffer.needed

    def _read(self, modifier1: int, kind: int, payload: bytes) -> Event | None:
        """Take a frame of any kind."""
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
            return self._whole(kind, head, payload[_BEGIN_SIZE:])
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
            self._outgoing.cancel(request)  # the peer has refused it before its end
            return ErrorReceived(request, decode_failure(payload), time / 1_000_000)
        packet = Packet(modifier1, modifier2, payload)
        if kind == ANSWER:
            return AnswerReceived(request, packet, time / 1_000_000)
        return RequestReceived(request, packet, time / 1000 if time else None, kind == IDEMPOTENT)

    def _read_cancel(self, payload: bytes, kind: int) -> Event:
        request = _id_of(payload)
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
        milliseconds = 0 if seconds is None else int(max(1.0, min(seconds * 1000, _MAX_TIME)))
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
        self._outgoing.cancel(request)
        self._add_frame(SHORT_FRAME.pack(SESSION, _ID_SIZE, CANCEL, request))

    def send_shutdown(self) -> None:
        """Tell the peer that no further request is sent, or taken."""
        self._add_frame(encode_packet(Packet(SESSION, SHUTDOWN)))

    def send_pong(self) -> None:
        """Tell the peer that this side lives, whether it asks or not."""
        self._outgoing.add_pong()

    def send_ping(self) -> None:
        """Ask the peer for a keep-alive."""
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
        """Whether a message of that id is being sent in pieces."""
        return request in self._outgoing

    @property
    def sending(self) -> bool:
        """Whether :meth:`data_to_send` has something."""
        return bool(self._outgoing)

    @property
    def backlog(self) -> int:
        """About how many bytes wait to be sent."""
        return self._outgoing.size

    @property
    def backlog_memory(self) -> int:
        """About how many bytes of memory what waits to be sent takes: a message goes when its end is sent."""
        return self._outgoing.memory


def _id_of(payload: bytes) -> int:
    if len(payload) < _ID_SIZE:
        raise MalformedPacket("a session's frame ends within its head")
    request: int = ID.unpack_from(payload)[0]
    return request
