"""The server's side of a session on a Twisted connection."""

from __future__ import annotations

import enum
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime, ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.access import Peer
from uwsgitwisted.errors import Busy, MessageTooLarge, ProtocolError, RequestTimeout, Unavailable
from uwsgitwisted.interfaces import Answer, Reply, Request, StreamedAnswer, TimedAnswer
from uwsgitwisted.transport.answers import collect
from uwsgitwisted.transport.batch import BATCH, SLICE_SIZE, Slices
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.transport.server.budget import Account
from uwsgitwisted.transport.server.requests import Requests, cost
from uwsgitwisted.transport.server.streamed_answers import ANSWER_MEMORY, StreamedAnswers
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import Writer, read_more_at_once
from uwsgitwisted.wire.events import (
    CancelReceived,
    Event,
    RequestReceived,
    RequestRefused,
    ShutdownReceived,
    WindowGranted,
)
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.outgoing import OVERHEAD
from uwsgitwisted.wire.packet import MAX_PAYLOAD, Packet, new_tuple
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import KEEPALIVE, Terms, encode_grant

#: Seconds after a shutdown notice until a connection that the peer leaves open is closed: while the peer has
#: answers to read, and if it has none, for requests that raced with the notice.
_SHUTDOWN_TIME, _RACE_TIME = 5.0, 0.5
#: How many requests of a new session run at once.
_FIRST_REQUESTS = 64
#: Seconds between two keep-alives while reading is paused; the peer waits longer than this for one.
_KEEPALIVE = KEEPALIVE / 2

#: How many pieces of answers to write before other connections get their turn: about a megabyte.
_PIECES = 16


class _State(enum.Enum):
    """The states of a session."""

    OPEN = enum.auto()
    #: This side has sent a shutdown notice: it answers the started requests, and starts no more.
    DRAINING = enum.auto()
    #: The peer has sent a shutdown notice: the session is closed when all accepted requests are answered.
    ENDING = enum.auto()
    LOST = enum.auto()


