"""Callers that wait until tasks are finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import Busy, NoSuchTask
from uwsgitwisted.spool.records import Description, describe_record
from uwsgitwisted.spool.slices import Job, Steps, slices
from uwsgitwisted.spool.stores.interface import ISpoolStore

#: How many may wait at once, of one peer and in all.
MAX_PEER_WAITERS, MAX_WAITERS = 2_500, 10_000
#: How many tasks are looked up in one job, and how many in one slice of it.
LOOK, SLICE = 1_000, 250

_log = Logger()


class _RunsJobs(Protocol):
    """The part of :class:`.job_scheduler.JobScheduler` that is used here."""

    def submit(self, group: str | None, job: Job[Any]) -> Deferred[Any]: ...


class Waiters:
    """Tells callers when their tasks are finished.

    One job is in flight at a time. It looks up all tasks that may have finished since the job before.

    :param jobs: looks tasks up.
    """

    def __init__(self, jobs: _RunsJobs) -> None:
        self._jobs = jobs
        self._waiting: dict[int, dict[Deferred[Description], str]] = {}
        self._number = 0
        self._numbers: Counter[str] = Counter()
        # The tasks to look up; a dict keeps their order.
        self._due: dict[int, None] = {}
        #: Who waits for the end of the look-ups; None while there is none.
        self._looking: list[Deferred[None]] | None = None

    def wait(self, identifier: int, group: str) -> Deferred[Description]:
        """Wait for a task.

        :param group: who waits, as :attr:`uwsgitwisted.access.Peer.group` says it.
        :return: fires with the task's description when it is finished. Fails with ``NoSuchTask`` if there is no
            such task, or not any more, and with ``Busy`` if too many wait. It may be cancelled.
        """
        if self._number >= MAX_WAITERS or self._numbers[group] >= MAX_PEER_WAITERS:
            return fail(Busy("too many callers wait for tasks already; ask for the status instead"))
        finished: Deferred[Description] = Deferred(lambda cancelled: self._leave(identifier, cancelled))
        self._waiting.setdefault(identifier, {})[finished] = group
        self._number += 1
        self._numbers[group] += 1
        self.look([identifier])
        return finished

    def give_up(self, error: Exception) -> None:
        """Fail all who still wait."""
        for identifier in list(self._waiting):
            self._fire(identifier, error)

    def look(self, ids: Iterable[int] | None = None) -> None:
        """Look up tasks that may be finished and that somebody waits for: those of *ids*, or all of them."""
        self._due.update(
            dict.fromkeys(self._waiting if ids is None else (each for each in ids if each in self._waiting))
        )
        if self._due and self._looking is None:
            self._looking = []
            self._look_up_next()

    def looked(self) -> Deferred[None]:
        """Return a Deferred that fires when the look-ups that are due are done and callers are told."""
        if self._looking is None:
            return succeed(None)
        looked: Deferred[None] = Deferred()
        self._looking.append(looked)
        return looked

    def _look_up_next(self) -> None:
        """Look up the next tasks that are due."""
        ids = list(self._due)[:LOOK]
        for identifier in ids:
            del self._due[identifier]
        if ids:
            looking = self._jobs.submit(None, _find_finished(ids))
            looking.addCallbacks(self._tell, self._tell_failure, errbackArgs=(ids,))
            looking.addCallback(lambda _: self._look_up_next()).addErrback(_log_unexpected)
            return
        looked, self._looking = self._looking or [], None
        for each in looked:
            each.callback(None)

    def _tell(self, finished: dict[int, Description | None]) -> None:
        for identifier, description in finished.items():
            if description is None:
                self._fire(identifier, NoSuchTask(f"there is no task {identifier}, or not any more"))
            else:
                self._fire(identifier, description)

    def _tell_failure(self, failure: Failure, ids: Iterable[int]) -> None:
        assert failure.value is not None
        for identifier in ids:
            self._fire(identifier, failure.value)

    def _fire(self, identifier: int, result: Description | BaseException) -> None:
        for finished, group in self._waiting.pop(identifier, {}).items():
            self._count_off(group)
            finished.errback(result) if isinstance(result, BaseException) else finished.callback(result)

    def _leave(self, identifier: int, finished: Deferred[Description]) -> None:
        waiting = self._waiting.get(identifier, {})
        if finished in waiting:
            self._count_off(waiting.pop(finished))
            if not waiting:
                del self._waiting[identifier]

    def _count_off(self, group: str) -> None:
        self._number -= 1
        self._numbers[group] -= 1
        if not self._numbers[group]:
            del self._numbers[group]


def _find_finished(ids: Sequence[int]) -> Job[dict[int, Description | None]]:
    """Return the job that describes those of *ids* that are finished; None stands for an unknown task."""

    def job(store: ISpoolStore) -> Steps[dict[int, Description | None]]:
        finished: dict[int, Description | None] = {}
        for some in slices(ids, SLICE):
            states = store.states(some)
            finished |= {each: None for each in some if each not in states or states[each].final}
            yield
        for some in slices(list(finished)):
            for record in store.find(some):
                if record.state.final:
                    finished[record.task.id] = describe_record(record)
                else:  # somebody queued it again meanwhile
                    del finished[record.task.id]
            yield
        return finished

    return job


def _log_unexpected(failure: Failure) -> None:
    _log.failure("telling callers that tasks are finished", failure)
