"""How the next tasks are chosen in a PostgreSQL spool: by priority within a queue, in turns among queues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import Connection

from uwsgitwisted.spool.stores.interface import PREFETCH_BYTES, QUEUES_PER_CYCLE, Demand, Want
from uwsgitwisted.spool.stores.postgres.schema import TASK
from uwsgitwisted.spool.task import Task

# ruff: noqa: S608 - the statements are put together from constants


def _queues(first: str, every: str) -> str:
    """Return a statement that goes through the queues that have ready tasks.

    Each step is one look into the index, however many tasks a queue has. It stops when it has given as many as
    are asked for.
    """
    head = f"SELECT queue FROM tasks WHERE state = 1 AND {every}"
    return f"""(WITH RECURSIVE queues AS (
            ({head} AND {first} ORDER BY queue LIMIT 1) UNION ALL
            SELECT ({head} AND queue > queues.queue ORDER BY queue LIMIT 1) FROM queues WHERE queue IS NOT NULL)
        SELECT queue FROM queues WHERE queue IS NOT NULL AND queue <> ALL(%(others)s))"""


# First those behind the last one served, then those up to it.
QUEUES = f"""{_queues("queue > %(last)s", "true")}
    UNION ALL {_queues("true", "queue <= %(last)s")} LIMIT {QUEUES_PER_CYCLE}"""


def _waiting(state: int) -> str:
    """Return a statement that goes through the queues with a name that have tasks in *state*."""
    head = f"SELECT queue FROM tasks WHERE state = {state} AND queue >"
    return f"""(WITH RECURSIVE queues AS (({head} '' ORDER BY queue LIMIT 1) UNION ALL
            SELECT ({head} queues.queue ORDER BY queue LIMIT 1) FROM queues WHERE queue IS NOT NULL)
        SELECT queue FROM queues WHERE queue IS NOT NULL LIMIT %s)"""


WAITING_QUEUES = f"{_waiting(1)} UNION ALL {_waiting(0)}"
PAUSED = "SELECT queue FROM paused"
# What another spooler is about to claim is stepped over. What this one runs although it lost its lease waits.
READY = """SELECT given.place, candidate.*
    FROM unnest(%(queues)s::text[]) WITH ORDINALITY AS given (queue, place),
        LATERAL (SELECT priority, at, id, attempts = 0 AND error = '', octet_length(body) FROM tasks
            WHERE state = 1 AND queue = given.queue AND id <> ALL(%(held)s)
            ORDER BY priority, at, id LIMIT %(share)s FOR UPDATE SKIP LOCKED) AS candidate"""
CLAIM = f"""UPDATE tasks SET state = 2, owner = %(owner)s, started = %(now)s, ahead = id = ANY(%(ahead)s),
        orphaned = false
    WHERE id = ANY(%(ids)s) RETURNING {TASK}"""
ANY_READY = """SELECT given.queue FROM unnest(%(queues)s::text[]) AS given (queue) WHERE EXISTS (
    SELECT FROM tasks WHERE state = 1 AND queue = given.queue AND id <> ALL(%(held)s))"""


class Claimer:
    """Claims tasks, and remembers which queue's turn it was."""

    def __init__(self) -> None:
        self._last_queue = ""

    def claim(
        self, connection: Connection[Any], demand: Demand, claimant: Mapping[str, Any]
    ) -> tuple[list[Task], frozenset[str | None]]:
        """Mark what the pools want as running; return it, and the pools for which there is more.

        :param claimant: who claims: its id as ``owner``, the ids of the tasks that it runs as ``held``, and the
            server's time as ``now``.
        """
        paused = {queue for (queue,) in connection.execute(PAUSED)}
        claimed: list[Task] = []
        queues: dict[str | None, list[str]] = {}
        for pool, want in demand.items():
            if pool is None:
                queues[pool] = self._next_queues(connection, paused.union(filter(None, demand)))
            else:
                queues[pool] = [] if pool in paused else [pool]
            tasks = _Taking(connection, want, claimant).share_out(queues[pool])
            if pool is None and tasks:
                self._last_queue = tasks[-1].queue
            if not want.now and len(tasks) < want.prefetch:
                queues[pool] = []  # what is left was tried before, or is large, and waits for a free worker
            claimed += tasks
        return claimed, _pools_with_more(connection, queues, claimant)

    def _next_queues(self, connection: Connection[Any], others: set[str]) -> list[str]:
        """Return the queues that share workers and have ready tasks, beginning behind the last one served."""
        values = {"last": self._last_queue, "others": list(others)}
        return [queue for (queue,) in connection.execute(QUEUES, values)]


def _pools_with_more(
    connection: Connection[Any], queues: Mapping[str | None, list[str]], claimant: Mapping[str, Any]
) -> frozenset[str | None]:
    """Return the pools for which ready tasks are left in their *queues*, or in some that were not looked at."""
    looked_at = [queue for some in queues.values() for queue in some]
    ready = {queue for (queue,) in connection.execute(ANY_READY, {**claimant, "queues": looked_at})}
    return frozenset(
        pool for pool, some in queues.items() if len(some) >= QUEUES_PER_CYCLE or not ready.isdisjoint(some)
    )


class _Taking:
    """What one pool takes in one turn."""

    def __init__(self, connection: Connection[Any], want: Want, claimant: Mapping[str, Any]) -> None:
        self._connection = connection
        self._begin = want.now
        self._left = want.now + want.prefetch
        self._claimant = claimant
        self._bytes = 0
        self._tasks: list[Task] = []

    def share_out(self, queues: Sequence[str]) -> list[Task]:
        """Take from each queue its share; what one doesn't need goes to the others."""
        while queues and self._left:
            share = max(1, self._left // len(queues))
            asked, rest = queues[: self._left], queues[self._left :]
            taken = Counter(self._take(asked, share))
            queues = [*rest, *(queue for queue in asked if taken[queue] == share)]
        return self._tasks

    def _take(self, queues: Sequence[str], share: int) -> list[str]:
        """Take up to *share* tasks of each of *queues* and return the queue of each."""
        values = {**self._claimant, "queues": list(queues), "share": share}
        chosen = self._choose(self._connection.execute(READY, values).fetchall())
        if not chosen:
            return []
        values |= {"ids": list(chosen), "ahead": [identifier for identifier, ahead in chosen.items() if ahead]}
        found = {task.id: task for task in self._claim(values)}
        tasks = [found[identifier] for identifier in chosen]
        self._left -= len(tasks)
        self._tasks += tasks
        return [task.queue for task in tasks]

    def _choose(self, rows: Sequence[tuple[Any, ...]]) -> dict[int, bool]:
        """Return the ids of those to take, in their order, and whether they are taken ahead."""
        chosen: dict[int, bool] = {}
        blocked: set[int] = set()
        for place, _, _, identifier, fresh, size in sorted(rows):
            ahead = not self._begin
            if ahead and (place in blocked or not fresh or self._bytes > PREFETCH_BYTES):
                blocked.add(place)  # nor what comes behind it, which would take the next free worker from it
                continue
            self._begin -= not ahead
            self._bytes += size
            chosen[identifier] = ahead
        return chosen

    def _claim(self, values: Mapping[str, Any]) -> list[Task]:
        return [Task(*row) for row in self._connection.execute(CLAIM, values, binary=True)]