class ServerSession:
    """Reads requests from one connection and writes their answers, in the order in which those are ready.

    It starts with the ping that grants the session. It runs as many requests as the terms grant, provided that
    there is room for their answers, judging by the sizes of earlier ones. It holds the others. It stops reading
    when it holds more requests than the terms grant, when more bytes of answers wait than one message may have,
    or when its peer uses much of the service's budget. It does little work at once, and the rest in later turns
    of the reactor, so that nobody waits for a peer that sends much.

    :param transport: the connection.
    :param clock: for the time limits.
    :param slices: schedules the rest of its work.
    :param ours: the terms of this side.
    :param theirs: the terms of the peer.
    :param respond: answers a request; failures of the Deferred are sent to the peer.
    :param peer: the other end.
    :param account: its share of the service's budget.
    :param reports: logs the peer's mistakes.
    :param failures: logs the requests that fail.
    :param body_timeout: seconds for each further piece of a large message.
    :param write_timeout: seconds for which the peer may read nothing while data waits for it.
    :param idle_timeout: seconds of silence after which the session is closed.
    :param tracebacks: whether to send the peer the tracebacks of handlers' exceptions.
    """

    _log = Logger()

    def __init__(
        self,
        transport: ITransport,
        clock: IReactorTime,
        slices: Slices,
        ours: Terms,
        theirs: Terms,
        respond: Callable[[Request], Reply],
        *,
        peer: Peer,
        account: Account,
        reports: Reports,
        failures: Reports,
        body_timeout: float,
        write_timeout: float,
        idle_timeout: float,
        tracebacks: bool = True,
    ) -> None:
        self._session = Session(Role.SERVER, ours, theirs, admits=self._has_room)
        self._transport = transport
        self._writer = Writer(transport, self._on_drained)
        self._clock = clock
        self._slices = slices
        self._respond = respond
        self._peer = peer
        self._account = account
        self._reports = reports
        self._failures = failures
        self._write_timeout = write_timeout
        self._idle_timeout = idle_timeout
        self._tracebacks = tracebacks
        self._requests = Requests(clock)
        self._streams = StreamedAnswers(self._session, clock, write_timeout, self._flush, self._on_stalled)
        self._unfinished = 0
        # How many bytes have arrived of streamed answers that are collected, and not complete.
        self._collected = 0
        self._body_timeout = body_timeout
        self._body_timer = Timer(clock, self._on_body_timeout)
        self._heard = clock.seconds()
        self._write_timer = Timer(clock, self._on_write_timeout)
        self._idle_timer = Timer(clock, self._check_idle)
        self._idle_timer.set(idle_timeout)
        #: Set while reading is paused.
        self._pause_timer = Timer(clock, self._send_keepalive)
        self._state = _State.OPEN
        self._backlog_limit = min(ours.max_message, theirs.max_message)
        # With so few bytes held, the session can't be over its limit.
        self._little = min(self._backlog_limit, ours.max_message, ours.max_requests * OVERHEAD, MAX_PAYLOAD)
        # The expected size of an answer, judging by earlier ones. There are none at first, so a session starts
        # with few requests at once and may have more as its answers turn out to be small.
        self._expected_size = self._backlog_limit // _FIRST_REQUESTS
        self._writer.write(encode_grant(ours))

    def data_received(self, data: bytes) -> None:
        """Handle bytes from the peer. If they violate the protocol, abort the connection."""
        self._heard = self._clock.seconds()
        self._read_frames(data)

    def _read_frames(self, data: bytes = b"") -> None:
        """Handle some of the buffered frames, after adding *data* to the buffer."""
        # If there is room for all of it, no request needs a check of its own.
        roomy = self._account.admits(len(data))
        try:
            events = self._session.receive(data, SLICE_SIZE)
        except ProtocolError as error:
            self._on_violation(error)
            return
        if self._session.unfinished != self._unfinished:
            self._track_unfinished(self._session.unfinished)
        if len(events) == 1:  # no need for a batch
            self._handle_event(events[0], roomy)
            self._flush()
        else:
            with BATCH:
                for event in events:
                    self._handle_event(event, roomy)
                BATCH.at_end(self._flush)

    def _handle_event(self, event: Event, roomy: bool) -> None:
        if isinstance(event, RequestReceived):
            request, requests = event.id, self._requests
            if request in requests.running or request in requests.held or self._session.is_sending(request):
                self._on_violation(f"request {request} was sent twice")
            elif self._state is not _State.OPEN:  # it raced with the shutdown notice: refuse it, don't lose it
                self._send_error(request, _stopping())
            elif not roomy and not self._has_room(cost(event)):
                self._send_error(request, _busy("a request", cost(event)))
            elif requests.held or self._at_capacity:
                requests.hold(event)
            else:
                self._start(event)
        elif isinstance(event, CancelReceived):
            self._requests.cancel(event.id)
        elif isinstance(event, RequestRefused):
            self._send_error(event.id, _busy("a request", event.size))
        elif isinstance(event, WindowGranted):
            self._streams.granted(event.id)
        elif isinstance(event, ShutdownReceived):
            self._state = _State.ENDING

    def _track_unfinished(self, unfinished: int) -> None:
        """Restart the body timeout for each further piece of a large message."""
        self._unfinished = unfinished
        read_more_at_once(self._transport, unfinished > 0)
        if unfinished:
            self._body_timer.set(self._body_timeout)
        else:
            self._body_timer.clear()

    def finish(self) -> None:
        """Drain: send a shutdown notice, after which the peer closes the connection when it has its answers."""
        if self._state is _State.OPEN:
            self._state = _State.DRAINING
            self._idle_timer.set(_SHUTDOWN_TIME if self._in_use else _RACE_TIME)
            self._session.send_shutdown()
        while self._requests.held:
            self._send_error(self._requests.release().id, _stopping())
        BATCH.at_end(self._flush)

    def connection_lost(self) -> None:
        """Cancel the running requests: nobody waits for their answers any more."""
        self._state = _State.LOST
        for timer in (self._write_timer, self._idle_timer, self._body_timer, self._pause_timer):
            timer.clear()
        self._requests.cancel_all()
        self._session.abandon()

    @property
    def idle_since(self) -> float | None:
        """Since when nothing has been in flight, in the reactor's time; None while something is."""
        return None if self._in_use else self._heard

    # Requests

    def _start_held(self) -> None:
        """Start some of the held requests, while there is room."""
        for _ in range(SLICE_SIZE):
            if not self._requests.held or self._at_capacity:
                break
            event = self._requests.release()
            if event.seconds is None or event.seconds > 0:
                self._start(event)
            else:
                self._send_error(event.id, RequestTimeout("the request timed out before it could start"))

    # Limits

    @property
    def _held_size(self) -> int:
        """Roughly how many bytes its complete requests and its answers take, without those that are streams."""
        return self._requests.size + self._session.backlog_memory + self._writer.pending + self._collected

    def _update_account(self) -> None:
        self._account.set(self._held_size + self._streams.number * ANSWER_MEMORY + self._session.announced)

    def _hold(self, size: int) -> bool:
        """Count *size* more bytes of streamed answers; return whether there is room for them."""
        if size > 0 and not self._has_room(size):
            return False
        self._collected += size
        return True

    def _has_room(self, size: int) -> bool:
        """Whether the budget admits *size* more bytes."""
        self._update_account()
        return self._account.admits(size)

    @property
    def _in_use(self) -> bool:
        """Whether the peer still waits for something, or is in the middle of a message."""
        session = self._session
        return bool(self._requests or session.sending or session.more or session.unfinished)

    @property
    def _at_capacity(self) -> bool:
        """Whether no further request may start: enough of them run, or enough bytes wait for the peer."""
        running = len(self._requests.running)
        unanswered = running - self._streams.number
        return (
            running >= self._session.ours.max_requests
            or self._session.backlog + unanswered * self._expected_size > self._backlog_limit
        )

    @property
    def _over_limit(self) -> bool:
        """Whether so much waits that no further frames may be read.

        Below this limit, requests are read and held even if none can start, so that cancels and pings get
        through. Requests with streamed answers don't count: those wait for grants, which must be read.
        """
        ours = self._session.ours
        return (
            self._session.backlog > self._backlog_limit
            or len(self._requests.held) > ours.max_requests
            or self._requests.held_size > ours.max_message
            or (self._account.crowded and self._held_size - self._requests.begun_size > MAX_PAYLOAD)
        )

    def _start(self, event: RequestReceived) -> None:
        request, packet, seconds, idempotent = event
        asked = new_tuple(Request, (packet, self._peer, seconds, idempotent, None, None))
        try:
            answer = self._respond(asked)
        except Exception as error:
            self._failures.failed(Failure(), asked)
            self._send_error(request, error)
            return
        if isinstance(answer, (Packet, bytes)):
            self._send_answer(answer, request, packet)
            return
        self._requests.begin(event, answer)
        # The only pair of callbacks: each further one would cost as much as all else that is done here.
        answer.addCallbacks(
            self._on_answer,
            self._on_failure,
            callbackArgs=(answer, request, packet),
            errbackArgs=(answer, request, packet),
        )

    def _on_answer(
        self, result: Answer, answer: Deferred[Answer], request: int, asked: Packet
    ) -> Deferred[None] | None:
        try:
            if isinstance(result, StreamedAnswer):
                # *answer* waits for the Deferred that is returned, so that cancelling it cancels the stream.
                return self._send_stream(result, answer, request, asked).addErrback(self._on_bug)
            if self._requests.end(request, answer):
                self._send_answer(result, request, asked)
                BATCH.at_end(self._flush)
        except Exception:
            self._on_bug(Failure())
        return None

    def _send_stream(
        self, result: StreamedAnswer, answer: Deferred[Answer], request: int, asked: Packet
    ) -> Deferred[None]:
        """Pass on a streamed answer, or collect it for a peer that takes only whole ones."""
        if self._session.theirs.window:
            done = self._pass_on(result, request).addCallback(self._on_streamed, answer, request)
        else:
            whole = collect(result, self._backlog_limit, self._hold)
            done = whole.addCallback(self._on_answer, answer, request, asked)
        return done.addErrback(self._fail, answer, request)

    def _pass_on(self, answer: StreamedAnswer, request: int) -> Deferred[None]:
        """Pass on a streamed answer, unless there is no room for it."""
        if not self._has_room(ANSWER_MEMORY):
            answer.stream.cancel()
            return fail(_busy("an answer", ANSWER_MEMORY))
        self._requests.begin_answer(request)
        return self._streams.send(request, answer)

    def _on_streamed(self, _: None, answer: Deferred[Answer], request: int) -> None:
        self._requests.end(request, answer)
        BATCH.at_end(self._flush)

    def _send_answer(self, answer: Answer, request: int, asked: Packet) -> None:
        took = 0.0
        if isinstance(answer, TimedAnswer):
            packet, took = answer
        else:
            assert not isinstance(answer, StreamedAnswer)
            packet = answer if isinstance(answer, Packet) else Packet(asked.modifier1, asked.modifier2, answer)
        size = len(packet.payload)
        expected = self._expected_size - self._expected_size // 64
        self._expected_size = size if size > expected else expected
        # For a small answer, the size held at the start of this turn is good enough, and cheaper to check.
        if not (size <= MAX_PAYLOAD and self._account.admits(size)) and not self._has_room(size):
            self._send_error(request, _busy("an answer", size))
            return
        try:
            self._session.send_answer(request, packet, took)
        except MessageTooLarge as error:
            self._session.send_error(request, encode_failure(error))

    def _on_failure(self, failure: Failure, answer: Deferred[Answer], request: int, asked: Packet) -> None:
        try:
            self._failures.failed(failure, Request(asked, self._peer))
            self._fail(failure, answer, request)
        except Exception:
            self._on_bug(Failure())

    def _fail(self, failure: Failure, answer: Deferred[Answer], request: int) -> None:
        """Send the error of a request, if that is still wanted."""
        if self._requests.end(request, answer):
            assert failure.value is not None
            self._send_error(request, failure.value)
            BATCH.at_end(self._flush)

    def _send_error(self, request: int, error: BaseException) -> None:
        self._session.send_error(request, encode_failure(error, tracebacks=self._tracebacks))

    def _on_bug(self, failure: Failure) -> None:
        self._log.failure("while answering {peer}", failure, peer=self._peer)
        self.abort()

    # The connection

    def _flush(self) -> None:
        """Write some of the queued frames, start held requests if that makes room, and plan the rest."""
        if self._state is _State.LOST:
            return
        requests, session, writer = self._requests, self._session, self._writer
        more = self._write()
        if requests.held and not self._at_capacity:
            self._start_held()
            more = self._write()  # the answers of those that were answered at once
        if writer.waiting:
            if not self._write_timer.running:
                self._write_timer.set(self._write_timeout)
        elif self._state is _State.ENDING and not requests and not session.sending:
            writer.close()
            return
        self._update_account()
        self._plan_rest(more)

    def _write(self) -> bool:
        """Write some of the queued frames; return whether more can be written."""
        session, writer, streams = self._session, self._writer, self._streams
        for _ in range(_PIECES):
            if writer.waiting:
                return False
            if streams.number:  # they take turns with the pieces of large messages
                streams.add_piece()
            if not (data := session.data_to_send()):
                return False
            writer.write(data)
        return not writer.waiting

    def _plan_rest(self, can_write: bool) -> None:
        """Schedule the work that can go on, and pause reading while too much work is left.

        The account is up to date.
        """
        unread = self._session.more
        full = self._account.held > self._little and self._over_limit
        if can_write or (unread and not full) or (self._requests.held and not self._at_capacity):
            self._slices.schedule(self._go_on)
        pause = full or unread
        if pause and not self._pause_timer.running:
            self._pause_timer.set(_KEEPALIVE)
            self._transport.pauseProducing()  # type: ignore[attr-defined]
        elif self._pause_timer.running and not pause:
            self._pause_timer.clear()
            self._transport.resumeProducing()  # type: ignore[attr-defined]

    def _go_on(self) -> None:
        if self._session.more and not self._over_limit and self._state is not _State.LOST:
            self._read_frames()
        else:
            self._flush()

    def _send_keepalive(self) -> None:
        """Tell the peer that this side is alive: while reading is paused, its pings are not seen."""
        self._session.send_pong()
        self._pause_timer.set(_KEEPALIVE)
        BATCH.at_end(self._flush)

    def _on_drained(self) -> None:
        self._write_timer.clear()
        BATCH.at_end(self._flush)

    def _on_body_timeout(self) -> None:
        if self._pause_timer.running:  # this side isn't reading
            self._body_timer.set(self._body_timeout)
            return
        self._on_violation(f"no further piece of a message within {self._body_timeout:g} s")

    def _on_write_timeout(self) -> None:
        self._report_stalled("{peer} did not read its answers for {seconds:g} s; closing its connection")
        self.abort()

    def _on_stalled(self) -> None:
        self._report_stalled("{peer} took nothing of an answer for {seconds:g} s; cancelling that")

    def _report_stalled(self, text: str) -> None:
        self._reports.report("stalled", text, peer=self._peer, seconds=self._write_timeout)

    def _check_idle(self) -> None:
        left = self._heard + self._idle_timeout - self._clock.seconds()
        if self._in_use:
            self._idle_timer.set(_SHUTDOWN_TIME)
        elif self._state is not _State.OPEN:  # the peer has not closed it
            self._writer.close()
        elif left > 0:
            self._idle_timer.set(left)
        else:
            self.finish()

    def _on_violation(self, reason: object) -> None:
        self._reports.report(
            "violation", "{peer} violated the session protocol: {reason}", peer=self._peer, reason=reason
        )
        self.abort()

    def abort(self) -> None:
        """Close the connection now."""
        self._state = _State.LOST
        self._writer.abort()


def _busy(what: str, size: int) -> Busy:
    return Busy(
        f"no room for {what} of {size} bytes now, beside what is held for your address; try another node, or "
        "try again later"
    )


def _stopping() -> Unavailable:
    return Unavailable("the node is stopping")
