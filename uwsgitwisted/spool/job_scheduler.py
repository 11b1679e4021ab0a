"""Runs jobs on the store for peers: in slices, one peer after the other, behind the spooler's own work.

The spooler's own calls and these jobs share one thread. At most one slice of a job is in it, or waits for it.
So a commit and a heartbeat wait for one slice at most, whatever peers ask for. Peers take turns: each has one
job in progress, up to a number of peers, whose slices alternate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import Busy, Unavailable
from uwsgitwisted.spool.slices import Job, Steps
from uwsgitwisted.spool.store_thread import Runner
from uwsgitwisted.spool.stores.interface import ISpoolStore

#: How much work may wait, of one peer and in all, in slices.
MAX_PEER_PENDING, MAX_PENDING = 1_000, 4_000
#: How many bytes of requests may wait before no other is taken: of one peer and in all.
MAX_PEER_PENDING_BYTES, MAX_PENDING_BYTES = 32 * 1024 * 1024, 64 * 1024 * 1024
#: How many jobs are in progress at once; each may hold a partial answer.
MAX_STARTED = 8
_T = TypeVar("_T")

_log = Logger()


class _PeerQueue:
    """The jobs of one peer.

    :param group: whose jobs they are; None for the spooler itself.
    """

    __slots__ = ("group", "in_progress", "size", "waiting", "weight")

    def __init__(self, group: str | None) -> None:
        self.group = group
        # Of all its jobs, the one in progress included.
        self.weight = 0
        self.size = 0
        self.in_progress = False
        #: The jobs that are not in progress.
        self.waiting: deque[_SubmittedJob] = deque()


class _SubmittedJob:
    """A job that somebody submitted."""

    __slots__ = ("answer", "done", "job", "queue", "size", "steps", "weight")

    def __init__(self, queue: _PeerQueue, job: Job[Any], weight: int, size: int) -> None:
        self.queue = queue
        self.job = job
        self.weight = weight
        self.size = size
        self.steps: Steps[Any] | None = None
        self.answer: Any = None
        #: Fires when the job is done, also if nobody waits for its answer any more.
        self.done: Deferred[Any] = Deferred()

    def run_slice(self, store: ISpoolStore) -> bool:
        """Run one slice, in the store's thread; return whether it was the last."""
        if self.steps is None:
            self.steps = self.job(store)
        try:
            next(self.steps)
        except StopIteration as end:
            self.answer = end.value
            return True
        return False


