"""What a worker process does with a connection that it has accepted, in memory that it shares with the front.

The front tells by it an idle worker from a busy one and from one that hangs, without asking.
"""

from __future__ import annotations

import mmap
import os
import struct
from time import monotonic

_pack, _unpack = struct.Struct("d").pack_into, struct.Struct("d").unpack_from


class Activity:
    """The state of one worker: a time of the machine's monotonic clock.

    It is 0 while the worker is idle, the time of its last progress while it works, and the negative of that
    while it waits for its peer.

    :param descriptor: the shared memory, from :meth:`create`.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)

    @staticmethod
    def create() -> int:
        """Return the descriptor of new shared memory, for an idle worker.

        :raises OSError: if the system has no memory or descriptor left.
        """
        descriptor = os.memfd_create("activity")
        os.ftruncate(descriptor, mmap.PAGESIZE)
        return descriptor

    # In the worker

    def work(self) -> None:
        """Note that the worker begins, or has made progress."""
        _pack(self._memory, 0, monotonic())

    def wait(self) -> None:
        """Note that the worker begins to wait for its peer."""
        _pack(self._memory, 0, -monotonic())

    def rest(self) -> None:
        """Note that the worker is idle."""
        _pack(self._memory, 0, 0.0)

    # In the front

    @property
    def busy_for(self) -> float:
        """For how many seconds the worker has made no progress, or has waited for its peer; 0 if it is idle."""
        since = abs(_unpack(self._memory)[0])
        return max(1e-9, monotonic() - since) if since else 0.0

    @property
    def working_for(self) -> float:
        """The same, but 0 also while it waits for its peer."""
        since = _unpack(self._memory)[0]
        return max(1e-9, monotonic() - since) if since > 0 else 0.0

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()
