"""The client's side of a session on a Twisted connection: requests out, Deferreds back.

This is for a client's connections. :mod:`uwsgitwisted.engines.pipe` is for the pipes to worker processes, from
which requests can be recalled.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime, ITransport

from uwsgitwisted.errors import (
    MalformedPacket,
    NoAnswer,
    ProtocolError,
    RequestCancelled,
    Unavailable,
    UwsgiError,
)
from uwsgitwisted.interfaces import StreamedAnswer
from uwsgitwisted.transport.answers import AnswerStreams, collect
from uwsgitwisted.transport.batch import BATCH, SLICE_SIZE, Slices
from uwsgitwisted.transport.client.call import Call
from uwsgitwisted.transport.client.negotiation import NegotiationProtocol
from uwsgitwisted.transport.client.stream import StreamCall
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import Writer, read_more_at_once
from uwsgitwisted.wire.events import (
    AnswerReceived,
    DataReceived,
    EndReceived,
    ErrorReceived,
    Event,
    ShutdownReceived,
    StreamedAnswerReceived,
)
from uwsgitwisted.wire.failure import no_keepalive
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.session import MAX_ID, Role, Session
from uwsgitwisted.wire.terms import KEEPALIVE, Terms

#: Seconds between two searches for calls that have timed out: a search looks at every call.
_EXPIRY_STEP = 0.01
#: How many frames to handle in a turn of the reactor: at least a millisecond's work.
_MOST_FRAMES = 4 * SLICE_SIZE


#: Sends a call again; its arguments are the call and the error of the session that refused it.
Retry = Callable[[Call, Unavailable], None]


class ClientSession:
    """Sends requests on one connection and fires their Deferreds.

    The owner calls :meth:`data_received` and :meth:`connection_lost`.

    :param transport: the connection.
    :param clock: provides ``callLater`` and ``seconds`` for the time limits.
    :param ours: the terms of this side.
    :param theirs: the terms of the peer.
    :param retry: takes over a call that raced with the peer's shutdown notice; the peer has not started it.
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
        self._answers = AnswerStreams(self._session, self._flush_later, self._on_stream_cancelled)
        # How many bytes have arrived of streamed answers that callers want whole.
        self._collected = 0
        self._transport = transport
        self._writer = Writer(transport, self._on_drained)
        self._clock = clock
        self._timer = Timer(clock, self._on_deadline)
        self._timer_at = math.inf
        self._ids = itertools.count(1)
        #: The ids of the calls that wait here because the peer has no room for them yet, in order.
        self._held: OrderedDict[int, None] = OrderedDict()
        self._keepalive = Timer(clock, self._check_keepalive)
        self._heard = 0.0
        self._slices = Slices(clock)
        self._lost = False
        self._paused = False
        self._reading_more = False
        #: Whether the session accepts no further requests, because either side has sent a shutdown notice, or
        #: the connection is lost.
        self.draining = False

    @property
    def theirs(self) -> Terms:
        """The terms of the peer."""
        return self._session.theirs

    @property
    def pending(self) -> int:
        """How many requests have no answer yet."""
        return len(self._pending)

    def send(self, call: Call) -> None:
        """Send the request of *call*, and complete the call with its answer.

        The call fails with the peer's error, with ``RequestTimeout``, or with ``NoAnswer`` if the connection is
        lost. If it is cancelled, the peer is told.

        :raises MessageTooLarge: if the peer doesn't accept a message of this size.
        """
        pending, deadline = self._pending, call.deadline
        request = next(self._ids) & MAX_ID
        while request in pending:
            request = next(self._ids) & MAX_ID
        now = self._clock.seconds()
        if len(pending) < self._session.theirs.max_requests:
            self._send(request, call, now)
        else:  # it would only wait there, and stop the peer from reading later frames
            self._session.check_size(len(call.packet.payload))
            self._held[request] = None
        call.attach(request, self._cancel_call)
        pending[request] = call
        if deadline < self._timer_at:
            self._timer_at = deadline
            self._timer.set(max(0.0, deadline - now))
        if not self._keepalive.running:
            self._heard = now
            self._keepalive.set(KEEPALIVE)
        BATCH.at_end(self.flush)

    def _send(self, request: int, call: Call, now: float) -> None:
        left = None if call.deadline == math.inf else call.deadline - now
        self._session.send_request(request, call.packet, left, idempotent=call.idempotent)

    def data_received(self, data: bytes) -> None:
        """Handle bytes from the peer. If they violate the protocol, abort the connection.

        Frames that are too many for one turn of the reactor are handled in later turns; until then, reading is
        paused.
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
                    self._complete_call(event.id, event.packet, event.took)
                elif isinstance(event, ErrorReceived):
                    self._complete_call(event.id, event.error, event.took)
                else:
                    self._handle_other(event)
            if self._held:
                self._send_held()
            if (self._session.unfinished > 0 or bool(self._answers.open)) != self._reading_more:
                self._reading_more = not self._reading_more
                read_more_at_once(self._transport, self._reading_more)
            if self.draining and not self._pending:
                self.close()
            else:
                BATCH.at_end(self.flush)
                self._plan_rest()

    def _handle_other(self, event: Event) -> None:
        """Handle what is neither a whole answer nor an error."""
        if isinstance(event, DataReceived):
            self._answers.receive(event.id, event.data)
        elif isinstance(event, StreamedAnswerReceived):
            self._begin_answer(event.id, event.packet)
        elif isinstance(event, EndReceived):
            self._answers.end(event.id, None, event.took)
            self._pending.pop(event.id, None)  # if its caller has read it
        elif isinstance(event, ShutdownReceived):
            self.draining = True

    def _begin_answer(self, request: int, packet: Packet) -> None:
        """Give a streamed answer to its caller, or collect it for a caller that wants it whole."""
        call = self._pending.get(request)
        if call is None:  # cancelled while the events before this one were handled
            return
        stream = self._answers.begin(request)
        if isinstance(call, StreamCall):
            call.begin(packet, stream)
            return
        collect(StreamedAnswer(packet, stream), self._session.ours.max_message, self._hold).addCallbacks(
            lambda whole: self._complete_call(request, whole, stream.took),
            lambda failure: self._complete_call(request, failure.value, 0.0),
        )

    def _hold(self, size: int) -> bool:
        """Count *size* more bytes of collected answers; return whether there is room for them."""
        if size > 0 and self._collected + size > self._session.ours.max_message:
            return False
        self._collected += size
        return True

    def _on_stream_cancelled(self, request: int) -> None:
        """Tell the peer that nobody wants the rest of an answer."""
        self._session.send_cancel(request)
        self._answers.end(request)
        call = self._pending.get(request)
        if call is not None and call.streams:  # the other calls fail with the reason
            del self._pending[request]
            self._send_held()
        self._flush_later()

    def _plan_rest(self) -> None:
        """Schedule the handling of frames that are left, and pause reading until then."""
        more = self._session.more
        if more:
            self._slices.schedule(self._receive_more)
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
        """Fail the pending calls."""
        self._lost = self.draining = True
        self._timer.clear()
        self._keepalive.clear()
        self._held.clear()
        while self._pending:  # the failure of one may cancel others
            call = self._pending.pop(next(iter(self._pending)))
            call.fail(error or NoAnswer("the connection was lost before the answer came"))
        self._answers.end_all(RequestCancelled("the connection was lost"))  # the calls have failed
        self._session.abandon()

    def retire(self) -> None:
        """Close the connection when the pending calls have their answers."""
        self.draining = True
        if not self._pending:
            self.close()

    def close(self) -> None:
        """Send a shutdown notice, and close the connection when all data is written; pending calls fail."""
        self.draining = True
        self._session.send_shutdown()
        self.flush()
        self._writer.close()

    def flush(self) -> None:
        """Write queued frames until the connection is full."""
        while self._session.sending and not self._lost and not self._writer.waiting:
            self._writer.write(self._session.data_to_send())

    def _flush_later(self) -> None:
        BATCH.at_end(self.flush)

    def _on_drained(self) -> None:
        """Go on writing: the peer has read something, so it is alive."""
        self._heard = self._clock.seconds()
        self.flush()

    def _check_keepalive(self) -> None:
        """Ping a silent server while calls are pending, and fail them if it stays silent.

        A live server answers pings, however busy it is. One that neither sends nor reads hangs or is cut off,
        and data for it would pile up.
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

    def _complete_call(self, request: int, result: Packet | UwsgiError, took: float) -> None:
        if self._answers.open and request in self._answers.open:
            error = MalformedPacket("a second answer to a request") if isinstance(result, Packet) else result
            self._answers.end(request, error)
            self._pending.pop(request, None)  # if its caller has read it
            return
        call = self._pending.pop(request, None)
        if call is None:  # cancelled, or timed out
            return
        call.took = took
        if isinstance(result, Packet):
            call.succeed(result)
        elif isinstance(result, Unavailable) and self.draining and self._retry is not None:
            self._retry(call, result)
        else:
            call.fail(result)

    def _cancel_call(self, call: Call) -> None:
        del self._pending[call.id]
        if call.id in self._held:
            del self._held[call.id]
            return
        self._session.send_cancel(call.id)
        self._answers.end(call.id, RequestCancelled("nobody waits for it"))
        self._send_held()
        BATCH.at_end(self.flush)

    def _send_held(self) -> None:
        """Send held requests while the peer has room for more."""
        while self._held and len(self._pending) - len(self._held) < self._session.theirs.max_requests:
            request, _ = self._held.popitem(last=False)
            self._send(request, self._pending[request], self._clock.seconds())

    def _on_deadline(self) -> None:
        now = self._clock.seconds()
        for call in list(self._pending.values()):
            if call.deadline <= now and call.id in self._pending:  # the failure of one may cancel others
                self._cancel_call(call)
                call.time_out()
        self._timer_at = min((call.deadline for call in self._pending.values()), default=math.inf)
        if self._timer_at < math.inf:
            self._timer.set(max(_EXPIRY_STEP, self._timer_at - now))


def negotiate(
    clock: IReactorTime, ours: Terms, retry: Retry | None = None
) -> NegotiationProtocol[ClientSession]:
    """Return a protocol that negotiates a :class:`ClientSession` on its connection.

    :param clock: for the session's time limits.
    :param ours: the terms of this side.
    :param retry: see :class:`ClientSession`.
    """
    return NegotiationProtocol(
        ours, lambda transport, theirs: ClientSession(transport, clock, ours, theirs, retry)
    )
