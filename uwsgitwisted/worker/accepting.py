"""Web requests that a worker takes from the service's own ports.

Most web requests are small, and arrive in one piece on a connection of their own. A worker accepts such a
connection, reads the request, and answers on it, without the front. It hands any other connection over to the
front, with the bytes that it has read: one with another kind of request, with one that is not complete, or of a
peer that may not connect. So does a worker with every connection once the front has retired it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from time import monotonic
from typing import Any, NamedTuple

from uwsgitwisted.activity import Slot
from uwsgitwisted.errors import MalformedPacket, RemoteError, UwsgiError
from uwsgitwisted.stream import unacknowledged_by
from uwsgitwisted.wire.message import WSGI_STRIPPED
from uwsgitwisted.wire.packet import HEADER_SIZE, MAX_PAYLOAD, WSGI, Packet, new_tuple, unpack_header
from uwsgitwisted.wire.vars import body_size, may_announce_body
from uwsgitwisted.wire.web_status import status_answer, status_of
from uwsgitwisted.worker.exchange import ClientGone
from uwsgitwisted.worker.handlers.handler import StreamHandler
from uwsgitwisted.worker.spec import NO_REQUEST, Accepting

#: The most bytes that are read from a connection: a packet, and a small body.
_READ_SIZE = HEADER_SIZE + 2 * MAX_PAYLOAD
#: How long to wait for the first bytes of a connection, in seconds. They follow the connection at once, but the
#: worker may be faster.
_FIRST_BYTES = 0.001
#: After a connection without bytes, no other is waited for in this time, in seconds: many such connections must
#: cost little.
_PAUSE = 0.01
#: How often to look in the write timeout whether the peer has read anything.
_LOOKS = 4
#: How the end of an answer is sent if it has up to so many bytes: TCP puts it into one segment with the end of
#: the connection. This saves two segments of ten. A longer one is acknowledged at once: TCP takes so many bytes
#: for a full segment at first.
_WITH_END, _SMALL = getattr(socket, "MSG_MORE", 0), 536
#: Make the close of a connection a reset.
_RESET = struct.pack("ii", 1, 0)


#: The sockets below those of Python: ``_socket.socket``, whose public name this is.
Connection = socket.SocketType


class ListeningSocket(socket.socket):
    """A listening socket whose ``accept`` costs little.

    The standard library's makes enums of the family and the type for each connection, and an object of a Python
    class, whose making and closing take longer than the system calls. This one makes the object below it, which
    has the same methods, but for ``makefile``, ``sendfile`` and the context manager.
    """

    def accept(self) -> tuple[Connection, Any]:  # type: ignore[override]
        """Return a new connection, which is blocking, and its address."""
        descriptor, address = self._accept()  # type: ignore[attr-defined]
        return Connection(*self._kind, fileno=descriptor), address

    @cached_property
    def _kind(self) -> tuple[int, int, int]:
        return int(self.family), int(self.type), self.proto


class DirectExchange:
    """A web request on a connection of its own; see :class:`~uwsgitwisted.worker.exchange.Exchange`.

    :param connection: the connection, which this closes.
    :param packet: the request's packet, whose payload has the body behind the variables.
    :param slot: shows the front what happens.
    :param write_timeout: for how many seconds the peer may read nothing while bytes wait.
    """

    __slots__ = ("_connection", "_slot", "_write_timeout", "begun", "packet", "sent")

    #: Whether a stream follows the request's message.
    streamed = False

    def __init__(self, connection: Connection, packet: Packet, slot: Slot, write_timeout: float) -> None:
        self._connection = connection
        self._slot = slot
        self._write_timeout = write_timeout
        self.packet = packet
        #: Whether a part of the answer was sent.
        self.begun = False
        #: How many bytes of the answer were sent.
        self.sent = 0

    def read(self, size: int) -> bytes:
        """Return no bytes: no stream follows."""
        return b""

    def send(self, data: bytes) -> None:
        """Send a part of the answer now.

        :raises ClientGone: if the peer is gone, or has read nothing for too long.
        """
        self._send_all(data)
        self._slot.work()

    def send_file(self, descriptor: int, offset: int, size: int) -> None:
        """Send *size* bytes of a file, from *offset*, without reading them into this process.

        :raises ClientGone: if the peer is gone, or has read nothing for too long.
        :raises RuntimeError: if the file has become shorter.
        :raises OSError: if the system can't send from it.
        """
        self.begun = True
        self._connection.setblocking(False)
        end = offset + size
        while offset < end:
            try:
                sent = os.sendfile(self._connection.fileno(), descriptor, offset, end - offset)
            except BlockingIOError:
                self._wait()
                continue
            except (ConnectionError, TimeoutError) as error:  # other errors are the file's
                raise ClientGone(f"the client has gone: {error}") from error
            if not sent:
                raise RuntimeError("a file became shorter while it was being sent")
            offset += sent
            self.sent += sent
            self._slot.work()

    def finish(self, data: bytes = b"") -> None:
        """Send the last part of the answer, and close the connection.

        :raises ClientGone: as :meth:`send`.
        """
        if data:
            self._send_all(data, _WITH_END if len(data) <= _SMALL else 0)
        try:  # noqa: SIM105
            # A close alone isn't enough: a process that the application has forked has the connection too.
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:  # the peer has gone; it may have read all
            pass
        self._connection.close()

    def abort(self) -> None:
        """Reset the connection, if it is open: the peer must not take what it has for the whole answer."""
        if self._connection.fileno() != -1:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._connection.close()

    def _send_all(self, data: bytes, flags: int = 0) -> None:
        self.begun = True
        try:
            sent = self._send(data, flags)
            while sent < len(data):
                self._wait()
                sent += self._send(memoryview(data)[sent:], flags)
            self.sent += sent
        except OSError as error:
            raise ClientGone(f"the client has gone: {error}") from error

    def _send(self, data: bytes | memoryview, flags: int) -> int:
        try:
            return self._connection.send(data, socket.MSG_DONTWAIT | flags)
        except BlockingIOError:
            return 0

    def _wait(self) -> None:
        """Wait until the peer has read something."""
        self._slot.wait()
        poll = select.poll()
        poll.register(self._connection, select.POLLOUT)
        kept, since = unacknowledged_by(self._connection), monotonic()
        while not poll.poll(self._write_timeout * 1000 / _LOOKS):
            # The system says that there is room only when a third of its buffer is free.
            now_kept = unacknowledged_by(self._connection)
            if now_kept != kept:
                kept, since = now_kept, monotonic()
            elif monotonic() - since >= self._write_timeout:
                raise ClientGone(f"the client has read nothing for {self._write_timeout:g} s")
        self._slot.work()


class Accepted(NamedTuple):
    """A connection that a worker has accepted, and its request.

    :param connection: the connection.
    :param packet: the request's packet, whose payload has the body behind the variables.
    :param peer: whose it is, for logs.
    """

    connection: Connection
    packet: Packet
    peer: str


class Acceptor:
    """Accepts connections in a worker.

    :param accepting: what the front has told about its ports.
    :param listeners: the ports.
    :param front: where connections go that are the front's.
    :param handlers: the handlers of web requests, by modifier1.
    :param node: this worker's name in the errors that it reports.
    :param report: tells the front of an error, and whose request it was, for its log.
    :param slot: shows whether the front has retired this worker.
    """

    def __init__(
        self,
        accepting: Accepting,
        listeners: Sequence[socket.socket],
        front: socket.socket,
        handlers: dict[int, StreamHandler],
        node: str,
        report: Callable[[UwsgiError, str], None],
        slot: Slot,
    ) -> None:
        #: The ports, by their descriptors.
        self.listeners = {listener.fileno(): listener for listener in listeners}
        self._write_timeout = accepting.write_timeout
        self._max_body = accepting.max_body
        self._front = front
        self._handlers = handlers
        self._node = node
        self._report = report
        self._slot = slot
        self._no_wait_until = 0.0
        networks = None if accepting.networks is None else list(map(ipaddress.ip_network, accepting.networks))
        self._is_allowed = lru_cache(1_000)(lambda host: networks is None or _is_in(host, networks))

    def accept(self, descriptor: int) -> Accepted | None:
        """Accept a connection, and read its request or hand it over.

        :return: what :meth:`run` takes; None if this worker has nothing to run.
        """
        try:
            connection, address = self.listeners[descriptor].accept()
        except OSError:  # another worker was faster, the peer has gone, or there are no descriptors left
            return None
        data = self._read(connection)
        packet = _web_request(data, self._max_body)
        # A connection may come after the front has retired this worker, and before the worker knows it by its
        # pipe. Its successor gets the connection: this worker may have the code from before a reload.
        ours = not self._slot.retired and self._is_allowed(address[0] if isinstance(address, tuple) else "")
        if ours and packet is not None:
            return new_tuple(Accepted, (connection, packet, _name(address)))
        try:
            # A message without a byte would look like the end of the connection to the front.
            socket.send_fds(self._front, [b"\0", data], [connection.fileno()])
        finally:
            connection.close()
        return None

    def run(self, accepted: Accepted, slot: Slot) -> None:
        """Answer a request on its connection, and close that.

        :param slot: that of the thread which does it.
        """
        connection, packet, peer = accepted
        started = monotonic()
        slot.begin(NO_REQUEST, peer)
        exchange = DirectExchange(connection, packet, slot, self._write_timeout)
        succeeded = False
        try:
            succeeded = self._run(exchange, peer)
        finally:
            connection.close()
            slot.rest()
            slot.count(monotonic() - started, not succeeded, exchange.sent)

    def _read(self, connection: Connection) -> bytes:
        """Return the bytes that have arrived on a new connection."""
        try:
            return connection.recv(_READ_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except OSError:
            return b""
        now = monotonic()
        if now < self._no_wait_until:
            return b""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        if not poll.poll(_FIRST_BYTES * 1000):
            self._no_wait_until = now + _PAUSE
            return b""
        try:
            return connection.recv(_READ_SIZE, socket.MSG_DONTWAIT)
        except OSError:
            return b""

    def _run(self, exchange: DirectExchange, peer: str) -> bool:
        """Answer a request; return whether that succeeded."""
        handler = self._handlers[exchange.packet.modifier1]
        try:
            handler(exchange, self._node)
        except UwsgiError as error:
            if exchange.begun:
                exchange.abort()
            else:
                status = status_of(error)
                answer = status_answer(status)
                with contextlib.suppress(ClientGone):
                    exchange.finish(answer)
                if not isinstance(error, RemoteError):  # the handler knows of those
                    handler.refused(exchange.packet, status, len(answer.partition(b"\r\n\r\n")[2]))
            if not isinstance(error.__cause__, ClientGone):
                self._report(error, peer)
            return False
        return True


#: Makes an acceptor of what tells the front of an error, and whose request it was, and of a slot.
MakeAcceptor = Callable[[Callable[[UwsgiError, str], None], Slot], Acceptor]


def _web_request(data: bytes, max_body: int) -> Packet | None:
    """Return the complete web request that *data* is, with its body; None if it is anything else."""
    if len(data) < HEADER_SIZE:
        return None
    modifier1, size, modifier2 = unpack_header(data)
    if modifier1 not in (WSGI, WSGI_STRIPPED):
        return None
    if may_announce_body(data):
        try:
            body = body_size(data[HEADER_SIZE : HEADER_SIZE + size])
        except MalformedPacket:
            return None
        if body > max_body:
            return None
        size += body
    if len(data) != HEADER_SIZE + size:
        return None
    return new_tuple(Packet, (modifier1, modifier2, data[HEADER_SIZE:]))


def _name(address: object) -> str:
    """Return a peer's name in logs, as the front has it."""
    if not isinstance(address, tuple):
        return "a local socket"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_in(host: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Whether an address is in one of *networks*; a UNIX socket's is not an address, and always is."""
    if not host:
        return True
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    return any(mapped in network for network in networks)
