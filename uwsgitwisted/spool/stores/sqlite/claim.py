"""How the next tasks are chosen in an SQLite spool: by priority within a queue, in turns among queues."""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Sequence
from typing import Any

from uwsgitwisted.spool.stores.interface import PREFETCH_BYTES, QUEUES_PER_CYCLE, Demand, Want
from uwsgitwisted.spool.task import Task

#: The columns of a task, as :func:`task_of` reads them.
TASK = "variables, at, created, priority, queue, attempts, crashes, id, coalesce(key, ''), body, ahead"

# ruff: noqa: S608 - the statements are put together from constants
READY = f"""SELECT attempts = 0 AND error = '', {TASK} FROM tasks WHERE state = 1 AND queue = ?
    ORDER BY priority, at, id LIMIT ?"""
ANY_READY = "SELECT 1 FROM tasks WHERE state = 1 AND queue = ? LIMIT 1"
CLAIM = "UPDATE tasks SET state = 2, started = ?, ahead = ? WHERE id = ?"
FIRST_QUEUE = "SELECT queue FROM tasks WHERE state = 1 AND queue >= ? ORDER BY queue LIMIT 1"
NEXT_QUEUE = "SELECT queue FROM tasks WHERE state = 1 AND queue > ? ORDER BY queue LIMIT 1"
NEXT_LATER = "SELECT queue FROM tasks WHERE state = 0 AND queue > ? ORDER BY queue LIMIT 1"
PAUSED = "SELECT queue FROM paused"


def task_of(row: Sequence[Any]) -> Task:
    """Return the task in the columns :data:`TASK`."""
    return Task(*(*row[:-1], bool(row[-1])))


def waiting_queues(connection: sqlite3.Connection, limit: int) -> set[str]:
    """Return the queues with a name that have ready or scheduled tasks, up to *limit* of them."""
    queues: set[str] = set()
    for statement in (NEXT_QUEUE, NEXT_LATER):
        row = connection.execute(statement, ("",)).fetchone()
        while row is not None and len(queues) < limit:
            queues.add(row[0])
            row = connection.execute(statement, row).fetchone()
    return queues


class Claimer:
    """Claims tasks, and remembers which queue's turn it was."""

    def __init__(self) -> None:
        self._last_queue = ""

    def claim(
        self, connection: sqlite3.Connection, demand: Demand, now: float
    ) -> tuple[list[Task], frozenset[str | None]]:
        """Mark what the pools want as running; return it, and the pools for which there is more."""
        paused = {queue for (queue,) in connection.execute(PAUSED)}
        claimed: list[Task] = []
        ready: set[str | None] = set()
        for pool, want in demand.items():
            if pool is None:
                queues = self._next_queues(connection, paused | demand.keys())
            else:
                queues = [] if pool in paused else [pool]
            tasks = _Taking(connection, want, now).share_out(queues)
            if pool is None and tasks:
                self._last_queue = tasks[-1].queue
            claimed += tasks
            if not want.now and len(tasks) < want.prefetch:
                continue  # what is left was tried before, or is large, and waits for a free worker
            if len(queues) == QUEUES_PER_CYCLE or any(
                connection.execute(ANY_READY, (queue,)).fetchone() for queue in queues
            ):
                ready.add(pool)
        return claimed, frozenset(ready)

    def _next_queues(self, connection: sqlite3.Connection, others: Container[str | None]) -> list[str]:
        """Return the queues that share workers and have ready tasks, from the one behind the last one served.

        Each step is one look into the index, however many tasks a queue has.
        """
        behind: list[str] = []
        start = connection.execute(NEXT_QUEUE, (self._last_queue,)).fetchone()
        around = connection.execute(FIRST_QUEUE, ("",)).fetchone()
        for row, end in ((start, None), (around, self._last_queue)):
            while row is not None and len(behind) < QUEUES_PER_CYCLE and (end is None or row[0] <= end):
                if row[0] not in others:
                    behind.append(row[0])
                row = connection.execute(NEXT_QUEUE, row).fetchone()
        return behind


class _Taking:
    """What one pool takes in one turn."""

    def __init__(self, connection: sqlite3.Connection, want: Want, now: float) -> None:
        self._connection = connection
        self._begin = want.now
        self._left = want.now + want.prefetch
        self._now = now
        self._bytes = 0
        self._tasks: list[Task] = []

    def share_out(self, queues: list[str]) -> list[Task]:
        """Take from each queue its share; what one doesn't need goes to the others."""
        while queues and self._left:
            share = max(1, self._left // len(queues))
            queues = [queue for queue in queues if self._take(queue, min(share, self._left)) == share]
        return self._tasks

    def _take(self, queue: str, number: int) -> int:
        """Take up to *number* tasks of *queue* and return how many it were."""
        taken: list[Task] = []
        for fresh, *row in self._connection.execute(READY, (queue, number)):
            task = task_of([*row[:-1], not self._begin])
            if task.ahead and (not fresh or self._bytes > PREFETCH_BYTES):
                break  # nor what comes behind it, which would take the next free worker from it
            self._begin -= not task.ahead
            self._bytes += len(task.body)
            taken.append(task)
        self._connection.executemany(CLAIM, [(self._now, task.ahead, task.id) for task in taken])
        self._left -= len(taken)
        self._tasks += taken
        return len(taken)
