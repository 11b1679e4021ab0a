"""Targets of the session machine: a peer that sends anything, and two machines that speak to each other.

The input is a program: each byte names a step. The machine is driven through its public interface only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.attacks.hostile import frames
from tests.fuzz.source import Source
from uwsgitwisted.errors import Busy, MessageTooLarge, ProtocolError
from uwsgitwisted.wire.events import AnswerReceived, CancelReceived, ErrorReceived, Event, RequestReceived
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.packet import PING, SESSION, Packet, encode_packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import Terms

_LIMITS = (1 << 20, 70_000, 5_000, 100, 0)
#: Sizes of messages and of pieces, with those at which something changes.
_SIZES = (0, 1, 100, 4_095, 4_096, 5_000, 65_521, 65_522, 65_531, 70_000, 140_000, 1 << 20, 0xFFFFFFFF)
_REPEATED = (1, 1, 1, 1, 1, 1, 2, 40, 4_000)
#: How many bytes a step of the peer brings at most.
_FED = 200_000
#: How many bytes one of our own steps sends or writes at most.
_SENT = 4_000_000
_LARGEST_PIECE = 65_521
#: Further bytes that may wait to be sent because of what the peer sent: one pong, and what counting it costs.
_PONG = 256
#: What a step counts for beside its bytes.
_STEP = 10
_ZEROS = bytes(1 << 20)


@dataclass
class _Driven:
    """A machine that a program drives, and what the program has given to it."""

    session: Session
    role: Role
    fed: int = 0
    work: int = 0
    #: Bytes that our own side queued.
    queued: int = 0
    returned: int = 0
    pending: bytes = b""
    kinds: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = (
            (frames.REQUEST, frames.IDEMPOTENT) if self.role is Role.SERVER else (frames.ANSWER, frames.ERROR)
        )

    def receive(self, data: bytes) -> None:
        self.fed += len(data)
        self.work += len(data) + _STEP
        for event in self.session.receive(data):
            self.returned += _size_of(event)
            self.work += _STEP
        self.check()

    def check(self) -> None:
        """See that what the machine keeps is bounded by what came, and by the terms."""
        session = self.session
        assert self.returned <= self.fed, "more bytes in events than have come"
        assert 0 <= session.unfinished <= min(self.fed, session.ours.max_message), "unfinished messages"
        assert session.sending or session.backlog == 0, "a backlog of nothing"
        assert session.backlog <= 4 * self.queued + _PONG, "the peer makes the backlog grow"


def _size_of(event: Event) -> int:
    if isinstance(event, (RequestReceived, AnswerReceived)):
        return len(event.packet.payload)
    return len(str(event.error)) // 4 if isinstance(event, ErrorReceived) else 0


# What the peer sends.


def _begin(source: Source, driven: _Driven) -> bytes:
    kind, request = source.choose((*driven.kinds, *range(1, 9))), source.byte() % 8
    size, have = source.choose(_SIZES), min(source.choose(_SIZES), _LARGEST_PIECE)
    if source.byte() % 2:
        have = min(size, have)
    return frames.begin(
        request, _ZEROS[:have], size=size, kind=kind, modifiers=(33, source.byte()), time=source.byte()
    )


def _more(source: Source, driven: _Driven) -> bytes:
    piece = _ZEROS[: min(source.choose(_SIZES), 65_531)]
    return frames.more(source.byte() % 8, piece)


def _short(source: Source, driven: _Driven) -> bytes:
    kind = source.choose((frames.CANCEL, frames.SHUTDOWN, frames.MORE, *range(9)))
    return encode_packet(Packet(SESSION, kind, struct.pack("<I", source.byte() % 8)[: source.byte() % 6]))


def _cancel(source: Source, driven: _Driven) -> bytes:
    first = source.byte() % 8
    return b"".join(frames.cancel(first + count) for count in range(_repeated(source)))


def _ping(source: Source, driven: _Driven) -> bytes:
    return encode_packet(Packet(PING, source.byte() % 3, source.take(source.byte() % 4)))


def _failure(source: Source, driven: _Driven) -> bytes:
    block = source.take(source.byte())
    return frames.begin(source.byte() % 8, block, kind=frames.ERROR, modifiers=(0, 0))


def _junk(source: Source, driven: _Driven) -> bytes:
    return source.take(source.byte())


_FRAMES: tuple[Callable[[Source, _Driven], bytes], ...] = (
    _begin,
    _more,
    _short,
    _cancel,
    _ping,
    _failure,
    _junk,
)


def _repeated(source: Source) -> int:
    return source.choose(_REPEATED)


def _feed(source: Source, driven: _Driven) -> None:
    """Have the peer send a frame, perhaps many times, perhaps in chunks or not to its end."""
    data = source.choose(_FRAMES)(source, driven)
    data *= min(_repeated(source), _FED // max(1, len(data)) + 1)
    data = driven.pending + data[:_FED]
    kept = source.byte() % 8
    driven.pending = data[len(data) - kept :] if kept else b""
    data = data[: len(data) - kept]
    for chunk in source.cut(data) if len(data) < 50_000 else (data,):
        driven.receive(chunk)


# What our own side does.


def _send(source: Source, driven: _Driven) -> None:
    session = driven.session
    first, payload = source.byte() % 8, _ZEROS[: source.choose(_SIZES)]
    size, times = len(payload), _repeated(source)
    if size <= frames.FIRST_PIECE:  # it is copied
        times = min(times, _SENT // max(1, size))
    send = session.send_answer if driven.role is Role.SERVER else session.send_request
    for count in range(times):
        driven.work += _STEP
        driven.queued += size + 64
        try:
            send(first + count, Packet(33, 0, payload))
        except MessageTooLarge:
            assert size > session.theirs.max_message
    driven.check()


def _send_error(source: Source, driven: _Driven) -> None:
    failure = encode_failure(Busy("x" * source.byte()))
    driven.session.send_error(source.byte() % 8, failure)
    driven.queued += len(failure) + 64


def _send_short(source: Source, driven: _Driven) -> None:
    session = driven.session
    source.choose((session.send_ping, session.send_shutdown, lambda: session.send_cancel(source.byte() % 8)))()
    driven.queued += 64


def _write(source: Source, driven: _Driven) -> None:
    size = source.choose((65_535, 1, 100, 5_000, 1 << 20))
    for _ in range(min(_repeated(source), _SENT // size)):
        data = driven.session.data_to_send(size)
        driven.work += len(data) + _STEP
    driven.check()


_STEPS: tuple[Callable[[Source, _Driven], None], ...] = (_feed, _feed, _send, _send_error, _send_short, _write)


def hostile_peer(data: bytes) -> int:
    """Drive one machine, of either role, with frames of a peer that keeps to no rule."""
    source = Source(data)
    role = source.choose((Role.SERVER, Role.CLIENT))
    ours, theirs = (Terms(max_message=source.choose(_LIMITS)) for _ in range(2))
    awaited = {1, 2, 3} if role is Role.CLIENT and source.byte() % 2 else None
    driven = _Driven(Session(role, ours, theirs, awaited=awaited), role)
    try:
        while source:
            source.choose(_STEPS)(source, driven)
    except ProtocolError:
        pass
    return driven.work


class _Conversation:
    """A client and a server that keep to the rules, and the bytes between them."""

    def __init__(self, source: Source) -> None:
        ours, theirs = (Terms(max_message=source.choose(_LIMITS)) for _ in range(2))
        self.awaited: dict[int, bytes] = {}
        self.client = Session(Role.CLIENT, ours, theirs, awaited=self.awaited)
        self.server = Session(Role.SERVER, theirs, ours)
        #: What the client has asked for, and what the server has to answer with, by request.
        self.asked: dict[int, bytes] = {}
        self.open: dict[int, bytes] = {}
        self.cancelled: set[int] = set()
        self.finished: dict[int, bytes] = {}
        self.count = 0
        self.work = 0
        self._wires = {self.client: bytearray(), self.server: bytearray()}

    def ask(self, source: Source) -> None:
        """Send a request whose payload is like no other's."""
        self.count += 1
        payload = struct.pack("<I", self.count) * (min(source.choose(_SIZES), 140_000) // 4)
        try:
            self.client.send_request(self.count, Packet(33, 1, payload))
        except MessageTooLarge:
            return
        self.asked[self.count] = self.awaited[self.count] = payload

    def answer(self, source: Source) -> None:
        """Answer a request with its own payload, cut to what the client takes; or with an error."""
        if not self.open:
            return
        request = source.choose(list(self.open)[:256])
        payload = self.open.pop(request)
        if source.byte() % 4 == 3 or len(payload) > self.server.theirs.max_message:
            self.server.send_error(request, encode_failure(Busy(f"{request}")))
        else:
            self.server.send_answer(request, Packet(33, 1, payload))

    def cancel(self, source: Source) -> None:
        """Cancel a request."""
        if self.awaited:
            request = source.choose(list(self.awaited)[:256])
            del self.awaited[request]
            self.cancelled.add(request)
            self.client.send_cancel(request)

    def ping(self, source: Source) -> None:
        """Have a side ping the other."""
        source.choose((self.client, self.server)).send_ping()

    def move(self, source: Source) -> None:
        """Deliver some bytes of one side to the other."""
        sender = source.choose((self.client, self.server))
        wire = self._wires[sender]
        wire += sender.data_to_send()
        size = source.choose((65_535, 1, 5, 19, 300, 5_000, 1 << 20))
        self._deliver(sender, bytes(wire[:size]))
        del wire[:size]

    def finish(self) -> None:
        """Answer all that is open, and deliver all, until nobody has anything to say."""
        moved = True
        while moved:
            moved = False
            for sender, wire in self._wires.items():
                data = bytes(wire) + sender.data_to_send()
                wire.clear()
                self._deliver(sender, data)
                moved = moved or bool(data)
            while self.open:
                moved = True
                self.answer(Source(b""))

    def _deliver(self, sender: Session, data: bytes) -> None:
        self.work += len(data) + _STEP
        receiver = self.server if sender is self.client else self.client
        for event in receiver.receive(data):
            self.work += _STEP
            if isinstance(event, RequestReceived):
                assert event.packet.payload == self.asked[event.id], "another request than was sent"
                self.open[event.id] = event.packet.payload
            elif isinstance(event, CancelReceived):
                self.open.pop(event.id, None)
            elif isinstance(event, (AnswerReceived, ErrorReceived)):
                self._take_answer(event)

    def _take_answer(self, event: AnswerReceived | ErrorReceived) -> None:
        assert event.id in self.asked, "an answer to nothing"
        assert event.id not in self.finished, "two answers to one request"
        if isinstance(event, AnswerReceived):
            assert event.packet.payload == self.asked[event.id], "another answer than was sent"
        self.finished[event.id] = b""
        self.awaited.pop(event.id, None)


_TALK = (
    _Conversation.ask,
    _Conversation.answer,
    _Conversation.move,
    _Conversation.move,
    _Conversation.cancel,
    _Conversation.ping,
)


def conversation(data: bytes) -> int:
    """Have two machines talk; whatever the order and the chunks, each request gets its own answer."""
    source = Source(data)
    talk = _Conversation(source)
    while source:
        source.choose(_TALK)(talk, source)
    talk.finish()
    assert not talk.awaited, f"no answer to {sorted(talk.awaited)}"
    assert talk.client.unfinished == talk.server.unfinished == 0 or talk.cancelled, "unfinished messages"
    assert not talk.client.sending
    assert not talk.server.sending
    return talk.work
