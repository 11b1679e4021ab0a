"""Calls of this process for what it shares with the other processes of its service.

Each thread has a connection of its own to the front: it makes a socket pair, and hands one end to the front
over a socket that all workers have. So a thread waits only for its own calls, a forked process has its own
connections, and what a thread holds is free when it ends, however that happens.

A process without a front, such as the check of a handler module, has a state of its own, which it shares with
nobody.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from weakref import WeakSet

from uwsgitwisted.errors import MisuseError, Unavailable
from uwsgitwisted.wire.calls import (
    FAILED,
    MAX_ANSWER,
    OK,
    Frame,
    FrameDecoder,
    encode_frame,
    encode_number,
)

_READ_SIZE = 64 * 1024
_MAX_SEQUENCE = 0xFFFFFFFF


class _Front:
    """Where the front is.

    :param descriptor: the socket over which connections go to it.
    :param hello: tells it whose they are.
    """

    def __init__(self, descriptor: int, hello: bytes) -> None:
        os.set_inheritable(descriptor, False)
        self._handover = socket.socket(fileno=descriptor)
        self._hello = hello

    def connect(self) -> socket.socket:
        """Return a new connection.

        :raises Unavailable: if this process may open no further file, or the front has gone.
        """
        try:
            ours, theirs = socket.socketpair()
            ours.settimeout(None)  # a handler module may have called socket.setdefaulttimeout
            with theirs:
                socket.send_fds(self._handover, [self._hello], [theirs.fileno()])
        except OSError as error:
            raise Unavailable(f"can't connect to the service's front: {error}") from error
        return ours


class _Connection:
    """A thread's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._decoder = FrameDecoder(MAX_ANSWER)
        self._sequence = 0
        self._received: list[Frame] = []
        #: Whether it can't be used again: a call was interrupted while it was being sent, or this is a fork.
        self.broken = False
        _connections.add(self)

    def call(self, items: Sequence[bytes]) -> tuple[bytes, ...]:
        self._sequence = sequence = (self._sequence + 1) & _MAX_SEQUENCE
        frame = encode_frame(sequence, OK, items)
        try:
            self.broken = True
            self._socket.sendall(frame)
            self.broken = False
            while (answer := self._find(sequence)) is None:
                data = self._socket.recv(_READ_SIZE)
                if not data:
                    raise ConnectionResetError("it has closed the connection")
                self._received += self._decoder.receive(data)
        except ConnectionError as error:
            self.broken = True
            raise Unavailable(f"the service's front can't be reached: {error}") from error
        if answer.status == FAILED:
            raise MisuseError(answer.items[0].decode(errors="replace"))
        return answer.items

    def close(self) -> None:
        """Close this process's descriptor of it."""
        self.broken = True
        self._socket.close()

    def _find(self, sequence: int) -> Frame | None:
        """Return the answer to a call, if it is there; drop the answers to calls that were interrupted."""
        received, self._received = self._received, []
        return next((frame for frame in received if frame.sequence == sequence), None)


#: Those of this process's threads.
_connections: WeakSet[_Connection] = WeakSet()


def _close_inherited() -> None:
    """Close a parent's connections in a forked process, which would keep them open when their threads end."""
    for connection in list(_connections):
        connection.close()
    _connections.clear()


os.register_at_fork(after_in_child=_close_inherited)

_front: _Front | None = None
_threads = threading.local()


def connect_front(descriptor: int, worker_id: int, mule_id: int = 0) -> None:
    """Have the calls of this process go to the front.

    :param descriptor: the socket for that.
    :param worker_id: this worker's number; 0 in a mule.
    :param mule_id: this mule's number; 0 in a worker.
    """
    global _front
    _front = _Front(descriptor, b"%d %d %d" % (worker_id, mule_id, os.getpid()))


def has_front() -> bool:
    """Whether this process has a front."""
    return _front is not None


def call(name: str, *arguments: bytes | int) -> tuple[bytes, ...]:
    """Call an operation of :mod:`uwsgitwisted.shared.state`, and return the items of its result.

    :raises MisuseError: if it can't be done.
    :raises Unavailable: if the front has gone, or has too many connections.
    """
    items = [name.encode(), *(encode_number(item) if isinstance(item, int) else item for item in arguments)]
    if _front is None:
        return _call_here(items)
    connection: _Connection | None = getattr(_threads, "connection", None)
    if connection is None or connection.broken:
        connection = _threads.connection = _Connection(_front.connect())
    return connection.call(items)


class _Own:
    """The state of a process without a front, which its threads share."""

    def __init__(self) -> None:
        # Imported late: a worker has no use for it.
        from uwsgitwisted.shared.state import SharedState

        # Reentrant: the end of a thread may be noticed in the middle of another's call.
        self.lock = threading.RLock()
        self.state = SharedState(time.monotonic)


class _OwnClient:
    """A thread in a process without a front."""

    def __init__(self, own: _Own) -> None:
        self._own = own
        self._client = own.state.connect(0)

    def __del__(self) -> None:
        with self._own.lock:
            self._own.state.lost(self._client)

    def call(self, items: Sequence[bytes]) -> tuple[bytes, ...]:
        results: SimpleQueue[Sequence[bytes] | Exception] = SimpleQueue()
        with self._own.lock:
            self._own.state.call(self._client, items, results.put)
        result = results.get()
        if isinstance(result, Exception):
            raise result
        return tuple(result)


_own: _Own | None = None


def _call_here(items: Sequence[bytes]) -> tuple[bytes, ...]:
    """Run an operation in this process."""
    global _own
    if _own is None:
        _own = _Own()
    client: _OwnClient | None = getattr(_threads, "own", None)
    if client is None:
        client = _threads.own = _OwnClient(_own)
    return client.call(items)


def lock(number: int = 0) -> None:
    """Take a lock, waiting until it is free. It is free again when this thread or its process ends.

    :param number: which one, from 0 to 255.
    :raises MisuseError: if there is no such lock, or this thread holds it already.
    """
    try:
        call("lock", number)
    except MisuseError:
        raise
    except BaseException:  # a signal's handler raised while this waited: nobody would unlock it
        with contextlib.suppress(Exception):
            call("unlock", number)
        raise


def unlock(number: int = 0) -> None:
    """Release a lock; if this thread doesn't hold it, nothing happens."""
    call("unlock", number)


def is_locked(number: int = 0) -> bool:
    """Return whether anybody holds a lock."""
    return bool(call("is_locked", number))
