"""The serving side of a connection: bytes to requests, answers to bytes, with a limit on everything.

A connection begins plain, as uWSGI has it: one request, one answer, then it is closed. A first packet that
offers a session (see :mod:`uwsgitwisted.wire.session`) is answered with our terms, and the connection goes on
as an :class:`~uwsgitwisted.transport.answering.AnsweringSession`.

Behind a plain packet a body may follow, as nginx sends it. A responder gets both as one message, as it would in
a session.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.access import NOBODY, Network, Once, Peer
from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, ProtocolError
from uwsgitwisted.interfaces import Answer, Reply, Request
from uwsgitwisted.transport.alarm import Deadlines
from uwsgitwisted.transport.answering import AnsweringSession
from uwsgitwisted.transport.writer import Writer, read_more_at_once, set_keepalive, set_nodelay
from uwsgitwisted.wire.packet import MAX_PAYLOAD, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.terms import MAX_MESSAGE, Terms, offered
from uwsgitwisted.wire.vars import CONTENT_LENGTH, body_size, encode_vars

#: How many bodies of the largest size all plain connections may hold together.
_LARGEST_BODIES = 4
#: Up to this many bytes, a body is not counted there: whatever others hold, there is room for it, as there is
#: for every connection's packet. For as many bytes of a larger one, its sender has the limit's time.
_SMALL_BODY = MAX_PAYLOAD


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection, and all of them together, may take.

    :param header_timeout: seconds until a connection's first packet has its header; uWSGI gives 4.
    :param body_timeout: seconds until the rest of that packet is there, whatever its pace; until each further
        65535 bytes of a body behind it, and in a session each further piece of a large message.
    :param write_timeout: seconds until a peer has taken its plain answer; in a session, how many it may go
        without taking any of what waits for it.
    :param idle_timeout: seconds that a session may be silent.
    :param max_connections: how many connections are open at once; any more is closed as it comes.
    :param max_packet: the largest plain payload, in bytes.
    :param max_ignored: how many bytes may follow a plain request, where nothing is expected.
    """

    header_timeout: float = 4.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    idle_timeout: float = 3_600.0
    max_connections: int = 10_000
    max_packet: int = MAX_PAYLOAD
    max_ignored: int = 65_536


class _State(enum.Enum):
    """Where a connection is; the value is what its peer is late with when its time is over."""

    HEADER = "sent no whole header"
    PACKET = "did not send the rest of its packet"
    BODY = "did not go on with the body behind its packet"
    ANSWERING = "waits for its answer"
    LINGERING = "still sends a body that is too large"
    CLOSING = "took nothing of its answer"
    SESSION = "has a session"


class _Body:
    """A packet whose body follows it.

    :param size: how many bytes follow.
    """

    __slots__ = ("_data", "_packet", "counted", "missing")

    def __init__(self, packet: Packet, size: int) -> None:
        self._packet = packet
        self._data = bytearray(packet.payload)
        #: How many bytes are still to come.
        self.missing = size
        #: Whether its bytes count among those that all connections hold.
        self.counted = size > _SMALL_BODY

    def add(self, data: bytes) -> int:
        """Take bytes of the body, and return how many of them don't belong to it any more."""
        taken = min(len(data), self.missing)
        self._data += data if taken == len(data) else data[:taken]
        self.missing -= taken
        return len(data) - taken

    def message(self) -> Packet:
        """Return the packet with its body behind its payload."""
        return self._packet._replace(payload=bytes(self._data))


