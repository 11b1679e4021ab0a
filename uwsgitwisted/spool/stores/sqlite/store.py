"""The store of tasks in an SQLite file, for one spooler."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from zope.interface import implementer

from uwsgitwisted.errors import Busy, StoreUnavailable
from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.stores.bounds import NO_BOUNDS, AdmissionControl, Bounds, Usage
from uwsgitwisted.spool.stores.interface import (
    EXPIRE_LIMIT,
    KEEP_RESULTS,
    LARGEST_ID,
    OCCURRENCE_SPAN,
    SMALL_RESULT,
    Cycle,
    Demand,
    ISpoolStore,
    Record,
    Settlement,
    first_expired,
    possible_ids,
)
from uwsgitwisted.spool.stores.sqlite.claim import PAUSED, TASK, Claimer, task_of, waiting_queues
from uwsgitwisted.spool.stores.sqlite.file import (
    SLACK_PAGES,
    can_shrink,
    errors_of_ours,
    free_pages,
    open_database,
    prepare_file,
    shrink,
    spare_bytes,
    used_bytes,
)
from uwsgitwisted.spool.stores.sqlite.lock import FileLock
from uwsgitwisted.spool.task import State, Task

#: How many tasks whose time has come are made ready in one turn. With more, the earliest go first, and a turn
#: takes no longer than it takes for these, about five milliseconds.
PROMOTE_LIMIT = 1_000
#: How long to leave free space alone while tasks come and go, or after the disk failed, in seconds.
BUSY_PAUSE, SHRINK_PAUSE = 1.0, 60.0

_BODILESS = TASK.replace("body", "x''")
_SMALL_RESULT = f"CASE WHEN length(result) <= {SMALL_RESULT} THEN result ELSE x'' END"
_RECORD = f"{_BODILESS}, state, started, finished, error, {_SMALL_RESULT}, length(body), length(result)"

# ruff: noqa: S608 - the statements are put together from constants
ADD = """INSERT INTO tasks (state, variables, at, created, priority, queue, attempts, crashes, key, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, nullif(?, ''), ?)
    ON CONFLICT (queue, key) WHERE key IS NOT NULL DO NOTHING"""
FIND_KEY = "SELECT id FROM tasks WHERE queue = ? AND key = ?"
UNFINISHED = """SELECT (SELECT count(*) FROM tasks WHERE state = 0)
    + (SELECT count(*) FROM tasks WHERE state = 1) + (SELECT count(*) FROM tasks WHERE state = 2)"""
ORPHANS = f"SELECT {_BODILESS} FROM tasks WHERE state = 2 ORDER BY id"
PROMOTE = """UPDATE tasks SET state = 1 WHERE id IN
    (SELECT id FROM tasks WHERE state = 0 AND at <= ? ORDER BY at LIMIT ?)"""
EXPIRED = """SELECT id, length(body) + length(result) FROM tasks WHERE expires <= ?
    ORDER BY expires LIMIT ?"""
EXPIRE = "DELETE FROM tasks WHERE id = ?"
NEXT_EXPIRY = "SELECT expires FROM tasks WHERE expires IS NOT NULL ORDER BY expires LIMIT 1"
NEXT_SCHEDULED = "SELECT at FROM tasks WHERE state = 0 ORDER BY at LIMIT 1"
CANCELLING = "SELECT id FROM tasks WHERE cancelling = 1"
SHIFT = "UPDATE tasks SET at = min(at + ?, ?) WHERE state = 0 AND retrying = 1"

FORGET = "DELETE FROM tasks WHERE id = ? AND state = 2"
FINISH = """UPDATE tasks SET state = 3, attempts = ?, crashes = ?, finished = ?, expires = ?, result = ?,
    body = x'', cancelling = 0 WHERE id = ? AND state = 2"""
POSTPONE = """UPDATE tasks SET state = ?, attempts = ?, crashes = ?, at = coalesce(?, at), retrying = ?,
    error = coalesce(nullif(?, ''), error) WHERE id = ? AND state = 2 AND cancelling = 0"""
DEAD_LETTER = """UPDATE tasks SET state = 4, attempts = ?, crashes = ?, finished = ?,
    error = coalesce(nullif(?, ''), error), cancelling = 0 WHERE id = ? AND state = 2"""
CANCELLED = """UPDATE tasks SET state = 5, finished = ?, expires = ?, cancelling = 0
    WHERE id = ? AND state = 2"""

CANCEL_WAITING = """UPDATE tasks SET state = 5, finished = ?, expires = ? WHERE id = ? AND state IN (0, 1)"""
CANCEL_RUNNING = "UPDATE tasks SET cancelling = 1 WHERE id = ? AND state = 2 AND cancelling = 0"
AGAIN = """UPDATE tasks SET state = 1, at = ?, attempts = 0, crashes = 0, finished = NULL, expires = NULL,
    retrying = 0 WHERE id = ? AND state IN (4, 5)"""
DROP = "DELETE FROM tasks WHERE id = ? AND state >= 3"
FIND = f"SELECT {_RECORD} FROM tasks WHERE id = ?"
RECORDS = f"SELECT {_RECORD} FROM tasks WHERE id > ? AND id <= ?"
HORIZON = "SELECT id FROM tasks WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?"
COUNTS = "SELECT queue, state, count(*) FROM tasks WHERE id > ? AND id <= ? GROUP BY 1, 2"
OCCURRED = """INSERT INTO periodic (name, at) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET at = excluded.at WHERE at < excluded.at OR at > excluded.at + ?"""


@implementer(ISpoolStore)
class SqliteStore:
    """Tasks in one file, committed with fsync.

    :param path: of the file; it is created when it is opened, with ``PATH.lock``, ``PATH-wal`` and
        ``PATH-shm`` beside it.
    :param keep: for how long what is known of a task that is over is kept, in seconds.
    :param bounds: what it holds at most. Its size is that of the pages of the file that hold something.
    """

    heartbeat = None

    def __init__(self, path: str, *, keep: float = KEEP_RESULTS, bounds: Bounds = NO_BOUNDS) -> None:
        self.description = f"sqlite:{path}"
        self.keep = keep
        self._path = path
        self._lock: FileLock | None = None
        self._open_connection: sqlite3.Connection | None = None
        self._gate = AdmissionControl(bounds, self.usage, self.waiting_queues, time.monotonic)
        #: How many tasks are not over. No other process changes that while the file is open.
        self._unfinished = 0
        self._orphaned = False
        self._shrinks = False
        self._claimer = Claimer()

    def open(self, woken: Callable[[], None]) -> None:
        """Open the file, or create it. Nobody else can have it open, so *woken* is never called.

        :raises SpoolCorrupt: if it is no spool of ours, or a damaged or newer one; it was left as it is.
        :raises SpoolError: if another spooler has it, it has several names, or it can't be opened.
        """
        # By its real name, so that no second one comes in over a symbolic link.
        path = os.path.realpath(self._path)
        lock = FileLock(path)
        lock.acquire()
        try:
            prepare_file(path)
            lock.hold_file()
            self._open_connection = open_database(path)
            self._shrinks = can_shrink(self._open_connection)
            (self._unfinished,) = self._open_connection.execute(UNFINISHED).fetchone()
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        self._orphaned = True

    def close(self) -> None:
        """Close the file and release its lock."""
        connection, self._open_connection = self._open_connection, None
        lock, self._lock = self._lock, None
        try:
            if connection is not None:
                with errors_of_ours(self._path):
                    connection.close()
        finally:
            if lock is not None:
                lock.release()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if self._open_connection is None:
            raise StoreUnavailable(f"the spool {self._path} is not open")
        with errors_of_ours(self._path):
            yield self._open_connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what the block does, durably, or undo all of it."""
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite may have undone it by itself, as it does where the disk is full.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    # What the spooler's loop calls.

    def add(self, tasks: Sequence[Task]) -> list[int]:
        """Store *tasks* in one transaction and return their ids, in the same order."""
        with self._transaction() as connection:
            before = connection.total_changes
            ids = [_insert(connection, task) for task in tasks]
            added = connection.total_changes - before
        self._unfinished += added
        return ids

    def usage(self) -> Usage:
        """Return how full the file is."""
        with self._reading() as connection:
            return Usage(self._unfinished, used_bytes(connection), spare_bytes(self._path))

    def waiting_queues(self, limit: int) -> set[str]:
        """Return the queues with a name in which tasks wait, up to *limit* of them."""
        with self._reading() as connection:
            return waiting_queues(connection, limit)

    def refusals(self, tasks: Sequence[Task]) -> list[Busy | None]:
        """Return why each of *tasks* is refused; None for those that are to be added."""
        return self._gate.refusals(tasks)

    def advance(self, settlements: Sequence[Settlement], demand: Demand, now: float) -> Cycle:
        """Write down how tasks ended and claim the next ones, in one transaction."""
        with self._transaction() as connection:
            orphans = [task_of(row) for row in connection.execute(ORPHANS)] if self._orphaned else []
            finished = sum(
                _SETTLE[settlement.decision.action](connection, settlement, now, self.keep)
                for settlement in settlements
            )
            over = first_expired(connection.execute(EXPIRED, (now, EXPIRE_LIMIT)))
            connection.executemany(EXPIRE, [(identifier,) for identifier in over])
            connection.execute(PROMOTE, (now, PROMOTE_LIMIT))
            claimed, ready = self._claimer.claim(connection, demand, now)
            cancelling = [identifier for (identifier,) in connection.execute(CANCELLING)]
            next_at = connection.execute(NEXT_SCHEDULED).fetchone()
            next_expiry = connection.execute(NEXT_EXPIRY).fetchone()
            shrinking = self._shrink_pause(connection, idle=not settlements and not claimed)
        self._orphaned = False
        self._unfinished -= finished
        wait = None if next_at is None else max(next_at[0] - now, 0.0)
        expiry = None if next_expiry is None else max(next_expiry[0] - now, 0.0)
        if shrinking == 0.0 and not shrink(connection):
            shrinking = SHRINK_PAUSE
        upkeep = min((pause for pause in (expiry, shrinking) if pause is not None), default=None)
        return Cycle(claimed, ready, wait, orphans, cancelling, upkeep)

    def _shrink_pause(self, connection: sqlite3.Connection, *, idle: bool) -> float | None:
        """Return in how many seconds to give space back to the disk; None if there is none to give."""
        if not self._shrinks or free_pages(connection) <= SLACK_PAGES:
            return None
        return 0.0 if idle else BUSY_PAUSE

    def shift(self, seconds: float, latest: float) -> None:
        """Move the times of tasks that wait for their next try, since the clock was set by *seconds*."""
        with self._transaction() as connection:
            connection.execute(SHIFT, (seconds, latest))

    def occur(self, name: str, at: float, task: Task | None) -> bool:
        """Store an occurrence of the periodic task *name*, if that is still to be done."""
        with self._transaction() as connection:
            new = connection.execute(OCCURRED, (name, at, OCCURRENCE_SPAN)).rowcount == 1
            before = connection.total_changes
            if new and task is not None:
                _insert(connection, task)
            added = connection.total_changes - before
        self._unfinished += added
        return new

    def last_occurrence(self, name: str) -> float | None:
        """Return the time of the last occurrence of the periodic task *name*, in unix seconds."""
        with self._reading() as connection:
            row: tuple[float] | None = connection.execute(
                "SELECT at FROM periodic WHERE name = ?", (name,)
            ).fetchone()
        return None if row is None else row[0]

    # What people ask.

    def find(self, ids: Iterable[int]) -> list[Record]:
        """Return what is known of the tasks *ids*, in the order of their ids."""
        with self._reading() as connection:
            rows = [row for identifier in possible_ids(ids) for row in connection.execute(FIND, (identifier,))]
        return list(map(_record, rows))

    def states(self, ids: Iterable[int]) -> dict[int, State]:
        """Return the states of the tasks *ids*, without those that are unknown."""
        statement = "SELECT id, state FROM tasks WHERE id = ?"
        with self._reading() as connection:
            rows = [row for each in possible_ids(ids) for row in connection.execute(statement, (each,))]
        return {identifier: State(state) for identifier, state in rows}

    def body(self, identifier: int) -> bytes:
        """Return the body of a task; empty if it has none, or is unknown."""
        return self._column("body", identifier)

    def result(self, identifier: int) -> bytes:
        """Return what a task's handler returned; empty for nothing, or if it is unknown."""
        return self._column("result", identifier)

    def _column(self, name: str, identifier: int) -> bytes:
        with self._reading() as connection:
            for known in possible_ids([identifier]):
                for (content,) in connection.execute(f"SELECT {name} FROM tasks WHERE id = ?", (known,)):
                    return bytes(content)
        return b""

    def horizon(self, after: int, number: int) -> int:
        """Return the id of the task that is the *number*-th above *after*; LARGEST_ID if there are fewer."""
        with self._reading() as connection:
            row: tuple[int] | None = connection.execute(HORIZON, (after, number - 1)).fetchone()
        return LARGEST_ID if row is None else row[0]

    def records(
        self,
        limit: int,
        after: int = 0,
        *,
        until: int = LARGEST_ID,
        state: State | None = None,
        queue: str | None = None,
    ) -> list[Record]:
        """Return up to *limit* tasks in the order of their ids, from the first above *after*."""
        statement = RECORDS
        values: list[int | str] = [after, until]
        # The plus keeps the indexes of these columns out of it, whose entries would all have to be sorted.
        if state is not None:
            statement += f" AND +state = {int(state)}"
        if queue is not None:
            statement += " AND +queue = ?"
            values.append(queue)
        with self._reading() as connection:
            rows = connection.execute(f"{statement} ORDER BY id LIMIT ?", (*values, limit)).fetchall()
        return list(map(_record, rows))

    def counts(self, after: int = 0, until: int = LARGEST_ID) -> dict[tuple[str, State], int]:
        """Return how many tasks there are with an id above *after* and up to *until*, by queue and state."""
        with self._reading() as connection:
            rows = connection.execute(COUNTS, (after, until)).fetchall()
        return {(queue, State(state)): number for queue, state, number in rows}

    def paused(self) -> set[str]:
        """Return the queues that are paused."""
        with self._reading() as connection:
            return {queue for (queue,) in connection.execute(PAUSED)}

    def pause(self, queue: str, paused: bool) -> None:
        """Give out no task of *queue* any more, or do so again."""
        statement = (
            "INSERT OR IGNORE INTO paused VALUES (?)" if paused else "DELETE FROM paused WHERE queue = ?"
        )
        with self._transaction() as connection:
            connection.execute(statement, (queue,))

    def cancel(self, ids: Iterable[int], now: float) -> list[int]:
        """Take tasks back that wait; those that run are reported to the spooler in its next turn."""
        waiting: list[int] = []

        def cancel(connection: sqlite3.Connection, identifier: int) -> int:
            if self._change(connection, CANCEL_WAITING, now, now + self.keep, identifier):
                waiting.append(identifier)
                return 1
            return self._change(connection, CANCEL_RUNNING, identifier)

        changed = self._for_each(ids, cancel)
        self._unfinished -= len(waiting)
        return changed

    def retry(self, ids: Iterable[int], now: float) -> list[int]:
        """Have dead letters and cancelled tasks run again, as if they had never run."""
        changed = self._for_each(
            ids, lambda connection, identifier: self._change(connection, AGAIN, now, identifier)
        )
        self._unfinished += len(changed)
        return changed

    def drop(self, ids: Iterable[int]) -> list[int]:
        """Forget tasks that are over."""
        return self._for_each(ids, lambda connection, identifier: self._change(connection, DROP, identifier))

    def _for_each(self, ids: Iterable[int], change: Callable[[sqlite3.Connection, int], int]) -> list[int]:
        """Make a change to each of the tasks *ids* and return those that it changed."""
        with self._transaction() as connection:
            return [identifier for identifier in possible_ids(ids) if change(connection, identifier)]

    @staticmethod
    def _change(connection: sqlite3.Connection, statement: str, *values: float) -> int:
        return connection.execute(statement, values).rowcount


