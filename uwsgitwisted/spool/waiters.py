"""Those who wait for tasks to be over."""

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
#: Whether they are over is looked up for so many tasks at once, and within that for so many in a slice.
LOOK, SLICE = 1_000, 250

_log = Logger()


class _Asks(Protocol):
    """What is needed of a spooler's questions."""

    def ask(self, group: str | None, job: Job[Any]) -> Deferred[Any]: ...


class Waiters:
    """Tells callers when their tasks are over.

    One look is in flight at a time, for all tasks that may be over since the one before.
    """

    def __init__(self, questions: _Asks) -> None:
        self._questions = questions
        self._waiting: dict[int, dict[Deferred[Description], str]] = {}
        self._number = 0
        self._numbers: Counter[str] = Counter()
        # The tasks that are to be looked up; a dict keeps their order.
        self._due: dict[int, None] = {}
        self._looking: list[Deferred[None]] | None = None

    def wait(self, identifier: int, group: str) -> Deferred[Description]:
        """Wait for a task.

        :param group: who waits, see :attr:`uwsgitwisted.access.Peer.group`.
        :return: fires with what is known of it when it is over. Fails with ``NoSuchTask`` if there is no such
            task, or not any more, and with ``Busy`` if too many wait. Cancelling it is safe.
        """
        if self._number >= MAX_WAITERS or self._numbers[group] >= MAX_PEER_WAITERS:
            return fail(Busy("too many callers wait for tasks already; ask for the status instead"))
        over: Deferred[Description] = Deferred(lambda cancelled: self._leave(identifier, cancelled))
        self._waiting.setdefault(identifier, {})[over] = group
        self._number += 1
        self._numbers[group] += 1
        self.look([identifier])
        return over

    def give_up(self, error: Exception) -> None:
        """Fail all who still wait."""
        for identifier in list(self._waiting):
            self._settle(identifier, error)

    def look(self, ids: Iterable[int] | None = None) -> None:
        """See whether tasks may be over: those of *ids* for which somebody waits, or all of these."""
        self._due.update(
            dict.fromkeys(self._waiting if ids is None else (each for each in ids if each in self._waiting))
        )
        if self._due and self._looking is None:
            self._looking = []
            self._look_on()

    def looked(self) -> Deferred[None]:
        """Return a Deferred that fires when who waited for a task that is over has been told."""
        if self._looking is None:
            return succeed(None)
        looked: Deferred[None] = Deferred()
        self._looking.append(looked)
        return looked

    def _look_on(self) -> None:
        """Look the next tasks up."""
        ids = list(self._due)[:LOOK]
        for identifier in ids:
            del self._due[identifier]
        if ids:
            looking = self._questions.ask(None, _over(ids))
            looking.addCallbacks(self._found, self._failed, errbackArgs=(ids,))
            looking.addCallback(lambda _: self._look_on()).addErrback(_unexpected)
            return
        looked, self._looking = self._looking or [], None
        for each in looked:
            each.callback(None)

    def _found(self, found: dict[int, Description | None]) -> None:
        for identifier, description in found.items():
            if description is None:
                self._settle(identifier, NoSuchTask(f"there is no task {identifier}, or not any more"))
            else:
                self._settle(identifier, description)

    def _failed(self, failure: Failure, ids: Iterable[int]) -> None:
        assert failure.value is not None
        for identifier in ids:
            self._settle(identifier, failure.value)

    def _settle(self, identifier: int, result: Description | BaseException) -> None:
        for over, group in self._waiting.pop(identifier, {}).items():
            self._count_off(group)
            over.errback(result) if isinstance(result, BaseException) else over.callback(result)

    def _leave(self, identifier: int, over: Deferred[Description]) -> None:
        waiting = self._waiting.get(identifier, {})
        if over in waiting:
            self._count_off(waiting.pop(over))
            if not waiting:
                del self._waiting[identifier]

    def _count_off(self, group: str) -> None:
        self._number -= 1
        self._numbers[group] -= 1
        if not self._numbers[group]:
            del self._numbers[group]


def _over(ids: Sequence[int]) -> Job[dict[int, Description | None]]:
    """Return the job that tells what is known of those of *ids* that are over; None stands for nothing."""

    def job(store: ISpoolStore) -> Steps[dict[int, Description | None]]:
        over: dict[int, Description | None] = {}
        for some in slices(ids, SLICE):
            states = store.states(some)
            over |= {each: None for each in some if each not in states or states[each].final}
            yield
        for some in slices(list(over)):
            for record in store.find(some):
                if record.state.final:
                    over[record.task.id] = describe_record(record)
                else:  # somebody had it run again meanwhile
                    del over[record.task.id]
            yield
        return over

    return job


def _unexpected(failure: Failure) -> None:
    _log.failure("telling who waits", failure)
