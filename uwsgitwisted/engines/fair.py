"""Whose turn it is, and who may wait: peers share an engine's bounded queue fairly.

A peer's first request waits for at most one of each other peer, however many those have. And no peer takes all
the places: it may have three times as many as are free, which is three quarters if it is alone, and three
sevenths beside one that wants as many. (The memory is shared by the same rule; see
:mod:`uwsgitwisted.transport.server.budget`.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from uwsgitwisted.access import NOBODY, Peer
from uwsgitwisted.engines.job import Job
from uwsgitwisted.errors import Busy

#: How many times the free places one peer may have.
_TIMES_FREE = 3


def refusal(peer: Peer, own: int, taken: int, limit: int) -> Busy | None:
    """Return why *peer* gets no place, or None if it gets one.

    What no peer asked for, such as a spooler's tasks, may take all places.

    :param own: how many places it has.
    :param taken: how many all have together.
    :param limit: how many places there are.
    """
    if taken >= limit:
        return Busy(f"{limit} requests wait already (--max-queue); try another node, or later")
    if own and own >= _TIMES_FREE * (limit - taken) and peer is not NOBODY:
        return Busy(
            f"{own} requests of your address wait already, and the rest of the {limit} places (--max-queue) is "
            "for others; try another node, or later"
        )
    return None


class FairQueue:
    """Requests that wait for a worker; each peer in turn has its first one run.

    :param limit: how many may wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._length = 0
        # By peers, the next one first, and by the jobs themselves, so that one can be withdrawn whatever the
        # number of the others.
        self._jobs: OrderedDict[str, OrderedDict[Job, None]] = OrderedDict()

    def __len__(self) -> int:
        return self._length

    def refusal(self, peer: Peer) -> Busy | None:
        """Return why no further request of *peer* may wait, or None if one may."""
        if not self._length:
            return None
        return refusal(peer, len(self._jobs.get(peer.group, ())), self._length, self._limit)

    def append(self, job: Job) -> None:
        """Have *job* wait behind the others of its peer."""
        self._jobs.setdefault(job.group, OrderedDict())[job] = None
        self._length += 1

    def pop(self) -> Job:
        """Take out the next one."""
        group, jobs = next(iter(self._jobs.items()))
        job, _ = jobs.popitem(last=False)
        if jobs:
            self._jobs.move_to_end(group)
        else:
            del self._jobs[group]
        self._length -= 1
        return job

    def discard(self, job: Job) -> bool:
        """Take out *job*; return whether it waited."""
        jobs = self._jobs.get(job.group)
        if jobs is None or job not in jobs:
            return False
        del jobs[job]
        if not jobs:
            del self._jobs[job.group]
        self._length -= 1
        return True

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Have *jobs*, in their order, wait in front of all others."""
        for job in reversed(list(jobs)):
            self.append(job)
            self._jobs[job.group].move_to_end(job, last=False)
            self._jobs.move_to_end(job.group, last=False)
