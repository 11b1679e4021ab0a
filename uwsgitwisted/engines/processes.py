"""The engine ``processes:N``: handlers run in N worker processes, the front only moves their bytes.

A worker runs one request at a time. One that is fast is given some ahead (see
:mod:`uwsgitwisted.engines.pipe`), and has them recalled as soon as it turns out slow, so that no request
waits behind a long one while another worker is idle. A request over the time limit has its worker killed; a
worker that ends, for whatever reason, is replaced, and what it had not begun goes to another. No request is
ever answered with another's answer: an id ties each answer to its request, and a dead worker's pipe is gone
with it.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from zope.interface import implementer

from uwsgitwisted.engines.fair import FairQueue
from uwsgitwisted.engines.job import Job
from uwsgitwisted.engines.supervisor import Supervisor
from uwsgitwisted.engines.worker_process import WorkerProcess
from uwsgitwisted.errors import Interrupted, RequestTimeout, Unavailable, UwsgiError, WorkerDied
from uwsgitwisted.interfaces import IEngine, IProcessReactor, IReloadable, Request, TimedAnswer
from uwsgitwisted.transport.batch import BATCH
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.worker.spec import WorkerSpec

#: While a worker has requests ahead, this often, in seconds, it is looked at whether it has turned out slow.
_WATCH = 0.005
#: A worker is slow that runs one request for longer, in seconds.
_SLOW = 0.003

#: A request that has ended so many workers is not run again.
_MAX_CRASHES = 2


def _died(job: Job, worker: WorkerProcess, how: str) -> WorkerDied:
    times = f" (the request has ended {job.crashes} workers)" if job.crashes > 1 else ""
    return WorkerDied(f"worker {worker.worker_id} ended while it ran the request: {how}{times}")


@implementer(IEngine, IReloadable)
class ProcessEngine:
    """Runs handlers in worker processes.

    :param reactor: starts the processes and keeps the time.
    :param spec: which handlers.
    :param processes: how many workers.
    :param timeout: seconds that a request may run.
    :param max_queue: how many requests may wait for a worker.
    :param node: the node's name, for error texts.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IProcessReactor,
        spec: WorkerSpec,
        *,
        processes: int,
        timeout: float,
        max_queue: int = 1_000,
        node: str = "",
    ) -> None:
        self.description = f"processes:{processes}"
        self._reactor = reactor
        self._spec = replace(spec, numproc=processes)
        self._timeout = timeout
        self._node = node
        self._queue = FairQueue(max_queue)
        self._workers: list[WorkerProcess] = []
        self._supervisor = Supervisor(reactor, processes, self._start_worker, self._on_ready, self._on_exit)
        self._watch_timer = Timer(reactor, self._watch)
        self._next_watch = math.inf
        self._stop_timer = Timer(reactor, self._give_up)
        self._ready: Deferred[None] = Deferred()
        self._stopping = False
        self._drained: Deferred[None] = Deferred()
        self._stopped: Deferred[None] | None = None

    # Life

    def start(self) -> Deferred[None]:
        """Start the workers; fires when the first takes requests. One that doesn't come up is tried again."""
        self._supervisor.start()
        return self._ready

    def reload(self) -> Deferred[bool]:
        """Replace the workers one by one by new processes, which load the code anew.

        :return: fires with whether all came up; if one doesn't, it and those after it stay as they are.
        """
        return Deferred.fromCoroutine(self._supervisor.replace_all())

    def stop(self, seconds: float) -> Deferred[None]:
        """Finish what was accepted, for up to *seconds*, then end every worker."""
        self._stopping = True
        self._stop_timer.set(seconds)
        if self._stopped is None:
            self._stopped = Deferred.fromCoroutine(self._stop())
        return self._stopped

    async def _stop(self) -> None:
        self._check_drained()
        await self._drained
        await self._supervisor.stop()
        self._stop_timer.clear()
        self._watch_timer.clear()

    def _give_up(self) -> None:
        while self._queue:
            self._queue.pop().settle(Unavailable("the node was stopped before the request's turn came"))
        for worker in self._workers:
            running = worker.pipe.running
            if running is not None:
                running.error = Interrupted("the node was stopped while it ran the request")
                worker.kill()
        self._check_drained()

    def _check_drained(self) -> None:
        if not self._stopping or self._drained.called:
            return
        if not self._queue and not any(worker.pipe.given for worker in self._workers):
            self._drained.callback(None)

    # Workers

    @property
    def workers(self) -> list[WorkerProcess]:
        """The worker processes that take requests now."""
        return [worker for worker in self._workers if not worker.retired]

    def _start_worker(self, worker_id: int) -> WorkerProcess:
        worker = WorkerProcess(self._reactor, worker_id, self)
        worker.spawn(replace(self._spec, masterpid=os.getpid()), self._node)
        return worker

    def _on_ready(self, worker: WorkerProcess) -> None:
        self._workers.append(worker)
        if not self._ready.called:
            self._ready.callback(None)
        self.progressed()

    def _on_exit(self, worker: WorkerProcess, how: str) -> None:
        begun, unbegun = worker.abandon()
        if worker in self._workers:
            self._workers.remove(worker)
        again = [job for job in begun if self._may_run_again(job)]
        for job in begun:
            if job not in again:
                job.settle(job.error or _died(job, worker, how))
        self._queue.put_back(again + unbegun)
        self.progressed()

    def _may_run_again(self, job: Job) -> bool:
        """Count a worker's end against the request that it ran."""
        job.crashes += 1
        return job.idempotent and job.error is None and job.crashes < _MAX_CRASHES and not job.abandoned

    def retiring(self, worker: WorkerProcess) -> None:
        """Start the successor of a worker that asks for one."""
        self._supervisor.replace(worker.worker_id)

    # Requests

    def submit(self, request: Request) -> Deferred[TimedAnswer]:
        """Have *request* run by a worker."""
        if self._stopping:
            return fail(Unavailable("the node is stopping"))
        refusal = self._queue.refusal(request.peer)
        if refusal is not None:
            return fail(refusal)
        job = Job(request, self._reactor.seconds(), self._withdraw)
        answer = job.answer
        self._queue.append(job)
        if len(self._queue) == 1:  # where others wait already, no worker has room
            self._dispatch()
        return answer

    def _withdraw(self, job: Job) -> None:
        if self._queue.discard(job):
            self._check_drained()

    def _dispatch(self) -> None:
        now = self._reactor.seconds()
        while self._queue:
            worker = self._emptiest()
            if worker is None:
                break
            job = self._queue.pop()
            if job.deadline <= now:
                job.settle(RequestTimeout("its caller's time was over before a worker was free"))
            elif not job.abandoned:  # a worker had it when its caller withdrew it
                self._give(worker, job, now)
        self._check_drained()

    def _emptiest(self) -> WorkerProcess | None:
        """Return the worker with the fewest requests that may be given one."""
        emptiest = None
        fewest = 0
        for worker in self._workers:
            given = worker.pipe.given
            if (emptiest is None or given < fewest) and worker.room > 0:
                emptiest, fewest = worker, given
                if not given:
                    break
        return emptiest

    def _give(self, worker: WorkerProcess, job: Job, now: float) -> None:
        try:
            worker.pipe.give(job, now)
        except UwsgiError as error:  # too large
            job.settle(error)
            return
        self._watch_at(now + (_WATCH if worker.pipe.given > 1 else self._timeout))

    def progressed(self) -> None:
        """Give out what waits, once what is going on now has been worked through."""
        if self._queue:
            BATCH.at_end(self._dispatch)
        else:
            self._check_drained()

    # Time limits

    def _watch_at(self, time: float) -> None:
        """See to it that :meth:`_watch` is called at *time*, or earlier."""
        if time < self._next_watch:
            self._next_watch = time
            self._watch_timer.set(max(0.0, time - self._reactor.seconds()))

    def _watch(self) -> None:
        """Kill the workers that are over the time limit, and recall what waits behind a slow request."""
        now = self._reactor.seconds()
        self._next_watch = math.inf
        for worker in self._workers:
            pipe = worker.pipe
            running = pipe.running
            if running is None:
                continue
            ran = now - pipe.running_since
            if ran >= self._timeout:
                running.error = RequestTimeout(
                    f"the request ran over the node's limit of {self._timeout:g} s; its worker was killed",
                    seconds=self._timeout,
                )
                worker.kill()
                continue
            if ran > _SLOW and pipe.given > 1:
                self._queue.put_back(pipe.recall())
            self._watch_at(now + (_WATCH if pipe.given > 1 else self._timeout - ran))
        if self._queue:
            self._dispatch()
