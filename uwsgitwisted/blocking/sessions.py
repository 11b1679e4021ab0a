"""Sessions for blocking calls: each thread caches one session with each of our own nodes that it calls.

Before it sends a request, a call notices that the peer has closed the cached session, and opens a new one. A
forked process opens its own. If a peer grants no session, the module remembers that for a while, and calls use
one connection for each request; no request is sent twice to find out. :mod:`uwsgitwisted.wire.session` has the
protocol; this module only reads and writes.
"""

from __future__ import annotations

import itertools
import math
import os
import select
import socket
import threading
import time
from collections.abc import Container
from typing import NamedTuple

from uwsgitwisted.address import Address
from uwsgitwisted.blocking.sockets import (
    NO_ANSWER,
    NOT_SENT,
    Deadline,
    Steps,
    connect,
    converse,
    drive,
    receive,
    send,
    send_some,
)
from uwsgitwisted.errors import (
    MessageTooLarge,
    NoAnswer,
    ProtocolError,
    RequestTimeout,
    Unavailable,
    UwsgiError,
)
from uwsgitwisted.wire.events import AnswerReceived, ErrorReceived, ShutdownReceived
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.failure import no_grant, no_keepalive
from uwsgitwisted.wire.message import decode_answer
from uwsgitwisted.wire.packet import Packet, PacketDecoder
from uwsgitwisted.wire.session import MAX_ID, Role, Session
from uwsgitwisted.wire.terms import (
    KEEPALIVE,
    OFFER_TIMEOUT,
    PLAIN_FOR,
    SILENT_FOR,
    Terms,
    decode_grant,
    encode_offer,
)

#: What we accept from peers.
TERMS = Terms()
_READ_SIZE = 65_536
#: A session is used again without a check within so many seconds after its last call began.
_FRESH = 0.005
#: How often the check of a session reads at most. A session whose peer has sent still more is closed.
_MAX_READS = 16


