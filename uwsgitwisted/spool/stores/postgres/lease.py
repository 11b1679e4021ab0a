"""Which spoolers of a PostgreSQL spool live, and what becomes of the tasks of those that don't.

Each spooler writes down its heartbeat, by the server's clock. One whose last is older than :data:`LEASE` has
ended, or nobody hears of it: the first that sees it takes over what it ran.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from psycopg import Connection

from uwsgitwisted.spool.stores.postgres.schema import BODILESS, NOW
from uwsgitwisted.spool.task import Task

#: How often a spooler shows that it lives, in seconds.
HEARTBEAT = 2.0
#: A spooler is taken for dead when it has not done so for this long, in seconds. Three heartbeats may get lost
#: to a slow disk or a busy machine; a task whose spooler was killed waits for this and one heartbeat.
LEASE = 8.0
#: How many tasks are taken over in one turn.
ORPHAN_LIMIT = 1_000

# ruff: noqa: S608 - the statements are put together from constants
CLOCK = f"SELECT {NOW}"
BEAT = f"""INSERT INTO spoolers (id, beat) VALUES (%(owner)s, {NOW})
    ON CONFLICT (id) DO UPDATE SET beat = excluded.beat RETURNING beat"""
STILL_THERE = f"UPDATE spoolers SET beat = {NOW} WHERE id = %(owner)s"
# While the server was away nobody could show that it lives, and where this spooler itself could not, others may
# have been as unlucky. One in the middle of a transaction holds its row, and lives. A heartbeat in the future
# is from before the clock was set.
EXPEL = """WITH silent AS MATERIALIZED (
        SELECT id FROM spoolers WHERE beat NOT BETWEEN %(now)s - %(lease)s AND %(now)s + %(lease)s
            AND %(steady_since)s <= %(now)s - %(lease)s
            AND extract(epoch FROM pg_postmaster_start_time()) <= %(now)s - %(lease)s
        FOR UPDATE SKIP LOCKED)
    DELETE FROM spoolers USING silent WHERE spoolers.id = silent.id"""
LEFT = """SELECT id FROM tasks WHERE state = 2 AND NOT EXISTS (SELECT FROM spoolers WHERE spoolers.id = owner)
    ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED"""
# Looked at once more: by now the rows are locked, but one may have found a new owner just before.
TAKE_OVER = """UPDATE tasks SET owner = %(owner)s, orphaned = true WHERE id = ANY(%(ids)s) AND state = 2
    AND NOT EXISTS (SELECT FROM spoolers WHERE spoolers.id = tasks.owner)"""
GIVE_BACK = """UPDATE tasks SET state = 1, owner = NULL
    WHERE state = 2 AND owner = %(owner)s AND NOT orphaned AND id <> ALL(%(held)s)"""
ORPHANS = f"""SELECT {BODILESS} FROM tasks
    WHERE state = 2 AND owner = %(owner)s AND orphaned AND id <> ALL(%(held)s) ORDER BY id"""
LEAVE = "DELETE FROM spoolers WHERE id = %(owner)s"


@dataclass(frozen=True, slots=True)
class Moment:
    """How things are when a turn begins.

    :param now: the server's time, in unix seconds.
    :param orphans: tasks of spoolers that ended, which are this one's now.
    :param shown: whether this spooler showed that it lives.
    """

    now: float
    orphans: Sequence[Task] = ()
    shown: bool = False


class Lease:
    """The place of this spooler among the others."""

    def __init__(self) -> None:
        #: The id under which it owns tasks. Not one that the server gives, whose answer may get lost.
        self.owner = uuid4()
        #: The tasks that it runs, as far as the store has given them out and not heard how they ended.
        self.held: set[int] = set()
        self._next_beat = 0.0  # in monotonic time
        # In the server's time: the last heartbeat, and since when none was missed.
        self._last_beat: float | None = None
        self._steady_since = 0.0

    def begin(self, connection: Connection[Any]) -> Moment:
        """Begin a turn: show that this spooler lives, and see to what others left, if it is time to."""
        mine: dict[str, Any] = {"owner": self.owner, "held": list(self.held)}
        if time.monotonic() < self._next_beat:
            return Moment(_value(connection, CLOCK, mine))
        now = _value(connection, BEAT, mine)
        times = {"now": now, "lease": LEASE, "steady_since": self._steadiness(now)}
        connection.execute(EXPEL, times)
        left = [identifier for (identifier,) in connection.execute(LEFT, {"limit": ORPHAN_LIMIT})]
        if left:
            connection.execute(TAKE_OVER, mine | {"ids": left})
        # Of a turn whose answer was lost: what was claimed was not begun, what was taken over may have been.
        connection.execute(GIVE_BACK, mine)
        orphans = [Task(*row) for row in connection.execute(ORPHANS, mine, binary=True)]
        return Moment(now, orphans, shown=True)

    def _steadiness(self, now: float) -> float:
        """Return since when this spooler has shown without a gap that it lives, if it does so *now*."""
        if self._last_beat is None or 0 <= now - self._last_beat <= LEASE / 2:
            return self._steady_since
        return now

    def committed(self, moment: Moment, settled: Collection[int], given: Collection[int]) -> None:
        """Note what a turn that was committed did: which tasks it settled, and which it gave out."""
        if moment.shown:
            self._steady_since = self._steadiness(moment.now)
            self._last_beat = moment.now
            self._next_beat = time.monotonic() + HEARTBEAT / 2
        self.held.difference_update(settled)
        self.held.update(given)

    def failed(self) -> None:
        """Note that a turn failed; it may have been committed all the same, and only its answer lost."""
        self._next_beat = 0.0

    def show(self, connection: Connection[Any]) -> None:
        """Show within a long transaction that this spooler lives, if it runs tasks at all."""
        connection.execute(STILL_THERE, {"owner": self.owner})

    def leave(self, connection: Connection[Any]) -> None:
        """Give up the place; what this spooler still runs is free to be taken over."""
        connection.execute(LEAVE, {"owner": self.owner})


def _value(connection: Connection[Any], statement: str, values: dict[str, Any]) -> Any:
    row = connection.execute(statement, values).fetchone()
    assert row is not None, "it returns a row"
    return row[0]
