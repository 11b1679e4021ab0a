"""The connections over which workers and mules call for shared state.

All of them have one end of a socket. Each of their threads that calls makes a socket pair, and sends one end of
that over here; see :mod:`uwsgitwisted.worker.compat.shared`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.interfaces import IPushProducer, IReactorFDSet, IReadDescriptor
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.errors import ProtocolError
from uwsgitwisted.shared.client import Client
from uwsgitwisted.shared.state import SharedState
from uwsgitwisted.wire.calls import FAILED, MAX_ANSWER, OK, Frame, FrameDecoder, encode_frame

#: How many connections a process may have besides one for each thread that runs requests: for its other
#: threads, and for the processes that it forks. Each has a descriptor here, and may have a call's bytes.
SPARE_CONNECTIONS = 64
#: How many connections are accepted in one iteration of the reactor.
_AT_ONCE = 64
#: The most bytes of a hello, which has the numbers of the worker and of the mule, and its process id.
_MAX_HELLO = 64
#: The most calls that a thread may have sent at once: one, and another after that was interrupted.
_MAX_FRAMES = 2


@implementer(IPushProducer)
class SharedProtocol(Protocol):
    """A thread's connection: each call gets an answer, now or later.

    :param state: runs the calls.
    :param client: the thread.
    """

    def __init__(self, state: SharedState, client: Client) -> None:
        self._state = state
        self._client = client
        self._decoder = FrameDecoder()
        self.transport: Any

    def connectionMade(self) -> None:
        """Read no further calls while answers are not read."""
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Run calls. If the bytes can't be calls, close the connection."""
        try:
            frames = self._decoder.receive(data)
        except ProtocolError:
            frames = [_NO_FRAME] * (_MAX_FRAMES + 1)
        if len(frames) > _MAX_FRAMES:
            self.transport.abortConnection()
            return
        for frame in frames:
            self._state.call(self._client, frame.items, partial(self._answer, frame.sequence))

    def _answer(self, sequence: int, result: Sequence[bytes] | Exception) -> None:
        if isinstance(result, Exception):
            answer = encode_frame(sequence, FAILED, [str(result).encode(errors="replace")], MAX_ANSWER)
        else:
            answer = encode_frame(sequence, OK, result, MAX_ANSWER)
        self.transport.write(answer)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Free what the thread holds, which has ended."""
        self._state.lost(self._client)

    def pauseProducing(self) -> None:
        """Read no further calls for now."""
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read calls again."""
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: the connection is closed."""


_NO_FRAME = Frame(0, OK, ())


@implementer(IReadDescriptor)
class Channel:
    """Accepts the connections.

    :param reactor: reads the sockets.
    :param state: runs the calls.
    :param log: takes a line for the log.
    """

    def __init__(self, reactor: IReactorFDSet, state: SharedState, log: Callable[[str], None]) -> None:
        self._reactor: Any = reactor
        self._state = state
        self._log = log
        # By the process id of the worker or mule.
        self._connections: dict[int, set[Connection]] = {}
        #: How many connections each of these may have, and how many all have together.
        self.max_each, self.max_connections = SPARE_CONNECTIONS, SPARE_CONNECTIONS

    def start(self) -> int:
        """Accept connections; return the descriptor to pass to the other processes."""
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._reactor.addReader(self)
        return self._theirs.fileno()

    def stop(self) -> None:
        """Close the connections, and accept no more."""
        self._reactor.removeReader(self)
        self._ours.close()
        self._theirs.close()
        for connections in list(self._connections.values()):
            for connection in list(connections):
                connection.abortConnection()

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._ours.fileno()

    def logPrefix(self) -> str:  # noqa: N802
        """Return the name of this in Twisted's own log lines."""
        return "Channel"

    def connectionLost(self, reason: object) -> None:
        """Do nothing: this side holds both ends."""

    def doRead(self) -> None:  # noqa: N802
        """Accept the connections that wait."""
        for _ in range(_AT_ONCE):
            try:
                hello, descriptors, _, _ = socket.recv_fds(self._ours, _MAX_HELLO, 1)
            except BlockingIOError:
                return
            for descriptor in descriptors:
                self._adopt(socket.socket(fileno=descriptor), hello)

    def _adopt(self, connection: socket.socket, hello: bytes) -> None:
        """Serve a connection; or close it, if there are too many, or it doesn't say whose it is."""
        numbers = hello.split()
        if len(numbers) != 3 or not hello.replace(b" ", b"").isdigit():
            connection.close()
            return
        worker_id, mule_id, process = map(int, numbers)
        own = self._connections.get(process, set())
        total = sum(map(len, self._connections.values()))
        if len(own) >= self.max_each or total >= self.max_connections:
            connection.close()
            name = f"mule {mule_id}" if mule_id else f"worker {worker_id}"
            self._log(
                f"{name} gets no further connection for uwsgi.cache_get, uwsgi.lock and the like: its threads "
                f"have {len(own)}, and those of all {total}; one more raises Unavailable until others end"
            )
            return
        connection.setblocking(False)
        protocol = SharedProtocol(self._state, self._state.connect(worker_id, mule_id))
        transport = _Transport(connection, protocol, self._reactor, partial(self._remove, process))
        self._connections.setdefault(process, set()).add(transport)
        protocol.makeConnection(transport)  # type: ignore[no-untyped-call]
        transport.startReading()  # type: ignore[no-untyped-call]

    def _remove(self, process: int, connection: Connection) -> None:
        """Remove a closed connection."""
        own = self._connections.get(process, set())
        own.discard(connection)
        if not own:
            self._connections.pop(process, None)


class _Transport(Connection):
    """A connection's transport.

    :param on_close: called with it when it is closed.
    """

    def __init__(
        self,
        connection: socket.socket,
        protocol: SharedProtocol,
        reactor: Any,
        on_close: Callable[[Connection], None],
    ) -> None:
        super().__init__(connection, protocol, reactor)
        self.connected = 1
        self._on_close = on_close

    def connectionLost(self, reason: Failure) -> None:
        """Close the connection."""
        self._on_close(self)
        with contextlib.suppress(AttributeError):
            super().connectionLost(reason)
