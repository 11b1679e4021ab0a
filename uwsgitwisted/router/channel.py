"""The client's side of a router: HTTP connections, each with a limit on everything.

Twisted's ``HTTPChannel`` reads the requests. This module adds what it leaves open: a time limit for each part
of a request, bodies that are passed on as they come, an end of the connection that doesn't destroy the last
answer, and a bound on the number of connections.
"""

# mypy: disable-error-code="no-untyped-call"
# Most of Twisted's HTTPChannel has no annotations.

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IProtocolNegotiationFactory,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from zope.interface import implementer

from uwsgitwisted.access import Peer
from uwsgitwisted.router.request import RoutedRequest
from uwsgitwisted.router.shared import TRANSIT_TIME, Shared
from uwsgitwisted.transport.timer import Deadlines

#: The body timeout starts again after this many bytes.
_BODY_STEP = 65_536
#: A Content-Length has at most so many characters, spaces included.
_MAX_LENGTH_LINE = 60
_LENGTH = b"content-length"

_TEXT = b"400 Bad Request\n\nThe request can't be understood, or its head is too large.\n"
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%s" % (len(_TEXT), _TEXT)
)


class State(enum.Enum):
    """What a connection is doing. :data:`LIMITS` has the time limit of each state."""

    #: The first request is awaited, or has come in part.
    HEADER = enum.auto()
    BODY = enum.auto()
    #: The request is complete.
    ANSWERING = enum.auto()
    #: The answer is written; another request may follow.
    IDLE = enum.auto()
    #: It makes room for another, but a request may be on its way.
    EVICTED = enum.auto()
    #: The last answer is written; what the client still sends is dropped.
    LINGERING = enum.auto()
    #: The last answer is being sent.
    CLOSING = enum.auto()
    CLOSED = enum.auto()