class CachedSession:
    """A connection with a session, for one request at a time.

    :param sock: a non-blocking socket.
    :param theirs: the peer's terms.
    :param rest: the bytes that came after the grant.
    :param ours: our terms.
    :param awaited: the ids of the requests whose streamed answers are accepted; None for all.
    """

    def __init__(
        self,
        sock: socket.socket,
        theirs: Terms,
        rest: bytes,
        ours: Terms = TERMS,
        awaited: Container[int] | None = None,
    ) -> None:
        self._sock = sock
        self._session = Session(Role.CLIENT, ours, theirs, awaited=awaited)
        self._ids = itertools.count(1)
        self._used = 0.0
        #: Whether the peer has sent its shutdown notice and accepts no further request.
        self.draining = False
        # With TLS, OpenSSL may already have read a part of the answer, which poll wouldn't see.
        self._poll = select.poll() if type(sock) is socket.socket else None
        if self._poll is not None:
            self._poll.register(sock, select.POLLIN)
        if rest:
            self._handle_data(rest, 0)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def is_usable(self, now: float) -> bool:
        """Whether the peer still accepts requests, as far as its bytes so far tell.

        :param now: the monotonic clock's time.
        """
        fresh = now - self._used < _FRESH
        self._used = now
        if fresh and not self.draining:
            return True
        try:
            for _ in range(_MAX_READS):
                if self.draining:
                    return False
                data = self._sock.recv(_READ_SIZE)
                if not data:
                    return False
                self._handle_data(data, 0)
        except BlockingIOError:
            return True
        except (OSError, ProtocolError) as error:
            return type(error).__name__ == "SSLWantReadError"
        return False

    def call_fast(self, packet: Packet, deadline: Deadline) -> Packet | UwsgiError:
        """Do as :meth:`call` does, by a fast path for small messages.

        One system call sends the whole request, and one receives the whole answer. Otherwise the steps of
        :meth:`call` do the rest.
        """
        request = next(self._ids) & MAX_ID
        self._session.send_request(request, packet, deadline.seconds)
        data = self._session.data_to_send()
        sent = 0
        if self._poll is not None:
            try:
                sent = self._sock.send(data)
                whole = sent == len(data) and not self._session.sending
                if whole and self._poll.poll(int(min(deadline.seconds, KEEPALIVE) * 1000) + 1):
                    answer = self._handle_data(self._sock.recv(_READ_SIZE), request)
                    if answer is not None:
                        return answer
            except OSError:
                pass  # the steps get the same error again, and handle it
        return drive(self._finish_request(request, data[sent:], deadline))

    def call(self, packet: Packet, deadline: Deadline) -> Steps[Packet | UwsgiError]:
        """Send a request and return its answer, or the error with which the peer answers.

        :raises MessageTooLarge: if the message exceeds the peer's limit; nothing is sent.
        :raises NoAnswer: if the peer closes the connection instead of answering.
        """
        request = next(self._ids) & MAX_ID
        self._session.send_request(request, packet, deadline.left)
        return (yield from self._finish_request(request, self._session.data_to_send(), deadline))

    def _finish_request(self, request: int, data: bytes, deadline: Deadline) -> Steps[Packet | UwsgiError]:
        """Send *data* and the rest of the request, and wait for the answer."""
        answer: Packet | UwsgiError | None = None
        while data or (data := self._session.data_to_send()):
            answer = (yield from self._send_data(data, request, deadline)) or answer
            data = b""
        while answer is None:
            data = yield from self._receive_or_ping(deadline)
            if not data:
                raise NoAnswer("the connection was lost before the answer came")
            answer = self._handle_data(data, request)
            if answer is None:
                deadline.check(NO_ANSWER)
        return answer

    def _send_data(self, data: bytes, request: int, deadline: Deadline) -> Steps[Packet | UwsgiError | None]:
        """Send *data*; return the answer to *request* if it arrives before all is sent.

        A server whose budget is used up stops reading for a while, and sends keep-alives meanwhile.
        """
        answer: Packet | UwsgiError | None = None
        rest = memoryview(data)
        while rest:
            began = time.monotonic()
            try:
                count = yield from send_some(self._sock, rest, deadline.at_most(2 * KEEPALIVE))
                rest = rest[count:]
            except RequestTimeout:
                deadline.check(NOT_SENT)
                data = self._read_pending()
                if not data:
                    raise no_keepalive(time.monotonic() - began) from None
                answer = self._handle_data(data, request) or answer
            deadline.check(NOT_SENT)
        return answer

    def _read_pending(self) -> bytes:
        """Read the bytes that have arrived already; return b'' if there are none."""
        try:
            return self._sock.recv(_READ_SIZE)
        except OSError:  # TLS raises its own error where nothing has arrived; any other error comes again
            return b""

    def _receive_or_ping(self, deadline: Deadline) -> Steps[bytes]:
        """Return the next bytes from the server, b'' at the end of the stream; ping a server that is silent."""
        began = time.monotonic()
        more = self._session.unfinished > 0
        try:
            return (yield from receive(self._sock, deadline.at_most(KEEPALIVE), more=more))
        except RequestTimeout:
            deadline.check(NO_ANSWER)
        self._session.send_ping()
        try:
            ping_deadline = deadline.at_most(KEEPALIVE)
            yield from send(self._sock, self._session.data_to_send(), ping_deadline)
            return (yield from receive(self._sock, ping_deadline, more=more))
        except RequestTimeout:
            deadline.check(NO_ANSWER)
            raise no_keepalive(time.monotonic() - began) from None

    def _handle_data(self, data: bytes, request: int) -> Packet | UwsgiError | None:
        """Handle the peer's bytes, and return the result of *request* once it is complete."""
        result: Packet | UwsgiError | None = None
        for event in self._session.receive(data):
            if isinstance(event, AnswerReceived) and event.id == request:
                result = event.packet
            elif isinstance(event, ErrorReceived) and event.id == request:
                result = event.error
            elif isinstance(event, ShutdownReceived):
                self.draining = True
        return result


class _Cache(threading.local):
    """The idle sessions of a thread."""

    def __init__(self) -> None:
        self.sessions: dict[Address, CachedSession] = {}


_cached = _Cache()
#: Until when, on the monotonic clock, to offer an address no session, since it granted none.
_plain_until: dict[Address, float] = {}
#: Until when to treat an address whose session has ended as one of our own nodes: one that is silent hangs.
_ours_until: dict[Address, float] = {}


def close_cached() -> None:
    """Close the sessions that this thread has cached."""
    for session in _cached.sessions.values():
        session.close()
    _cached.sessions.clear()


# A child closes its copies of its parent's connections; the parent still uses them.
os.register_at_fork(after_in_child=close_cached)


def declare_plain(address: Address) -> None:
    """Never offer *address* a session."""
    _plain_until[address] = math.inf


