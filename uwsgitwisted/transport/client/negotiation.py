"""Negotiates a session on a new connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from uwsgitwisted.errors import ConnectionFailed
from uwsgitwisted.transport.handover import DataReceiver, hand_over
from uwsgitwisted.wire.packet import PacketDecoder
from uwsgitwisted.wire.terms import Terms, decode_grant, encode_offer


class NegotiatedSession(DataReceiver, Protocol):
    """Takes over the connection when the peer grants a session."""

    def connection_lost(self) -> None:
        """Handle the loss of the connection."""

    def close(self) -> None:
        """Close the connection."""


S = TypeVar("S", bound=NegotiatedSession)


class NegotiationProtocol(TwistedProtocol, Generic[S]):
    """Offers a session, and hands the connection over to it.

    It doesn't set TCP_NODELAY, since the connection may be a pipe to a worker. Callers that connect by TCP set
    it.

    :param ours: the terms of this side, for the offer.
    :param begin: makes the session from the transport and the peer's terms.
    """

    def __init__(self, ours: Terms, begin: Callable[[ITransport, Terms], S]) -> None:
        self._ours = ours
        self._begin = begin
        self._decoder = PacketDecoder(count=1)
        self._session: S | None = None
        #: Fires with the session. Fires with None if the peer closes the connection or sends any other answer,
        #: as a peer does that speaks plain uwsgi only.
        self.negotiated: Deferred[S | None] = Deferred()
        #: Whether the peer sent a packet of any kind.
        self.answered = False
        #: Fires when the connection is lost.
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Send the offer."""
        assert self.transport is not None
        self.transport.write(encode_offer(self._ours))

    def dataReceived(self, data: bytes) -> None:
        """Handle the peer's answer. A session gets the bytes that follow it."""
        packets = self._decoder.receive(data)
        if packets:
            self.answered = True
            self._conclude(decode_grant(packets[0]))

    def _conclude(self, theirs: Terms | None) -> None:
        assert self.transport is not None
        if theirs is None:
            self.transport.loseConnection()
        else:
            self._session = self._begin(self.transport, theirs)
        if not self.negotiated.called:
            self.negotiated.callback(self._session)
        if self._session is not None:
            hand_over(self, self._session, self._decoder.rest())

    def close(self) -> None:
        """Close the connection. If the negotiation is not finished, it fails."""
        assert self.transport is not None
        if self._session is not None:
            self._session.close()
            return
        self.transport.loseConnection()
        if not self.negotiated.called:
            self.negotiated.errback(ConnectionFailed("the client was closed"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the session, or fire ``negotiated`` with None."""
        if self._session is not None:
            self._session.connection_lost()
        elif not self.negotiated.called:
            self.negotiated.callback(None)
        self.lost.callback(None)
