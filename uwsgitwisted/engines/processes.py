"""The engine ``processes:N``: handlers run in N worker processes; the front only moves their bytes.

A worker runs one request at a time, or several in threads. A fast worker without threads is assigned some
requests ahead (see :mod:`uwsgitwisted.engines.pipe`). The front recalls them as soon as the worker turns out
slow, so that no request waits behind a long one while another worker is idle. If a request exceeds the time
limit, its worker is killed, with the requests in its other threads. A worker that exits for any reason is
replaced, and the requests that it had not started go to another. No request ever gets the answer to another: an
id ties each answer to its request, and a dead worker's pipe dies with it.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import partial

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.access import named_peer
from uwsgitwisted.engines.job import Job
from uwsgitwisted.engines.requests import WaitingRequests
from uwsgitwisted.engines.shared_ports import SharedPorts
from uwsgitwisted.engines.statistics import History, WorkerReport
from uwsgitwisted.engines.supervisor import Supervisor
from uwsgitwisted.engines.transfers import Transfers
from uwsgitwisted.engines.worker_process import WorkerProcess
from uwsgitwisted.errors import Busy, Interrupted, RequestTimeout, Unavailable, UwsgiError, WorkerDied
from uwsgitwisted.interfaces import IEngine, IProcessReactor, IReloadable, Request, StreamedAnswer, TimedAnswer
from uwsgitwisted.transport.batch import BATCH
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.wire.packet import WSGI, Packet
from uwsgitwisted.worker.spec import SHARED_FD, WorkerSpec

#: Seconds between checks whether a worker with requests ahead has turned out slow.
_CHECK_INTERVAL = 0.005
#: A worker is slow if it runs one request for longer than this, in seconds.
_SLOW = 0.003

#: A worker that answers a request that it has accepted itself counts as one with so many requests.
_BUSY = 1_000
#: A request that has crashed this many workers is not run again.
_MAX_CRASHES = 2


def _worker_died(job: Job, worker: WorkerProcess, how: str) -> WorkerDied:
    times = f" (the request has crashed {job.crashes} workers)" if job.crashes > 1 else ""
    return WorkerDied(f"worker {worker.worker_id} died while running the request: {how}{times}")


def _at_place(error: Exception | None, place: str) -> Exception | None:
    """Add to the error of a request that has timed out where the worker was when it was killed."""
    if not isinstance(error, RequestTimeout):
        return error
    return RequestTimeout(f"{error.text}, in {place}", seconds=error.seconds)


@implementer(IEngine, IReloadable)
class ProcessEngine:
    """Runs handlers in worker processes.

    :param reactor: starts the processes and keeps the time.
    :param spec: the handlers.
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
        self._queue = WaitingRequests(max_queue)
        # Half of the workers, or of their threads, are left to those who have sent all of their requests.
        self._max_uploads = max(1, processes * spec.threads // 2)
        self._transfers = Transfers(spec.max_message)
        self._workers: list[WorkerProcess] = []
        self._supervisor = Supervisor(reactor, processes, self._start_worker, self._on_ready, self._on_exit)
        self._check_timer = Timer(reactor, self._check_workers)
        self._next_check = math.inf
        self._stop_timer = Timer(reactor, self._on_stop_timeout)
        self._shared: SharedPorts | None = None
        self._descriptors: dict[int, int] = {}
        self._reports = Reports(self._log)
        self._history = History(processes, spec.threads)
        self._ready: Deferred[None] = Deferred()
        self._stopping = False
        self._drained: Deferred[None] = Deferred()
        self._stopped: Deferred[None] | None = None

    # Start, reload and stop

    def lend(self, number: int, descriptor: int) -> None:
        """Give each worker that starts from now on a copy of *descriptor*, under the number *number*."""
        self._descriptors[number] = descriptor

    def share(self, ports: SharedPorts) -> None:
        """Have the workers take web requests from *ports* themselves; to be called before the start."""
        self._shared = ports
        self._descriptors |= ports.descriptors
        self._spec = replace(self._spec, accepting=ports.accepting)

    def start(self) -> Deferred[None]:
        """Start the workers, and start those again that fail to.

        :return: fires when the first worker is ready.
        """
        self._supervisor.start()
        if self._shared is not None:
            self._shared.start(self._look)
        return self._ready

    def reload(self) -> Deferred[bool]:
        """Replace the workers one by one with new processes, which load the code afresh.

        :return: fires with whether all were replaced. If a new process fails to start, the old one and all
            after it stay.
        """
        return Deferred.fromCoroutine(self._supervisor.replace_all())

    def stop_accepting(self) -> None:
        """Have the workers take no further requests from the ports, which the service will close."""
        if self._shared is not None and self._spec.accepting is not None:
            self._spec = replace(self._spec, accepting=None)
            for number in self._shared.descriptors:
                del self._descriptors[number]
            for worker in self._workers:
                worker.pipe.stop_accepting()

    def stop(self, seconds: float) -> Deferred[None]:
        """Finish the accepted requests for up to *seconds*, then end every worker."""
        self._stopping = True
        self._stop_timer.set(seconds)
        if self._stopped is None:
            self.stop_accepting()
            self._stopped = Deferred.fromCoroutine(self._stop())
        return self._stopped

    async def _stop(self) -> None:
        self._check_drained()
        await self._drained
        await self._supervisor.stop()
        if self._shared is not None:
            self._shared.stop()
        self._stop_timer.clear()
        self._check_timer.clear()

    def _on_stop_timeout(self) -> None:
        numbers = range(1, self._spec.numproc + 1)
        pinned = (job for number in numbers for job in iter(partial(self._queue.pop_pinned, number), None))
        for job in [*iter(partial(self._queue.pop, lambda: True), None), *pinned]:
            job.complete(Unavailable("the node was stopped before the request could start"))
        for worker in self._workers:
            running = worker.pipe.running
            for job in running:
                job.error = Interrupted("the node was stopped while running the request")
            if running or worker.accepted():
                worker.kill()
        self._check_drained()

    def _check_drained(self) -> None:
        if not self._stopping or self._drained.called:
            return
        if (
            not self._queue.length
            and not self._queue.pinned
            and not any(worker.pipe.in_flight or worker.accepted() for worker in self._workers)
        ):
            self._drained.callback(None)

    # Workers

    @property
    def workers(self) -> list[WorkerProcess]:
        """The worker processes that accept requests now."""
        return [worker for worker in self._workers if not worker.retired]

    def _start_worker(self, worker_id: int) -> WorkerProcess:
        worker = WorkerProcess(self._reactor, worker_id, self)
        spec = replace(self._spec, masterpid=os.getpid(), shares=SHARED_FD in self._descriptors)
        worker.spawn(spec, self._node, self._descriptors)
        self._history.on_start(worker_id)
        return worker

    def _on_ready(self, worker: WorkerProcess) -> None:
        self._workers.append(worker)
        if self._shared is not None and self._spec.accepting is None:  # it was started before the stop
            worker.pipe.stop_accepting()
        if not self._ready.called:
            self._ready.callback(None)
        self.on_progress()

    def _on_exit(self, worker: WorkerProcess, how: str) -> None:
        started, unstarted = worker.take_unfinished()
        self._history.on_exit(worker)
        if worker.place:
            for job in started:
                job.error = _at_place(job.error, worker.place)
        self._transfers.update(worker, 0)
        if worker in self._workers:
            self._workers.remove(worker)
        again = [job for job in started if self._may_run_again(job)]
        for job in started:
            if job not in again:
                job.complete(job.error or _worker_died(job, worker, how))
        self._queue.put_back(again + unstarted)
        self.on_progress()

    def _may_run_again(self, job: Job) -> bool:
        """Count the worker's crash against the request that it ran; return whether that may run again."""
        job.crashes += 1
        return job.idempotent and job.error is None and job.crashes < _MAX_CRASHES and not job.completed

    def on_retiring(self, worker: WorkerProcess) -> None:
        """Replace a worker that has asked for it."""
        self._supervisor.replace(worker.worker_id)

    def on_report(self, error: Exception, peer: str) -> None:
        """Log that a web request of *peer* has failed that a worker had accepted itself."""
        self._reports.failed(Failure(error), Request(Packet(WSGI, 0), named_peer(peer)))

    def on_transfer(self, worker: WorkerProcess, size: int) -> None:
        """Bound the large answers that arrive at once."""
        self._transfers.update(worker, size)

    def reports(self) -> list[WorkerReport]:
        """Return what each worker does and has done."""
        return self._history.reports(self._workers)

    @property
    def warning(self) -> tuple[float, bytes]:
        """When a handler has set a warning, and the warning, which is empty if there is none."""
        return self._history.warning(self._workers)

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker."""
        return self._queue.length

    # Requests

    def submit(self, request: Request, worker_id: int = 0) -> Deferred[TimedAnswer | StreamedAnswer]:
        """Queue *request* for a worker.

        :param worker_id: the only worker that may run it, which may be replaced meanwhile; 0 for any. The
            caller bounds how many such requests there are.
        :return: fires with the answer; fails with one of our errors.
        """
        if self._stopping:
            return fail(Unavailable("the node is stopping"))
        job = Job(request, self._reactor.seconds(), self._cancel_job, worker_id)
        answer = job.answer
        try:
            is_first = self._queue.append(job, request.peer)
        except Busy as error:
            return fail(error)
        if is_first:  # if others are waiting, no worker has capacity
            self._dispatch()
        return answer

    def _cancel_job(self, job: Job) -> None:
        if self._queue.discard(job):
            self._check_drained()

    def _dispatch(self) -> None:
        now = self._reactor.seconds()
        if self._queue.pinned:
            self._dispatch_pinned(now)
        pop, may_upload = self._queue.pop, self._may_upload
        while (worker := self._least_loaded_worker()) is not None and (job := pop(may_upload)) is not None:
            self._assign(worker, job, now)
        if self._queue.pinned:  # those whose turn it wasn't, in workers that nothing else needs
            self._dispatch_pinned(now)
        self._check_drained()

    def _dispatch_pinned(self, now: float) -> None:
        """Assign the requests that only one worker each may run."""
        for worker in self._workers:
            while worker.capacity > 0 and (job := self._queue.pop_pinned(worker.worker_id)) is not None:
                self._assign(worker, job, now)

    def _assign(self, worker: WorkerProcess, job: Job, now: float) -> None:
        if job.deadline <= now:
            job.complete(RequestTimeout("the request timed out before a worker was free"))
            return
        if job.completed:  # its caller has cancelled it while a worker had it
            return
        pipe = worker.pipe
        try:
            pipe.assign(job, now)
        except UwsgiError as error:  # too large
            job.complete(error)
            return
        is_ahead = pipe.in_flight > self._spec.threads
        self._check_at(now + (_CHECK_INTERVAL if is_ahead else self._timeout))

    def _may_upload(self) -> bool:
        return sum(worker.pipe.uploading for worker in self._workers) < self._max_uploads

    def _least_loaded_worker(self) -> WorkerProcess | None:
        """Return the worker with capacity that has the fewest requests in flight."""
        least_loaded = None
        fewest: float = math.inf
        accepting = self._shared is not None
        for worker in self._workers:
            if worker.capacity <= 0:
                continue
            in_flight = worker.pipe.in_flight
            if accepting and (accepted := worker.accepted()):
                in_flight += accepted
                if in_flight > self._spec.threads:
                    continue
                if in_flight == self._spec.threads:  # another one should have it, if there is one
                    in_flight = _BUSY
            if in_flight < fewest:
                least_loaded, fewest = worker, in_flight
                if not in_flight:
                    break
        return least_loaded

    def on_progress(self) -> None:
        """Assign waiting requests when the current batch ends."""
        if self._queue.length or self._queue.pinned:
            BATCH.at_end(self._dispatch)
        else:
            self._check_drained()

    # Shared ports

    def _look(self) -> bool:
        """Look after workers that accept connections; return whether the front should accept what waits."""
        for worker in self._workers:  # also those that were replaced
            self._kill_overdue(worker)
        workers, threads = self.workers, self._spec.threads
        busy = [worker for worker in workers if worker.pipe.in_flight + worker.accepted(_SLOW) >= threads]
        if len(busy) < len(workers):
            for worker in busy:
                if worker.accepted():
                    self._queue.put_back(worker.pipe.recall(spared=0))
            if self._queue.length:
                self._dispatch()
        self._check_drained()
        return len(busy) == len(workers)

    # Time limits

    def _check_at(self, time: float) -> None:
        """Schedule :meth:`_check_workers` for *time*, unless it is scheduled earlier."""
        if time < self._next_check:
            self._next_check = time
            self._check_timer.set(max(0.0, time - self._reactor.seconds()))

    def _check_workers(self) -> None:
        """Kill the workers that exceed the time limit, and recall the requests behind a slow one."""
        now = self._reactor.seconds()
        self._next_check = math.inf
        for worker in self._workers:
            pipe = worker.pipe
            running = pipe.running
            if not running:
                continue
            if self._spec.threads > 1:
                self._kill_overdue(worker)
                self._check_at(now + max(_CHECK_INTERVAL, self._timeout - worker.working_for))
                continue
            # The peer's connection has its own time limits. A request behind one that the worker has accepted
            # itself has not begun.
            if pipe.waits_for_peer or worker.accepted():
                pipe.running_since = now
            ran = now - pipe.running_since
            if ran >= self._timeout and worker.has_data:  # it has answered in time
                self._check_at(now + _CHECK_INTERVAL)
                continue
            if ran >= self._timeout:
                running[0].error = self._timed_out("the request")
                self._history.on_timeout(worker)
                worker.kill(trace=True)
                continue
            if ran > _SLOW and pipe.in_flight > 1:
                self._queue.put_back(pipe.recall())
            self._check_at(now + (_CHECK_INTERVAL if pipe.in_flight > 1 else self._timeout - ran))
        if self._queue.length:
            self._dispatch()

    def _kill_overdue(self, worker: WorkerProcess) -> None:
        """Kill a worker if one of its requests exceeds the time limit, by what it notes of them itself."""
        overdue = [] if worker.killed else worker.overdue(self._timeout)
        for request in overdue:
            job = worker.pipe.find(request)
            if job is not None:
                job.error = self._timed_out("the request")
        if overdue:
            self._history.on_timeout(worker)
            for peer in worker.overdue_peers(self._timeout):
                self.on_report(self._timed_out("a web request"), peer)
            worker.kill(trace=True)

    def _timed_out(self, what: str) -> RequestTimeout:
        limit = f"the node's limit of {self._timeout:g} s"
        return RequestTimeout(f"{what} exceeded {limit}; its worker was killed", seconds=self._timeout)
