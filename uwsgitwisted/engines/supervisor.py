"""Keeps a number of worker processes alive: replaces those that exit, or all of them, without a gap."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from uwsgitwisted.engines.worker_process import WorkerProcess
from uwsgitwisted.interfaces import IProcessReactor

#: Seconds before a restart, if a worker failed to start or exited within the first second. The first restart is
#: immediate; the second waits this long, and each further one twice as long, up to a limit.
_FIRST_DELAY = 0.5
#: The limits: for a worker that fails to start, and for one that starts and is then crashed by its requests.
_MAX_DELAY, _MAX_DELAY_READY = 30.0, 1.0
_YOUNG = 1.0
#: A float can't be doubled without end: after a thousand times it overflows.
_MAX_DOUBLINGS = 10


class Supervisor:
    """The worker processes of an engine.

    :param reactor: keeps the time.
    :param size: how many workers.
    :param start: starts the process with a number from 1; raises OSError if the system can't start one.
    :param on_ready: called with each worker that is ready for requests.
    :param on_exit: called with each worker whose process has ended, and how it ended.
    :param kind: what they are called in the log.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IProcessReactor,
        size: int,
        start: Callable[[int], WorkerProcess],
        on_ready: Callable[[WorkerProcess], None],
        on_exit: Callable[[WorkerProcess, str], None],
        kind: str = "worker",
    ) -> None:
        self._reactor = reactor
        self._size = size
        self._start_worker = start
        self._on_ready = on_ready
        self._on_exit = on_exit
        self._kind = kind
        self._alive: set[WorkerProcess] = set()
        self._current: dict[int, WorkerProcess] = {}
        self._ready_since: dict[WorkerProcess, float] = {}
        self._starting: dict[int, Deferred[bool]] = {}
        # How often in a row a worker has failed, by its number and the limit of its delay.
        self._failures: dict[tuple[int, float], int] = {}
        self._stopped: Deferred[None] | None = None

    def start(self) -> None:
        """Start all workers."""
        for worker_id in range(1, self._size + 1):
            self._launch(worker_id)

    def replace(self, worker_id: int) -> Deferred[bool]:
        """Start a new process, which takes over from the current one as soon as it is ready.

        :return: fires with True then, or with False if the new one fails to start and the current one stays.
        """
        starting = self._starting.get(worker_id)
        return _follow(self._launch(worker_id) if starting is None else starting)

    async def replace_all(self) -> bool:
        """Replace every worker, one after the other.

        :return: whether all were replaced. After the first that fails to start, the rest stay.
        """
        for worker_id in range(1, self._size + 1):
            if worker_id in self._starting:  # it may have loaded the code before the change
                await _follow(self._starting[worker_id])
            if not await self.replace(worker_id):
                return False
        return True

    def stop(self) -> Deferred[None]:
        """Retire all workers.

        :return: fires when every process has ended.
        """
        self._stopped = Deferred()
        for worker in list(self._alive):
            worker.retire()
        if not self._alive:
            return succeed(None)
        return self._stopped

    def _launch(self, worker_id: int) -> Deferred[bool]:
        starting: Deferred[bool] = Deferred()
        self._starting[worker_id] = starting
        try:
            worker = self._start_worker(worker_id)
        except OSError as error:  # no more processes or file descriptors
            self._handle_failed_start(worker_id, str(error))
            return starting
        self._alive.add(worker)
        worker.ready.addCallback(self._handle_ready)
        worker.ended.addCallback(self._handle_exit, worker)
        return starting

    def _handle_ready(self, worker: WorkerProcess) -> None:
        predecessor = self._current.get(worker.worker_id)
        self._current[worker.worker_id] = worker
        self._ready_since[worker] = self._reactor.seconds()
        self._failures.pop((worker.worker_id, _MAX_DELAY), None)
        if self._stopped is not None:
            worker.retire()
            return
        starting = self._starting.pop(worker.worker_id)
        self._on_ready(worker)
        if predecessor is not None:
            predecessor.retire()
        starting.callback(True)

    def _handle_exit(self, how: str, worker: WorkerProcess) -> None:
        self._alive.discard(worker)
        since = self._ready_since.pop(worker, None)
        self._on_exit(worker, how)
        worker_id = worker.worker_id
        if self._stopped is not None:
            if not self._alive and not self._stopped.called:
                self._stopped.callback(None)
        elif since is None:
            self._handle_failed_start(worker_id, how)
        elif self._current.get(worker_id) is worker:
            del self._current[worker_id]
            self._log.error("[{kind} {id}] {how}; replacing it", kind=self._kind, id=worker_id, how=how)
            if self._reactor.seconds() - since > _YOUNG:
                self._failures.pop((worker_id, _MAX_DELAY_READY), None)
            self._launch_later(worker_id, _MAX_DELAY_READY)

    def _handle_failed_start(self, worker_id: int, how: str) -> None:
        starting = self._starting.pop(worker_id)
        if worker_id in self._current:
            self._log.error(
                "[{kind} {id}] its replacement failed to start: {how}", kind=self._kind, id=worker_id, how=how
            )
        else:
            self._log.error("[{kind} {id}] it failed to start: {how}", kind=self._kind, id=worker_id, how=how)
            self._launch_later(worker_id, _MAX_DELAY)
        starting.callback(False)

    def _launch_later(self, worker_id: int, limit: float) -> None:
        failures = self._failures.get((worker_id, limit), 0)
        self._failures[worker_id, limit] = failures + 1
        doublings = min(failures - 1, _MAX_DOUBLINGS)
        delay = min(_FIRST_DELAY * 2**doublings, limit) if failures else 0.0
        self._reactor.callLater(delay, self._launch_if_missing, worker_id)

    def _launch_if_missing(self, worker_id: int) -> None:
        if self._stopped is None and worker_id not in self._current and worker_id not in self._starting:
            self._launch(worker_id)


def _follow(starting: Deferred[bool]) -> Deferred[bool]:
    """Return a new Deferred that fires with the result of *starting*, which has other callers too."""
    result: Deferred[bool] = Deferred()

    def pass_on(ready: bool) -> bool:
        result.callback(ready)
        return ready

    starting.addCallback(pass_on)
    return result
