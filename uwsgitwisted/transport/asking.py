"""The asking side of a session on a Twisted connection: requests out, Deferreds back.

The client's connections and the front's pipes to its worker processes are both this.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITransport

from uwsgitwisted.errors import NoAnswer, ProtocolError, RequestCancelled, RequestTimeout
from uwsgitwisted.transport.alarm import Alarm
from uwsgitwisted.transport.offering import OfferingProtocol
from uwsgitwisted.transport.turn import TURN
from uwsgitwisted.transport.writer import Writer
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.session import (
    MAX_ID,
    AnswerReceived,
    ErrorReceived,
    GoodbyeReceived,
    Role,
    Session,
    Terms,
)

#: Seconds of silence after which a peer is asked for a sign of life; after as many more, it is taken for dead.
PULSE = 15.0


def _as_it_is(packet: Packet) -> Packet:
    return packet


class _Pending(NamedTuple):
    """A request that waits for its answer."""

    packet: Packet
    idempotent: bool
    answer: Deferred[Any]
    deadline: float
    allowed: float
    decode: Callable[[Packet], object]


class AskingSession:
    """Sends requests on one connection and fires their Deferreds.

    The owner passes on what the connection brings and its loss.

    :param transport: the connection.
    :param clock: provides ``callLater`` and ``seconds`` for the time limits.
    :param ours: what this side takes.
    :param theirs: what the peer takes.
    """

    def __init__(self, transport: ITransport, clock: IReactorTime, ours: Terms, theirs: Terms) -> None:
        self._pending: dict[int, _Pending] = {}
        self._session = Session(Role.CLIENT, ours, theirs, awaited=self._pending)
        self._transport = transport
        self._writer = Writer(transport, self.flush)
        self._clock = clock
        self._alarm = Alarm(clock, self._expire)
        self._alarm_at = math.inf
        self._ids = itertools.count(1)
        self._held: deque[int] = deque()
        self._pulse = Alarm(clock, self._check_pulse)
        self._heard = 0.0
        self._lost = False
        #: Whether the peer, or this side, said that no further request will be taken.
        self.leaving = False

    @property
    def pending(self) -> int:
        """How many requests wait for their answers."""
        return len(self._pending)

    def request(
        self,
        packet: Packet,
        seconds: float | None = None,
        allowed: float | None = None,
        *,
        idempotent: bool = False,
        decode: Callable[[Packet], object] = _as_it_is,
    ) -> Deferred[Any]:
        """Ask.

        :param seconds: how long to wait; None for ever.
        :param allowed: the time that ``RequestTimeout`` names, if a part of it had passed before.
        :param idempotent: whether it may be run again if the worker that runs it dies.
        :param decode: makes of the answer what the Deferred fires with; it may raise ``ProtocolError``.
        :return: fires with the answer; fails with what the peer says, ``RequestTimeout`` or ``NoAnswer`` if the
            connection is lost. Cancelling it tells the peer.
        :raises MessageTooLarge: if the peer doesn't take so large a message.
        """
        request = self._next_id()
        if len(self._pending) < self._session.theirs.max_requests:
            self._session.send_request(request, packet, seconds, idempotent=idempotent)
        else:  # more would only wait there, and keep the peer from reading what is behind them
            self._session.check_size(len(packet.payload))
            self._held.append(request)
        deadline = math.inf if seconds is None else self._clock.seconds() + seconds
        answer: Deferred[Any] = Deferred(partial(self._cancel, request))
        self._pending[request] = _Pending(
            packet, idempotent, answer, deadline, allowed or seconds or 0.0, decode
        )
        if deadline < self._alarm_at:
            self._alarm_at = deadline
            self._alarm.set(max(0.0, deadline - self._clock.seconds()))
        if not self._pulse.running:
            self._heard = self._clock.seconds()
            self._pulse.set(PULSE)
        TURN.at_end(self.flush)
        return answer

    def data_received(self, data: bytes) -> None:
        """Take what the connection brings; a peer that breaks the protocol has it aborted."""
        self._heard = self._clock.seconds()
        with TURN:
            try:
                events = self._session.receive(data)
            except ProtocolError as error:
                self.connection_lost(error)
                self._transport.abortConnection()  # type: ignore[attr-defined]
                return
            for event in events:
                if isinstance(event, AnswerReceived):
                    self._settle(event.id, event.packet)
                elif isinstance(event, ErrorReceived):
                    self._settle(event.id, event.error)
                elif isinstance(event, GoodbyeReceived):
                    self.leaving = True
            if self._held:
                self._send_held()
            if self.leaving and not self._pending:
                self.close()
            else:
                TURN.at_end(self.flush)

    def connection_lost(self, error: Exception | None = None) -> None:
        """Fail what is pending."""
        self._lost = self.leaving = True
        self._alarm.clear()
        self._pulse.clear()
        self._held.clear()
        while self._pending:  # one that fails may cancel others
            pending = self._pending.pop(next(iter(self._pending)))
            pending.answer.errback(error or NoAnswer("the connection was lost before the answer came"))

    def close(self) -> None:
        """Say goodbye and close the connection when all that was sent is out; pending requests fail."""
        self.leaving = True
        self._session.send_goodbye()
        self.flush()
        self._writer.close()

    def flush(self) -> None:
        """Write what there is to send, as far as the connection takes it."""
        while self._session.sending and not self._lost and not self._writer.waiting:
            self._writer.write(self._session.data_to_send())

    def _check_pulse(self) -> None:
        """While answers are waited for, see that the peer is there; one that is says so, however busy."""
        if not self._pending:
            return
        silent = self._clock.seconds() - self._heard
        if self._writer.waiting:  # it doesn't read, so that it can't hear a ping; TCP tells if it is gone
            self._heard = self._clock.seconds()
        elif silent >= 2 * PULSE:
            self.connection_lost(NoAnswer(f"the peer has not given a sign of life for {silent:.0f} s"))
            self._transport.abortConnection()  # type: ignore[attr-defined]
            return
        elif silent >= PULSE:
            self._session.send_ping()
            TURN.at_end(self.flush)
        self._pulse.set(PULSE)

    def _settle(self, request: int, result: Packet | Exception) -> None:
        pending = self._pending.pop(request, None)
        if pending is None:  # cancelled or expired
            return
        if not isinstance(result, Packet):
            pending.answer.errback(result)
            return
        try:
            value = pending.decode(result)
        except ProtocolError as error:
            pending.answer.errback(error)
        else:
            pending.answer.callback(value)

    def _cancel(self, request: int, answer: Deferred[Any]) -> None:
        self._withdraw(request)
        answer.errback(RequestCancelled("the request was cancelled"))

    def _withdraw(self, request: int) -> None:
        del self._pending[request]
        if request in self._held:
            self._held.remove(request)
            return
        self._session.send_cancel(request)
        self._send_held()
        TURN.at_end(self.flush)

    def _send_held(self) -> None:
        """Send requests that were held back, as far as the peer works on so many."""
        while self._held and len(self._pending) - len(self._held) < self._session.theirs.max_requests:
            request = self._held.popleft()
            pending = self._pending[request]
            left = pending.deadline - self._clock.seconds()
            self._session.send_request(
                request,
                pending.packet,
                None if left == math.inf else left,
                idempotent=pending.idempotent,
            )

    def _expire(self) -> None:
        now = self._clock.seconds()
        for request, pending in list(self._pending.items()):
            if pending.deadline <= now and request in self._pending:  # one that fails may cancel others
                self._withdraw(request)
                text = f"no answer within {pending.allowed:g} s"
                pending.answer.errback(RequestTimeout(text, seconds=pending.allowed))
        self._alarm_at = min((pending.deadline for pending in self._pending.values()), default=math.inf)
        if self._alarm_at < math.inf:
            self._alarm.set(max(0.0, self._alarm_at - now))

    def _next_id(self) -> int:
        request = next(self._ids) & MAX_ID
        while request in self._pending:
            request = next(self._ids) & MAX_ID
        return request


def offer(clock: IReactorTime, ours: Terms) -> OfferingProtocol[AskingSession]:
    """Return the protocol of a connection on which an :class:`AskingSession` is to begin.

    :param clock: for the session's time limits.
    :param ours: what this side takes.
    """
    return OfferingProtocol(ours, lambda transport, theirs: AskingSession(transport, clock, ours, theirs))
