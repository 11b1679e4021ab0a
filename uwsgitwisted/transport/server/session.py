"""The server's side of a session on a Twisted connection."""

from __future__ import annotations

import enum
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.access import Peer
from uwsgitwisted.errors import Busy, MessageTooLarge, ProtocolError, RequestTimeout, Unavailable
from uwsgitwisted.interfaces import Answer, Reply, Request, TimedAnswer
from uwsgitwisted.transport.batch import BATCH, SLICE_SIZE, Slices
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.transport.server.budget import Account
from uwsgitwisted.transport.server.requests import Requests, cost
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import Writer, read_more_at_once
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.packet import MAX_PAYLOAD, Packet
from uwsgitwisted.wire.session import (
    CancelReceived,
    Event,
    RequestReceived,
    RequestRefused,
    Role,
    Session,
    ShutdownReceived,
)
from uwsgitwisted.wire.terms import KEEPALIVE, Terms, encode_grant

#: Seconds between a shutdown notice and the end of a connection that the peer leaves open: while it has
#: answers to take, and when it has none, for requests that race with the notice.
_SHUTDOWN_TIME, _RACE_TIME = 5.0, 0.5
#: How many requests of a new session run at once.
_FIRST_REQUESTS = 64
#: Seconds between two keep-alives for a peer that is not read from; less than it waits for one.
_KEEPALIVE = KEEPALIVE / 2
#: How many pieces of answers are written before others get their turn: about a megabyte.
_PIECES = 16


class _State(enum.Enum):
    """How far a session has come."""

    OPEN = enum.auto()
    #: This side has announced its shutdown: what was begun is answered, nothing more is begun.
    DRAINING = enum.auto()
    #: The peer has announced its own: it is closed when all that was taken is answered.
    ENDING = enum.auto()
    LOST = enum.auto()


