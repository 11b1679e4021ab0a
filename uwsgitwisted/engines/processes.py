"""The engine ``processes:N``: handlers run in N worker processes, the front only moves their bytes.

Each worker runs one request at a time. A request over the time limit has its worker killed; a worker that ends,
for whatever reason, is replaced. No request is ever answered with another's answer: an id ties each answer to
its request, and a killed worker's pipe is gone with it.
"""

from __future__ import annotations

import math
from collections import deque
from functools import partial

from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.engines.child import Child
from uwsgitwisted.engines.worker import WorkerSpec
from uwsgitwisted.errors import Busy, NoAnswer, RequestCancelled, RequestTimeout, Unavailable, WorkerDied
from uwsgitwisted.interfaces import IEngine, IProcessReactor, Request
from uwsgitwisted.transport.alarm import Alarm
from uwsgitwisted.wire.packet import Packet

#: Seconds until a worker that did not come up is started again; doubled each time, up to the limit.
_FIRST_DELAY, _MAX_DELAY = 0.5, 30.0
#: Seconds that a worker gets to end by itself once it has nothing more to do.
_GOODBYE = 2.0


class _Job:
    """A request and who waits for its answer."""

    __slots__ = ("answer", "deadline", "error", "request")

    def __init__(self, request: Request, deadline: float) -> None:
        self.request = request
        self.deadline = deadline
        self.answer: Deferred[Packet] | None = None
        #: Why its worker is being killed, if it is.
        self.error: Exception | None = None

    def settle(self, result: Packet | Exception | Failure) -> None:
        """Answer, unless nobody waits any more."""
        answer, self.answer = self.answer, None
        if answer is None:
            return
        if isinstance(result, Packet):
            answer.callback(result)
        else:
            answer.errback(result)