def _insert(connection: sqlite3.Connection, task: Task) -> int:
    """Insert *task*, unless its key is there already, and return the id of what is there then."""
    state = State.READY if task.at <= task.created else State.SCHEDULED
    values = (task.variables, task.at, task.created, task.priority, task.queue, task.attempts, task.crashes)
    cursor = connection.execute(ADD, (state, *values, task.key, task.body))
    if task.key and not cursor.rowcount:
        identifier: int = connection.execute(FIND_KEY, (task.queue, task.key)).fetchone()[0]
        return identifier
    assert cursor.lastrowid is not None, "an INSERT has a row"
    return cursor.lastrowid


def _record(row: tuple[Any, ...]) -> Record:
    *task, state, started, finished, error, result, body_size, result_size = row
    return Record(task_of(task), State(state), started, finished, error, result, body_size, result_size)


# How each action is written down: with the connection, the settlement, the time, and for how long what is over
# is kept. Each returns how many tasks are over by it.


def _finish(connection: sqlite3.Connection, settlement: Settlement, now: float, keep: float) -> int:
    decision = settlement.decision
    if not keep:
        return connection.execute(FORGET, (settlement.id,)).rowcount
    values = (decision.attempts, decision.crashes, now, now + keep, settlement.result, settlement.id)
    return connection.execute(FINISH, values).rowcount


