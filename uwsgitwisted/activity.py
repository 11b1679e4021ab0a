"""What a worker process does and has done, in memory that the process shares with the front.

The front tells by it an idle worker from a busy one and from one that hangs, without asking. Each thread has a
slot. A worker without threads of its own is one thread, which notes only the connections that it has accepted;
what comes from the front is known there. Beside the slots are what the threads have counted, and the warning
that a handler has set.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import threading
from time import monotonic
from typing import NamedTuple

#: The most threads of a worker.
MAX_THREADS = 256

#: Where the ids of the requests are: behind the times.
_IDS = 8 * MAX_THREADS
#: Where the counts are, and how many bytes those of one thread take.
_COUNTS, _COUNTS_SIZE = 16 * MAX_THREADS, 40
#: Where the warning is: when it was set, its size and its text.
_WARNING = _COUNTS + _COUNTS_SIZE * MAX_THREADS
#: The longest warning, in bytes, as in uWSGI.
MAX_WARNING = 80
#: Where the worker's process id is, behind the warning.
_PID = _WARNING + 16 + MAX_WARNING
#: Where the number of signals is that the process has handled.
_SIGNALS = _PID + 8
#: Where the names of the peers are. A longer name is cut off; that of an IPv6 address fits.
_PEERS = _SIGNALS + 8
_PEER = 64
#: Where the front notes that it has retired the worker.
_RETIRED = _PEERS + _PEER * MAX_THREADS
#: Where the figures of its result cache are.
_CACHE = _RETIRED + 8
_SIZE = _CACHE + 32

_pack_id = struct.Struct("Q").pack_into
_unpack_id = struct.Struct("Q").unpack_from
_pack_peer = struct.Struct(f"{_PEER}s").pack_into
_counts = struct.Struct("5Q")
_pack_counts = _counts.pack_into
_warning = struct.Struct(f"dQ{MAX_WARNING}s")
_cache = struct.Struct("4Q")


class Counts(NamedTuple):
    """What a worker has done.

    :param requests: how many requests.
    :param failed: how many of them failed.
    :param running_time: for how long they ran, in microseconds.
    :param sent: how many bytes were answered.
    :param average: how long one ran lately, in microseconds: half of the last one's time, a quarter of that of
        the one before, and so on, as in uWSGI.
    """

    requests: int = 0
    failed: int = 0
    running_time: int = 0
    sent: int = 0
    average: int = 0

    def plus(self, later: tuple[int, int, int, int, int]) -> Counts:
        """Return both together; *later* are the counts of a later process."""
        requests, failed, running_time, sent, average = later
        return Counts(
            self.requests + requests,
            self.failed + failed,
            self.running_time + running_time,
            self.sent + sent,
            average or self.average,
        )


class CacheCounts(NamedTuple):
    """The figures of a result cache.

    :param hits: how many pages came from it.
    :param misses: how many had to be rendered.
    :param pages: how many it has now.
    :param size: how many bytes they take.
    """

    hits: int = 0
    misses: int = 0
    pages: int = 0
    size: int = 0

    def __str__(self) -> str:
        """Return them as logs have them."""
        return f"{self.hits} hits, {self.misses} misses; {self.pages} pages of {self.size} bytes"

    def plus(self, other: CacheCounts) -> CacheCounts:
        """Return those of both caches together."""
        return CacheCounts(*map(sum, zip(self, other, strict=True)))


class Notice:
    """What a process notes as a whole: its warning, which is the answer to pings, its signals, and its cache.

    :param memory: where it is.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._lock = threading.Lock()

    def move(self, descriptor: int) -> None:
        """Show all from now on in the memory that this worker shares with the front."""
        self._memory = mmap.mmap(descriptor, _SIZE)

    def write(self, text: bytes) -> None:
        """Set the warning; only :data:`MAX_WARNING` bytes are kept. An empty one is none."""
        kept = text[:MAX_WARNING]
        _warning.pack_into(self._memory, _WARNING, monotonic(), len(kept), kept)

    def count_signal(self) -> None:
        """Count a signal whose function has run as a request."""
        with self._lock:
            _pack_id(self._memory, _SIGNALS, self.signals + 1)

    @property
    def signals(self) -> int:
        """How many signals were counted."""
        found: int = _unpack_id(self._memory, _SIGNALS)[0]
        return found

    def read(self) -> tuple[float, bytes]:
        """Return when the warning was set, by the monotonic clock, and the warning."""
        since, size, text = _warning.unpack_from(self._memory, _WARNING)
        return since, text[:size]

    def write_cache(self, counts: CacheCounts) -> None:
        """Show the figures of the result cache."""
        _cache.pack_into(self._memory, _CACHE, *counts)

    def read_cache(self) -> CacheCounts:
        """Return the figures of the result cache."""
        return CacheCounts._make(_cache.unpack_from(self._memory, _CACHE))


