"""The tasks in a PostgreSQL spool, as a cycle claims them: by priority within a queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from psycopg import Connection

from uwsgitwisted.spool.stores.interface import PREFETCH_BYTES, QUEUES_PER_CYCLE, Want
from uwsgitwisted.spool.stores.rows import TASK_COLUMNS, make_rows, make_task, name_columns
from uwsgitwisted.spool.stores.sql import PAUSED
from uwsgitwisted.spool.task import State, Task

# ruff: noqa: S608 - the statements are put together from constants
_READY = f"FROM tasks WHERE state = {State.READY:d}"


def _walk_queues(first: str, every: str) -> str:
    """Return a statement that goes through the queues that have ready tasks.

    Each step is one look into the index, however many tasks a queue has. It stops when it has found as many as
    are asked for.
    """
    head = f"SELECT queue {_READY} AND {every}"
    return f"""(WITH RECURSIVE queues AS (
            ({head} AND {first} ORDER BY queue LIMIT 1) UNION ALL
            SELECT ({head} AND queue > queues.queue ORDER BY queue LIMIT 1) FROM queues WHERE queue IS NOT NULL)
        SELECT queue FROM queues WHERE queue IS NOT NULL AND queue <> ALL(%(others)s))"""


# First those behind the last one served, then those up to it.
QUEUES = f"""{_walk_queues("queue > %(last)s", "true")}
    UNION ALL {_walk_queues("true", "queue <= %(last)s")} LIMIT {QUEUES_PER_CYCLE}"""


def _walk_waiting(state: State) -> str:
    """Return a statement that goes through the queues with a name that have tasks in *state*."""
    head = f"SELECT queue FROM tasks WHERE state = {state:d} AND queue >"
    return f"""(WITH RECURSIVE queues AS (({head} '' ORDER BY queue LIMIT 1) UNION ALL
            SELECT ({head} queues.queue ORDER BY queue LIMIT 1) FROM queues WHERE queue IS NOT NULL)
        SELECT queue FROM queues WHERE queue IS NOT NULL LIMIT ?)"""


WAITING_QUEUES = f"{_walk_waiting(State.READY)} UNION ALL {_walk_waiting(State.SCHEDULED)}"
# A task that another spooler is about to claim is skipped. A task that this one runs although it lost its lease
# waits.
READY = f"""SELECT given.place, candidate.*
    FROM unnest(%(queues)s::text[]) WITH ORDINALITY AS given (queue, place),
        LATERAL (SELECT priority, at, id, attempts = 0 AND error = '' AS fresh, octet_length(body) AS size
            {_READY} AND queue = given.queue AND id <> ALL(%(held)s)
            ORDER BY priority, at, id LIMIT %(share)s FOR UPDATE SKIP LOCKED) AS candidate"""
CLAIM = f"""UPDATE tasks SET state = {State.RUNNING:d}, owner = %(owner)s, started = %(now)s,
        ahead = id = ANY(%(ahead)s), orphaned = false
    WHERE id = ANY(%(ids)s) RETURNING {TASK_COLUMNS}, body"""
ANY_READY = f"""SELECT given.queue FROM unnest(%(queues)s::text[]) AS given (queue)
    WHERE EXISTS (SELECT {_READY} AND queue = given.queue AND id <> ALL(%(held)s))"""


class PostgresTasks:
    """The tasks in a PostgreSQL spool, during one cycle, as :class:`..claiming.TaskSource` describes them.

    :param claimant: who claims: its id as ``owner``, the ids of the tasks that it runs as ``held``, and the
        server's time as ``now``.
    """

    def __init__(self, connection: Connection[Any], claimant: Mapping[str, Any]) -> None:
        self._connection = connection
        self._claimant = claimant

    def paused(self) -> set[str]:
        """Return the queues that are paused."""
        return {queue for (queue,) in self._connection.execute(PAUSED)}

    def next_queues(self, last: str, others: Collection[str]) -> list[str]:
        """Return queues that have ready tasks, from the one behind *last*."""
        values = {"last": last, "others": list(others)}
        return [queue for (queue,) in self._connection.execute(QUEUES, values)]

    def claim(self, want: Want, queues: list[str]) -> list[Task]:
        """Claim what a pool wants of *queues*."""
        return _PoolClaim(self._connection, want, self._claimant).share_out(queues)

    def ready_queues(self, queues: Collection[str]) -> set[str]:
        """Return those of *queues* that have ready tasks."""
        values = {**self._claimant, "queues": list(queues)}
        return {queue for (queue,) in self._connection.execute(ANY_READY, values)}


class _PoolClaim:
    """What one pool claims in one cycle."""

    def __init__(self, connection: Connection[Any], want: Want, claimant: Mapping[str, Any]) -> None:
        self._connection = connection
        self._free = want.now
        self._left = want.now + want.prefetch
        self._claimant = claimant
        self._bytes = 0
        self._tasks: list[Task] = []

    def share_out(self, queues: Sequence[str]) -> list[Task]:
        """Claim from each queue its share; what one has not goes to the others."""
        while queues and self._left:
            share = max(1, self._left // len(queues))
            asked, rest = queues[: self._left], queues[self._left :]
            claimed = Counter(self._claim_from(asked, share))
            queues = [*rest, *(queue for queue in asked if claimed[queue] == share)]
        return self._tasks

    def _claim_from(self, queues: Sequence[str], share: int) -> list[str]:
        """Claim up to *share* tasks of each of *queues* and return the queue of each."""
        values = {**self._claimant, "queues": list(queues), "share": share}
        chosen = self._choose(name_columns(self._connection.execute(READY, values)))
        if not chosen:
            return []
        values |= {
            "ids": list(chosen),
            "ahead": [identifier for identifier, prefetched in chosen.items() if prefetched],
        }
        claimed = make_rows(make_task, self._connection.execute(CLAIM, values, binary=True))
        found = {task.id: task for task in claimed}
        tasks = [found[identifier] for identifier in chosen]
        self._left -= len(tasks)
        self._tasks += tasks
        return [task.queue for task in tasks]

    def _choose(self, rows: Iterable[Mapping[str, Any]]) -> dict[int, bool]:
        """Return the ids of the tasks to claim, in their order, and whether they are prefetched."""
        chosen: dict[int, bool] = {}
        blocked: set[int] = set()
        for row in sorted(rows, key=_RUN_ORDER):
            prefetched = not self._free
            if prefetched and (row["place"] in blocked or not row["fresh"] or self._bytes > PREFETCH_BYTES):
                blocked.add(
                    row["place"]
                )  # nor what comes behind it, which would take the next free worker from it
                continue
            self._free -= not prefetched
            self._bytes += row["size"]
            chosen[row["id"]] = prefetched
        return chosen


_RUN_ORDER = itemgetter("place", "priority", "at", "id")
