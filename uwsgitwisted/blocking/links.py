"""A node in a map: a session with many requests in flight, or connections for the requests of a plain peer."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import NamedTuple

from uwsgitwisted.address import Address
from uwsgitwisted.blocking.loop import Loop, Task
from uwsgitwisted.blocking.sessions import TERMS, Granted, negotiate, remember_ours
from uwsgitwisted.blocking.sockets import Deadline, Steps, Wait, converse, describe
from uwsgitwisted.errors import ConnectionFailed, NoAnswer, RequestTimeout, UwsgiError
from uwsgitwisted.planner.piece import Sending
from uwsgitwisted.wire.events import AnswerReceived, ErrorReceived, ShutdownReceived
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.failure import no_keepalive
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.session import MAX_ID, Role, Session
from uwsgitwisted.wire.terms import KEEPALIVE, Terms

_READ, _WRITE = 1, 2  # as in selectors
_READ_SIZE = 262_144
#: How often a session is read before the others get their turn.
_MAX_READS = 4
_WOULD_BLOCK = ("BlockingIOError", "SSLWantReadError", "SSLWantWriteError")


class Outcome(NamedTuple):
    """How a request has ended.

    :param took: how long the handler ran, in seconds; 0 if that isn't known.
    """

    sending: Sending
    value: object
    error: UwsgiError | None
    took: float


class _Request(NamedTuple):
    """A request in flight, and when it times out."""

    sending: Sending
    until: float


class SessionLink:
    """A session with a node.

    :param granted: the connection.
    :param timeout: seconds for each request.
    :param idempotent: whether the requests may run twice.
    :param ended: called with the outcome of each request.
    """

    def __init__(
        self, granted: Granted, timeout: float, idempotent: bool, ended: Callable[[Outcome], None]
    ) -> None:
        self._sock = granted.sock
        self._rest = granted.rest
        self._timeout = timeout
        self._idempotent = idempotent
        self._ended = ended
        #: The requests in flight, the oldest first.
        self._requests: dict[int, _Request] = {}
        self._session = Session(Role.CLIENT, TERMS, granted.theirs, awaited=self._requests)
        self._ids = itertools.count(1)
        self._unsent = memoryview(b"")
        self._heard = time.monotonic()
        self._pinged = False
        #: Whether the node accepts further requests.
        self.usable = True

    def send(self, sending: Sending, packet: Packet) -> None:
        """Queue a request.

        :raises MessageTooLarge: if the node doesn't accept a message of this size.
        """
        request = next(self._ids) & MAX_ID
        idempotent = self._idempotent and not sending.bundled
        self._session.send_request(request, packet, self._timeout, idempotent=idempotent)
        now = time.monotonic()
        if not self._requests:
            self._heard, self._pinged = now, False
        self._requests[request] = _Request(sending, now + self._timeout)
        sending.handle = partial(self._cancel, request)

    def _cancel(self, request: int) -> None:
        if self._requests.pop(request, None) is not None:
            self._session.send_cancel(request)

    def flush(self) -> Wait:
        """Send what is queued, as far as the socket takes it; return what to wait for next."""
        events = _READ if self._send_queued() else _READ | _WRITE
        return Wait(self._sock, events, self._next_time())

    def _send_queued(self) -> bool:
        try:
            while self._unsent or self._session.sending:
                if not self._unsent:
                    self._unsent = memoryview(self._session.data_to_send())
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except OSError as error:
            return type(error).__name__ not in _WOULD_BLOCK  # reading gets the same error, and handles it
        return True

    def serve(self) -> Steps[UwsgiError | None]:
        """Handle what the node sends, until the connection ends; all requests have ended then."""
        try:
            if self._rest:
                self._handle(self._rest)
            while self.usable or self._requests:
                if (yield self.flush()):
                    self._read()
                self._check_times()
        except UwsgiError as error:
            self._fail_all(error)
        except OSError as error:
            self._fail_all(NoAnswer(f"the connection was lost before the answer came: {describe(error)}"))
        finally:
            self.usable = False
            self._sock.close()
        return None

    def _read(self) -> None:
        for _ in range(_MAX_READS):
            try:
                data = self._sock.recv(_READ_SIZE)
            except OSError as error:
                if type(error).__name__ in _WOULD_BLOCK:
                    return
                raise
            if not data:
                raise NoAnswer("the connection was lost before the answer came")
            self._heard, self._pinged = time.monotonic(), False
            self._handle(data)
            if len(data) < _READ_SIZE and not getattr(self._sock, "pending", int)():
                return

    def _handle(self, data: bytes) -> None:
        for event in self._session.receive(data):
            if isinstance(event, (AnswerReceived, ErrorReceived)):
                request = self._requests.pop(event.id, None)
                if request is not None:
                    self._ended(_outcome(request.sending, event))
            elif isinstance(event, ShutdownReceived):
                self.usable = False

    def _next_time(self) -> float:
        """Return when the next request times out, or the node has been silent for too long."""
        if not self._requests:
            return math.inf
        return min(next(iter(self._requests.values())).until, self._silent_until)

    @property
    def _silent_until(self) -> float:
        return self._heard + KEEPALIVE * (1 + self._pinged)

    def _check_times(self) -> None:
        now = time.monotonic()
        while self._requests:
            request, (sending, until) = next(iter(self._requests.items()))
            if until > now:
                break
            self._cancel(request)
            text = f"no whole answer within {self._timeout:g} seconds"
            self._ended(Outcome(sending, None, RequestTimeout(text, seconds=self._timeout), 0.0))
        if self._requests and now >= self._silent_until:
            if self._pinged:
                raise no_keepalive(now - self._heard)
            self._session.send_ping()
            # The caller may have left the loop alone for long; the node gets its time to answer in any case.
            self._heard, self._pinged = max(self._heard, now - KEEPALIVE), True

    def _fail_all(self, error: UwsgiError) -> None:
        self.usable = False
        requests, self._requests = list(self._requests.values()), {}
        for request in requests:
            self._ended(Outcome(request.sending, None, error, 0.0))


def _outcome(sending: Sending, event: AnswerReceived | ErrorReceived) -> Outcome:
    if isinstance(event, ErrorReceived):
        return Outcome(sending, None, event.error, event.took)
    try:
        return Outcome(sending, sending.decode(event.packet), None, event.took)
    except UwsgiError as error:
        return Outcome(sending, None, error, event.took)


class NodeLink:
    """A node, and the requests on their way to it. It connects when it gets the first one.

    :param address: where the node is.
    :param loop: drives the connections.
    :param timeout: seconds for each request.
    :param idempotent: whether the requests may run twice.
    :param ended: called with the outcome of each request.
    :param learned: called with the terms of each session that the node grants.
    """

    def __init__(
        self,
        address: Address,
        loop: Loop,
        timeout: float,
        idempotent: bool,
        ended: Callable[[Outcome], None],
        learned: Callable[[Address, Terms], None],
    ) -> None:
        self._address = address
        self._loop = loop
        self._timeout = timeout
        self._idempotent = idempotent
        self._ended = ended
        self._learned = learned
        self._session: SessionLink | None = None
        self._task: Task | None = None
        self._connecting = False
        #: The requests that wait for the connection.
        self._waiting: dict[Sending, Packet] = {}

    def send(self, sending: Sending, packet: Packet) -> None:
        """Send a request, or queue it until there is a connection."""
        if self._session is not None and self._session.usable:
            self._send_on(self._session, sending, packet)
            return
        self._waiting[sending] = packet
        sending.handle = partial(self._waiting.pop, sending, None)
        if not self._connecting:
            self._connecting = True
            steps = _explained(negotiate(self._address, Deadline.after(self._timeout)))
            self._loop.start(steps, self._connected)

    def flush(self) -> bool:
        """Send what is queued, as far as possible; return whether all is sent."""
        if self._session is None or self._task is None or not self._session.usable:
            return True
        wait = self._session.flush()
        self._loop.change_wait(self._task, wait)
        return not wait.events & _WRITE

    def _connected(self, granted: Granted | UwsgiError | None) -> None:
        self._connecting = False
        waiting = list(self._waiting.items())
        self._waiting.clear()
        if isinstance(granted, UwsgiError):
            for sending, _ in waiting:
                self._ended(Outcome(sending, None, granted, 0.0))
        elif granted is None:
            for sending, packet in waiting:
                self._send_plain(sending, packet)
        else:
            remember_ours(self._address)
            session = self._session = SessionLink(granted, self._timeout, self._idempotent, self._ended)
            self._learned(self._address, granted.theirs)
            for sending, packet in waiting:
                self._send_on(session, sending, packet)
            self._task = self._loop.start(session.serve(), lambda _: None)

    def _send_on(self, session: SessionLink, sending: Sending, packet: Packet) -> None:
        try:
            session.send(sending, packet)
        except UwsgiError as error:
            self._ended(Outcome(sending, None, error, 0.0))

    def _send_plain(self, sending: Sending, packet: Packet) -> None:
        def ended(result: object) -> None:
            error = result if isinstance(result, UwsgiError) else None
            self._ended(Outcome(sending, None if error else result, error, 0.0))

        task = self._loop.start(_explained(_ask_plain(self._address, packet, self._timeout)), ended)
        sending.handle = partial(self._loop.stop, task)


def _ask_plain(address: Address, packet: Packet, timeout: float) -> Steps[object]:
    exchange = PlainExchange(packet)
    yield from converse(address, exchange, Deadline.after(timeout))
    return exchange.result()


def _explained(steps: Steps[object]) -> Generator[Wait, bool, object]:
    """Run *steps*, and turn errors of the system into ours."""
    try:
        return (yield from steps)
    except UwsgiError:
        raise
    except OSError as error:
        raise ConnectionFailed(describe(error)) from error
