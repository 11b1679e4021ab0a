"""What the stores in SQL databases do in the same way: the statements, and the methods that need no more.

In these statements ``?`` stands for a value; a database whose library writes that in another way translates it.
The states in them are the numbers of :class:`~uwsgitwisted.spool.task.State`. They stand there as literals, or
the databases would not use the partial indexes, which cover the tasks of one state each.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from uwsgitwisted.errors import Busy
from uwsgitwisted.spool.slices import slices
from uwsgitwisted.spool.stores.bounds import AdmissionControl, Bounds, Usage
from uwsgitwisted.spool.stores.interface import LARGEST_ID, Record, possible_ids
from uwsgitwisted.spool.stores.rows import RECORD_COLUMNS, make_record
from uwsgitwisted.spool.task import State

#: How many ids one statement takes. SQLite took 999 values in a statement until 2020.
IDS_PER_STATEMENT = 500

# ruff: noqa: S608 - the statements are put together from constants
NEXT_SCHEDULED = f"SELECT at FROM tasks WHERE state = {State.SCHEDULED:d} ORDER BY at LIMIT 1"
NEXT_EXPIRY = "SELECT expires FROM tasks WHERE expires IS NOT NULL ORDER BY expires LIMIT 1"
EXPIRED = """SELECT id, length(body) + length(result) FROM tasks WHERE expires <= ?
    ORDER BY expires LIMIT ?"""
PAUSED = "SELECT queue FROM paused"
PAUSE = "INSERT INTO paused VALUES (?) ON CONFLICT DO NOTHING"
RESUME = "DELETE FROM paused WHERE queue = ?"
OCCURRED = """INSERT INTO periodic (name, at) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET at = excluded.at
    WHERE periodic.at < excluded.at OR periodic.at > excluded.at + ?"""
LAST_OCCURRENCE = "SELECT at FROM periodic WHERE name = ?"
HORIZON = "SELECT id FROM tasks WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?"
COUNTS = "SELECT queue, state, count(*) FROM tasks WHERE id > ? AND id <= ? GROUP BY 1, 2"
RECORDS = f"SELECT {RECORD_COLUMNS} FROM tasks WHERE id > ? AND id <= ?"

_T = TypeVar("_T")


class Database(Protocol):
    """Executes single statements, in which ``?`` stands for a value."""

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows that a statement reads."""

    def fetch_as(self, make: Callable[..., _T], statement: str, values: Sequence[Any] = ()) -> list[_T]:
        """Return what *make* makes of the rows that a statement reads, given their columns by name."""

    def change(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Execute a statement durably, and tell other spoolers of the change."""


class SqlStore(ABC):
    """The part of a store that is the same in all SQL databases.

    :param keep: how long a finished task is kept, in seconds.
    :param bounds: what the store holds at most.
    """

    def __init__(self, database: Database, keep: float, bounds: Bounds) -> None:
        self.keep = keep
        self._statements = database
        self._admission = AdmissionControl(bounds, self.usage, self.waiting_queues, time.monotonic)

    @abstractmethod
    def usage(self) -> Usage:
        """Return how full the store is."""

    @abstractmethod
    def waiting_queues(self, limit: int) -> set[str]:
        """Return the queues with a name in which tasks wait, up to *limit* of them."""

    def refusals(self, tasks: Sequence[Any]) -> list[Busy | None]:
        """Return why each of *tasks* is refused; None for those that are to be added."""
        return self._admission.refusals(tasks)

    def last_occurrence(self, name: str) -> float | None:
        """Return the time of the last occurrence of the periodic task *name*, in unix seconds; None if none."""
        rows = self._statements.fetch(LAST_OCCURRENCE, (name,))
        return rows[0][0] if rows else None

    def find(self, ids: Iterable[int]) -> list[Record]:
        """Return the records of the tasks *ids*, in the order of their ids."""
        return [
            record
            for statement, values in _for_ids(RECORD_COLUMNS, ids)
            for record in self._statements.fetch_as(make_record, statement, values)
        ]

    def states(self, ids: Iterable[int]) -> dict[int, State]:
        """Return the states of the tasks *ids*, without those that are unknown."""
        return {
            identifier: State(state)
            for statement, values in _for_ids("id, state", ids)
            for identifier, state in self._statements.fetch(statement, values)
        }

    def body(self, identifier: int) -> bytes:
        """Return the body of a task; empty if it has none, or is unknown."""
        return self._content("body", identifier)

    def result(self, identifier: int) -> bytes:
        """Return what a task's handler returned; empty for nothing, or if the task is unknown."""
        return self._content("result", identifier)

    def _content(self, column: str, identifier: int) -> bytes:
        for statement, values in _for_ids(column, [identifier]):
            for (content,) in self._statements.fetch(statement, values):
                return bytes(content)
        return b""

    def horizon(self, after: int, number: int) -> int:
        """Return the id of the task that is the *number*-th above *after*; LARGEST_ID if there are fewer."""
        rows = self._statements.fetch(HORIZON, (after, number - 1))
        return rows[0][0] if rows else LARGEST_ID

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
        # Written so that no index of these columns is used, whose entries would all have to be sorted.
        if state is not None:
            statement += f" AND state + 0 = {state:d}"
        if queue is not None:
            statement += " AND queue || '' = ?"
            values.append(queue)
        return self._statements.fetch_as(make_record, f"{statement} ORDER BY id LIMIT ?", (*values, limit))

    def counts(self, after: int = 0, until: int = LARGEST_ID) -> dict[tuple[str, State], int]:
        """Return how many tasks there are with an id above *after* and up to *until*, by queue and state."""
        rows = self._statements.fetch(COUNTS, (after, until))
        return {(queue, State(state)): number for queue, state, number in rows}

    def paused(self) -> set[str]:
        """Return the queues that are paused."""
        return {queue for (queue,) in self._statements.fetch(PAUSED)}

    def pause(self, queue: str, paused: bool) -> None:
        """Stop to claim tasks of *queue*, or claim them again."""
        self._statements.change(PAUSE if paused else RESUME, (queue,))


def _for_ids(columns: str, ids: Iterable[int]) -> list[tuple[str, Sequence[int]]]:
    """Return the statements that read *columns* of the tasks *ids* in their order, each with its values."""
    return [
        (f"SELECT {columns} FROM tasks WHERE id IN ({', '.join('?' * len(some))}) ORDER BY id", some)
        for some in slices(possible_ids(ids), IDS_PER_STATEMENT)
    ]


def seconds_until(at: float | None, now: float) -> float | None:
    """Return how many seconds it is from *now* until *at*, at least 0; None if *at* is."""
    return None if at is None else max(at - now, 0.0)
