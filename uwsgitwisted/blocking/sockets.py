"""Plain sockets with one deadline for everything: the look-up, connecting, TLS, sending and receiving.

A conversation with a peer is a generator that yields its waits; :func:`run` drives any number of them with one
selector. The module keeps no state between calls, so threads and forks are safe.
"""

from __future__ import annotations

import errno
import math
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from uwsgitwisted.address import Address, AddressLike, parse_address
from uwsgitwisted.errors import (
    ConnectionBroken,
    ConnectionFailed,
    InvalidAddress,
    RequestTimeout,
    UwsgiError,
)
from uwsgitwisted.wire.exchange import PlainExchange

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")

_POLL_EVENTS = {selectors.EVENT_READ: select.POLLIN, selectors.EVENT_WRITE: select.POLLOUT}
_READ = selectors.EVENT_READ
_WRITE = selectors.EVENT_WRITE
_CHUNK, _LARGE_CHUNK = 65_536, 524_288
#: Seconds between attempts to connect to a UNIX socket whose backlog is full: connecting fails at once, and
#: poll can't wait for room.
_FULL_QUEUE_PAUSE = 0.01
#: The longest single wait, in seconds: the system's limits are lower than those of a float.
LONGEST_WAIT = 3600.0
#: The text of a timeout while waiting for an answer.
NO_ANSWER = "no whole answer"
#: The text of a timeout while the peer doesn't read.
NOT_SENT = "the request could not be sent"


class Deadline(NamedTuple):
    """A time of the monotonic clock, and the time limit in seconds from which it was computed.

    Waiting checks the deadline, but reading from a peer that never stops sending needs no wait. So a loop that
    reads calls :meth:`check`.
    """

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that is *seconds* from now."""
        return cls(time.monotonic() + seconds, seconds)

    @property
    def left(self) -> float:
        """The seconds that are left; negative after the deadline."""
        return self.at - time.monotonic()

    def at_most(self, seconds: float) -> Deadline:
        """Return a deadline *seconds* from now, or this one if it is earlier."""
        return self._replace(at=min(self.at, time.monotonic() + seconds))

    def check(self, what: str) -> None:
        """Check that the deadline has not passed.

        :raises RequestTimeout: if it has; *what* says what did not happen in time.
        """
        if self.left <= 0:
            raise self.error(what)

    def error(self, what: str) -> RequestTimeout:
        """Make the error for a deadline that has passed; *what* says what did not happen in time."""
        return RequestTimeout(f"{what} within {self.seconds:g} seconds", seconds=self.seconds)


class Wait(NamedTuple):
    """A conversation's wait: for events of a socket, or only for a time if there is no socket."""

    sock: socket.socket | None
    events: int
    until: float


#: A conversation: it yields a wait, is sent whether the event came in time, and returns a value.
Steps = Generator[Wait, bool, T]


def run(conversations: Sequence[Steps[T]]) -> list[T | UwsgiError]:
    """Drive *conversations* concurrently until each has ended.

    :return: each conversation's return value, or the :class:`UwsgiError` that it raised, in order. Any other
        exception, such as one from a signal handler, ends all conversations, and each closes its sockets.
    :raises ConnectionFailed: if the process has no file descriptor left for a selector.
    """
    try:
        selector = selectors.DefaultSelector()
    except OSError as error:
        raise ConnectionFailed(describe(error)) from error
    with selector:
        return _Loop(selector, conversations).run()


def drive(steps: Steps[T]) -> T:
    """Drive one conversation, without a selector, and return its value."""
    try:
        wait = next(steps)
        while True:
            wait = steps.send(_poll_until(wait))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


def _poll_until(wait: Wait) -> bool:
    """Wait; return whether the event came in time."""
    while True:
        left = wait.until - time.monotonic()
        poll = select.poll()
        if wait.sock is not None:
            poll.register(wait.sock, _POLL_EVENTS[wait.events])
        if poll.poll(math.ceil(min(max(left, 0.0), LONGEST_WAIT) * 1000)):
            return True
        if left <= LONGEST_WAIT:
            return False


