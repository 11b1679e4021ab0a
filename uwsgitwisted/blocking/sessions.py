"""Sessions for blocking calls: each thread keeps one with each of our own nodes that it talks to.

A session that the peer has closed is noticed before a request is sent on it, and made again; a forked process
makes its own. A peer that grants none is remembered for a while and gets a connection a request; a request is
never sent twice to find out. The protocol is :mod:`uwsgitwisted.wire.session`; only reads and writes are here.
"""

from __future__ import annotations

import itertools
import math
import os
import select
import socket
import threading
import time

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
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.failure import no_grant, no_keepalive
from uwsgitwisted.wire.message import decode_answer
from uwsgitwisted.wire.packet import Packet, PacketDecoder
from uwsgitwisted.wire.session import (
    MAX_ID,
    AnswerReceived,
    ErrorReceived,
    Role,
    Session,
    ShutdownReceived,
)
from uwsgitwisted.wire.terms import (
    KEEPALIVE,
    OFFER_TIMEOUT,
    PLAIN_FOR,
    SILENT_FOR,
    Terms,
    decode_grant,
    encode_offer,
)

_TERMS = Terms()
_READ_SIZE = 65_536
#: Seconds after a call began for which its session is not looked at before it is used again.
_FRESH = 0.005
#: How often a session is read before it is used again, at most: a peer that has sent so much is not worth it.
_MOST_READS = 16


class CachedSession:
    """A connection with a session, for one request at a time.

    :param sock: non-blocking.
    :param theirs: the peer's terms.
    :param rest: what came behind them.
    """

    def __init__(self, sock: socket.socket, theirs: Terms, rest: bytes) -> None:
        self._sock = sock
        self._session = Session(Role.CLIENT, _TERMS, theirs)
        self._ids = itertools.count(1)
        self._used = 0.0
        #: Whether the peer has said that it takes no further request.
        self.leaving = False
        # Under TLS, a part of the answer may have been read while the socket has nothing more.
        self._poll = select.poll() if type(sock) is socket.socket else None
        if self._poll is not None:
            self._poll.register(sock, select.POLLIN)
        if rest:
            self._take(rest, 0)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def is_usable(self, now: float) -> bool:
        """Whether the peer goes on taking requests, as far as it has said.

        :param now: the monotonic clock's time.
        """
        fresh = now - self._used < _FRESH
        self._used = now
        if fresh and not self.leaving:
            return True
        try:
            for _ in range(_MOST_READS):
                if self.leaving:
                    return False
                data = self._sock.recv(_READ_SIZE)
                if not data:
                    return False
                self._take(data, 0)
        except BlockingIOError:
            return True
        except (OSError, ProtocolError) as error:
            return type(error).__name__ == "SSLWantReadError"
        return False

    def call_fast(self, packet: Packet, deadline: Deadline) -> Packet | UwsgiError:
        """Do as :meth:`call`, without the detours that nearly no request needs.

        The request goes out in one piece and the answer comes in one, or :meth:`call`'s steps do the rest.
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
                    answer = self._take(self._sock.recv(_READ_SIZE), request)
                    if answer is not None:
                        return answer
            except OSError:
                pass  # the steps meet it again, and know what it means
        return drive(self._finish(request, data[sent:], deadline))

    def call(self, packet: Packet, deadline: Deadline) -> Steps[Packet | UwsgiError]:
        """Send a request and return its answer, or the error that the peer answers with.

        :raises MessageTooLarge: if the peer doesn't take so large a message; nothing is sent.
        :raises NoAnswer: if it closes the connection instead.
        """
        request = next(self._ids) & MAX_ID
        self._session.send_request(request, packet, deadline.left)
        return (yield from self._finish(request, self._session.data_to_send(), deadline))

    def _finish(self, request: int, data: bytes, deadline: Deadline) -> Steps[Packet | UwsgiError]:
        """Send *data* and the rest of the request, and wait for the answer."""
        answer: Packet | UwsgiError | None = None
        while data or (data := self._session.data_to_send()):
            answer = (yield from self._send(data, request, deadline)) or answer
            data = b""
        while answer is None:
            data = yield from self._receive(deadline)
            if not data:
                raise NoAnswer("the connection was lost before the answer came")
            answer = self._take(data, request)
            if answer is None:
                deadline.check(NO_ANSWER)
        return answer

    def _send(self, data: bytes, request: int, deadline: Deadline) -> Steps[Packet | UwsgiError | None]:
        """Send *data*; return the answer to *request*, if it comes before that.

        A server that has no room reads nothing for a while, and sends keep-alives meanwhile.
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
                data = self._received()
                if not data:
                    raise no_keepalive(time.monotonic() - began) from None
                answer = self._take(data, request) or answer
            deadline.check(NOT_SENT)
        return answer

    def _received(self) -> bytes:
        """Return what the server has sent and nobody has read; b'' if there is nothing."""
        try:
            return self._sock.recv(_READ_SIZE)
        except OSError:  # TLS has its own way to say that there is nothing; any other error comes again
            return b""

    def _receive(self, deadline: Deadline) -> Steps[bytes]:
        """Return what the server sends next, b'' at the end; ping it if that takes long."""
        began = time.monotonic()
        more = self._session.unfinished > 0
        try:
            return (yield from receive(self._sock, deadline.at_most(KEEPALIVE), more=more))
        except RequestTimeout:
            deadline.check(NO_ANSWER)
        self._session.send_ping()
        try:
            patience = deadline.at_most(KEEPALIVE)
            yield from send(self._sock, self._session.data_to_send(), patience)
            return (yield from receive(self._sock, patience, more=more))
        except RequestTimeout:
            deadline.check(NO_ANSWER)
            raise no_keepalive(time.monotonic() - began) from None

    def _take(self, data: bytes, request: int) -> Packet | UwsgiError | None:
        """Take what the peer sent and return the result of *request*, if it is there."""
        result: Packet | UwsgiError | None = None
        for event in self._session.receive(data):
            if isinstance(event, AnswerReceived) and event.id == request:
                result = event.packet
            elif isinstance(event, ErrorReceived) and event.id == request:
                result = event.error
            elif isinstance(event, ShutdownReceived):
                self.leaving = True
        return result