def call(address: Address, packet: Packet, deadline: Deadline) -> Steps[object]:
    """Send a request to a peer, in a session if the peer grants one, and return the decoded answer.

    :raises UwsgiError: if the call fails.
    :raises OSError: if a system call fails.
    """
    while True:
        session = yield from _find_session(address, deadline)
        if session is None:
            if deadline.left <= 0:
                raise deadline.error("no answer")
            exchange = PlainExchange(packet)
            yield from converse(address, exchange, deadline)
            return exchange.result()
        try:
            answer = yield from session.call(packet, deadline)
        except BaseException as error:
            _return_session(_cached.sessions, address, session, error)
            raise
        _return_session(_cached.sessions, address, session)
        if not (isinstance(answer, Unavailable) and session.draining):
            return _decode_result(answer)
        # The request raced with the peer's shutdown notice and did not run, so it is sent again.


def call_fast(address: Address, packet: Packet, deadline: Deadline) -> object:
    """Do as :func:`call` does, by a fast path for a call on a cached session."""
    cached = _cached.sessions
    session = cached.pop(address, None)
    if session is None or not session.is_usable(deadline.at - deadline.seconds):
        if session is not None:
            session.close()
        return drive(call(address, packet, deadline))
    try:
        answer = session.call_fast(packet, deadline)
    except BaseException as error:
        _return_session(cached, address, session, error)
        raise
    _return_session(cached, address, session)
    if isinstance(answer, Packet):
        return decode_answer(answer)
    if isinstance(answer, Unavailable) and session.draining:
        return drive(call(address, packet, deadline))
    raise answer


def _decode_result(answer: Packet | UwsgiError) -> object:
    if isinstance(answer, UwsgiError):
        raise answer
    return decode_answer(answer)


def _return_session(
    cached: dict[Address, CachedSession],
    address: Address,
    session: CachedSession,
    error: BaseException | None = None,
) -> None:
    """Cache a session for the next call, or close it.

    A session whose call failed is closed, so that the next request can't get a late answer.

    :param error: the exception that the call raised.
    """
    failed = error is not None and not isinstance(error, MessageTooLarge)
    # A signal handler, or a call to the same address in one fan-out, may have cached another session meanwhile.
    if failed or session.draining or cached.setdefault(address, session) is not session:
        session.close()
        remember_ours(address)


def _find_session(address: Address, deadline: Deadline) -> Steps[CachedSession | None]:
    """Take a session from the cache or negotiate one; return None if the peer grants none."""
    session = _cached.sessions.pop(address, None)
    if session is not None:
        if session.is_usable(time.monotonic()):
            return session
        session.close()
    granted = yield from negotiate(address, deadline)
    return None if granted is None else CachedSession(*granted)


class Granted(NamedTuple):
    """A connection on which the peer has granted a session.

    :param sock: a non-blocking socket.
    :param theirs: the peer's terms.
    :param rest: the bytes that came after the grant.
    """

    sock: socket.socket
    theirs: Terms
    rest: bytes


def negotiate(address: Address, deadline: Deadline, ours: Terms = TERMS) -> Steps[Granted | None]:
    """Connect and offer a session; return None if the peer grants none, or is known to.

    :param ours: our terms.
    :raises UwsgiError: if that fails.
    :raises OSError: if a system call fails.
    """
    if time.monotonic() < _plain_until.get(address, 0.0):
        return None
    hangs_if_silent = time.monotonic() < _ours_until.get(address, 0.0)
    timeout = 2 * KEEPALIVE if hangs_if_silent else OFFER_TIMEOUT
    sock = yield from connect(address, deadline)
    try:
        packet, rest = yield from _send_offer(sock, ours, deadline.at_most(timeout))
        theirs = decode_grant(packet) if packet is not None else None
        if theirs is not None:
            return Granted(sock, theirs, rest)
    except RequestTimeout:
        sock.close()
        deadline.check(NO_ANSWER)
        if hangs_if_silent:
            raise no_grant(timeout) from None
        packet = None
    except BaseException:
        sock.close()
        raise
    sock.close()
    _plain_until[address] = time.monotonic() + (SILENT_FOR if packet is None else PLAIN_FOR)
    return None


def remember_ours(address: Address) -> None:
    """Remember that *address* has granted a session which has ended: if it is silent, it hangs."""
    _ours_until[address] = time.monotonic() + PLAIN_FOR


def _send_offer(sock: socket.socket, ours: Terms, deadline: Deadline) -> Steps[tuple[Packet | None, bytes]]:
    """Offer a session; return the peer's first packet, or None, and the bytes after it."""
    decoder = PacketDecoder(count=1)
    try:
        yield from send(sock, encode_offer(ours), deadline)
        while True:
            data = yield from receive(sock, deadline)
            packets = decoder.receive(data)
            if packets:
                return packets[0], decoder.rest()
            if not data:
                return None, b""
            deadline.check(NO_ANSWER)
    except ConnectionResetError:
        return None, b""