class _Loop(Generic[T]):
    """One selector and the conversations that it drives."""

    def __init__(self, selector: selectors.BaseSelector, conversations: Sequence[Steps[T]]) -> None:
        self._selector = selector
        self._conversations = conversations
        self._waits: dict[int, Wait] = {}
        self._outcomes: dict[int, T | UwsgiError] = {}

    def run(self) -> list[T | UwsgiError]:
        """Drive all conversations to their ends, and close them in any case."""
        try:
            for index, steps in enumerate(self._conversations):
                self._advance(index, partial(next, steps))
            while self._waits:
                for index, ready in self._wait_for_any().items():
                    sock = self._waits.pop(index).sock
                    if sock is not None:
                        self._selector.unregister(sock)
                    self._advance(index, partial(self._conversations[index].send, ready))
        finally:
            for steps in self._conversations:
                steps.close()
        return [self._outcomes[index] for index in range(len(self._conversations))]

    def _advance(self, index: int, step: Callable[[], Wait]) -> None:
        """Run a conversation until it waits or ends."""
        try:
            wait = step()
        except StopIteration as end:
            self._outcomes[index] = end.value
        except UwsgiError as error:
            self._outcomes[index] = error
        else:
            if wait.sock is not None:
                self._selector.register(wait.sock, wait.events, index)
            self._waits[index] = wait

    def _wait_for_any(self) -> dict[int, bool]:
        """Wait until a wait ends; return whose waits have ended, and for each whether its event came."""
        left = min(wait.until for wait in self._waits.values()) - time.monotonic()
        ready = {key.data: True for key, _ in self._selector.select(min(max(left, 0.0), LONGEST_WAIT))}
        now = time.monotonic()
        late = {index: False for index, wait in self._waits.items() if wait.until <= now}
        return late | ready


def converse(address: Address, exchange: PlainExchange, deadline: Deadline) -> Steps[None]:
    """Connect, send the request of *exchange*, and pass it the received bytes until it has its answer."""
    failure: type[ConnectionFailed] = ConnectionFailed
    try:
        sock = yield from connect(address, deadline)
        failure = ConnectionBroken  # from here on the peer may have begun
        with closing(sock):
            yield from send(sock, exchange.outgoing, deadline)
            yield from _receive_answer(sock, exchange, deadline)
    except UwsgiError:
        raise
    except OSError as error:
        raise failure(describe(error)) from error


def connect(address: Address, deadline: Deadline) -> Steps[socket.socket]:
    """Open a connection, including TLS; the caller closes it.

    :raises OSError: if a system call fails.
    """
    context = _tls_context(address) if address.kind == "tls" else None
    sock = yield from _connect(_connect_address(address), deadline)
    if context is not None:
        sock = yield from _start_tls(sock, context, address.host, deadline)
    return sock


def receive(sock: socket.socket, deadline: Deadline, *, more: bool = False) -> Steps[bytes]:
    """Return the peer's next bytes, b'' at the end of the stream.

    :param more: whether a large message is arriving, so that many bytes are likely to be there already.
    """
    # The wait lets the other conversations run. With TLS, OpenSSL may have read the bytes already.
    read_ahead = type(sock) is not socket.socket and sock.pending()  # type: ignore[attr-defined]
    if not read_ahead and not (yield Wait(sock, _READ, deadline.at)):
        raise deadline.error(NO_ANSWER)
    size = _LARGE_CHUNK if more else _CHUNK
    return (yield from when_ready(sock, partial(sock.recv, size), _READ, deadline, NO_ANSWER))


def describe(error: OSError) -> str:
    """Return the system's text for *error*."""
    return error.strerror or str(error)


def explained(error: UwsgiError | OSError, address: AddressLike) -> UwsgiError:
    """Turn *error* into a :class:`UwsgiError` that has the address."""
    if isinstance(error, UwsgiError):
        if error.address is None:
            error.address = address
        return error
    # It broke after the connection was made, and the request may have run.
    broken = ConnectionBroken(describe(error), address=address)
    broken.__cause__ = error
    return broken


