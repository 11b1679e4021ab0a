"""The server's side of a connection: bytes to requests, answers to bytes, with a limit on everything.

A connection starts as plain uwsgi: one request, one answer, then it is closed. If the first packet offers a
session (see :mod:`uwsgitwisted.wire.session`), the server answers with its terms, and a
:class:`~uwsgitwisted.transport.server.session.ServerSession` takes over the connection.

A body may follow a plain packet, as nginx sends it. A responder gets both as one message, as it would in a
session.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.access import Peer
from uwsgitwisted.errors import Busy, MessageTooLarge, ProtocolError, UwsgiError
from uwsgitwisted.interfaces import Answer, Request, StreamedAnswer, TimedAnswer
from uwsgitwisted.stream import Stream
from uwsgitwisted.transport.handover import hand_over
from uwsgitwisted.transport.server.bodies import HELD, HeldBody, StreamedBody
from uwsgitwisted.transport.server.session import ServerSession
from uwsgitwisted.transport.server.streams import StreamSender
from uwsgitwisted.transport.timer import Deadlines
from uwsgitwisted.transport.writer import Writer, has_unread, read_more_at_once, set_nodelay
from uwsgitwisted.wire.message import answer_encoder
from uwsgitwisted.wire.packet import MAX_PAYLOAD, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.terms import Terms, decode_offer

if TYPE_CHECKING:
    from uwsgitwisted.transport.server.factory import ServerFactory

#: What an answer may hold that is passed on as a stream, in bytes: a part that waits, and one that is written.
STREAM_MEMORY = 2 * HELD
#: The body timeout starts again after this many bytes of a body.
_BODY_STEP = MAX_PAYLOAD


class _State(enum.Enum):
    """The states of a connection. :data:`_BEHAVIOUR` says what a connection does in each."""

    HEADER = enum.auto()
    PACKET = enum.auto()
    BODY = enum.auto()
    #: The responder has the request, and its body is still arriving.
    UPLOADING = enum.auto()
    ANSWERING = enum.auto()
    #: The same, but the peer has closed its sending side.
    HALF_CLOSED = enum.auto()
    #: The answer is written; whatever the peer still sends is dropped.
    LINGERING = enum.auto()
    #: The answer is being sent.
    CLOSING = enum.auto()
    SESSION = enum.auto()
    CLOSED = enum.auto()

    # That of Enum is a function in Python, and every event looks its state up.
    __hash__ = object.__hash__


#: The states before a request is complete, or its responder has it.
_ARRIVING = (_State.HEADER, _State.PACKET, _State.BODY)
#: The states in which an answer may be sent.
_ANSWERABLE = (_State.UPLOADING, _State.ANSWERING, _State.HALF_CLOSED)


@implementer(IHalfCloseableProtocol)
class ServerProtocol(Protocol):
    """One connection of a :class:`~uwsgitwisted.transport.server.factory.ServerFactory`.

    Its state decides how it reacts to events: see :data:`_BEHAVIOUR`.

    :param peer: the other end.
    """

    _log = Logger()

    def __init__(self, factory: ServerFactory, peer: Peer) -> None:
        self._factory = factory
        self.peer = peer
        self._limits = factory.limits
        self._account = factory.budget.account(peer.group)
        self._state = _State.HEADER
        self._since = 0.0
        self._deadlines: Deadlines[ServerProtocol] | None = None
        self._decoder = PacketDecoder(limit=factory.limits.max_packet, count=1)
        self._body: HeldBody | StreamedBody | None = None
        self._sender: StreamSender | None = None
        self._answer: Deferred[Answer] | None = None
        self._encode: Callable[[Packet], bytes] = encode_packet
        self._ended_by_peer = False
        self._session: ServerSession | None = None
        #: How many unexpected bytes have come; negative while a body is being dropped.
        self._ignored = 0
        self._writer: Writer | None = None

    def connectionMade(self) -> None:
        """Wait for a header."""
        self._factory.connections.add(self)
        self._enter(_State.HEADER)

    def _enter(self, state: _State) -> None:
        """Enter a state, and start its time limit, if it has one, and the peer is read."""
        if self._deadlines is not None:
            self._deadlines.discard(self)
        self._state = state
        self._deadlines = _BEHAVIOUR[state].deadlines(self._factory)
        paused = isinstance(self._body, StreamedBody) and self._body.paused
        if self._deadlines is not None and not paused:
            self._deadlines.add(self)

    # Events

    def dataReceived(self, data: bytes) -> None:
        """Handle bytes from the peer. Those of a session go directly to the session."""
        _BEHAVIOUR[self._state].receive(self, data)

    def readConnectionLost(self) -> None:
        """Go on answering a peer that has only closed its sending side, if its request is complete."""
        _BEHAVIOUR[self._state].half_close(self)

    def writeConnectionLost(self) -> None:
        """Do nothing: ``connectionLost`` follows."""

    def time_out(self) -> None:
        """Close the connection: the time limit of its state has expired."""
        self._close_late(self._state)

    def _close_late(self, state: _State) -> None:
        """Report what the peer has not done in time, and close the connection.

        :param state: whose time limit it has exceeded.
        """
        late = _BEHAVIOUR[state].late
        self._factory.reports.report(
            late, "{peer} {late}; closing its connection", level=LogLevel.info, peer=self.peer, late=late
        )
        self.abort()

    @property
    def arriving(self) -> bool:
        """Whether none, or only a part, of its request has arrived."""
        return self._state in _ARRIVING

    def finish(self) -> None:
        """Answer the requests in flight, then close; accept nothing more."""
        _BEHAVIOUR[self._state].finish(self)

    def abort(self) -> None:
        """Close the connection now."""
        assert self.transport is not None
        if self._session is not None:
            self._session.abort()
        elif self._writer is not None:
            self._writer.abort()
        else:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Cancel the requests in flight: nobody waits for their answers any more."""
        self._enter(_State.CLOSED)
        if isinstance(self._body, StreamedBody):
            self._body.abort()
        self._body = None
        if self._sender is not None:
            self._sender.cancel()
        if self._session is not None:
            self._session.connection_lost()
        if self._answer is not None:
            self._answer.cancel()
        self._account.close()
        self._factory.remove(self)

    # Making room

    @property
    def idle_since(self) -> float | None:
        """Since when the connection has been idle, in the reactor's time; None if it is in use.

        A half-closed connection counts as idle: its peer may be gone, and the system doesn't say.
        """
        if self._session is not None:
            return self._session.idle_since
        return self._since if self._state in (_State.HALF_CLOSED, _State.LINGERING) else None

    def evict(self) -> None:
        """Close this idle connection to make room for another."""
        if self._session is not None:
            self._session.finish()
        else:
            self.abort()

    # The request

    def _receive_first(self, data: bytes) -> None:
        try:
            packets = self._decoder.receive(data)
        except ProtocolError as error:
            self._factory.reports.report("broken packet", "{peer}: {error}", peer=self.peer, error=error)
            self.abort()
            return
        if packets:
            self._handle_packet(packets[0])
        elif self._state is _State.HEADER and self._decoder.header_seen:
            self._enter(_State.PACKET)

    def _handle_packet(self, packet: Packet) -> None:
        theirs = decode_offer(packet)
        if theirs is not None and self._factory.terms is not None:
            self._begin_session(self._factory.terms, theirs)
            return
        rules = self._factory.body_rules
        size = rules.size_behind(packet)
        refused = self._refusal(packet, size) if size else None
        if refused is not None:
            self._ignored = len(self._decoder.rest()) - size
            self._call_responder(packet, refused)
        elif size:
            streamed = rules.is_streamed(packet, size)
            self._begin_body(
                StreamedBody(packet, size, self._set_reading) if streamed else HeldBody(packet, size)
            )
        else:
            self._account.set(len(packet.payload))
            self._ignored = len(self._decoder.rest())
            self._call_responder(packet)

    def _refusal(self, packet: Packet, size: int) -> UwsgiError | None:
        """Return why a request with a body of *size* bytes is refused, or None if it is not."""
        rules = self._factory.body_rules
        too_large = rules.refusal(packet, size)
        if too_large is not None:
            return too_large
        held = len(packet.payload) + (2 * HELD if rules.is_streamed(packet, size) else size)
        if not self._account.admits(held):
            return Busy(f"no room for a request of {held} bytes now (--max-buffered); try again later")
        self._account.set(held)
        return None

    def _begin_body(self, body: HeldBody | StreamedBody) -> None:
        assert self.transport is not None
        self._body = body
        self._enter(_State.BODY)
        read_more_at_once(self.transport, True)
        self._receive_body(self._decoder.rest())

    def _receive_body(self, data: bytes) -> None:
        body = self._body
        assert body is not None
        pieces_missing = body.missing // _BODY_STEP
        self._ignored += body.add(data)
        if isinstance(body, StreamedBody) and body.ready and self._state is _State.BODY:
            self._call_responder(body.packet, body=body.stream)
        elif not body.missing and isinstance(body, HeldBody):
            self._body = None
            self._call_responder(body.message())
        elif not body.missing:
            self._body = None
            self._enter(_State.ANSWERING)
        elif body.missing // _BODY_STEP < pieces_missing:
            self._enter(self._state)

    def _set_reading(self, reading: bool) -> None:
        """Read the body from the peer, or stop for now, and stop its time limit."""
        assert self.transport is not None
        if reading:
            self.transport.resumeProducing()  # type: ignore[attr-defined]
            self._enter(self._state)
        else:
            self.transport.pauseProducing()  # type: ignore[attr-defined]
            if self._deadlines is not None:
                self._deadlines.discard(self)

    def _call_responder(
        self, packet: Packet, refused: UwsgiError | None = None, body: Stream | None = None
    ) -> None:
        self._enter(_State.ANSWERING if body is None or body.ended else _State.UPLOADING)
        self._encode = answer_encoder(packet.modifier1, packet.modifier2)
        self._ended_by_peer = packet.modifier1 in self._factory.ended_by_peer
        request = Request(packet, self.peer, refused=refused, body=body)
        try:
            answer = self._factory.respond(request)
        except Exception:
            self._on_failure(Failure(), request)
            return
        if isinstance(answer, Deferred):
            self._answer = answer
            answer.addCallbacks(self._send_answer, self._on_failure, errbackArgs=(request,))
        else:
            self._send_answer(answer)

    def _on_failure(self, failure: Failure, request: Request) -> None:
        """Log that a request failed, and close the connection, which is the only error in plain uwsgi."""
        self._factory.failures.failed(failure, request)
        self._write_and_close(b"")

    def _begin_session(self, ours: Terms, theirs: Terms) -> None:
        assert self.transport is not None
        self._enter(_State.SESSION)
        set_nodelay(self.transport)
        self._session = ServerSession(
            self.transport,
            self._factory.clock,
            self._factory.slices,
            ours,
            theirs,
            self._factory.respond,
            peer=self.peer,
            account=self._account,
            reports=self._factory.reports,
            failures=self._factory.failures,
            body_timeout=self._limits.body_timeout,
            write_timeout=self._limits.write_timeout,
            idle_timeout=self._limits.idle_timeout,
            tracebacks=self._factory.tracebacks,
        )
        hand_over(self, self._session, self._decoder.rest())

    def _finish_session(self) -> None:
        assert self._session is not None
        self._session.finish()

    # The answer

    def _send_answer(self, answer: Answer) -> None:
        if isinstance(answer, StreamedAnswer):
            self._send_stream(answer)
            return
        if isinstance(answer, TimedAnswer):
            answer = answer.packet  # plain uwsgi has no field for the time
        if isinstance(answer, Packet):
            try:
                answer = self._encode(answer)
            except MessageTooLarge as error:
                self._factory.reports.report(
                    "large answer", "the answer for {peer} is too large: {error}", peer=self.peer, error=error
                )
                answer = b""
        self._write_and_close(answer)

    def _send_stream(self, answer: StreamedAnswer) -> None:
        """Send an answer as it arrives, and then close the connection."""
        self._answer = None
        if self._state not in _ANSWERABLE:  # closed meanwhile
            answer.stream.cancel()
            return
        assert self.transport is not None
        if not self._account.admits(STREAM_MEMORY):
            self._factory.reports.report(
                "no room", "{peer}: no room for its answer now (--max-buffered)", peer=self.peer
            )
            answer.stream.cancel()
            self._write_and_close(b"")
            return
        self._account.set(self._account.held + STREAM_MEMORY)
        self._sender = StreamSender(
            self.transport,
            self._factory.clock,
            answer,
            self._limits.write_timeout,
            partial(self._on_stream_end, answer.packet._replace(payload=b"")),
            partial(self._close_late, _State.CLOSING),
        )
        self._writer = self._sender.writer
        self._sender.start()

    def _on_stream_end(self, answer: Packet, error: Exception | None) -> None:
        self._sender = None
        if error is not None:  # the peer must not take what it has for the whole
            self._factory.reports.failed(Failure(error), Request(answer, self.peer))
            self.abort()
        elif self._state in _ANSWERABLE:
            self._end_answer(wrote=True)

    def _write_and_close(self, data: bytes) -> None:
        """Write *data*, and close the connection when all of it is sent."""
        self._answer = None
        if self._state not in _ANSWERABLE:  # closed meanwhile
            return
        assert self.transport is not None
        self._account.set(len(data))
        self._writer = Writer(self.transport)
        if data:
            self._writer.write(data)
        self._end_answer(wrote=bool(data))

    def _end_answer(self, *, wrote: bool) -> None:
        """Close the connection when all of the answer is sent.

        If the peer sends more than it should, linger before the close. The system would answer unread bytes
        with a reset, which may destroy the answer. A peer that has read its answer closes by itself.
        """
        assert self.transport is not None
        assert self._writer is not None
        if self._body is not None:  # nobody wants the rest of it
            self._ignored -= self._body.missing
            self._body = None
            self.transport.resumeProducing()  # type: ignore[attr-defined]
        if wrote and (self._ignored or has_unread(self.transport)):
            self._linger(self._writer)
        else:
            self._close()

    def _linger(self, writer: Writer) -> None:
        self._since = self._factory.clock.seconds()
        self._enter(_State.LINGERING)
        if self._ignored >= 0:  # otherwise it is a body, which has a known end
            writer.half_close()

    def _half_close(self) -> None:
        if self._ended_by_peer:
            self.abort()
            return
        self._since = self._factory.clock.seconds()
        self._enter(_State.HALF_CLOSED)

    def _drop(self, data: bytes) -> None:
        whole_body = self._ignored < 0 <= self._ignored + len(data)
        self._ignored += len(data)
        if self._ignored > self._limits.max_ignored:
            self.abort()
        elif self._state is _State.LINGERING and whole_body:
            self._close()

    def _close(self) -> None:
        assert self._writer is not None
        self._enter(_State.CLOSED if self._writer.close() else _State.CLOSING)

    def _do_nothing(self) -> None:
        """Do nothing."""