@implementer(IHalfCloseableProtocol)
class RouterChannel(HTTPChannel):
    """One connection of a client.

    :param shared: what all connections share.
    :param peer: the client.
    """

    requestFactory = RoutedRequest  # type: ignore[assignment]
    transport: Any

    def __init__(self, shared: Shared, peer: Peer) -> None:
        super().__init__()
        self.shared = shared
        self.peer = peer
        self._state = State.HEADER
        self._since = shared.clock.seconds()
        self._deadlines: Deadlines[Any] | None = None
        #: Whether any byte of the request has come.
        self._begun = False
        self._received = 0
        self._body_paused = False
        self._unread = False
        self._finishing = False

    def connectionMade(self) -> None:
        """Wait for a request."""
        self.shared.connections.add(self)
        super().connectionMade()
        self._enter(State.HEADER)

    def _enter(self, state: State) -> None:
        """Enter a state, and start its time limit."""
        if self._deadlines is not None:
            self._deadlines.discard(self)
        self._state = state
        self._since = self.shared.clock.seconds()
        limit = LIMITS.get(state)
        self._deadlines = None if limit is None else limit.deadlines(self.shared)
        if self._deadlines is not None:
            self._deadlines.add(self)

    def time_out(self) -> None:
        """Close the connection: the time limit of its state has expired."""
        self._deadlines = None
        if self._awaits_nothing:
            self.loseConnection()
            return
        self._report(LIMITS[self._state].late)
        self.abort()

    def leave_unread(self) -> None:
        """Close the connection: the client has not read its answer in time."""
        self._report("did not read its answer")
        self.abort()

    def _report(self, late: str) -> None:
        self.shared.reports.report(
            late, "{peer} {late}; closing its connection", level=LogLevel.info, peer=self.peer, late=late
        )

    # Requests

    def dataReceived(self, data: bytes) -> None:
        """Handle bytes from the client."""
        if self._ending:
            return
        if self._state in (State.IDLE, State.EVICTED):
            self._enter(State.HEADER)
        elif self._state is State.BODY:
            steps = self._received // _BODY_STEP
            self._received += len(data)
            if self._received // _BODY_STEP > steps:
                self._enter(State.BODY)
        self._begun = True
        super().dataReceived(data)

    @property
    def _ending(self) -> bool:
        """Whether no request is taken any more. Twisted's parser may still have bytes in hand."""
        return self._state in (State.LINGERING, State.CLOSING, State.CLOSED)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a head with a line that is too long."""
        self._respondToBadRequestAndDisconnect()

    def headerReceived(self, line: bytes) -> bool:
        """Handle a header. Twisted would fail with a traceback at a number of thousands of digits."""
        if line[: len(_LENGTH)].lower() == _LENGTH and len(line) > _MAX_LENGTH_LINE:
            self._respondToBadRequestAndDisconnect()
            return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        """Start the request: its body may be sent on before all of it has come."""
        if self._ending:
            return
        request = self.requests[-1]
        request.begin(self._command, self._path, self._version)
        self._received = 0
        if self.length != 0:
            self._enter(State.BODY)
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        """Note that the request is complete."""
        if self._ending:
            return
        self._enter(State.ANSWERING)
        if self._body_paused:
            self.read_body(True)
        super().allContentReceived()

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Return whether another request may follow."""
        persistent = bool(super().checkPersistence(request, version))
        if persistent and self._finishing:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return persistent and not self._finishing

    def requestDone(self, request: Request) -> None:
        """Wait for the next request."""
        self._begun = False
        if self._state is State.BODY:  # it was answered early; nobody reads the rest of its body
            self.persistent = False
        if self.persistent:
            self._enter(State.IDLE)
        super().requestDone(request)  # what has come meanwhile goes through dataReceived

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse what is no HTTP. It is Twisted's method; its answer has no text."""
        if not self._ending:
            self.persistent = False
            if not any(request.startedWriting for request in self.requests):
                self.transport.write(_BAD_REQUEST)
                self.shared.log_access({"REMOTE_ADDR": self.peer.host}, 400, len(_TEXT), 0.0)
            self._linger()

    # Back-pressure

    def read_body(self, wanted: bool) -> None:
        """Read more of the request's body, or wait. The client's time stops meanwhile."""
        if wanted is not self._body_paused:
            return
        self._body_paused = not wanted
        if self._state is State.BODY:
            if wanted:
                self._enter(State.BODY)
            elif self._deadlines is not None:
                self._deadlines.discard(self)
        if wanted:
            self.transport.resumeProducing()
        else:
            self.transport.pauseProducing()

    def pauseProducing(self) -> None:
        """Wait with the answer: the client doesn't read."""
        if not self._unread:
            self._unread = True
            self.shared.unread.add(self)
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """Go on with it: the client has read what waited."""
        self._unread = False
        self.shared.unread.discard(self)
        super().resumeProducing()
        if self._body_paused:  # Twisted's channel knows nothing of the node that takes no more
            self.transport.pauseProducing()

    # The end

    @property
    def idle_since(self) -> float | None:
        """Since when no request has been on the way, in the reactor's time; None if there is one.

        The request of a new connection may be on its way, like one that arrives when its connection is evicted.
        """
        idle = self._state in (State.IDLE, State.LINGERING)
        if self._state is State.HEADER and not self._begun:
            idle = self.shared.clock.seconds() - self._since >= TRANSIT_TIME
        return self._since if idle else None

    @property
    def _awaits_nothing(self) -> bool:
        """Whether it can be closed without a loss: no byte of a request has come, and no answer is due."""
        return self._state in (State.IDLE, State.EVICTED) or (self._state is State.HEADER and not self._begun)

    def evict(self) -> None:
        """Make room for another connection. A request that is already on its way is still answered."""
        if self._state is State.LINGERING:
            self.abort()
        else:
            self._finishing = True
            self._enter(State.EVICTED)

    def finish(self) -> None:
        """Answer the request in flight, then close; accept no other."""
        self._finishing = True
        if self._state is State.LINGERING:
            self.abort()
        elif self._awaits_nothing:
            self.loseConnection()
        elif self._state in (State.BODY, State.ANSWERING):
            self.persistent = False
            request = self.requests[0]
            if not request.startedWriting:
                request.responseHeaders.setRawHeaders(b"Connection", [b"close"])

    def loseConnection(self) -> None:
        """Close the connection when the answer is sent.

        If the request's body has not come whole, linger before the close. The system would answer unread bytes
        with a reset, which may destroy the answer.
        """
        if self._state is State.BODY:
            self._linger()
        elif not self._ending:
            self._close()

    def _close(self) -> None:
        self._enter(State.CLOSING)
        self.shared.unread.discard(self)  # the state has a time limit of its own
        super().loseConnection()

    def _linger(self) -> None:
        self._enter(State.LINGERING)
        self.shared.unread.discard(self)
        self._body_paused = False
        self.clearLineBuffer()
        self.transport.unregisterProducer()
        self.transport.resumeProducing()
        if IHalfCloseableDescriptor.providedBy(self.transport) and not self.isSecure():
            self.transport.loseWriteConnection()  # type: ignore[attr-defined]

    def abort(self) -> None:
        """Close the connection now, so that the client notices that an answer is not whole."""
        if self._state is not State.CLOSED:
            self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        """Close the connection: the client sends nothing more, and is gone, as far as anybody knows."""
        if self._state is State.LINGERING:
            self._close()
        elif self._awaits_nothing:
            self.loseConnection()
        elif self._state is not State.CLOSING:
            self.abort()

    def writeConnectionLost(self) -> None:
        """Do nothing: ``connectionLost`` follows."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop the requests in flight: nobody waits for their answers any more."""
        self._enter(State.CLOSED)
        self.shared.unread.discard(self)
        super().connectionLost(reason)
        self.shared.connections.remove(self)


class _Limit(NamedTuple):
    """The time limit of a state.

    :param deadlines: the limit.
    :param late: what the client has done wrong when it expires, for the log.
    """

    deadlines: Callable[[Shared], Deadlines[Any]]
    late: str


LIMITS = {
    State.HEADER: _Limit(lambda shared: shared.headers, "sent no complete request head"),
    State.BODY: _Limit(lambda shared: shared.bodies, "did not send the rest of its request"),
    State.IDLE: _Limit(lambda shared: shared.idle, ""),
    State.EVICTED: _Limit(lambda shared: shared.evicted, ""),
    State.LINGERING: _Limit(lambda shared: shared.lingering, "is still sending a request that was answered"),
    State.CLOSING: _Limit(lambda shared: shared.closing, "did not read its answer"),
}


@implementer(IProtocolNegotiationFactory)
class RouterFactory(Factory):
    """Makes the connections of clients.

    :param shared: what they share.
    """

    noisy = False

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def buildProtocol(self, addr: IAddress | None) -> RouterChannel | None:
        """Return a connection's protocol, or None, which closes it."""
        assert addr is not None
        peer = Peer(addr)
        reason = self._shared.refusal(peer)
        if reason is None:
            channel = RouterChannel(self._shared, peer)
            channel.factory = self
            return channel
        self._shared.reports.report(
            reason, "a connection of {peer} was refused: {reason}", peer=peer, reason=reason
        )
        return None

    def acceptableProtocols(self) -> list[bytes]:
        """Return the only protocol that it speaks; with TLS, browsers offer others as well."""
        return [b"http/1.1"]

    def log(self, request: RoutedRequest) -> None:
        """Write a request that was answered to the access log; Twisted calls this."""
        request.log_access(request.code)
