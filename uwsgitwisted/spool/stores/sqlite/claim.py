"""The tasks in an SQLite spool, as a cycle claims them: by priority within a queue."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence

from uwsgitwisted.spool.stores.interface import PREFETCH_BYTES, QUEUES_PER_CYCLE, Want
from uwsgitwisted.spool.stores.rows import CLAIMED_FIELDS, TASK_COLUMNS, pick_columns
from uwsgitwisted.spool.stores.sql import PAUSED
from uwsgitwisted.spool.task import State, Task

# ruff: noqa: S608 - the statements are put together from constants
_READY = f"FROM tasks WHERE state = {State.READY:d}"
READY = f"""SELECT {TASK_COLUMNS}, body, attempts = 0 AND error = '' AS fresh {_READY} AND queue = ?
    ORDER BY priority, at, id LIMIT ?"""
ANY_READY = f"SELECT 1 {_READY} AND queue = ? LIMIT 1"
CLAIM = f"UPDATE tasks SET state = {State.RUNNING:d}, started = ?, ahead = ? WHERE id = ?"
FIRST_QUEUE = f"SELECT queue {_READY} AND queue >= ? ORDER BY queue LIMIT 1"
NEXT_QUEUE = f"SELECT queue {_READY} AND queue > ? ORDER BY queue LIMIT 1"
NEXT_LATER = f"""SELECT queue FROM tasks WHERE state = {State.SCHEDULED:d} AND queue > ?
    ORDER BY queue LIMIT 1"""


def waiting_queues(connection: sqlite3.Connection, limit: int) -> set[str]:
    """Return the queues with a name that have ready or scheduled tasks, up to *limit* of them."""
    queues: set[str] = set()
    for statement in (NEXT_QUEUE, NEXT_LATER):
        row = connection.execute(statement, ("",)).fetchone()
        while row is not None and len(queues) < limit:
            queues.add(row[0])
            row = connection.execute(statement, row).fetchone()
    return queues


class SqliteTasks:
    """The tasks in an SQLite spool, during one cycle, as :class:`..claiming.TaskSource` describes them.

    :param now: the time, in unix seconds.
    """

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self._connection = connection
        self._now = now

    def paused(self) -> set[str]:
        """Return the queues that are paused."""
        return {queue for (queue,) in self._connection.execute(PAUSED)}

    def next_queues(self, last: str, others: Collection[str]) -> list[str]:
        """Return queues that have ready tasks, from the one behind *last*.

        Each step is one look into the index, however many tasks a queue has.
        """
        queues: list[str] = []
        start = self._connection.execute(NEXT_QUEUE, (last,)).fetchone()
        around = self._connection.execute(FIRST_QUEUE, ("",)).fetchone()
        for row, end in ((start, None), (around, last)):
            while row is not None and len(queues) < QUEUES_PER_CYCLE and (end is None or row[0] <= end):
                if row[0] not in others:
                    queues.append(row[0])
                row = self._connection.execute(NEXT_QUEUE, row).fetchone()
        return queues

    def claim(self, want: Want, queues: list[str]) -> list[Task]:
        """Claim what a pool wants of *queues*."""
        return _PoolClaim(self._connection, want, self._now).share_out(queues)

    def ready_queues(self, queues: Collection[str]) -> set[str]:
        """Return those of *queues* that have ready tasks."""
        return {queue for queue in queues if self._connection.execute(ANY_READY, (queue,)).fetchone()}


class _PoolClaim:
    """What one pool claims in one cycle."""

    def __init__(self, connection: sqlite3.Connection, want: Want, now: float) -> None:
        self._connection = connection
        self._free = want.now
        self._left = want.now + want.prefetch
        self._now = now
        self._bytes = 0
        self._tasks: list[Task] = []

    def share_out(self, queues: Sequence[str]) -> list[Task]:
        """Claim from each queue its share; what one has not goes to the others."""
        while queues and self._left:
            share = max(1, self._left // len(queues))
            queues = [queue for queue in queues if self._claim_from(queue, min(share, self._left)) == share]
        return self._tasks

    def _claim_from(self, queue: str, number: int) -> int:
        """Claim up to *number* tasks of *queue* and return how many it were."""
        claimed: list[Task] = []
        rows = self._connection.execute(READY, (queue, number))
        pick = pick_columns(rows, ("fresh", *CLAIMED_FIELDS))
        for row in rows:
            fresh, *values = pick(row)
            task = Task(*(*values, not self._free))
            if task.prefetched and (not fresh or self._bytes > PREFETCH_BYTES):
                break  # nor what comes behind it, which would take the next free worker from it
            self._free -= not task.prefetched
            self._bytes += len(task.body)
            claimed.append(task)
        self._connection.executemany(CLAIM, [(self._now, task.prefetched, task.id) for task in claimed])
        self._left -= len(claimed)
        self._tasks += claimed
        return len(claimed)