class JobScheduler:
    """Runs the jobs of peers so that nobody holds up anybody else.

    :param runner: has the store's thread.
    """

    def __init__(self, runner: Runner, store: ISpoolStore) -> None:
        self._runner = runner
        self._store = store
        self._open = False
        self._queues: dict[str | None, _PeerQueue] = {}
        # Of the jobs of all peers; the spooler's own are not counted.
        self._weight = 0
        self._size = 0
        # The peers that have a waiting job and none in progress, in the order of their turns.
        self._next: deque[_PeerQueue] = deque()
        # The jobs in progress; a slice of the first one runs.
        self._started: deque[_SubmittedJob] = deque()
        self._slice_runs = False

    def open(self) -> None:
        """Accept jobs; they begin when the store's thread runs."""
        self._open = True

    def close(self) -> None:
        """Accept no job any more, and fail those that wait.

        The job of which a slice runs gets its answer if that slice was its last.
        """
        self._open = False
        running = [self._started.popleft()] if self._slice_runs else []
        waiting = [*self._started, *(job for queue in self._queues.values() for job in queue.waiting)]
        self._started = deque(running)
        self._next.clear()
        for job in waiting:
            job.queue.waiting.clear()
            self._forget(job)
            job.done.errback(_not_running())

    def submit(
        self,
        group: str | None,
        job: Job[_T],
        *,
        weight: int = 1,
        size: int = 0,
        then: Callable[[_T], object] | None = None,
    ) -> Deferred[_T]:
        """Have a job run.

        :param group: who submits it, as :attr:`uwsgitwisted.access.Peer.group` says it. None for the spooler
            itself, which bounds its own jobs.
        :param weight: how many slices it has, about.
        :param size: how many bytes are held until it is done.
        :param then: is called with the answer, also if nobody waits for it any more.
        :return: fires with the answer; fails with what the job raised, with ``Busy`` if too much waits, and
            with ``Unavailable`` if the spooler doesn't run. Cancelling it drops the job if it has not begun;
            otherwise the job runs to its end and counts until then.
        """
        if not self._open:
            return fail(_not_running())
        queue = self._queues.get(group) or _PeerQueue(group)
        if group is not None and self._is_full(queue):
            return fail(Busy("too many requests wait for the spool already; try again later"))
        self._queues[group] = queue
        submitted = _SubmittedJob(queue, job, weight, size)
        answer: Deferred[_T] = Deferred(lambda _: self._cancel(submitted))
        if then is not None:
            submitted.done.addCallback(_tell, then)
        submitted.done.addBoth(_pass_on, answer).addErrback(_log_unexpected)
        self._count(submitted, 1)
        queue.waiting.append(submitted)
        if len(queue.waiting) == 1 and not queue.in_progress:
            self._next.append(queue)
        self._run_next_slice()
        return answer

    def _is_full(self, queue: _PeerQueue) -> bool:
        return (
            queue.weight >= MAX_PEER_PENDING
            or queue.size >= MAX_PEER_PENDING_BYTES
            or self._weight >= MAX_PENDING
            or self._size >= MAX_PENDING_BYTES
        )

    def _count(self, job: _SubmittedJob, sign: int) -> None:
        queue, weight, size = job.queue, sign * job.weight, sign * job.size
        queue.weight += weight
        queue.size += size
        if queue.group is not None:
            self._weight += weight
            self._size += size

    def _forget(self, job: _SubmittedJob) -> None:
        self._count(job, -1)
        if not job.queue.weight:
            del self._queues[job.queue.group]

    def _run_next_slice(self) -> None:
        """Run the next slice, unless one runs."""
        while self._next and len(self._started) < MAX_STARTED:
            queue = self._next.popleft()
            queue.in_progress = True
            self._started.append(queue.waiting.popleft())
        if self._started and not self._slice_runs:
            self._slice_runs = True
            job = self._started[0]
            running = self._runner.run(job.run_slice, self._store)
            running.addCallbacks(self._slice_done, self._end_job, callbackArgs=(job,), errbackArgs=(job,))
            running.addErrback(_log_unexpected)

    def _slice_done(self, last: bool, job: _SubmittedJob) -> None:
        if last:
            self._end_job(job.answer, job)
        elif not self._open:
            self._end_job(Failure(_not_running()), job)
        else:
            self._slice_runs = False
            self._started.rotate(-1)
            self._run_next_slice()

    def _end_job(self, result: object, job: _SubmittedJob) -> None:
        """Give the place of a job to the next one, and let its peer's next job wait for its turn."""
        self._slice_runs = False
        self._started.popleft()
        self._forget(job)
        queue = job.queue
        queue.in_progress = False
        if queue.waiting:
            self._next.append(queue)
        self._run_next_slice()
        job.done.callback(result)

    def _cancel(self, job: _SubmittedJob) -> None:
        """Drop a job that has not begun."""
        queue = job.queue
        if job not in queue.waiting:
            return
        queue.waiting.remove(job)
        if not queue.waiting and not queue.in_progress:
            self._next.remove(queue)
        self._forget(job)


def _tell(answer: _T, then: Callable[[_T], object]) -> _T:
    then(answer)
    return answer


def _pass_on(result: object, answer: Deferred[Any]) -> None:
    if not answer.called:  # else nobody waits for it any more
        answer.callback(result)


def _not_running() -> Unavailable:
    return Unavailable("the spooler is not running; try again later")


def _log_unexpected(failure: Failure) -> None:
    _log.failure("running a job on the store", failure)