def _postpone(connection: sqlite3.Connection, settlement: Settlement, now: float, keep: float) -> int:
    decision = settlement.decision
    if decision.delay is None:
        times: tuple[State, float | None, bool] = State.READY, None, False
    else:
        times = State.SCHEDULED, now + decision.delay, True
    state, at, retrying = times
    counts = (decision.attempts, decision.crashes)
    postponed = connection.execute(POSTPONE, (state, *counts, at, retrying, decision.error, settlement.id))
    if postponed.rowcount:
        return 0
    return _cancel(connection, settlement, now, keep)  # somebody asked for that meanwhile


def _bury(connection: sqlite3.Connection, settlement: Settlement, now: float, keep: float) -> int:
    decision = settlement.decision
    values = (decision.attempts, decision.crashes, now, decision.error, settlement.id)
    return connection.execute(DEAD_LETTER, values).rowcount


def _cancel(connection: sqlite3.Connection, settlement: Settlement, now: float, keep: float) -> int:
    if keep:
        return connection.execute(CANCELLED, (now, now + keep, settlement.id)).rowcount
    return connection.execute(FORGET, (settlement.id,)).rowcount


_SETTLE: dict[Action, Callable[[sqlite3.Connection, Settlement, float, float], int]] = {
    Action.FINISH: _finish,
    Action.RETRY: _postpone,
    Action.DEAD_LETTER: _bury,
    Action.CANCEL: _cancel,
}
