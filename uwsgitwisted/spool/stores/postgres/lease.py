"""Which spoolers of a PostgreSQL spool are alive, and who takes over the tasks of the others.

Each spooler writes heartbeats, by the server's clock. If its last one is older than :data:`LEASE`, the spooler
has ended, or can't reach the server: the first other spooler that notices it takes over its tasks.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from psycopg import Connection

from uwsgitwisted.spool.stores.postgres.schema import NOW
from uwsgitwisted.spool.stores.rows import TASK_COLUMNS, make_rows, make_task
from uwsgitwisted.spool.task import State, Task

#: How often a spooler sends a heartbeat, in seconds.
HEARTBEAT = 2.0
#: How long a spooler counts as alive after a heartbeat, in seconds. A slow disk or a busy machine may cost
#: three heartbeats; a task whose spooler was killed waits for this and one heartbeat.
LEASE = 8.0
#: How many tasks are taken over in one cycle.
ORPHAN_LIMIT = 1_000

# ruff: noqa: S608 - the statements are put together from constants
CLOCK = f"SELECT {NOW}"
BEAT = f"""INSERT INTO spoolers (id, beat) VALUES (%(owner)s, {NOW})
    ON CONFLICT (id) DO UPDATE SET beat = excluded.beat RETURNING beat"""
RENEW = f"UPDATE spoolers SET beat = {NOW} WHERE id = %(owner)s"
# While the server was away no spooler could send heartbeats, and when this one could not, others may have been
# as unlucky. A spooler in the middle of a transaction holds its row, and is alive. A heartbeat in the future is
# from before a step of the clock.
EXPEL = """WITH silent AS MATERIALIZED (
        SELECT id FROM spoolers WHERE beat NOT BETWEEN %(now)s - %(lease)s AND %(now)s + %(lease)s
            AND %(steady_since)s <= %(now)s - %(lease)s
            AND extract(epoch FROM pg_postmaster_start_time()) <= %(now)s - %(lease)s
        FOR UPDATE SKIP LOCKED)
    DELETE FROM spoolers USING silent WHERE spoolers.id = silent.id"""
LEFT = f"""SELECT id FROM tasks
    WHERE state = {State.RUNNING:d} AND NOT EXISTS (SELECT FROM spoolers WHERE spoolers.id = owner)
    ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED"""
# Checks again: the rows are locked by now, but one may have got a new owner just before.
TAKE_OVER = f"""UPDATE tasks SET owner = %(owner)s, orphaned = true
    WHERE id = ANY(%(ids)s) AND state = {State.RUNNING:d}
    AND NOT EXISTS (SELECT FROM spoolers WHERE spoolers.id = tasks.owner)"""
RETURN = f"""UPDATE tasks SET state = {State.READY:d}, owner = NULL
    WHERE state = {State.RUNNING:d} AND owner = %(owner)s AND NOT orphaned AND id <> ALL(%(held)s)"""
ORPHANS = f"""SELECT {TASK_COLUMNS} FROM tasks
    WHERE state = {State.RUNNING:d} AND owner = %(owner)s AND orphaned AND id <> ALL(%(held)s) ORDER BY id"""
RELEASE = "DELETE FROM spoolers WHERE id = %(owner)s"


@dataclass(frozen=True, slots=True)
class CycleStart:
    """What a cycle begins with.

    :param now: the server's time, in unix seconds.
    :param orphans: tasks of spoolers that ended, which this one took over.
    :param beat: whether this spooler sent a heartbeat.
    """

    now: float
    orphans: Sequence[Task] = ()
    beat: bool = False


class Lease:
    """The lease of this spooler on the tasks that it runs."""

    def __init__(self) -> None:
        #: The id under which it owns tasks. Not one that the server gives, whose answer may get lost.
        self.owner = uuid4()
        #: The tasks that it runs: those that the store gave out and whose outcomes it doesn't have.
        self.held: set[int] = set()
        self._next_beat = 0.0  # in monotonic time
        # In the server's time: the last heartbeat, and since when no heartbeat was missed.
        self._last_beat: float | None = None
        self._steady_since = 0.0

    def begin_cycle(self, connection: Connection[Any]) -> CycleStart:
        """Begin a cycle: if it is time to, send a heartbeat and take over tasks of spoolers that ended."""
        mine: dict[str, Any] = {"owner": self.owner, "held": list(self.held)}
        if time.monotonic() < self._next_beat:
            return CycleStart(_value(connection, CLOCK, mine))
        now = _value(connection, BEAT, mine)
        times = {"now": now, "lease": LEASE, "steady_since": self._steadiness(now)}
        connection.execute(EXPEL, times)
        left = [identifier for (identifier,) in connection.execute(LEFT, {"limit": ORPHAN_LIMIT})]
        if left:
            connection.execute(TAKE_OVER, mine | {"ids": left})
        # Of a cycle whose answer was lost: claimed tasks were not begun, tasks taken over may have been.
        connection.execute(RETURN, mine)
        orphans = make_rows(make_task, connection.execute(ORPHANS, mine, binary=True))
        return CycleStart(now, orphans, beat=True)

    def _steadiness(self, now: float) -> float:
        """Return since when this spooler has sent heartbeats without a gap, if it sends one *now*."""
        if self._last_beat is None or 0 <= now - self._last_beat <= LEASE / 2:
            return self._steady_since
        return now

    def cycle_committed(self, start: CycleStart, settled: Collection[int], given: Collection[int]) -> None:
        """Note that a cycle was committed, which tasks it settled, and which it gave out."""
        if start.beat:
            self._steady_since = self._steadiness(start.now)
            self._last_beat = start.now
            self._next_beat = time.monotonic() + HEARTBEAT / 2
        self.held.difference_update(settled)
        self.held.update(given)

    def cycle_failed(self) -> None:
        """Note that a cycle failed; it may have been committed, and only its answer was lost."""
        self._next_beat = 0.0

    def renew(self, connection: Connection[Any]) -> None:
        """Send a heartbeat within a long transaction, if this spooler runs tasks at all."""
        connection.execute(RENEW, {"owner": self.owner})

    def release(self, connection: Connection[Any]) -> None:
        """Give up the lease; others may take over what this spooler still runs."""
        connection.execute(RELEASE, {"owner": self.owner})


def _value(connection: Connection[Any], statement: str, values: dict[str, Any]) -> Any:
    row = connection.execute(statement, values).fetchone()
    assert row is not None, "it returns a row"
    return row[0]
