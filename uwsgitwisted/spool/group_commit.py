"""Stores new tasks: those that arrive during one commit are committed together in the next."""

from __future__ import annotations

from collections.abc import Callable, Collection

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import Busy
from uwsgitwisted.spool.store_thread import Runner
from uwsgitwisted.spool.stores.bounds import add_each
from uwsgitwisted.spool.stores.interface import ISpoolStore
from uwsgitwisted.spool.task import Task

#: How many bytes the tasks that wait for their commit may have together, bodies included.
MAX_PENDING_BYTES = 128 * 1024 * 1024

_log = Logger()


class GroupCommit:
    """Commits new tasks in groups.

    :param max_pending: how many tasks may wait for their commit; more are refused.
    :param committed: is called with the tasks of each commit, after their Deferreds fired.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        store: ISpoolStore,
        runner: Runner,
        *,
        max_pending: int,
        committed: Callable[[Collection[Task]], None],
    ) -> None:
        self._reactor = reactor
        self._store = store
        self._runner = runner
        self._max_pending = max_pending
        self._committed = committed
        self._size = 0
        self._waiting: dict[Deferred[int], Task] = {}
        self._committing: dict[Deferred[int], Task] = {}
        self._scheduled = False
        self._drained: list[Deferred[None]] = []

    def add(self, task: Task) -> Deferred[int]:
        """Store *task*.

        :return: fires with its id when it is on the disk. Fails with ``Busy`` if too many wait for that, or the
            queue has reached a bound, or with what the store raised. Cancelling it drops the task if its commit
            has not begun; otherwise the task stays.
        """
        if len(self._waiting) + len(self._committing) >= self._max_pending:
            return fail(
                Busy(f"{self._max_pending} tasks wait to be written to the disk already; try again later")
            )
        if self._size > MAX_PENDING_BYTES:
            return fail(Busy(f"{self._size} bytes of tasks wait to be written to the disk; try again later"))
        stored: Deferred[int] = Deferred(self._cancel)
        self._waiting[stored] = task
        self._size += task.size
        self._schedule_commit()
        return stored

    def _cancel(self, stored: Deferred[int]) -> None:
        task = self._waiting.pop(stored, None)
        if task is not None:
            self._size -= task.size

    def _schedule_commit(self) -> None:
        """Commit at the end of this turn of the reactor, together with what else arrives in it."""
        if self._waiting and not self._committing and not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._commit)

    def _commit(self) -> None:
        self._scheduled = False
        batch, self._waiting = self._waiting, {}
        if not batch:
            self._fire_drained()
            return
        self._committing = batch
        adding = self._runner.run(add_each, self._store, list(batch.values()))
        adding.addCallbacks(
            self._commit_succeeded, self._commit_failed, callbackArgs=(batch,), errbackArgs=(batch,)
        )
        adding.addErrback(_log_unexpected)

    def _commit_succeeded(self, results: list[int | Busy], batch: dict[Deferred[int], Task]) -> None:
        self._begin_next()
        for stored, result in zip(batch, results, strict=True):
            if stored.called:  # it was cancelled during the commit
                continue
            if isinstance(result, Busy):
                stored.errback(result)
            else:
                stored.callback(result)
        tasks = zip(batch.values(), results, strict=True)
        self._committed([task for task, result in tasks if not isinstance(result, Busy)])
        self._fire_drained()

    def _commit_failed(self, failure: Failure, batch: dict[Deferred[int], Task]) -> None:
        self._begin_next()
        for stored in batch:
            if not stored.called:
                stored.errback(failure.value)
        self._fire_drained()

    def _begin_next(self) -> None:
        """Let the next commit begin before anybody hears of this one."""
        self._size -= sum(task.size for task in self._committing.values())
        self._committing = {}
        self._schedule_commit()

    def drained(self) -> Deferred[None]:
        """Return a Deferred that fires when no task waits for its commit."""
        if not self._waiting and not self._committing:
            return succeed(None)
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        return drained

    def _fire_drained(self) -> None:
        if not self._waiting and not self._committing:
            waiting, self._drained = self._drained, []
            for drained in waiting:
                drained.callback(None)


def _log_unexpected(failure: Failure) -> None:
    _log.failure("storing new tasks", failure)
