"""The requests that wait for a worker: those that have arrived, and uploads, whose bodies are still arriving.

A worker that runs an upload waits for its peer, who may be slow on purpose. So only some workers may do that at
once, and uploads wait in a queue of their own, which the others pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from uwsgitwisted.access import Peer
from uwsgitwisted.engines.fair import FairQueue
from uwsgitwisted.engines.job import Job
from uwsgitwisted.turns import Turns


class WaitingRequests:
    """Two fair queues, which take turns.

    :param limit: how many requests may wait in each.
    """

    def __init__(self, limit: int) -> None:
        self._arrived = FairQueue(limit)
        self._uploads = FairQueue(limit)
        self._upload_next = False
        # Those for one worker each, by its number, and the workers that have had one of them last.
        self._pinned: dict[int, Turns[Job]] = {}
        self._had_pinned: set[int] = set()

    @property
    def length(self) -> int:
        """How many requests wait that any worker may run."""
        return self._arrived.length + self._uploads.length

    @property
    def pinned(self) -> bool:
        """Whether requests wait that only one worker may run."""
        return bool(self._pinned)

    def _queue_of(self, job: Job) -> FairQueue:
        return self._uploads if job.arriving else self._arrived

    def pop_pinned(self, worker_id: int) -> Job | None:
        """Remove and return the next job that only this worker may run, or None if there is none.

        While others wait too, it is None every second time, so that they take turns.
        """
        jobs = self._pinned.get(worker_id)
        if jobs is None:
            return None
        if worker_id in self._had_pinned and self.length:
            self._had_pinned.discard(worker_id)
            return None
        self._had_pinned.add(worker_id)
        job = jobs.pop()
        self._drop_empty(job)
        return job

    def _drop_empty(self, job: Job) -> None:
        if not self._pinned[job.worker_id].length:
            del self._pinned[job.worker_id]

    def append(self, job: Job, peer: Peer) -> bool:
        """Add a job of *peer*; return whether it is the only one of its kind, so that it may be able to run.

        :raises Busy: if *peer* may not queue another request.
        """
        queue = self._arrived if job.body is None else self._queue_of(job)
        if queue.length >= queue.harmless and (refusal := queue.refusal(peer)) is not None:
            raise refusal
        if job.worker_id:
            self._pinned.setdefault(job.worker_id, Turns()).append(job)
            return True
        queue.append(job)
        return queue.length == 1

    def pop(self, may_upload: Callable[[], bool]) -> Job | None:
        """Remove and return the next job that may run, or None if there is none.

        :param may_upload: whether another upload may run.
        """
        if self._uploads.length and (self._upload_next or not self._arrived.length) and may_upload():
            self._upload_next = False
            return self._uploads.pop()
        self._upload_next = True
        return self._arrived.pop() if self._arrived.length else None

    def discard(self, job: Job) -> bool:
        """Remove *job*; return whether it was waiting."""
        if job.worker_id in self._pinned and self._pinned[job.worker_id].discard(job):
            self._drop_empty(job)
            return True
        return self._arrived.discard(job) or self._uploads.discard(job)

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Return *jobs* to the front of their queues, in their order."""
        for job in reversed(list(jobs)):
            if job.worker_id:
                self._pinned.setdefault(job.worker_id, Turns()).put_back([job])
            else:
                self._queue_of(job).put_back([job])
