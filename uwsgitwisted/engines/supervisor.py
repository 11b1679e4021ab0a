"""Keeps a number of worker processes alive: one that ends is replaced, and all can be renewed without a gap."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from uwsgitwisted.engines.worker_process import WorkerProcess
from uwsgitwisted.interfaces import IProcessReactor

#: Seconds until a worker is started again that did not come up, or ended within the first second: none at the
#: first time, then this, doubled each time up to the limit.
_FIRST_DELAY = 0.5
#: The limits: for one that doesn't come up, and for one that comes up and is ended by what it is given.
_MAX_DELAY, _MAX_DELAY_UP = 30.0, 1.0
_YOUNG = 1.0


class Supervisor:
    """The worker processes of an engine.

    :param reactor: keeps the time.
    :param size: how many there are.
    :param start: starts the process with a number from 1; raises OSError if there is none to be had.
    :param up: called with each worker that takes requests.
    :param down: called with each worker whose process has ended.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IProcessReactor,
        size: int,
        start: Callable[[int], WorkerProcess],
        up: Callable[[WorkerProcess], None],
        down: Callable[[WorkerProcess, str], None],
    ) -> None:
        self._reactor = reactor
        self._size = size
        self._start_worker = start
        self._up = up
        self._down = down
        self._living: set[WorkerProcess] = set()
        self._current: dict[int, WorkerProcess] = {}
        self._since: dict[WorkerProcess, float] = {}
        self._coming: dict[int, Deferred[bool]] = {}
        # How often in a row a worker has failed, by its number and by how long it may be kept waiting for that.
        self._failures: dict[tuple[int, float], int] = {}
        self._gone: Deferred[None] | None = None

    def start(self) -> None:
        """Start them all."""
        for worker_id in range(1, self._size + 1):
            self._launch(worker_id)

    def replace(self, worker_id: int) -> Deferred[bool]:
        """Have a new process take over from the present one as soon as it is up.

        :return: fires with True then, or with False if it doesn't come up and the present one stays.
        """
        coming = self._coming.get(worker_id)
        return _outcome(self._launch(worker_id) if coming is None else coming)

    async def replace_all(self) -> bool:
        """Replace every worker, one after the other.

        :return: whether all were; after the first that doesn't come up, the rest stay.
        """
        for worker_id in range(1, self._size + 1):
            if worker_id in self._coming:  # it may have loaded the code before that was changed
                await _outcome(self._coming[worker_id])
            if not await self.replace(worker_id):
                return False
        return True

    def stop(self) -> Deferred[None]:
        """End them all.

        :return: fires when every process has ended.
        """
        self._gone = Deferred()
        for worker in list(self._living):
            worker.retire()
        if not self._living:
            return succeed(None)
        return self._gone

    def _launch(self, worker_id: int) -> Deferred[bool]:
        coming: Deferred[bool] = Deferred()
        self._coming[worker_id] = coming
        try:
            worker = self._start_worker(worker_id)
        except OSError as error:  # no process or file descriptor to be had
            self._did_not_come_up(worker_id, str(error))
            return coming
        self._living.add(worker)
        worker.ready.addCallback(self._came_up)
        worker.ended.addCallback(self._ended, worker)
        return coming

    def _came_up(self, worker: WorkerProcess) -> None:
        predecessor = self._current.get(worker.worker_id)
        self._current[worker.worker_id] = worker
        self._since[worker] = self._reactor.seconds()
        self._failures.pop((worker.worker_id, _MAX_DELAY), None)
        if self._gone is not None:
            worker.retire()
            return
        coming = self._coming.pop(worker.worker_id)
        self._up(worker)
        if predecessor is not None:
            predecessor.retire()
        coming.callback(True)

    def _ended(self, how: str, worker: WorkerProcess) -> None:
        self._living.discard(worker)
        since = self._since.pop(worker, None)
        self._down(worker, how)
        worker_id = worker.worker_id
        if self._gone is not None:
            if not self._living and not self._gone.called:
                self._gone.callback(None)
        elif since is None:
            self._did_not_come_up(worker_id, how)
        elif self._current.get(worker_id) is worker:
            del self._current[worker_id]
            self._log.error("[worker {id}] {how}; it is replaced", id=worker_id, how=how)
            if self._reactor.seconds() - since > _YOUNG:
                self._failures.pop((worker_id, _MAX_DELAY_UP), None)
            self._launch_later(worker_id, _MAX_DELAY_UP)

    def _did_not_come_up(self, worker_id: int, how: str) -> None:
        coming = self._coming.pop(worker_id)
        if worker_id in self._current:
            self._log.error("[worker {id}] its successor did not come up: {how}", id=worker_id, how=how)
        else:
            self._log.error("[worker {id}] it did not come up: {how}", id=worker_id, how=how)
            self._launch_later(worker_id, _MAX_DELAY)
        coming.callback(False)

    def _launch_later(self, worker_id: int, limit: float) -> None:
        failures = self._failures.get((worker_id, limit), 0)
        self._failures[worker_id, limit] = failures + 1
        delay = min(_FIRST_DELAY * 2 ** (failures - 1), limit) if failures else 0.0
        self._reactor.callLater(delay, self._launch_if_missing, worker_id)

    def _launch_if_missing(self, worker_id: int) -> None:
        if self._gone is None and worker_id not in self._current and worker_id not in self._coming:
            self._launch(worker_id)


def _outcome(coming: Deferred[bool]) -> Deferred[bool]:
    """Return a Deferred that fires with what *coming* fires with, for which others wait as well."""
    result: Deferred[bool] = Deferred()

    def tell(came: bool) -> bool:
        result.callback(came)
        return came

    coming.addCallback(tell)
    return result
