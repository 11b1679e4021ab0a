"""Makes values of a database's rows, by the names of their columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from operator import itemgetter
from typing import Any, Protocol, TypeVar

from uwsgitwisted.spool.stores.interface import SMALL_RESULT, Record
from uwsgitwisted.spool.task import State, Task

#: The columns of a task that :func:`make_task` takes; its body, which may be large, is left out.
TASK_COLUMNS = """id, variables, at, created, priority, queue, attempts, crashes,
    coalesce(key, '') AS key, ahead AS prefetched"""
#: The columns that :func:`make_record` takes.
RECORD_COLUMNS = f"""{TASK_COLUMNS}, state, started, finished, error,
    CASE WHEN length(result) <= {SMALL_RESULT} THEN result END AS result,
    length(body) AS body_size, length(result) AS result_size"""

#: The fields of a task before ``prefetched``, which is the last one.
CLAIMED_FIELDS = tuple(field.name for field in fields(Task))[:-1]

_T = TypeVar("_T")


class Cursor(Protocol):
    """The part of the DB-API's cursors (PEP 249) that is used here; both sqlite3's and psycopg's have it."""

    @property
    def description(self) -> Sequence[Sequence[Any]] | None:
        """The columns; the first item of each is its name."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Iterate over the rows."""


def pick_columns(cursor: Cursor, names: Iterable[str]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Return what takes the columns *names*, in this order, out of a row of *cursor*.

    It finds the columns once, which is worth it where every task passes.
    """
    columns = [column[0] for column in cursor.description or ()]
    return itemgetter(*map(columns.index, names))


def name_columns(cursor: Cursor) -> Iterator[dict[str, Any]]:
    """Yield the rows of *cursor*, each as a dict by the names of the columns."""
    names = [column[0] for column in cursor.description or ()]
    return (dict(zip(names, row, strict=True)) for row in cursor)


def make_rows(make: Callable[..., _T], cursor: Cursor) -> list[_T]:
    """Call *make* for each row of *cursor*, with its columns as keyword arguments."""
    return [make(**row) for row in name_columns(cursor)]


def make_task(*, prefetched: object, **columns: Any) -> Task:
    """Return the task in a row; a database may have a number for *prefetched*."""
    return Task(prefetched=bool(prefetched), **columns)


def make_record(
    *,
    state: int,
    started: float | None,
    finished: float | None,
    error: str,
    result: bytes | None,
    body_size: int,
    result_size: int,
    prefetched: object,
    **columns: Any,
) -> Record:
    """Return the record in a row; *result* is None for one that is too large for it."""
    task = Task(prefetched=bool(prefetched), **columns)
    return Record(task, State(state), started, finished, error, result or b"", body_size, result_size)


def state_list(states: Iterable[State]) -> str:
    """Return *states* as a list in SQL, such as ``(0, 1)``."""
    return f"({', '.join(f'{state:d}' for state in states)})"