class _Behaviour(NamedTuple):
    """What a connection does in a state.

    :param receive: handles bytes from the peer.
    :param half_close: handles the end of the peer's sending side.
    :param finish: handles the stop of the service.
    :param deadlines: the time limit of the state.
    :param late: what the peer has done wrong when the limit expires, for the log.
    """

    receive: Callable[[ServerProtocol, bytes], None]
    half_close: Callable[[ServerProtocol], None]
    finish: Callable[[ServerProtocol], None]
    deadlines: Callable[[ServerFactory], Deadlines[ServerProtocol] | None] = lambda _: None
    late: str = ""


_P = ServerProtocol
_BEHAVIOUR = {
    _State.HEADER: _Behaviour(
        _P._receive_first, _P.abort, _P.abort, attrgetter("headers"), "sent no complete header"
    ),
    _State.PACKET: _Behaviour(
        _P._receive_first, _P.abort, _P.abort, attrgetter("bodies"), "did not send the rest of its packet"
    ),
    _State.BODY: _Behaviour(
        _P._receive_body,
        _P.abort,
        _P.abort,
        attrgetter("bodies"),
        "did not send the rest of its body",
    ),
    _State.UPLOADING: _Behaviour(
        _P._receive_body,
        _P.abort,
        _P._do_nothing,
        attrgetter("bodies"),
        "did not send the rest of its body",
    ),
    _State.ANSWERING: _Behaviour(_P._drop, _P._half_close, _P._do_nothing),
    _State.HALF_CLOSED: _Behaviour(_P._drop, _P._do_nothing, _P._do_nothing),
    _State.LINGERING: _Behaviour(
        _P._drop, _P._close, _P._close, attrgetter("answers"), "is still sending unexpected data"
    ),
    _State.CLOSING: _Behaviour(
        _P._drop, _P._do_nothing, _P._do_nothing, attrgetter("answers"), "did not read its answer"
    ),
    _State.SESSION: _Behaviour(_P._drop, _P.abort, _P._finish_session),
    _State.CLOSED: _Behaviour(_P._drop, _P._do_nothing, _P._do_nothing),
}
