"""Those who wait for tasks to be over."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import Busy, NoSuchTask
from uwsgitwisted.spool.stores import Record

#: How many may wait at once.
MAX_WAITERS = 10_000

_log = Logger()


class Waiters:
    """Tells callers when their tasks are over.

    :param find: looks tasks up; its Deferred fires with what is known of them.
    """

    def __init__(self, find: Callable[[list[int]], Deferred[list[Record]]]) -> None:
        self._find = find
        self._waiting: dict[int, set[Deferred[Record]]] = {}
        self._number = 0

    def wait(self, identifier: int) -> Deferred[Record]:
        """Wait for a task.

        :return: fires with what is known of it when it is over. Fails with ``NoSuchTask`` if there is no such
            task, or not any more, and with ``Busy`` if too many wait. Cancelling it is safe.
        """
        if self._number >= MAX_WAITERS:
            return fail(Busy(f"{MAX_WAITERS} callers wait for tasks already; ask for the status instead"))
        over: Deferred[Record] = Deferred(lambda cancelled: self._leave(identifier, cancelled))
        self._waiting.setdefault(identifier, set()).add(over)
        self._number += 1
        self.look([identifier])
        return over

    def give_up(self, error: Exception) -> None:
        """Fail all who still wait."""
        for identifier in list(self._waiting):
            self._settle(identifier, error)

    def look(self, ids: Iterable[int] | None = None) -> Deferred[None]:
        """See whether tasks are over: those of *ids* for which somebody waits, or all of these.

        :return: fires when who waited for one that is over has been told. It doesn't fail.
        """
        wanted = [
            identifier for identifier in (self._waiting if ids is None else ids) if identifier in self._waiting
        ]
        if not wanted:
            return succeed(None)
        return self._find(wanted).addCallbacks(
            self._found, self._failed, callbackArgs=(wanted,), errbackArgs=(wanted,)
        )

    def _found(self, records: list[Record], wanted: list[int]) -> None:
        known = {record.task.id: record for record in records}
        for identifier in wanted:
            record = known.get(identifier)
            if record is None:
                self._settle(identifier, NoSuchTask(f"there is no task {identifier}, or not any more"))
            elif record.state.final:
                self._settle(identifier, record)

    def _failed(self, failure: Failure, wanted: list[int]) -> None:
        assert failure.value is not None
        for identifier in wanted:
            self._settle(identifier, failure.value)

    def _settle(self, identifier: int, result: Record | BaseException) -> None:
        for over in self._waiting.pop(identifier, ()):
            self._number -= 1
            over.errback(result) if isinstance(result, BaseException) else over.callback(result)

    def _leave(self, identifier: int, over: Deferred[Record]) -> None:
        waiting = self._waiting.get(identifier)
        if waiting is not None and over in waiting:
            waiting.remove(over)
            self._number -= 1
            if not waiting:
                del self._waiting[identifier]
