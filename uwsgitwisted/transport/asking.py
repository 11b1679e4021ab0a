"""The asking side of a session on a Twisted connection: requests out, Deferreds back.

The client's connections and the front's pipes to its worker processes are both this.
"""

from __future__ import annotations

import math
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from uwsgitwisted.errors import NoAnswer, ProtocolError, RequestCancelled, RequestTimeout
from uwsgitwisted.transport.alarm import Alarm
from uwsgitwisted.transport.writer import Writer
from uwsgitwisted.wire.packet import PING, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.session import (
    MAX_ID,
    AnswerReceived,
    ErrorReceived,
    GoodbyeReceived,
    Role,
    Session,
    Terms,
)


class AskingSession:
    """Sends requests on one connection and fires their Deferreds.

    The owner passes on what the connection brings and its loss.

    :param transport: the connection.
    :param clock: provides ``callLater`` and ``seconds`` for the time limits.
    :param ours: what this side takes.
    :param theirs: what the peer takes.
    """

    def __init__(self, transport: ITransport, clock: IReactorTime, ours: Terms, theirs: Terms) -> None:
        self._session = Session(Role.CLIENT, ours, theirs)
        self._transport = transport
        self._writer = Writer(transport, self.flush)
        self._clock = clock
        self._alarm = Alarm(clock, self._expire)
        self._alarm_at = math.inf
        self._pending: dict[int, tuple[Deferred[Packet], float, float | None]] = {}
        self._last_id = 0
        self._receiving = False
        #: Whether the peer, or this side, said that no further request will be taken.
        self.leaving = False

    @property
    def pending(self) -> int:
        """How many requests wait for their answers."""
        return len(self._pending)

    def request(self, packet: Packet, seconds: float | None = None) -> Deferred[Packet]:
        """Ask.

        :param seconds: how long to wait; None for ever.
        :return: fires with the answer; fails with what the peer says, ``RequestTimeout`` or ``NoAnswer`` if the
            connection is lost. Cancelling it tells the peer.
        :raises MessageTooLarge: if the peer doesn't take so large a message.
        """
        request = self._next_id()
        self._session.send_request(request, packet, seconds)
        deadline = math.inf if seconds is None else self._clock.seconds() + seconds
        deferred: Deferred[Packet] = Deferred(partial(self._cancel, request))
        self._pending[request] = (deferred, deadline, seconds)
        if deadline < self._alarm_at:
            self._alarm_at = deadline
            self._alarm.set(max(0.0, deadline - self._clock.seconds()))
        if not self._receiving:
            self.flush()
        return deferred

    def data_received(self, data: bytes) -> None:
        """Take what the connection brings; a peer that breaks the protocol has it aborted."""
        self._receiving = True
        try:
            for event in self._session.receive(data):
                if isinstance(event, AnswerReceived):
                    self._settle(event.id, event.packet)
                elif isinstance(event, ErrorReceived):
                    self._settle(event.id, event.error)
                elif isinstance(event, GoodbyeReceived):
                    self.leaving = True
        except ProtocolError as error:
            self.connection_lost(error)
            self._transport.abortConnection()  # type: ignore[attr-defined]
            return
        finally:
            self._receiving = False
        if self.leaving and not self._pending:
            self.close()
        else:
            self.flush()

    def connection_lost(self, error: Exception | None = None) -> None:
        """Fail what is pending."""
        self.leaving = True
        self._alarm.clear()
        pending, self._pending = self._pending, {}
        for deferred, _, _ in pending.values():
            deferred.errback(error or NoAnswer("the connection was lost before the answer came"))

    def close(self) -> None:
        """Say goodbye and close the connection when all that was sent is out; pending requests fail."""
        self.leaving = True
        self._session.send_goodbye()
        self.flush()
        self._writer.close()

    def flush(self) -> None:
        """Write what there is to send, as far as the connection takes it."""
        while self._session.sending and not self._writer.waiting:
            self._writer.write(self._session.data_to_send())

    def _settle(self, request: int, result: Packet | Exception) -> None:
        entry = self._pending.pop(request, None)
        if entry is None:  # cancelled or expired
            return
        entry[0].callback(result) if isinstance(result, Packet) else entry[0].errback(result)

    def _cancel(self, request: int, deferred: Deferred[Packet]) -> None:
        self._withdraw(request)
        deferred.errback(RequestCancelled("the request was cancelled"))

    def _withdraw(self, request: int) -> None:
        del self._pending[request]
        self._session.send_cancel(request)
        self.flush()

    def _expire(self) -> None:
        now = self._clock.seconds()
        expired = [
            (request, deferred, seconds)
            for request, (deferred, deadline, seconds) in self._pending.items()
            if deadline <= now
        ]
        for request, deferred, seconds in expired:
            self._withdraw(request)
            deferred.errback(RequestTimeout(f"no answer within {seconds:g} s", seconds=seconds or 0.0))
        self._alarm_at = min((deadline for _, deadline, _ in self._pending.values()), default=math.inf)
        if self._alarm_at < math.inf:
            self._alarm.set(max(0.0, self._alarm_at - now))

    def _next_id(self) -> int:
        request = self._last_id
        while True:
            request = request + 1 if request < MAX_ID else 1
            if request not in self._pending:
                self._last_id = request
                return request


class AskingProtocol(Protocol):
    """Offers a session on a new connection.

    It sets no TCP_NODELAY, since the connection may be a pipe to a worker: who connects by TCP does.

    :param clock: for the session's time limits.
    :param ours: what this side takes; the offer says it.
    """

    def __init__(self, clock: IReactorTime, ours: Terms) -> None:
        self._clock = clock
        self._ours = ours
        self._decoder = PacketDecoder(count=1)
        self._session: AskingSession | None = None
        #: Fires with the session, or with None if the peer closed the connection, or answered otherwise, as one
        #: that speaks only plain uwsgi does.
        self.negotiated: Deferred[AskingSession | None] = Deferred()
        #: Whether the peer sent a packet, whatever it was.
        self.answered = False
        #: Fires when the connection is lost.
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Offer."""
        assert self.transport is not None
        self.transport.write(encode_packet(Packet(PING, 0, self._ours.encode())))

    def dataReceived(self, data: bytes) -> None:
        """Pass on what comes to the session, or find out whether there is one."""
        if self._session is not None:
            self._session.data_received(data)
            return
        try:
            packets = self._decoder.receive(data)
        except ProtocolError:
            self._conclude(None)
            return
        if packets:
            self.answered = True
            theirs = Terms.decode(packets[0].payload) if packets[0].modifier1 == PING else None
            self._conclude(theirs)

    def _conclude(self, theirs: Terms | None) -> None:
        assert self.transport is not None
        if theirs is None:
            self.transport.loseConnection()
        else:
            self._session = AskingSession(self.transport, self._clock, self._ours, theirs)
        if not self.negotiated.called:
            self.negotiated.callback(self._session)
        if self._session is not None and (rest := self._decoder.rest()):
            self._session.data_received(rest)

    def close(self) -> None:
        """Close the connection."""
        assert self.transport is not None
        if self._session is not None:
            self._session.close()
        else:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail what is pending."""
        if self._session is not None:
            self._session.connection_lost()
        elif not self.negotiated.called:
            self.negotiated.callback(None)
        self.lost.callback(None)
