"""The client's side of a session on a Twisted connection: requests out, Deferreds back.

The client's connections are this. The pipes to worker processes, where requests can be had back, are
:mod:`uwsgitwisted.engines.pipe`.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime, ITransport

from uwsgitwisted.errors import NoAnswer, ProtocolError, Unavailable, UwsgiError
from uwsgitwisted.transport.batch import BATCH, SLICE_SIZE, Slices
from uwsgitwisted.transport.client.call import Call
from uwsgitwisted.transport.client.negotiation import NegotiationProtocol
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import Writer, read_more_at_once
from uwsgitwisted.wire.failure import no_keepalive
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.session import (
    MAX_ID,
    AnswerReceived,
    ErrorReceived,
    Role,
    Session,
    ShutdownReceived,
)
from uwsgitwisted.wire.terms import KEEPALIVE, Terms

#: After a look for calls whose time is over, seconds until the next: a look costs time for each call.
_EXPIRY_STEP = 0.01
#: How many frames are taken in a turn of the reactor: at least a millisecond's work.
_MOST_FRAMES = 4 * SLICE_SIZE


#: Takes a call, and the error that refused it.
Retry = Callable[[Call, Unavailable], None]


class ClientSession:
    """Sends requests on one connection and fires their Deferreds.

    The owner passes on what the connection brings and its loss.

    :param transport: the connection.
    :param clock: provides ``callLater`` and ``seconds`` for the time limits.
    :param ours: what this side takes.
    :param theirs: what the peer takes.
    :param retry: takes over a call that has raced with the peer's shutdown notice, so that it was not begun.
    """

    def __init__(
        self,
        transport: ITransport,
        clock: IReactorTime,
        ours: Terms,
        theirs: Terms,
        retry: Retry | None = None,
    ) -> None:
        self._retry = retry
        self._pending: dict[int, Call] = {}
        self._session = Session(Role.CLIENT, ours, theirs, awaited=self._pending)
        self._transport = transport
        self._writer = Writer(transport, self._drained)
        self._clock = clock
        self._timer = Timer(clock, self._expire)
        self._timer_at = math.inf
        self._ids = itertools.count(1)
        #: The ids of those that the peer has no room for yet, in order.
        self._held: OrderedDict[int, None] = OrderedDict()
        self._keepalive = Timer(clock, self._check_keepalive)
        self._heard = 0.0
        self._slices = Slices(clock)
        self._lost = False
        self._paused = False
        self._reading_more = False
        #: Whether the peer, or this side, said that no further request will be taken.
        self.leaving = False

    @property
    def pending(self) -> int:
        """How many requests wait for their answers."""
        return len(self._pending)

    def send(self, call: Call) -> None:
        """Ask, and settle *call* with the answer.

        It fails with what the peer says, ``RequestTimeout``, or ``NoAnswer`` if the connection is lost.
        Cancelling it tells the peer.

        :raises MessageTooLarge: if the peer doesn't take so large a message.
        """
        request = self._next_id()
        now = self._clock.seconds()
        if len(self._pending) < self._session.theirs.max_requests:
            self._send(request, call, now)
        else:  # more would only wait there, and keep the peer from reading what is behind them
            self._session.check_size(len(call.packet.payload))
            self._held[request] = None
        call.enter(request, self._withdraw)
        self._pending[request] = call
        if call.deadline < self._timer_at:
            self._timer_at = call.deadline
            self._timer.set(max(0.0, call.deadline - now))
        if not self._keepalive.running:
            self._heard = now
            self._keepalive.set(KEEPALIVE)
        BATCH.at_end(self.flush)

    def _send(self, request: int, call: Call, now: float) -> None:
        left = None if call.deadline == math.inf else call.deadline - now
        self._session.send_request(request, call.packet, left, idempotent=call.idempotent)

    def data_received(self, data: bytes) -> None:
        """Take what the connection brings; a peer that breaks the protocol has it aborted.

        What is too much for one turn of the reactor is taken in later ones; until then nothing more is read.
        """
        self._heard = self._clock.seconds()
        self._receive(data)

    def _receive(self, data: bytes = b"") -> None:
        with BATCH:
            try:
                events = self._session.receive(data, _MOST_FRAMES)
            except ProtocolError as error:
                self.connection_lost(error)
                self._writer.abort()
                return
            for event in BATCH.slices(events):
                if isinstance(event, AnswerReceived):
                    self._settle(event.id, event.packet, event.took)
                elif isinstance(event, ErrorReceived):
                    self._settle(event.id, event.error, event.took)
                elif isinstance(event, ShutdownReceived):
                    self.leaving = True
            if self._held:
                self._send_held()
            if (self._session.unfinished > 0) != self._reading_more:
                self._reading_more = not self._reading_more
                read_more_at_once(self._transport, self._reading_more)
            if self.leaving and not self._pending:
                self.close()
            else:
                BATCH.at_end(self.flush)
                self._read_the_rest()

    def _read_the_rest(self) -> None:
        """Go on later with frames that have come and were not taken."""
        more = self._session.more
        if more:
            self._slices.go_on(self._receive_more)
        if more != self._paused:
            self._paused = more
            if more:
                self._transport.pauseProducing()  # type: ignore[attr-defined]
            else:
                self._transport.resumeProducing()  # type: ignore[attr-defined]

    def _receive_more(self) -> None:
        if not self._lost:
            self._receive()

    def connection_lost(self, error: Exception | None = None) -> None:
        """Fail what is pending."""
        self._lost = self.leaving = True
        self._timer.clear()
        self._keepalive.clear()
        self._held.clear()
        while self._pending:  # one that fails may cancel others
            call = self._pending.pop(next(iter(self._pending)))
            call.fail(error or NoAnswer("the connection was lost before the answer came"))

    def close(self) -> None:
        """Announce the shutdown, and close when all that was sent is out; pending requests fail."""
        self.leaving = True
        self._session.send_shutdown()
        self.flush()
        self._writer.close()

    def flush(self) -> None:
        """Write what there is to send, as far as the connection takes it."""
        while self._session.sending and not self._lost and not self._writer.waiting:
            self._writer.write(self._session.data_to_send())

    def _drained(self) -> None:
        """Note that the peer has read something, and go on writing."""
        self._heard = self._clock.seconds()
        self.flush()

    def _check_keepalive(self) -> None:
        """While answers are waited for, see that the server is there: one that is answers pings, however busy.

        One that neither sends nor reads anything is not: what is to be sent to it would only pile up.
        """
        if not self._pending:
            return
        silent = self._clock.seconds() - self._heard
        if silent >= 2 * KEEPALIVE:
            self.connection_lost(no_keepalive(silent))
            self._writer.abort()
            return
        if silent >= KEEPALIVE and not self._writer.waiting:
            self._session.send_ping()
            BATCH.at_end(self.flush)
        self._keepalive.set((1 + (silent >= KEEPALIVE)) * KEEPALIVE - silent)

    def _settle(self, request: int, result: Packet | UwsgiError, took: float) -> None:
        call = self._pending.pop(request, None)
        if call is None:  # cancelled or expired
            return
        call.took = took
        if isinstance(result, Packet):
            call.succeed(result)
        elif isinstance(result, Unavailable) and self.leaving and self._retry is not None:
            self._retry(call, result)
        else:
            call.fail(result)

    def _withdraw(self, call: Call) -> None:
        del self._pending[call.id]
        if call.id in self._held:
            del self._held[call.id]
            return
        self._session.send_cancel(call.id)
        self._send_held()
        BATCH.at_end(self.flush)

    def _send_held(self) -> None:
        """Send requests that were held back, as far as the peer works on so many."""
        while self._held and len(self._pending) - len(self._held) < self._session.theirs.max_requests:
            request, _ = self._held.popitem(last=False)
            self._send(request, self._pending[request], self._clock.seconds())

    def _expire(self) -> None:
        now = self._clock.seconds()
        for call in list(self._pending.values()):
            if call.deadline <= now and call.id in self._pending:  # one that fails may cancel others
                self._withdraw(call)
                call.expire()
        self._timer_at = min((call.deadline for call in self._pending.values()), default=math.inf)
        if self._timer_at < math.inf:
            self._timer.set(max(_EXPIRY_STEP, self._timer_at - now))

    def _next_id(self) -> int:
        request = next(self._ids) & MAX_ID
        while request in self._pending:
            request = next(self._ids) & MAX_ID
        return request


def negotiate(
    clock: IReactorTime, ours: Terms, retry: Retry | None = None
) -> NegotiationProtocol[ClientSession]:
    """Return the protocol of a connection on which an :class:`ClientSession` is to begin.

    :param clock: for the session's time limits.
    :param ours: what this side takes.
    :param retry: see :class:`ClientSession`.
    """
    return NegotiationProtocol(
        ours, lambda transport, theirs: ClientSession(transport, clock, ours, theirs, retry)
    )
