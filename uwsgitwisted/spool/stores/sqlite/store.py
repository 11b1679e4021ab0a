"""The store of tasks in an SQLite file, for one spooler."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence

from zope.interface import implementer

from uwsgitwisted.spool.stores.bounds import NO_BOUNDS, Bounds, Usage
from uwsgitwisted.spool.stores.claiming import Claimer
from uwsgitwisted.spool.stores.interface import (
    EXPIRE_LIMIT,
    KEEP_RESULTS,
    OCCURRENCE_SPAN,
    PROMOTE_LIMIT,
    Cycle,
    Demand,
    ISpoolStore,
    Settlement,
    first_expired,
    possible_ids,
)
from uwsgitwisted.spool.stores.rows import TASK_COLUMNS, make_rows, make_task, state_list
from uwsgitwisted.spool.stores.sql import (
    EXPIRED,
    NEXT_EXPIRY,
    NEXT_SCHEDULED,
    OCCURRED,
    SqlStore,
    seconds_until,
)
from uwsgitwisted.spool.stores.sqlite.claim import SqliteTasks, waiting_queues
from uwsgitwisted.spool.stores.sqlite.database import SqliteDatabase
from uwsgitwisted.spool.stores.sqlite.file import (
    SLACK_PAGES,
    can_shrink,
    free_pages,
    shrink,
    spare_bytes,
    used_bytes,
)
from uwsgitwisted.spool.stores.sqlite.settle import settle_tasks
from uwsgitwisted.spool.task import State, Task

#: How long to leave free space alone while tasks come and go, or after the disk failed, in seconds.
BUSY_PAUSE, SHRINK_PAUSE = 1.0, 60.0

# ruff: noqa: S608 - the statements are put together from constants
_WAITING = (State.SCHEDULED, State.READY)
_FINISHED = [state for state in State if state.final]
ADD = """INSERT INTO tasks (state, variables, at, created, priority, queue, attempts, crashes, key, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, nullif(?, ''), ?)
    ON CONFLICT (queue, key) WHERE key IS NOT NULL DO NOTHING"""
FIND_KEY = "SELECT id FROM tasks WHERE queue = ? AND key = ?"
UNFINISHED = "SELECT " + " + ".join(
    f"(SELECT count(*) FROM tasks WHERE state = {state:d})" for state in (*_WAITING, State.RUNNING)
)
ORPHANS = f"SELECT {TASK_COLUMNS} FROM tasks WHERE state = {State.RUNNING:d} ORDER BY id"
PROMOTE = f"""UPDATE tasks SET state = {State.READY:d} WHERE id IN
    (SELECT id FROM tasks WHERE state = {State.SCHEDULED:d} AND at <= ? ORDER BY at LIMIT ?)"""
OUTLOOK = f"SELECT ({NEXT_SCHEDULED}), ({NEXT_EXPIRY})"
EXPIRE = "DELETE FROM tasks WHERE id = ?"
CANCELLING = "SELECT id FROM tasks WHERE cancelling = 1"
SHIFT = f"UPDATE tasks SET at = min(at + ?, ?) WHERE state = {State.SCHEDULED:d} AND retrying = 1"
CANCEL_WAITING = f"""UPDATE tasks SET state = {State.CANCELLED:d}, finished = ?, expires = ?
    WHERE id = ? AND state IN {state_list(_WAITING)}"""
CANCEL_RUNNING = (
    f"UPDATE tasks SET cancelling = 1 WHERE id = ? AND state = {State.RUNNING:d} AND cancelling = 0"
)
REQUEUE = f"""UPDATE tasks SET state = {State.READY:d}, at = ?, attempts = 0, crashes = 0, finished = NULL,
    expires = NULL, retrying = 0 WHERE id = ? AND state IN {state_list((State.DEAD, State.CANCELLED))}"""
DROP = f"DELETE FROM tasks WHERE id = ? AND state IN {state_list(_FINISHED)}"


@implementer(ISpoolStore)
class SqliteStore(SqlStore):
    """Tasks in one file, committed with fsync.

    :param path: of the file; it is created when it is opened, with ``PATH.lock``, ``PATH-wal`` and
        ``PATH-shm`` beside it.
    :param keep: how long a finished task is kept, in seconds.
    :param bounds: what it holds at most. Its size is that of the used pages of the file.
    """

    heartbeat = None

    def __init__(self, path: str, *, keep: float = KEEP_RESULTS, bounds: Bounds = NO_BOUNDS) -> None:
        self._database = SqliteDatabase(path)
        super().__init__(self._database, keep, bounds)
        self.description = f"sqlite:{path}"
        #: How many tasks are not finished. No other process changes that while the file is open.
        self._unfinished = 0
        #: Whether tasks may be marked as running that this process did not claim.
        self._has_orphans = False
        self._can_shrink = False
        self._claimer = Claimer()

    def open(self, woken: Callable[[], None]) -> None:
        """Open the file, or create it. Nobody else can have it open, so *woken* is never called.

        :raises SpoolCorrupt: if it is no spool of ours, or a damaged or newer one; it was left unchanged.
        :raises SpoolError: if another spooler has it, it has several names, or it can't be opened.
        """
        connection = self._database.open()
        try:
            self._can_shrink = can_shrink(connection)
            ((self._unfinished,),) = self._database.fetch(UNFINISHED)
        except BaseException:
            self._database.close()
            raise
        self._has_orphans = True

    def close(self) -> None:
        """Close the file and release its lock."""
        self._database.close()

    # What the spooler's loop calls.

    def add(self, tasks: Sequence[Task]) -> list[int]:
        """Store *tasks* in one transaction and return their ids, in the same order."""
        with self._database.transaction() as connection:
            before = connection.total_changes
            ids = [_insert_task(connection, task) for task in tasks]
            added = connection.total_changes - before
        self._unfinished += added
        return ids

    def usage(self) -> Usage:
        """Return how full the file is."""
        with self._database.reading() as connection:
            return Usage(self._unfinished, used_bytes(connection), spare_bytes(self._database.path))

    def waiting_queues(self, limit: int) -> set[str]:
        """Return the queues with a name in which tasks wait, up to *limit* of them."""
        with self._database.reading() as connection:
            return waiting_queues(connection, limit)

    def advance(self, settlements: Sequence[Settlement], demand: Demand, now: float) -> Cycle:
        """Write outcomes of tasks and claim the next ones, in one transaction."""
        with self._database.transaction() as connection:
            orphans = make_rows(make_task, connection.execute(ORPHANS)) if self._has_orphans else []
            finished = settle_tasks(connection, settlements, now, self.keep)
            expired = first_expired(connection.execute(EXPIRED, (now, EXPIRE_LIMIT)))
            connection.executemany(EXPIRE, [(identifier,) for identifier in expired])
            connection.execute(PROMOTE, (now, PROMOTE_LIMIT))
            claimed, ready = self._claimer.claim(SqliteTasks(connection, now), demand)
            cancelling = [identifier for (identifier,) in connection.execute(CANCELLING)]
            ((next_at, next_expiry),) = connection.execute(OUTLOOK)
            has_slack = self._can_shrink and free_pages(connection) > SLACK_PAGES
        self._has_orphans = False
        self._unfinished -= finished
        shrinking = _shrink_file(connection, idle=not settlements and not claimed) if has_slack else None
        wait, expiry = seconds_until(next_at, now), seconds_until(next_expiry, now)
        upkeep = min((pause for pause in (expiry, shrinking) if pause is not None), default=None)
        return Cycle(claimed, ready, wait, orphans, cancelling, upkeep)

    def shift(self, seconds: float, latest: float) -> None:
        """Move the times of tasks that wait for their next try, after the wall clock stepped by *seconds*."""
        self._database.change(SHIFT, (seconds, latest))

    def occur(self, name: str, at: float, task: Task | None) -> bool:
        """Store an occurrence of the periodic task *name*, unless it was stored before."""
        with self._database.transaction() as connection:
            new = connection.execute(OCCURRED, (name, at, OCCURRENCE_SPAN)).rowcount == 1
            before = connection.total_changes
            if new and task is not None:
                _insert_task(connection, task)
            added = connection.total_changes - before
        self._unfinished += added
        return new

    # What people change.

    def cancel(self, ids: Iterable[int], now: float) -> list[int]:
        """Cancel tasks; the ids of running ones are reported to the spooler in its next cycle."""
        with self._database.transaction() as connection:
            waiting = _change_each(connection, CANCEL_WAITING, ids, now, now + self.keep)
            running = _change_each(connection, CANCEL_RUNNING, ids)
        self._unfinished -= len(waiting)
        return sorted(waiting + running)

    def retry(self, ids: Iterable[int], now: float) -> list[int]:
        """Queue dead letters and cancelled tasks again, as if they had never run."""
        with self._database.transaction() as connection:
            changed = _change_each(connection, REQUEUE, ids, now)
        self._unfinished += len(changed)
        return changed

    def drop(self, ids: Iterable[int]) -> list[int]:
        """Delete finished tasks."""
        with self._database.transaction() as connection:
            return _change_each(connection, DROP, ids)


def _change_each(
    connection: sqlite3.Connection, statement: str, ids: Iterable[int], *values: float
) -> list[int]:
    """Execute a statement for each of the tasks *ids*; return the ids of those that it changed, in order.

    :param values: what stands in the statement before the id.
    """
    return [
        identifier
        for identifier in possible_ids(ids)
        if connection.execute(statement, (*values, identifier)).rowcount
    ]


def _insert_task(connection: sqlite3.Connection, task: Task) -> int:
    """Insert *task*, unless its key is there already, and return the id of what is there then."""
    state = State.READY if task.at <= task.created else State.SCHEDULED
    values = (task.variables, task.at, task.created, task.priority, task.queue, task.attempts, task.crashes)
    cursor = connection.execute(ADD, (state, *values, task.key, task.body))
    if task.key and not cursor.rowcount:
        identifier: int = connection.execute(FIND_KEY, (task.queue, task.key)).fetchone()[0]
        return identifier
    assert cursor.lastrowid is not None, "an INSERT has a row"
    return cursor.lastrowid


def _shrink_file(connection: sqlite3.Connection, *, idle: bool) -> float | None:
    """Give some free space back to the disk, if nothing else is to be done.

    :return: in how many seconds to give back more.
    """
    if not idle:
        return BUSY_PAUSE
    return 0.0 if shrink(connection) else SHRINK_PAUSE