@implementer(IEngine)
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
        self._spec = spec
        self._processes = processes
        self._timeout = timeout
        self._max_queue = max_queue
        self._node = node
        self._queue: deque[_Job] = deque()
        self._idle: deque[Child] = deque()
        self._running: dict[Child, _Job] = {}
        self._alarms: dict[Child, Alarm] = {}
        self._slots: list[Deferred[None]] = []
        self._pauses: set[Deferred[None]] = set()
        self._ready: Deferred[None] = Deferred()
        self._stopping = False
        self._drained: Deferred[None] = Deferred()

    @property
    def workers(self) -> list[Child]:
        """The worker processes that take requests now."""
        return list(self._alarms)

    # Life

    def start(self) -> Deferred[None]:
        """Start the workers; fires when the first takes requests. One that doesn't come up is tried again."""
        self._slots = [
            Deferred.fromCoroutine(self._keep_worker(number)) for number in range(1, self._processes + 1)
        ]
        return self._ready

    async def _keep_worker(self, worker_id: int) -> None:
        """Have a worker of this number, until the engine stops."""
        delay = _FIRST_DELAY
        while True:
            came_up, how = await self._run_child(worker_id)
            if self._stopping:
                return
            if came_up:
                delay = _FIRST_DELAY
                self._log.error("[worker {id}] {how}; it is replaced", id=worker_id, how=how)
                continue
            self._log.error(
                "[worker {id}] did not come up: {how}; trying again in {delay:g} s",
                id=worker_id,
                how=how,
                delay=delay,
            )
            await self._pause(delay)
            delay = min(delay * 2, _MAX_DELAY)

    async def _run_child(self, worker_id: int) -> tuple[bool, str]:
        """Run one process to its end; return whether it ever took requests, and how it ended."""
        try:
            child = Child.spawn(self._reactor, self._spec, self._node, worker_id, self._processes)
        except OSError as error:  # no process or file descriptor to be had
            return False, str(error)
        child.ready.addCallback(self._take_up)
        how = await child.ended
        self._lay_down(child, how)
        return child.ready.called, how

    async def _pause(self, seconds: float) -> None:
        pause: Deferred[None] = deferLater(self._reactor, seconds)
        self._pauses.add(pause)
        pause.addErrback(lambda _: None)  # cancelled by stop
        await pause
        self._pauses.discard(pause)

    def _take_up(self, child: Child) -> None:
        if self._stopping and not self._queue:
            child.finish()
            return
        self._alarms[child] = Alarm(self._reactor, partial(self._kill, child))
        self._idle.append(child)
        if not self._ready.called:
            self._ready.callback(None)
        self._dispatch()

    def _lay_down(self, child: Child, how: str) -> None:
        alarm = self._alarms.pop(child, None)
        if alarm is not None:
            alarm.clear()
        if child in self._idle:
            self._idle.remove(child)
        job = self._running.pop(child, None)
        if job is not None:
            job.settle(
                job.error or WorkerDied(f"worker {child.worker_id} ended while it ran the request: {how}")
            )
        self._check_drained()

    def stop(self, seconds: float) -> Deferred[None]:
        """Finish what was accepted, for up to *seconds*, then end every worker."""
        return Deferred.fromCoroutine(self._stop(seconds))

    async def _stop(self, seconds: float) -> None:
        self._stopping = True
        limit = Alarm(self._reactor, self._give_up)
        limit.set(seconds)
        self._check_drained()
        await self._drained
        limit.clear()
        for pause in list(self._pauses):
            pause.cancel()
        children = [child for child in self._alarms if not child.ended.called]
        for child in children:
            child.finish()
            self._alarms[child].set(_GOODBYE)
        await DeferredList(self._slots)

    def _give_up(self) -> None:
        while self._queue:
            self._queue.popleft().settle(Unavailable("the node was stopped before the request's turn came"))
        for child, job in self._running.items():
            job.error = Unavailable("the node was stopped while the request ran")
            child.kill()
        self._check_drained()

    def _check_drained(self) -> None:
        if self._stopping and not self._running and not self._queue and not self._drained.called:
            self._drained.callback(None)

    # Work

    def submit(self, request: Request) -> Deferred[Packet]:
        """Have *request* run by a worker."""
        if self._stopping:
            return fail(Unavailable("the node is stopping"))
        if len(self._queue) >= self._max_queue:
            return fail(Busy(f"{self._max_queue} requests wait already; try another node, or later"))
        deadline = math.inf if request.seconds is None else self._reactor.seconds() + request.seconds
        job = _Job(request, deadline)
        answer = job.answer = Deferred(partial(self._withdraw, job))
        self._queue.append(job)
        self._dispatch()
        return answer

    def _withdraw(self, job: _Job, answer: Deferred[Packet]) -> None:
        if job in self._queue:
            self._queue.remove(job)
        job.settle(RequestCancelled("the request was cancelled"))

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            job = self._queue.popleft()
            if job.deadline <= self._reactor.seconds():
                job.settle(RequestTimeout("its caller's time was over before a worker was free"))
            else:
                self._run(self._idle.popleft(), job)

    def _run(self, child: Child, job: _Job) -> None:
        self._running[child] = job
        self._alarms[child].set(self._timeout)
        answer = child.request(job.request.packet)
        answer.addCallbacks(self._finish, self._fail, callbackArgs=(child,), errbackArgs=(child,))

    def _finish(self, result: Packet | Failure, child: Child) -> None:
        self._alarms[child].clear()
        job = self._running.pop(child)
        self._idle.append(child)
        job.settle(result)
        self._dispatch()
        self._check_drained()

    def _fail(self, failure: Failure, child: Child) -> None:
        # Without its pipe the worker has ended or is about to be killed; how it ended is known then.
        if not isinstance(failure.value, NoAnswer):
            self._finish(failure, child)

    def _kill(self, child: Child) -> None:
        job = self._running.get(child)
        if job is not None:
            job.error = RequestTimeout(
                f"the request ran over the node's limit of {self._timeout:g} s; its worker was killed",
                seconds=self._timeout,
            )
        child.kill()
