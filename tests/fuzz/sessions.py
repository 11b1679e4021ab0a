"""Targets of the session machine: a peer that sends anything, and two machines that speak to each other.

The input is a program: each byte names a step. The machine is driven through its public interface only. Each
target has a variant with streams, whose programs have more steps.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.attacks.hostile import frames
from tests.fuzz.source import Source
from uwsgitwisted.errors import Busy, MessageTooLarge, MisuseError, ProtocolError
from uwsgitwisted.wire.events import (
    AnswerReceived,
    CancelReceived,
    DataReceived,
    EndReceived,
    ErrorReceived,
    Event,
    RequestReceived,
    StreamedAnswerReceived,
    StreamedRequestReceived,
    WindowGranted,
)
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.packet import PING, SESSION, Packet, encode_packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import Terms

_LIMITS = (1 << 20, 70_000, 5_000, 100, 0)
_WINDOWS = (200_000, 70_000, 5_000, 1, 0, 0xFFFFFFFF)
#: The kinds of the frames of streams.
_STREAMED_REQUEST, _STREAMED_ANSWER, _DATA, _END, _WINDOW = range(8, 13)
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
    #: How many more bytes each stream of the peer may have.
    allowed: dict[int, int] = field(default_factory=dict)
    #: How many bytes of each were used, and not granted again.
    used: dict[int, int] = field(default_factory=dict)
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
            self._note(event)
        self.check()

    def _note(self, event: Event) -> None:
        """See that no stream has more bytes than were granted."""
        if isinstance(event, (StreamedRequestReceived, StreamedAnswerReceived)):
            self.allowed[event.id] = self.session.ours.window
            self.used[event.id] = 0
        elif isinstance(event, DataReceived):
            assert event.data, "a piece without a byte"
            self.allowed[event.id] -= len(event.data)
            assert self.allowed[event.id] >= 0, "more bytes than the window"
        elif isinstance(event, EndReceived):
            del self.allowed[event.id]
        elif isinstance(event, WindowGranted):
            assert 0 <= self.session.streams.credit(event.id) <= 0xFFFFFFFF, "more credit than fits"

    def check(self) -> None:
        """See that what the machine keeps is bounded by what came, and by the terms."""
        session = self.session
        assert self.returned <= self.fed, "more bytes in events than have come"
        assert 0 <= session.unfinished <= min(self.fed, session.ours.max_message), "unfinished messages"
        assert session.sending or session.backlog == 0, "a backlog of nothing"
        assert session.backlog <= 4 * self.queued + _PONG, "the peer makes the backlog grow"


def _size_of(event: Event) -> int:
    if isinstance(event, (RequestReceived, AnswerReceived, StreamedRequestReceived, StreamedAnswerReceived)):
        return len(event.packet.payload)
    if isinstance(event, DataReceived):
        return len(event.data)
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


def _begin_stream(source: Source, driven: _Driven) -> bytes:
    ours, other = _STREAMED_REQUEST, _STREAMED_ANSWER
    if driven.role is Role.CLIENT:
        ours, other = other, ours
    kind, request = source.choose((ours, ours, ours, other)), source.byte() % 8
    have = min(source.choose(_SIZES), _LARGEST_PIECE)
    size = have + source.choose((0, 0, 0, 0, 0, 0, 0, 1))
    return frames.begin(request, _ZEROS[:have], size=size, kind=kind, modifiers=(33, 0), time=source.byte())


def _data(source: Source, driven: _Driven) -> bytes:
    request, size = source.byte() % 8, min(source.choose(_SIZES), 65_531)
    if driven.allowed and source.byte() % 8:  # otherwise it is not granted, or of no stream
        request = source.choose(list(driven.allowed))
        size = max(1, min(size, driven.allowed[request]))
    return frames.frame(_DATA, struct.pack("<I", request) + _ZEROS[:size])


def _pair(source: Source, driven: _Driven) -> bytes:
    kind, request, number = source.choose((_END, _WINDOW)), source.byte() % 8, source.choose(_SIZES)
    return frames.frame(kind, struct.pack("<II", request, number)[: 8 - source.byte() % 8 // 7])


_Frames = tuple[Callable[[Source, _Driven], bytes], ...]
_FRAMES: _Frames = (
    _begin,
    _more,
    _short,
    _cancel,
    _ping,
    _failure,
    _junk,
)
_STREAM_FRAMES: _Frames = (*_FRAMES, _begin_stream, _begin_stream, _data, _data, _pair, _pair)


def _repeated(source: Source) -> int:
    return source.choose(_REPEATED)


def _feed(source: Source, driven: _Driven) -> None:
    """Have the peer send a frame, perhaps many times, perhaps in chunks or not to its end."""
    streams = driven.session.ours.window or driven.session.theirs.window
    data = source.choose(_STREAM_FRAMES if streams else _FRAMES)(source, driven)
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
        if session.is_sending(first + count):  # its owner knows that, and never does it
            continue
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


def _send_stream(source: Source, driven: _Driven) -> None:
    """Begin a stream."""
    session = driven.session
    send = session.send_streamed_answer if driven.role is Role.SERVER else session.send_streamed_request
    size = source.choose(_SIZES)
    try:
        send(source.byte() % 8, Packet(33, 0, _ZEROS[:size]))
    except MessageTooLarge:
        assert min(size, len(_ZEROS)) > min(session.theirs.max_message, frames.FIRST_PIECE)
    except MisuseError:
        assert not session.theirs.window
    else:
        driven.queued += size + 64


def _send_data(source: Source, driven: _Driven) -> None:
    """Send a part of a stream, as far as the peer has granted it."""
    request = source.byte() % 8
    size = min(source.choose(_SIZES), driven.session.streams.credit(request), len(_ZEROS))
    driven.session.streams.send(request, _ZEROS[:size])
    driven.queued += size + 64 * (1 + size // frames.NEXT_PIECE)
    driven.work += size
    driven.check()


def _end_stream(source: Source, driven: _Driven) -> None:
    request = source.byte() % 8
    driven.session.streams.send_end(request, source.byte())
    assert driven.session.streams.credit(request) == 0
    driven.queued += 64


def _grant(source: Source, driven: _Driven) -> None:
    """Grant more of a stream of the peer, if it is known."""
    request, size = source.byte() % 8, min(source.choose(_SIZES), 1 << 20)
    driven.session.streams.grant(request, size)
    if request in driven.allowed:
        driven.allowed[request] += size
    driven.queued += 64


def _use(source: Source, driven: _Driven) -> None:
    """Use bytes of a stream of the peer; some of them are granted again at times."""
    request, size = source.byte() % 8, min(source.choose(_SIZES), 1 << 20)
    driven.used[request] = driven.used.get(request, 0) + size
    if driven.session.streams.use(request, size):
        driven.allowed[request] += driven.used[request]
        driven.used[request] = 0
        driven.queued += 64


def _forget(source: Source, driven: _Driven) -> None:
    driven.session.streams.forget(source.byte() % 8)


_Steps = tuple[Callable[[Source, _Driven], None], ...]
_STEPS: _Steps = (_feed, _feed, _send, _send_error, _send_short, _write)
_STREAM_STEPS: _Steps = (*_STEPS, _feed, _send_stream, _send_data, _end_stream, _grant, _use, _forget)


def streaming_peer(data: bytes) -> int:
    """Do the same with a machine that accepts streams, or sends them."""
    return hostile_peer(data, streams=True)


def _terms(source: Source, *, streams: bool) -> Terms:
    return Terms(max_message=source.choose(_LIMITS), window=source.choose(_WINDOWS) if streams else 0)


def hostile_peer(data: bytes, *, streams: bool = False) -> int:
    """Drive one machine, of either role, with frames of a peer that keeps to no rule."""
    source = Source(data)
    role = source.choose((Role.SERVER, Role.CLIENT))
    ours, theirs = (_terms(source, streams=streams) for _ in range(2))
    awaited = {1, 2, 3} if role is Role.CLIENT and source.byte() % 2 else None
    driven = _Driven(Session(role, ours, theirs, awaited=awaited), role)
    try:
        while source:
            source.choose(_STREAM_STEPS if streams else _STEPS)(source, driven)
    except ProtocolError:
        pass
    return driven.work


@dataclass
class _Flow:
    """A stream between two sides that keep to the rules.

    :param content: all of it.
    """

    content: bytes
    sent: int = 0
    arrived: int = 0
    #: How many bytes have arrived and were not granted again.
    used: int = 0
    ended: bool = False


class _Conversation:
    """A client and a server that keep to the rules, and the bytes between them."""

    def __init__(self, source: Source, *, streams: bool = False) -> None:
        ours, theirs = (_terms(source, streams=streams) for _ in range(2))
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
        #: The streams that a side sends, by request.
        self.flows: dict[Session, dict[int, _Flow]] = {self.client: {}, self.server: {}}
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
        self.server.streams.forget(request)

    def cancel(self, source: Source) -> None:
        """Cancel a request."""
        if self.awaited:
            request = source.choose(list(self.awaited)[:256])
            del self.awaited[request]
            self.cancelled.add(request)
            self.client.send_cancel(request)
            if request in self.flows[self.client]:  # some of it may still be on its way
                self.flows[self.client][request].ended = True

    def ask_with_stream(self, source: Source) -> None:
        """Send a request that a stream follows."""
        self.count += 1
        payload = struct.pack("<I", self.count)
        try:
            self.client.send_streamed_request(self.count, Packet(33, 1, payload))
        except MisuseError:
            return
        self.asked[self.count] = self.awaited[self.count] = payload
        self.flows[self.client][self.count] = self._flow(source, self.count)

    def answer_with_stream(self, source: Source) -> None:
        """Answer a request with its own payload, and a stream behind it."""
        if not self.open:
            return
        request = source.choose(list(self.open)[:256])
        try:
            self.server.send_streamed_answer(request, Packet(33, 1, self.open[request]))
        except MisuseError:
            return
        del self.open[request]
        self.flows[self.server][request] = self._flow(source, request)

    def _flow(self, source: Source, request: int) -> _Flow:
        window = min(self.client.ours.window, self.server.ours.window)
        size = min(source.choose(_SIZES), 140_000, 100 * window)  # with a small window, each byte takes long
        return _Flow(struct.pack("<I", request) * (size // 4))

    def send_part(self, source: Source) -> None:
        """Send a part of a stream, as far as the other side has granted it, or its end."""
        sender = source.choose((self.client, self.server))
        flows = [request for request, flow in self.flows[sender].items() if not flow.ended]
        if flows:
            self._send_part(sender, source.choose(flows[:256]), source.choose(_SIZES))

    def _send_part(self, sender: Session, request: int, most: int) -> bool:
        flow = self.flows[sender][request]
        size = min(most, sender.streams.credit(request), len(flow.content) - flow.sent)
        sender.streams.send(request, flow.content[flow.sent : flow.sent + size])
        flow.sent += size
        if flow.sent == len(flow.content):
            flow.ended = True
            sender.streams.send_end(request)
            if sender is self.server:
                sender.streams.forget(request)  # it is answered, so that nobody wants its body
        return bool(size) or flow.ended

    def grant(self, source: Source) -> None:
        """Grant a part of what has arrived."""
        sender = source.choose((self.client, self.server))
        flows = [request for request, flow in self.flows[sender].items() if flow.used]
        if flows:
            self._grant(sender, source.choose(flows[:256]), source.choose(_SIZES))

    def _grant(self, sender: Session, request: int, most: int) -> None:
        flow = self.flows[sender][request]
        size = min(flow.used, max(1, most))
        flow.used -= size
        streams = self._receiver(sender).streams
        (streams.use if request % 2 else streams.grant)(request, size)

    def _receiver(self, sender: Session) -> Session:
        return self.server if sender is self.client else self.client

    def _go_on(self) -> bool:
        """Grant and send all that can be; return whether that was something."""
        moved = False
        for sender, flows in self.flows.items():
            for request, flow in list(flows.items()):
                if flow.used:
                    moved = True
                    self._grant(sender, request, flow.used)
                if not flow.ended and sender.streams.credit(request):
                    moved = self._send_part(sender, request, 1 << 20) or moved
        return moved

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
            moved = self._go_on() or moved
            while self.open:
                moved = True
                self.answer(Source(b""))

    def _deliver(self, sender: Session, data: bytes) -> None:
        self.work += len(data) + _STEP
        for event in self._receiver(sender).receive(data):
            self.work += _STEP
            if isinstance(event, DataReceived):
                self._take_data(sender, event)
            elif isinstance(event, EndReceived):
                self._take_end(sender, event)
            elif isinstance(event, StreamedAnswerReceived):
                assert event.packet.payload == self.asked[event.id], "another answer than was sent"
            elif isinstance(event, (RequestReceived, StreamedRequestReceived)):
                assert event.packet.payload == self.asked[event.id], "another request than was sent"
                self.open[event.id] = event.packet.payload
            elif isinstance(event, CancelReceived):
                self.open.pop(event.id, None)
                for flows in self.flows.values():
                    flows.pop(event.id, None)
            elif isinstance(event, (AnswerReceived, ErrorReceived)):
                self._take_answer(event)

    def _take_data(self, sender: Session, event: DataReceived) -> None:
        flow = self.flows[sender][event.id]
        end = flow.arrived + len(event.data)
        assert event.data == flow.content[flow.arrived : end], "other bytes than were sent"
        assert end - flow.arrived + flow.used <= self._receiver(sender).ours.window, "more than a window"
        flow.arrived = end
        flow.used += len(event.data)

    def _take_end(self, sender: Session, event: EndReceived) -> None:
        flow = self.flows[sender].pop(event.id)
        assert flow.arrived == len(flow.content), "an end before all has arrived"
        if sender is self.server:
            self._end_answer(event.id)

    def _end_answer(self, request: int) -> None:
        assert request not in self.finished, "two answers to one request"
        self.finished[request] = b""
        self.awaited.pop(request, None)
        self.client.streams.forget(request)
        self.flows[self.client].pop(request, None)

    def _take_answer(self, event: AnswerReceived | ErrorReceived) -> None:
        assert event.id in self.asked, "an answer to nothing"
        if isinstance(event, AnswerReceived):
            assert event.packet.payload == self.asked[event.id], "another answer than was sent"
        self._end_answer(event.id)


_TALK = (
    _Conversation.ask,
    _Conversation.answer,
    _Conversation.move,
    _Conversation.move,
    _Conversation.cancel,
    _Conversation.ping,
)


_TALK_WITH_STREAMS = (
    *_TALK,
    _Conversation.ask_with_stream,
    _Conversation.answer_with_stream,
    _Conversation.send_part,
    _Conversation.send_part,
    _Conversation.move,
    _Conversation.grant,
)


def streaming_conversation(data: bytes) -> int:
    """Do the same with requests and answers that are followed by streams."""
    return conversation(data, streams=True)


def conversation(data: bytes, *, streams: bool = False) -> int:
    """Have two machines talk; whatever the order and the chunks, each request gets its own answer."""
    source = Source(data)
    talk = _Conversation(source, streams=streams)
    while source:
        source.choose(_TALK_WITH_STREAMS if streams else _TALK)(talk, source)
    talk.finish()
    assert not talk.awaited, f"no answer to {sorted(talk.awaited)}"
    assert talk.client.unfinished == talk.server.unfinished == 0 or talk.cancelled, "unfinished messages"
    assert not talk.client.sending
    assert not talk.server.sending
    return talk.work