#: That of this process.
NOTICE = Notice(mmap.mmap(-1, _SIZE))


class Slot:
    """The state of one thread, as it notes it: a time of the machine's monotonic clock.

    It is 0 while the thread is idle, the time of its last progress while it works, and the negative of that
    while it waits for its peer.

    :param memory: the shared memory.
    :param number: which slot, from 0.
    """

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        self._memory = memory
        # Setting its item takes half the time of a call of pack_into.
        self._time = memoryview(memory)[8 * number : 8 * number + 8].cast("d")
        self._id_at = _IDS + 8 * number
        self._counts_at = _COUNTS + _COUNTS_SIZE * number
        # Plain numbers: this runs for every request, and a tuple of them would cost twice as much.
        self._requests = self._failed = self._running_time = self._sent = self._average = 0
        self._peer_at = _PEERS + _PEER * number

    def begin(self, request: int, peer: str = "") -> None:
        """Note that the thread begins a request.

        :param request: its id on the pipe; 0 if the worker has accepted it itself.
        :param peer: whose it is then, for logs.
        """
        if peer:
            _pack_peer(self._memory, self._peer_at, peer.encode())
        _pack_id(self._memory, self._id_at, request)
        self._time[0] = monotonic()

    def work(self) -> None:
        """Note that the thread has made progress."""
        self._time[0] = monotonic()

    def wait(self) -> None:
        """Note that the thread begins to wait for its peer."""
        self._time[0] = -monotonic()

    def rest(self) -> None:
        """Note that the thread is idle."""
        self._time[0] = 0.0

    def count(self, took: float, failed: bool, sent: int) -> None:
        """Count a request.

        :param took: for how many seconds it ran.
        :param failed: whether it failed.
        :param sent: how many bytes its answer has.
        """
        microseconds = int(took * 1_000_000)
        self._average = (self._average + microseconds) >> 1 if self._requests else microseconds
        self._requests += 1
        if failed:
            self._failed += 1
        self._running_time += microseconds
        self._sent += sent
        _pack_counts(
            self._memory,
            self._counts_at,
            self._requests,
            self._failed,
            self._running_time,
            self._sent,
            self._average,
        )

    @property
    def retired(self) -> bool:
        """Whether the front has retired the worker."""
        return self._memory[_RETIRED] != 0

    @property
    def counts(self) -> Counts:
        """What the thread has counted."""
        return Counts(self._requests, self._failed, self._running_time, self._sent, self._average)


def open_slots(descriptor: int = -1, threads: int = 1) -> list[Slot]:
    """Map the shared memory in the worker; return the slots of its threads.

    :param descriptor: the memory, from :meth:`Activity.create`; -1 for memory that nobody shares.
    """
    memory = mmap.mmap(descriptor, _SIZE)
    _pack_id(memory, _PID, os.getpid())
    return [Slot(memory, number) for number in range(threads)]


class Activity:
    """The states of a worker's threads, as the front sees them.

    :param descriptor: the shared memory, from :meth:`create`.
    :param threads: how many threads the worker has.
    """

    def __init__(self, descriptor: int, threads: int = 1) -> None:
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._threads = threads
        self._notice = Notice(self._memory)
        self._unpack_times = struct.Struct(f"{threads}d").unpack_from
        self._unpack_ids = struct.Struct(f"{threads}Q").unpack_from

    @staticmethod
    def create() -> int:
        """Return the descriptor of new shared memory, for an idle worker.

        :raises OSError: if the system has no memory or descriptor left.
        """
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("activity")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _SIZE)
        return descriptor

    def retire(self) -> None:
        """Note that the worker is retired. It answers no connection that it accepts from now on."""
        self._memory[_RETIRED] = 1

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

    @property
    def pid(self) -> int:
        """The worker's process id; 0 before it has mapped the memory."""
        found: int = _unpack_id(self._memory, _PID)[0]
        return found

    def counts(self) -> list[Counts]:
        """Return what each thread has counted."""
        places = range(_COUNTS, _COUNTS + self._threads * _COUNTS_SIZE, _COUNTS_SIZE)
        return [Counts._make(_counts.unpack_from(self._memory, place)) for place in places]

    def warning(self) -> tuple[float, bytes]:
        """Return when a handler has set a warning, and the warning."""
        return self._notice.read()

    @property
    def signals(self) -> int:
        """How many of the requests that were counted are signals."""
        return self._notice.signals

    def cache(self) -> CacheCounts:
        """Return the figures of the worker's result cache."""
        return self._notice.read_cache()

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()
