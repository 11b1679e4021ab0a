"""How new tasks enter a PostgreSQL spool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from psycopg import Connection

from uwsgitwisted.spool.stores.postgres.lease import Lease
from uwsgitwisted.spool.stores.postgres.schema import NOTIFY, SIZE
from uwsgitwisted.spool.stores.postgres.usage import COUNTED
from uwsgitwisted.spool.stores.sql import NEXT_SCHEDULED
from uwsgitwisted.spool.task import State, Task

#: How many bytes are sent to the server in one statement, or one value if that is larger.
CHUNK_BYTES = 8 * 1024 * 1024

NEW_IDS = "SELECT nextval('task_ids') FROM generate_series(1, %s)"
# ruff: noqa: S608 - the statements are put together from constants
ADD = f"""WITH added AS (INSERT INTO tasks
        (id, state, variables, at, created, priority, queue, attempts, crashes, key, body)
    SELECT id, CASE WHEN at <= created THEN {State.READY:d} ELSE {State.SCHEDULED:d} END,
        variables, at, created, priority, queue, attempts, crashes, nullif(key, ''), body
    FROM unnest(%b::bigint[], %b::bytea[], %b::float8[], %b::float8[], %b::bigint[], %b::text[], %b::integer[],
        %b::integer[], %b::text[], %b::bytea[])
        AS given (id, variables, at, created, priority, queue, attempts, crashes, key, body)
    ON CONFLICT (queue, key) WHERE key IS NOT NULL DO NOTHING RETURNING id, {SIZE} AS size),
    counted AS ({COUNTED}) SELECT id FROM added"""
FIND_KEYS = """SELECT tasks.queue, tasks.key, tasks.id
    FROM unnest(%s::text[], %s::text[]) AS given (queue, key), tasks
    WHERE tasks.queue = given.queue AND tasks.key = given.key"""

_Item = TypeVar("_Item")


def add_tasks(connection: Connection[Any], tasks: Sequence[Task], lease: Lease) -> list[int]:
    """Store *tasks*, except for those whose keys are there, and return all their ids."""
    if not tasks:
        return []
    ids = [identifier for (identifier,) in connection.execute(NEW_IDS, (len(tasks),))]
    known: dict[tuple[str, str], int] = {}  # by their queues and keys
    waiting = _first_of_each_key(ids, tasks)
    while waiting:
        stored = _insert_tasks(connection, waiting, lease)
        known |= {_key(task): identifier for identifier, task in waiting if identifier in stored}
        missing = [_key(task) for identifier, task in waiting if identifier not in stored]
        if missing:
            queues, keys = map(list, zip(*missing, strict=True))
            found = connection.execute(FIND_KEYS, (queues, keys))
            known |= {(queue, key): identifier for queue, key, identifier in found}
        # The task of a key that was there a moment ago may be deleted by now.
        waiting = [(identifier, task) for identifier, task in waiting if task.key and _key(task) not in known]
    _notify_spoolers(connection, tasks)
    return [known[_key(task)] if task.key else identifier for identifier, task in zip(ids, tasks, strict=True)]


def _key(task: Task) -> tuple[str, str]:
    """Return the idempotency key of a task with its queue, within which the key counts."""
    return task.queue, task.key


def _first_of_each_key(ids: Sequence[int], tasks: Sequence[Task]) -> list[tuple[int, Task]]:
    """Return the tasks to store, with their ids, in the order of their keys.

    Spoolers that store the same keys at the same time wait for each other. Since all use the same order, no two
    wait in a circle.
    """
    first: dict[tuple[str, str], int] = {}
    rows = [
        (identifier, task)
        for identifier, task in zip(ids, tasks, strict=True)
        if not task.key or first.setdefault(_key(task), identifier) == identifier
    ]
    return sorted(rows, key=lambda row: _key(row[1]))


def _insert_tasks(connection: Connection[Any], rows: Sequence[tuple[int, Task]], lease: Lease) -> set[int]:
    """Insert tasks, except for those whose keys are there, and return the ids of the inserted ones."""
    stored: set[int] = set()
    for number, chunk in enumerate(chunks(rows, lambda row: row[1].size)):
        if number:
            lease.renew(connection)
        columns = map(list, zip(*(_row_of(*row) for row in chunk), strict=True))
        stored.update(identifier for (identifier,) in connection.execute(ADD, [*columns, lease.owner]))
    return stored


def _row_of(identifier: int, task: Task) -> tuple[Any, ...]:
    times = (float(task.at), float(task.created))
    counts = (task.attempts, task.crashes)
    return (identifier, task.variables, *times, task.priority, task.queue, *counts, task.key, task.body)


def _notify_spoolers(connection: Connection[Any], tasks: Sequence[Task]) -> None:
    """Notify the other spoolers if they have something to do, or sooner than they know."""
    later = [task.at for task in tasks if task.at > task.created]
    if len(later) == len(tasks):
        next_at = connection.execute(NEXT_SCHEDULED).fetchone()
        if next_at is None or min(later) > next_at[0]:
            return
    connection.execute(NOTIFY)


def chunks(items: Iterable[_Item], size: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Yield *items* in pieces that are not too large for one statement."""
    chunk: list[_Item] = []
    total = 0
    for item in items:
        if chunk and total + size(item) > CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size(item)
    if chunk:
        yield chunk