class _Cache(threading.local):
    """The sessions of a thread that no call is using."""

    def __init__(self) -> None:
        self.sessions: dict[Address, CachedSession] = {}


_cached = _Cache()
#: Until when, on the monotonic clock, an address is known to grant no session.
_plain_until: dict[Address, float] = {}
#: Until when an address whose session ended is known to be a node of ours, so that it hangs if it is silent.
_ours_until: dict[Address, float] = {}


def close_cached() -> None:
    """Close the sessions that this thread keeps."""
    for session in _cached.sessions.values():
        session.close()
    _cached.sessions.clear()


# A child closes its copies of its parent's connections, which the parent goes on using.
os.register_at_fork(after_in_child=close_cached)


def declare_plain(address: Address) -> None:
    """Never offer *address* a session."""
    _plain_until[address] = math.inf


def call(address: Address, packet: Packet, deadline: Deadline) -> Steps[object]:
    """Send a request to a peer, by a session if it grants one, and return what its answer means.

    :raises UwsgiError: whatever goes wrong.
    :raises OSError: as the system does.
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
            _give_back(_cached.sessions, address, session, error)
            raise
        _give_back(_cached.sessions, address, session)
        if not (isinstance(answer, Unavailable) and session.leaving):
            return _result(answer)
        # It raced with the peer's shutdown notice, and was not run.


def call_fast(address: Address, packet: Packet, deadline: Deadline) -> object:
    """Do all that :func:`call` does, with as little as possible around what nearly every call is."""
    kept = _cached.sessions
    session = kept.pop(address, None)
    if session is None or not session.is_usable(deadline.at - deadline.seconds):
        if session is not None:
            session.close()
        return drive(call(address, packet, deadline))
    try:
        answer = session.call_fast(packet, deadline)
    except BaseException as error:
        _give_back(kept, address, session, error)
        raise
    _give_back(kept, address, session)
    if isinstance(answer, Packet):
        return decode_answer(answer)
    if isinstance(answer, Unavailable) and session.leaving:
        return drive(call(address, packet, deadline))
    raise answer


def _result(answer: Packet | UwsgiError) -> object:
    if isinstance(answer, UwsgiError):
        raise answer
    return decode_answer(answer)


def _give_back(
    kept: dict[Address, CachedSession],
    address: Address,
    session: CachedSession,
    error: BaseException | None = None,
) -> None:
    """Keep a session for the next call, or close it.

    It is closed when something went wrong: a late answer must not be there at the next request.

    :param error: what its use raised.
    """
    wrong = error is not None and not isinstance(error, MessageTooLarge)
    # Another may be kept by now: a signal handler's, or that of a call beside this one.
    if wrong or session.leaving or kept.setdefault(address, session) is not session:
        session.close()
        _ours_until[address] = time.monotonic() + PLAIN_FOR


def _find_session(address: Address, deadline: Deadline) -> Steps[CachedSession | None]:
    """Return a session that nobody else uses, or None if the peer grants none."""
    session = _cached.sessions.pop(address, None)
    if session is not None:
        if session.is_usable(time.monotonic()):
            return session
        session.close()
    if time.monotonic() < _plain_until.get(address, 0.0):
        return None
    return (yield from _negotiate(address, deadline))


def _negotiate(address: Address, deadline: Deadline) -> Steps[CachedSession | None]:
    hangs_if_silent = time.monotonic() < _ours_until.get(address, 0.0)
    patience = 2 * KEEPALIVE if hangs_if_silent else OFFER_TIMEOUT
    sock = yield from connect(address, deadline)
    try:
        packet, rest = yield from _offer(sock, deadline.at_most(patience))
        theirs = decode_grant(packet) if packet is not None else None
        if theirs is not None:
            return CachedSession(sock, theirs, rest)
    except RequestTimeout:
        sock.close()
        deadline.check(NO_ANSWER)
        if hangs_if_silent:
            raise no_grant(patience) from None
        packet = None
    except BaseException:
        sock.close()
        raise
    sock.close()
    _plain_until[address] = time.monotonic() + (SILENT_FOR if packet is None else PLAIN_FOR)
    return None


def _offer(sock: socket.socket, deadline: Deadline) -> Steps[tuple[Packet | None, bytes]]:
    """Offer a session and return the packet that comes back, or None, and what comes behind it."""
    decoder = PacketDecoder(count=1)
    try:
        yield from send(sock, encode_offer(_TERMS), deadline)
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