class ServerSession:
    """Reads requests from one connection and writes their answers, in whatever order they come.

    It begins with the ping that grants the session. As many requests run as the terms grant, and as the
    answers, by those before, have room for; others are held. It stops reading when more are held than the terms
    grant, answers of more bytes wait than one message may have, or its peer holds much of the service's budget.
    It does little at once, and what is left in later turns of the reactor, so that nobody waits for a peer that
    sends much.

    :param transport: the connection.
    :param clock: for the time limits.
    :param slices: in which it does what is left.
    :param ours: what this side grants.
    :param theirs: what the peer takes.
    :param respond: answers a request; the Deferred's failures are sent to the peer.
    :param peer: who is at the other end.
    :param account: what it holds of the service's budget.
    :param reports: for what the peer does wrong.
    :param body_timeout: seconds that the peer may take for each further piece of a large message.
    :param write_timeout: seconds that the peer may go without taking any of what waits for it.
    :param idle_timeout: seconds of silence after which the session is closed.
    :param tracebacks: whether the peer is told the traceback of a handler's exception.
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
        body_timeout: float,
        write_timeout: float,
        idle_timeout: float,
        tracebacks: bool = True,
    ) -> None:
        self._session = Session(Role.SERVER, ours, theirs, admits=self._has_room)
        self._transport = transport
        self._writer = Writer(transport, self._drained)
        self._clock = clock
        self._slices = slices
        self._respond = respond
        self._peer = peer
        self._account = account
        self._reports = reports
        self._write_timeout = write_timeout
        self._idle_timeout = idle_timeout
        self._tracebacks = tracebacks
        self._requests = Requests(clock)
        self._unfinished = 0
        self._body_timeout = body_timeout
        self._body_timer = Timer(clock, self._late)
        self._heard = clock.seconds()
        self._write_timer = Timer(clock, self._stalled)
        self._idle_timer = Timer(clock, self._check_idle)
        self._idle_timer.set(idle_timeout)
        #: Runs while nothing is read.
        self._pause_timer = Timer(clock, self._send_keepalive)
        self._state = _State.OPEN
        self._backlog_limit = min(ours.max_message, theirs.max_message)
        # How large the answers of what runs will be, by those before. Nothing is known at first, so a session
        # begins with few at once and gets to have more as its answers turn out small.
        self._expected_size = self._backlog_limit // _FIRST_REQUESTS
        self._writer.write(encode_grant(ours))

    def data_received(self, data: bytes) -> None:
        """Take what the connection brings; a peer that breaks the protocol has it aborted."""
        self._heard = self._clock.seconds()
        self._read(data)

    def _read(self, data: bytes = b"") -> None:
        """Take some of the frames that are there, with *data* behind what has come before."""
        # Whether there is room for all of it, so that each request need not be looked at.
        roomy = self._account.admits(len(data))
        try:
            events = self._session.receive(data, SLICE_SIZE)
        except ProtocolError as error:
            self._break_off(error)
            return
        if self._session.unfinished != self._unfinished:
            self._watch_unfinished(self._session.unfinished)
        if len(events) == 1:  # nothing to gather
            self._take(events[0], roomy)
            self._flush()
        else:
            with BATCH:
                for event in events:
                    self._take(event, roomy)
                BATCH.at_end(self._flush)

    def _take(self, event: Event, roomy: bool) -> None:
        if isinstance(event, RequestReceived):
            request = event.id
            if request in self._requests or self._session.is_sending(request):
                self._break_off(f"request {request} is asked twice")
            elif self._state is not _State.OPEN:  # it raced with the shutdown notice; it is refused, not lost
                self._refuse(request, _stopping())
            elif not roomy and not self._has_room(cost(event)):
                self._refuse(request, _busy("a request", cost(event)))
            elif self._requests.held or self._full:
                self._requests.hold(event)
            else:
                self._start(event)
        elif isinstance(event, CancelReceived):
            self._requests.cancel(event.id)
        elif isinstance(event, RequestRefused):
            self._refuse(event.id, _busy("a request", event.size))
        elif isinstance(event, ShutdownReceived):
            self._state = _State.ENDING

    def _watch_unfinished(self, unfinished: int) -> None:
        """Give a peer that is sending a large message its time for each step of it."""
        self._unfinished = unfinished
        read_more_at_once(self._transport, unfinished > 0)
        if unfinished:
            self._body_timer.set(self._body_timeout)
        else:
            self._body_timer.clear()

    def finish(self) -> None:
        """Take no further request; the peer, told so, closes the connection when it has its answers."""
        if self._state is _State.OPEN:
            self._state = _State.DRAINING
            self._idle_timer.set(_SHUTDOWN_TIME if self._under_way else _RACE_TIME)
            self._session.send_shutdown()
        while self._requests.held:
            self._refuse(self._requests.release().id, _stopping())
        BATCH.at_end(self._flush)

    def connection_lost(self) -> None:
        """Cancel what runs: nobody waits for it any more."""
        self._state = _State.LOST
        for timer in (self._write_timer, self._idle_timer, self._body_timer, self._pause_timer):
            timer.clear()
        self._requests.cancel_all()

    @property
    def idle_since(self) -> float | None:
        """Since when nothing has been in flight, in the reactor's time; None if something is."""
        return None if self._under_way else self._heard

    # Requests

    def _start_held(self) -> None:
        """Start some of the requests that are held, as far as there is room."""
        for _ in range(SLICE_SIZE):
            if not self._requests.held or self._full:
                break
            event = self._requests.release()
            if event.seconds is None or event.seconds > 0:
                self._start(event)
            else:
                self._refuse(event.id, RequestTimeout("its caller's time was over before its turn came"))

    # What it holds

    @property
    def _in_flight(self) -> int:
        """About how many bytes it holds of requests that are whole, and of answers."""
        return self._requests.size + self._session.backlog_memory + self._writer.pending

    def _has_room(self, size: int) -> bool:
        """Whether the budget admits *size* bytes more."""
        self._account.set(self._in_flight + self._session.announced)
        return self._account.admits(size)

    @property
    def _under_way(self) -> bool:
        """Whether the peer is still owed something, or is in the middle of a message."""
        session = self._session
        return bool(self._requests or session.sending or session.more or session.unfinished)

    @property
    def _full(self) -> bool:
        """Whether as much runs, or waits to be taken by the peer, as one session may have."""
        running = self._requests.running
        return (
            running >= self._session.ours.max_requests
            or self._session.backlog + running * self._expected_size > self._backlog_limit
        )

    @property
    def _holds_enough(self) -> bool:
        """Whether so much waits that no further frames are read.

        Until then requests are read, and held, while none can be started, so that cancels and pings are not
        held up.
        """
        ours = self._session.ours
        return (
            self._session.backlog > self._backlog_limit
            or self._requests.held > ours.max_requests
            or self._requests.held_size > ours.max_message
            or (self._account.crowded and self._in_flight > MAX_PAYLOAD)
        )

    def _start(self, event: RequestReceived) -> None:
        request, packet, seconds, idempotent = event
        try:
            answer = self._respond(Request(packet, self._peer, seconds, idempotent))
        except Exception as error:
            self._refuse(request, error)
            return
        if isinstance(answer, (Packet, bytes)):
            self._answer(answer, request, packet)
            return
        self._requests.begin(event, answer)
        answer.addCallbacks(
            self._succeed, self._fail, callbackArgs=(answer, request, packet), errbackArgs=(answer, request)
        ).addErrback(self._bug)

    def _succeed(self, result: Answer, answer: Deferred[Answer], request: int, asked: Packet) -> None:
        if self._requests.end(request, answer):
            self._answer(result, request, asked)
            BATCH.at_end(self._flush)

    def _answer(self, answer: Answer, request: int, asked: Packet) -> None:
        took = 0.0
        if isinstance(answer, TimedAnswer):
            packet, took = answer
        else:
            packet = answer if isinstance(answer, Packet) else Packet(asked.modifier1, asked.modifier2, answer)
        size = len(packet.payload)
        self._expected_size = max(size, self._expected_size - self._expected_size // 64)
        # Small ones are looked at by what was held at the beginning of this turn, which costs less.
        if not (size <= MAX_PAYLOAD and self._account.admits(size)) and not self._has_room(size):
            self._refuse(request, _busy("an answer", size))
            return
        try:
            self._session.send_answer(request, packet, took)
        except MessageTooLarge as error:
            self._session.send_error(request, encode_failure(error))

    def _fail(self, failure: Failure, answer: Deferred[Answer], request: int) -> None:
        if self._requests.end(request, answer):
            assert failure.value is not None
            self._refuse(request, failure.value)
            BATCH.at_end(self._flush)

    def _refuse(self, request: int, error: BaseException) -> None:
        self._session.send_error(request, encode_failure(error, tracebacks=self._tracebacks))

    def _bug(self, failure: Failure) -> None:
        self._log.failure("while answering {peer}", failure, peer=self._peer)
        self.abort()

    # The connection

    def _flush(self) -> None:
        """Write some of what there is, start what that makes room for, and see to the rest."""
        if self._state is _State.LOST:
            return
        requests, session, writer = self._requests, self._session, self._writer
        self._write()
        if requests.held and not self._full:
            self._start_held()
            self._write()  # what was answered at once
        if writer.waiting:
            if not self._write_timer.running:
                self._write_timer.set(self._write_timeout)
        elif self._state is _State.ENDING and not requests and not session.sending:
            writer.close()
            return
        self._account.set(self._in_flight + session.announced)
        if requests or self._pause_timer.running or writer.waiting or session.more or session.sending:
            self._see_to_the_rest()

    def _write(self) -> None:
        for _ in range(_PIECES):
            if self._writer.waiting or not (data := self._session.data_to_send()):
                break
            self._writer.write(data)

    def _see_to_the_rest(self) -> None:
        """Go on later with what can be done, and read nothing more while there is much that can't, or isn't."""
        session = self._session
        full = self._holds_enough
        if (
            (session.more and not full)
            or (self._requests.held and not self._full)
            or (session.sending and not self._writer.waiting)
        ):
            self._slices.go_on(self._do_more)
        pause = full or session.more
        if pause and not self._pause_timer.running:
            self._pause_timer.set(_KEEPALIVE)
            self._transport.pauseProducing()  # type: ignore[attr-defined]
        elif self._pause_timer.running and not pause:
            self._pause_timer.clear()
            self._transport.resumeProducing()  # type: ignore[attr-defined]

    def _do_more(self) -> None:
        if self._session.more and not self._holds_enough and self._state is not _State.LOST:
            self._read()
        else:
            self._flush()

    def _send_keepalive(self) -> None:
        """While nothing is read, tell the peer that this side lives: its pings can't be seen."""
        self._session.send_pong()
        self._pause_timer.set(_KEEPALIVE)
        BATCH.at_end(self._flush)

    def _drained(self) -> None:
        self._write_timer.clear()
        BATCH.at_end(self._flush)

    def _late(self) -> None:
        if self._pause_timer.running:  # it is this side that doesn't read
            self._body_timer.set(self._body_timeout)
            return
        self._break_off(f"no further piece of a message within {self._body_timeout:g} s")

    def _stalled(self) -> None:
        self._reports.report(
            "stalled",
            "{peer} took nothing of its answers for {seconds:g} s; its connection is closed",
            peer=self._peer,
            seconds=self._write_timeout,
        )
        self.abort()

    def _check_idle(self) -> None:
        left = self._heard + self._idle_timeout - self._clock.seconds()
        if self._under_way:
            self._idle_timer.set(_SHUTDOWN_TIME)
        elif self._state is not _State.OPEN:  # the peer does not close it
            self._writer.close()
        elif left > 0:
            self._idle_timer.set(left)
        else:
            self.finish()

    def _break_off(self, reason: object) -> None:
        self._reports.report(
            "breach", "{peer} broke the protocol of its session: {reason}", peer=self._peer, reason=reason
        )
        self.abort()

    def abort(self) -> None:
        """Close the connection now."""
        self._state = _State.LOST
        self._writer.abort()


def _busy(what: str, size: int) -> Busy:
    return Busy(
        f"there is no room for {what} of {size} bytes now, beside what is held for your address; try another "
        "node, or later"
    )


def _stopping() -> Unavailable:
    return Unavailable("the node is stopping")
