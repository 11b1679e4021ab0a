"""What the threads of a worker process do, in memory that the process shares with the front.

The front tells by it an idle worker from a busy one and from one that hangs, without asking. Each thread has a
slot. A worker without threads of its own is one thread, which notes only the connections that it has accepted;
what comes from the front is known there.
"""

from __future__ import annotations

import mmap
import os
import struct
from time import monotonic

#: The most threads of a worker.
MAX_THREADS = 256

#: Where the ids of the requests are: behind the times.
_IDS = 8 * MAX_THREADS
#: Where the names of the peers are: behind the ids. A longer name is cut off; that of an IPv6 address fits.
_PEERS = 16 * MAX_THREADS
_PEER = 64
_SIZE = _PEERS + _PEER * MAX_THREADS

_pack_time = struct.Struct("d").pack_into
_pack_id = struct.Struct("Q").pack_into
_pack_peer = struct.Struct(f"{_PEER}s").pack_into


class Slot:
    """The state of one thread, as it notes it: a time of the machine's monotonic clock.

    It is 0 while the thread is idle, the time of its last progress while it works, and the negative of that
    while it waits for its peer.

    :param memory: the shared memory.
    :param number: which slot, from 0.
    """

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        self._memory = memory
        self._time_at = 8 * number
        self._id_at = _IDS + 8 * number
        self._peer_at = _PEERS + _PEER * number

    def begin(self, request: int, peer: str = "") -> None:
        """Note that the thread begins a request.

        :param request: its id on the pipe; 0 if the worker has accepted it itself.
        :param peer: whose it is then, for logs.
        """
        if peer:
            _pack_peer(self._memory, self._peer_at, peer.encode())
        _pack_id(self._memory, self._id_at, request)
        _pack_time(self._memory, self._time_at, monotonic())

    def work(self) -> None:
        """Note that the thread has made progress."""
        _pack_time(self._memory, self._time_at, monotonic())

    def wait(self) -> None:
        """Note that the thread begins to wait for its peer."""
        _pack_time(self._memory, self._time_at, -monotonic())

    def rest(self) -> None:
        """Note that the thread is idle."""
        _pack_time(self._memory, self._time_at, 0.0)


def open_slots(descriptor: int, threads: int = 1) -> list[Slot]:
    """Map the shared memory in the worker; return the slots of its threads."""
    memory = mmap.mmap(descriptor, _SIZE)
    return [Slot(memory, number) for number in range(threads)]


class Activity:
    """The states of a worker's threads, as the front sees them.

    :param descriptor: the shared memory, from :meth:`create`.
    :param threads: how many threads the worker has.
    """

    def __init__(self, descriptor: int, threads: int = 1) -> None:
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._unpack_times = struct.Struct(f"{threads}d").unpack_from
        self._unpack_ids = struct.Struct(f"{threads}Q").unpack_from

    @staticmethod
    def create() -> int:
        """Return the descriptor of new shared memory, for an idle worker.

        :raises OSError: if the system has no memory or descriptor left.
        """
        descriptor = os.memfd_create("activity")
        os.ftruncate(descriptor, _SIZE)
        return descriptor

    def accepted(self, seconds: float = 0.0) -> int:
        """Return how many requests run that the worker has accepted itself.

        :param seconds: count those only that have made no progress, or have waited for their peer, for so long.
        """
        times = self._unpack_times(self._memory)
        if not any(times):
            return 0
        before = monotonic() - seconds
        ids = self._unpack_ids(self._memory, _IDS)
        return sum(0 < abs(since) <= before for since, request in zip(times, ids, strict=True) if not request)

    def overdue(self, seconds: float) -> list[int]:
        """Return the ids of the requests that have made no progress for *seconds*, other than by their peer."""
        return [request for request in self._overdue(seconds) if request is not None]

    def _overdue(self, seconds: float) -> list[int | None]:
        """Return the id of the overdue request in each slot; None if there is none."""
        ids = self._unpack_ids(
            self._memory, _IDS
        )  # first: a thread that is overdue has had its request for long
        times = self._unpack_times(self._memory)
        before = monotonic() - seconds
        return [request if 0 < since <= before else None for since, request in zip(times, ids, strict=True)]

    def overdue_peers(self, seconds: float) -> list[str]:
        """Return whose the overdue requests are that the worker has accepted itself."""
        starts = (_PEERS + _PEER * slot for slot, each in enumerate(self._overdue(seconds)) if each == 0)
        return [self._memory[at : at + _PEER].rstrip(b"\0").decode("utf-8", "replace") for at in starts]

    @property
    def working_for(self) -> float:
        """For how many seconds a thread has made no progress, other than by its peer; the longest, or 0."""
        working = [since for since in self._unpack_times(self._memory) if since > 0]
        return max(0.0, monotonic() - min(working)) if working else 0.0

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()