def _connect_address(address: Address) -> Address:
    """Return the address to connect to: for tls, `endpoint` may name another one than the certificate's."""
    wrapped = address.option("endpoint")
    if wrapped is None:
        return address
    place = parse_address(wrapped)
    if place.kind == "tls":
        raise InvalidAddress("the endpoint within a tls address is not tls itself", address=address)
    return place


class _Candidate(NamedTuple):
    """One of a peer's socket addresses."""

    family: int
    #: The address as :mod:`socket` takes it; its type depends on the family.
    sockaddr: Any

    @property
    def host(self) -> str:
        """The IP address; empty for a UNIX socket."""
        return "" if isinstance(self.sockaddr, str) else str(self.sockaddr[0])


def _connect(address: Address, deadline: Deadline) -> Steps[socket.socket]:
    """Try the peer's addresses in turn, each with an equal share of the remaining time."""
    option = address.option("timeout")
    timeout = float(option) if option is not None else deadline.seconds
    candidates = yield from _find_candidates(address, deadline)
    failures: dict[_Candidate, str] = {}
    for tried, candidate in enumerate(candidates):
        now = time.monotonic()
        share = (deadline.at - now) / (len(candidates) - tried)
        try:
            return (yield from _connect_to(candidate, now + min(share, timeout), address.option("bindAddress")))
        except OSError as error:
            failures[candidate] = describe(error)
    if time.monotonic() >= deadline.at:
        raise deadline.error("no connection")
    # The error has the host already; where the host is a name, add the IP addresses.
    raise ConnectionFailed(
        "; ".join(
            failure if candidate.host in ("", address.host) else f"{failure} ({candidate.host})"
            for candidate, failure in failures.items()
        )
    )