class ServerFactory(Factory):
    """Makes the connections of one service and knows them.

    :param clock: for the time limits.
    :param respond: answers a request; see :meth:`uwsgitwisted.interfaces.IResponder.respond`.
    :param terms: what a session is granted; None to serve plain uwsgi only.
    :param limits: see there.
    :param networks: whose connections are accepted; None for everybody's.
    :param tracebacks: whether peers are told the tracebacks of handlers' exceptions.
    :param bodies: the modifiers of packets that a body follows; its size is the CONTENT_LENGTH in their vars
        block. If it is larger than a message may be, the responder gets a vars block of nothing but that size;
        :func:`~uwsgitwisted.wire.vars.split_vars` tells it what is missing.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        respond: Callable[[Request], Reply],
        *,
        terms: Terms | None = None,
        limits: Limits | None = None,
        networks: Sequence[Network] | None = None,
        tracebacks: bool = True,
        bodies: Container[tuple[int, int]] = (),
    ) -> None:
        self.clock = clock
        self.respond = respond
        self.terms = terms
        self.max_message = terms.max_message if terms else MAX_MESSAGE
        self.limits = limits or Limits()
        self.tracebacks = tracebacks
        self._networks = networks
        self._with_body = bodies
        self._held = 0
        self._refused = Once()
        self._connections: set[ServerProtocol] = set()
        #: The connections that have not sent a header, the rest of a packet or body, or taken the whole answer.
        self.headers = Deadlines(clock, self.limits.header_timeout, ServerProtocol.time_out)
        self.bodies = Deadlines(clock, self.limits.body_timeout, ServerProtocol.time_out)
        self.answers = Deadlines(clock, self.limits.write_timeout, ServerProtocol.time_out)
        self._emptied: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> ServerProtocol | None:
        """Return a connection's protocol, or None, which closes it."""
        assert addr is not None
        reason = ""
        peer = Peer(addr)
        if self._networks is not None and not peer.is_allowed(self._networks):
            reason = "it is in none of the networks that may connect"
        elif len(self._connections) >= self.limits.max_connections:
            reason = f"{self.limits.max_connections} connections are open already"
        if not reason:
            return ServerProtocol(self)
        if self._refused.is_first((peer.host, reason)):
            self._log.warn("a connection of {peer} was refused: {reason}", peer=peer, reason=reason)
        return None

    def size_behind(self, packet: Packet) -> int:
        """Return how many bytes of body follow *packet*."""
        if packet[:2] not in self._with_body:
            return 0
        try:
            return body_size(packet.payload)
        except MalformedPacket:  # its responder finds this too, and answers
            return 0

    def hold(self, size: int) -> bool:
        """Note that a connection holds *size* bytes of a body, or less than before if it is negative.

        :return: whether that isn't too much, with what all others hold.
        """
        self._held += size
        return self._held <= _LARGEST_BODIES * self.max_message

    def opened(self, connection: ServerProtocol) -> None:
        """Note a connection."""
        self._connections.add(connection)

    def closed(self, connection: ServerProtocol) -> None:
        """Note that a connection is gone."""
        self._connections.discard(connection)
        if self._emptied is not None and not self._connections:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    def finish(self) -> Deferred[None]:
        """Let every connection finish what it has under way.

        :return: fires when all are closed.
        """
        for connection in list(self._connections):
            connection.finish()
        if not self._connections:
            return succeed(None)
        self._emptied = Deferred()
        return self._emptied

    def abort(self) -> None:
        """Close every connection now."""
        for connection in list(self._connections):
            connection.abort()


