"""The store of tasks in an SQLite file, for one spooler."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from zope.interface import implementer

from uwsgitwisted.spool.lock import FileLock
from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.sqlite_file import errors_of_ours, open_database
from uwsgitwisted.spool.stores import DeadLetter, ISpoolStore, Settlement, StoreUnavailable, Turn
from uwsgitwisted.spool.task import Task

#: How many tasks whose time has come are made ready in one turn. With more, the earliest go first, and a claim
#: takes no longer than it takes for these, about five milliseconds.
PROMOTE_LIMIT = 1_000

# The states, as the partial indexes have them. They stand in the statements as literals, or SQLite would not
# use those indexes.
_SCHEDULED, _READY, _RUNNING = 0, 1, 2

_COLUMNS = "variables, at, created, priority, queue, attempts, crashes, id"

ADD = """INSERT INTO tasks (state, variables, at, created, priority, queue, attempts, crashes)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
INTERRUPTED = f"SELECT {_COLUMNS} FROM tasks WHERE state = 2 ORDER BY id"  # noqa: S608 - a constant
PROMOTE = """UPDATE tasks SET state = 1 WHERE id IN
    (SELECT id FROM tasks WHERE state = 0 AND at <= ? ORDER BY at LIMIT ?)"""
NEXT_READY = f"SELECT {_COLUMNS} FROM tasks WHERE state = 1 ORDER BY priority, at, id LIMIT ?"  # noqa: S608
CLAIM = "UPDATE tasks SET state = 2, started = ? WHERE id = ?"
ANY_READY = "SELECT 1 FROM tasks WHERE state = 1 LIMIT 1"
NEXT_SCHEDULED = "SELECT at FROM tasks WHERE state = 0 ORDER BY at LIMIT 1"
REMOVE = "DELETE FROM tasks WHERE id = ?"
POSTPONE = """UPDATE tasks SET state = ?, at = coalesce(?, at), attempts = ?, crashes = ?,
    error = coalesce(nullif(?, ''), error) WHERE id = ?"""
BURY = """INSERT INTO dead_letters
        (id, priority, at, created, started, buried, attempts, crashes, queue, variables, error)
    SELECT id, priority, at, created, started, ?, ?, ?, queue, variables, coalesce(nullif(?, ''), error)
    FROM tasks WHERE id = ?"""
DEAD_LETTERS = f"""SELECT {_COLUMNS}, error, started, buried FROM dead_letters
    WHERE id > ? ORDER BY id LIMIT ?"""  # noqa: S608


@implementer(ISpoolStore)
class SqliteStore:
    """Tasks in one file, committed with fsync.

    :param path: of the file; it is created when it is opened, with ``PATH.lock``, ``PATH-wal`` and
        ``PATH-shm`` beside it.
    """

    def __init__(self, path: str) -> None:
        self.description = f"sqlite:{path}"
        self._path = path
        self._lock: FileLock | None = None
        self._open_connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, or create it.

        :raises SpoolCorrupt: if it is no spool of ours, or a damaged or newer one; it was left as it is.
        :raises SpoolError: if another spooler has it, or it can't be opened.
        """
        # By its real name, so that no second one comes in over a symbolic link.
        path = os.path.realpath(self._path)
        lock = FileLock(path)
        lock.acquire()
        try:
            self._open_connection = open_database(path)
        except BaseException:
            lock.release()
            raise
        self._lock = lock

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

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._open_connection is None:
            raise StoreUnavailable(f"the spool {self._path} is not open")
        return self._open_connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what the block does, durably, or undo all of it."""
        connection = self._connection
        with errors_of_ours(self._path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite may have undone it by itself, as it does where the disk is full.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def add(self, tasks: Sequence[Task]) -> list[int]:
        """Store *tasks* in one transaction and return their ids, in the same order."""
        with self._transaction() as connection:
            return [_inserted(connection, task) for task in tasks]

    def interrupted(self) -> list[Task]:
        """Return the tasks that were running when the process that ran them ended."""
        connection = self._connection
        with errors_of_ours(self._path):
            return [Task(*row) for row in connection.execute(INTERRUPTED)]

    def advance(self, settlements: Sequence[Settlement], limit: int, now: float) -> Turn:
        """Write down how tasks ended and claim up to *limit* next ones, in one transaction."""
        with self._transaction() as connection:
            for settlement in settlements:
                _SETTLE[settlement.action](connection, settlement)
            connection.execute(PROMOTE, (now, PROMOTE_LIMIT))
            claimed = [Task(*row) for row in connection.execute(NEXT_READY, (limit,))]
            connection.executemany(CLAIM, [(now, task.id) for task in claimed])
            return Turn(claimed, _next_at(connection, now))

    def dead_letters(self, limit: int, after: int = 0) -> list[DeadLetter]:
        """Return up to *limit* dead letters in the order of their ids, from the first above *after*."""
        connection = self._connection
        with errors_of_ours(self._path):
            rows = connection.execute(DEAD_LETTERS, (after, limit)).fetchall()
        return [DeadLetter(Task(*row[:-3]), *row[-3:]) for row in rows]


def _inserted(connection: sqlite3.Connection, task: Task) -> int:
    """Insert *task* and return the id that it got."""
    state = _READY if task.at <= task.created else _SCHEDULED
    values = (task.variables, task.at, task.created, task.priority, task.queue, task.attempts, task.crashes)
    identifier = connection.execute(ADD, (state, *values)).lastrowid
    assert identifier is not None, "an INSERT has a row"
    return identifier


def _next_at(connection: sqlite3.Connection, now: float) -> float | None:
    """Return when the earliest task that waits may run; None if none waits."""
    if connection.execute(ANY_READY).fetchone():
        return now
    row: tuple[float] | None = connection.execute(NEXT_SCHEDULED).fetchone()
    return row[0] if row else None


def _remove(connection: sqlite3.Connection, settlement: Settlement) -> None:
    connection.execute(REMOVE, (settlement.id,))


def _postpone(connection: sqlite3.Connection, settlement: Settlement) -> None:
    state = _READY if settlement.at is None else _SCHEDULED
    counts = (settlement.attempts, settlement.crashes)
    connection.execute(POSTPONE, (state, settlement.at, *counts, settlement.error, settlement.id))


def _bury(connection: sqlite3.Connection, settlement: Settlement) -> None:
    counts = (settlement.attempts, settlement.crashes)
    connection.execute(BURY, (settlement.at, *counts, settlement.error, settlement.id))
    connection.execute(REMOVE, (settlement.id,))


_SETTLE: dict[Action, Callable[[sqlite3.Connection, Settlement], None]] = {
    Action.REMOVE: _remove,
    Action.RETRY: _postpone,
    Action.BURY: _bury,
}