def _connect_to(candidate: _Candidate, until: float, source: str | None) -> Steps[socket.socket]:
    sock = socket.socket(candidate.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if candidate.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source is not None:
            sock.bind((source, 0))
        code = sock.connect_ex(candidate.sockaddr)
        while code == errno.EAGAIN and time.monotonic() < until:
            yield Wait(None, 0, min(time.monotonic() + _FULL_QUEUE_PAUSE, until))
            code = sock.connect_ex(candidate.sockaddr)
        if code in (errno.EINPROGRESS, errno.EINTR):
            ready = yield Wait(sock, _WRITE, until)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if ready else errno.ETIMEDOUT
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _find_candidates(address: Address, deadline: Deadline) -> Steps[list[_Candidate]]:
    if address.kind == "unix":
        return [_Candidate(socket.AF_UNIX, address.path)]
    try:
        return _resolve(address, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return (yield from _look_up(address, deadline))


def _resolve(address: Address, flags: int = 0) -> list[_Candidate]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:
        raise InvalidAddress(f"{address.host!r} can't be a host's name: {error}", address=address) from error
    return list(dict.fromkeys(_Candidate(family, sockaddr) for family, _, _, _, sockaddr in found))


def _look_up(address: Address, deadline: Deadline) -> Steps[list[_Candidate]]:
    """Resolve a host name, and give up at *deadline*."""
    return in_thread(partial(_resolve, address), address.host, deadline)


def in_thread(look_up: Callable[[], T], name: str, deadline: Deadline) -> Steps[T]:
    """Run *look_up* in a thread, since a look-up such as ``getaddrinfo`` has no time limit.

    A thread that takes too long is abandoned: it ends when *look_up* returns, doesn't keep the process alive,
    and its result is ignored.

    :param name: the name that is looked up.
    :raises OSError: if *look_up* raises one; so with :class:`UwsgiError`.
    """
    found: list[T] = []
    failed: list[Exception] = []
    ours, theirs = socket.socketpair()

    def run_look_up() -> None:
        with theirs:  # closing it wakes the other end
            try:
                found.append(look_up())
            except (OSError, UwsgiError) as error:
                failed.append(error)

    with ours:
        try:
            threading.Thread(target=run_look_up, name=f"look up {name}", daemon=True).start()
        except RuntimeError as error:
            theirs.close()
            raise ConnectionFailed(f"no thread to look up {name!r} in: {error}") from error
        if not (yield Wait(ours, _READ, deadline.at)):
            raise deadline.error("the host's name was not resolved")
    if failed:
        raise failed[0]
    return found[0]


def _tls_context(address: Address) -> ssl.SSLContext:
    """Make the TLS context for the address's keywords, which mean the same as in Twisted's endpoint."""
    import ssl  # imported late, since only TLS needs it

    try:
        address.host.encode("idna")  # wrap_socket does the same, but leaks its socket if that fails
    except UnicodeError as error:
        raise InvalidAddress(f"{address.host!r} can't be the name in a certificate: {error}") from error
    roots, certificate = address.option("trustRoots"), address.option("certificate")
    try:
        if roots is None:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            for path in sorted(Path(roots).iterdir()):
                if path.suffix.lower() == ".pem":
                    context.load_verify_locations(path)
        if certificate is not None:
            # The password is empty: without one, OpenSSL would ask for it on the terminal.
            context.load_cert_chain(certificate, address.option("privateKey"), password="")
    except OSError as error:
        raise InvalidAddress(
            f"can't load certificates from {error.filename or certificate or roots}: {describe(error)}",
            address=address,
        ) from error
    return context


def _start_tls(
    sock: socket.socket, context: ssl.SSLContext, host: str, deadline: Deadline
) -> Steps[socket.socket]:
    try:
        secured = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    finally:
        sock.close()  # the wrapped socket has taken over the descriptor, unless wrapping failed
    try:
        yield from when_ready(secured, secured.do_handshake, _READ, deadline, "no TLS connection")
    except BaseException:
        secured.close()
        raise
    return secured


def send(sock: socket.socket, data: bytes, deadline: Deadline) -> Steps[None]:
    """Send all of *data*. If the peer closes its end meanwhile, :func:`receive` reports it."""
    rest = memoryview(data)
    while rest:
        count = yield from send_some(sock, rest, deadline)
        rest = rest[count:]
        if rest:
            deadline.check(NOT_SENT)


def send_some(sock: socket.socket, data: memoryview, deadline: Deadline) -> Steps[int]:
    """Send as much of *data* as the socket accepts; return that number of bytes, or all if the peer is gone."""
    try:
        return (yield from when_ready(sock, partial(sock.send, data), _WRITE, deadline, NOT_SENT))
    except (BrokenPipeError, ConnectionResetError):
        # A peer that refuses the request may close before it has read all. Its answer can still be read.
        return len(data)


def _receive_answer(sock: socket.socket, exchange: PlainExchange, deadline: Deadline) -> Steps[None]:
    while not exchange.done:
        try:
            data = yield from receive(sock, deadline)
        except ConnectionResetError as error:
            try:
                exchange.receive_reset()
            except ConnectionFailed as explained:
                raise explained from error
        if data:
            exchange.receive(data)
        else:
            exchange.receive_eof()
        if not exchange.done:
            deadline.check(NO_ANSWER)


#: The event that TLS has to wait for, by the name of its exception, so that this needn't import ssl.
_TLS_WANTS = {"SSLWantReadError": _READ, "SSLWantWriteError": _WRITE}


def when_ready(
    sock: socket.socket, call: Callable[[], T], events: int, deadline: Deadline, failure: str
) -> Steps[T]:
    """Retry *call* until it no longer raises that it would block; wait for the socket in between."""
    late = False
    while True:
        try:
            return call()
        except BlockingIOError:
            wanted = events
        except OSError as error:
            wanted = _TLS_WANTS.get(type(error).__name__, 0)
            if not wanted:
                raise
        if late:
            raise deadline.error(failure)
        if not (yield Wait(sock, wanted, deadline.at)):
            raise deadline.error(failure)
        late = deadline.left <= 0