@implementer(IHalfCloseableProtocol)
class ServerProtocol(Protocol):
    """One connection of a :class:`ServerFactory`."""

    _log = Logger()

    def __init__(self, factory: ServerFactory) -> None:
        self._factory = factory
        self._limits = factory.limits
        self._state = _State.HEADER
        self._decoder = PacketDecoder(limit=factory.limits.max_packet, count=1)
        self._body: _Body | None = None
        self._held = 0
        self._answer: Deferred[Answer] | None = None
        self._session: AnsweringSession | None = None
        #: How many bytes came where nothing is expected; below 0 while a body is thrown away.
        self._ignored = 0
        self._writer: Writer | None = None
        self._peer = NOBODY

    def connectionMade(self) -> None:
        """Start to wait for a header."""
        assert self.transport is not None
        self._peer = Peer(self.transport.getPeer())
        self._factory.opened(self)
        self._factory.headers.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Take bytes of a request, or that nothing is expected of. A session takes its bytes itself."""
        if self._state in (_State.HEADER, _State.PACKET):
            self._receive_first(data)
        elif self._body is not None:
            self._receive_body(self._body, data)
        else:
            self._ignore(len(data))

    def _ignore(self, size: int) -> None:
        self._ignored += size
        if self._ignored > self._limits.max_ignored:
            self.abort()
        elif self._state is _State.LINGERING and self._ignored >= 0:
            self._close()

    def _receive_first(self, data: bytes) -> None:
        try:
            packets = self._decoder.receive(data)
        except ProtocolError as error:
            self._log.warn("{peer}: {error}", peer=self._peer, error=error)
            self.abort()
            return
        if packets:
            self._begin(packets[0])
        elif self._state is _State.HEADER and self._decoder.header_seen:
            self._state = _State.PACKET
            self._factory.headers.discard(self)
            self._factory.bodies.add(self)

    def _begin(self, packet: Packet) -> None:
        self._clear_deadlines()
        theirs = offered(packet)
        if theirs is not None and self._factory.terms is not None:
            self._begin_session(self._factory.terms, theirs)
            return
        size = self._factory.size_behind(packet)
        if not size:
            self._ask(packet)
        elif len(packet.payload) + size > self._factory.max_message:
            self._ignored = len(self._decoder.rest()) - size
            self._ask(packet._replace(payload=encode_vars([(CONTENT_LENGTH, size)])))
        else:
            self._begin_body(_Body(packet, size))

    def _begin_body(self, body: _Body) -> None:
        assert self.transport is not None
        self._state = _State.BODY
        self._body = body
        self._factory.bodies.add(self)
        read_more_at_once(self.transport, True)
        self._receive_body(body, self._decoder.rest())

    def _receive_body(self, body: _Body, data: bytes) -> None:
        pieces_missing = body.missing // _SMALL_BODY
        self._ignored += body.add(data)
        if body.counted:
            self._held += len(data)
            if not self._factory.hold(len(data)):
                self._log.warn("{peer}: the bodies of all requests are too large together", peer=self._peer)
                self.abort()
                return
        if not body.missing:
            self._clear_deadlines()
            self._body = None
            self._ask(body.message())
        elif body.missing // _SMALL_BODY < pieces_missing:
            self._factory.bodies.discard(self)
            self._factory.bodies.add(self)

    def _ask(self, packet: Packet) -> None:
        self._state = _State.ANSWERING
        try:
            answer = self._factory.respond(Request(packet, self._peer))
        except Exception:
            # The responders have logged it; plain uwsgi has no errors but a closed connection.
            self._finish(b"")
            return
        if isinstance(answer, Deferred):
            self._answer = answer
            answer.addCallbacks(self._send_answer, lambda _: self._finish(b""))
        else:
            self._send_answer(answer)

    def _begin_session(self, ours: Terms, theirs: Terms) -> None:
        assert self.transport is not None
        self._state = _State.SESSION
        set_nodelay(self.transport)
        set_keepalive(self.transport)
        self._session = AnsweringSession(
            self.transport,
            self._factory.clock,
            ours,
            theirs,
            self._factory.respond,
            peer=self._peer,
            body_timeout=self._limits.body_timeout,
            write_timeout=self._limits.write_timeout,
            idle_timeout=self._limits.idle_timeout,
            tracebacks=self._factory.tracebacks,
        )
        self.dataReceived = self._session.data_received  # type: ignore[method-assign]
        if rest := self._decoder.rest():
            self._session.data_received(rest)

    def _send_answer(self, answer: Answer) -> None:
        if isinstance(answer, Packet):
            try:
                answer = encode_packet(answer)
            except MessageTooLarge as error:
                self._log.error("the answer for {peer} is too large: {error}", peer=self._peer, error=error)
                answer = b""
        self._finish(answer)

    def _finish(self, data: bytes) -> None:
        """Write *data* and close the connection when it is out.

        While the peer is sending a body that is too large, that waits: the system would answer what still comes
        with a reset, on which the peer may lose the answer. A peer that has read it closes by itself.
        """
        self._answer = None
        if self._state is not _State.ANSWERING:  # closed meanwhile
            return
        assert self.transport is not None
        self._writer = Writer(self.transport)
        if data:
            self._writer.write(data)
        if data and self._ignored < 0:
            self._state = _State.LINGERING
            self._factory.answers.add(self)
        else:
            self._close()

    def _close(self) -> None:
        assert self._writer is not None
        self._factory.answers.discard(self)
        self._state = _State.CLOSING
        if not self._writer.close():
            self._factory.answers.add(self)

    def _clear_deadlines(self) -> None:
        for deadlines in (self._factory.headers, self._factory.bodies, self._factory.answers):
            deadlines.discard(self)

    def time_out(self) -> None:
        """Close the connection, whose peer is late."""
        self._log.info("{peer} {late}; its connection is closed", peer=self._peer, late=self._state.value)
        self.abort()

    def finish(self) -> None:
        """Answer what was asked, then close; take nothing more."""
        if self._session is not None:
            self._session.finish()
        elif self._state in (_State.HEADER, _State.PACKET, _State.BODY):
            self.abort()
        elif self._state is _State.LINGERING:
            self._close()

    def abort(self) -> None:
        """Close the connection now."""
        assert self.transport is not None
        if self._session is not None:
            self._session.abort()
        elif self._writer is not None:
            self._writer.abort()
        else:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def readConnectionLost(self) -> None:
        """Go on answering a peer that has only closed its sending side, if its request is whole."""
        if self._state in (_State.HEADER, _State.PACKET, _State.BODY, _State.SESSION):
            self.abort()
        elif self._state is _State.LINGERING:
            self._close()

    def writeConnectionLost(self) -> None:
        """Do nothing: the loss of the connection follows."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Withdraw what runs: nobody waits for it any more."""
        self._clear_deadlines()
        self._factory.hold(-self._held)
        self._body = None
        self._state = _State.CLOSING
        if self._session is not None:
            self._session.connection_lost()
        if self._answer is not None:
            self._answer.cancel()
        self._factory.closed(self)
