"""The store of tasks in a PostgreSQL database, for several spoolers at once.

All of them go by the server's clock. Locks on rows keep apart what several spoolers do at the same time: each
skips what another is about to claim. Whoever needs several tasks or keys locks them in their order, so that no
two wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from zope.interface import implementer

from uwsgitwisted.errors import SpoolError

try:
    from psycopg import Connection
except ImportError as error:
    raise SpoolError(
        "a spool in PostgreSQL needs the package psycopg: pip install 'uwsgitwisted[postgres]'"
    ) from error

from uwsgitwisted.spool.stores.bounds import NO_BOUNDS, Bounds, Usage
from uwsgitwisted.spool.stores.claiming import Claimer
from uwsgitwisted.spool.stores.interface import (
    EXPIRE_LIMIT,
    KEEP_RESULTS,
    OCCURRENCE_SPAN,
    PROMOTE_LIMIT,
    Cycle,
    Demand,
    ISpoolStore,
    Settlement,
    first_expired,
    possible_ids,
)
from uwsgitwisted.spool.stores.postgres.add import add_tasks
from uwsgitwisted.spool.stores.postgres.address import parse_address
from uwsgitwisted.spool.stores.postgres.claim import WAITING_QUEUES, PostgresTasks
from uwsgitwisted.spool.stores.postgres.database import PostgresDatabase
from uwsgitwisted.spool.stores.postgres.lease import HEARTBEAT, CycleStart, Lease
from uwsgitwisted.spool.stores.postgres.listener import NotificationListener
from uwsgitwisted.spool.stores.postgres.schema import NOTIFY, NOW, SIZE, mark_values
from uwsgitwisted.spool.stores.postgres.settle import settle_tasks
from uwsgitwisted.spool.stores.postgres.usage import count, inherit, read_usage
from uwsgitwisted.spool.stores.rows import state_list
from uwsgitwisted.spool.stores.sql import EXPIRED as EXPIRED_TASKS
from uwsgitwisted.spool.stores.sql import NEXT_EXPIRY, NEXT_SCHEDULED, OCCURRED, SqlStore, seconds_until
from uwsgitwisted.spool.task import State, Task

# ruff: noqa: S608 - the statements are put together from constants
_UNFINISHED = [state for state in State if not state.final]
_FINISHED = [state for state in State if state.final]
PROMOTE = f"""WITH due AS MATERIALIZED (
        SELECT id FROM tasks WHERE state = {State.SCHEDULED:d} AND at <= %s ORDER BY at LIMIT %s
        FOR UPDATE SKIP LOCKED)
    UPDATE tasks SET state = {State.READY:d} FROM due WHERE tasks.id = due.id"""
EXPIRED = f"{mark_values(EXPIRED_TASKS)} FOR UPDATE SKIP LOCKED"
EXPIRE = "DELETE FROM tasks WHERE id = ANY(%s)"
OUTLOOK = f"""SELECT ({NEXT_SCHEDULED}), ({NEXT_EXPIRY}),
    ARRAY(SELECT id FROM tasks WHERE cancelling AND owner = %s)"""

# Locks the tasks before anything is decided about them: one may begin to run, or end, at the same moment.
CANCELLABLE = f"""SELECT id, state, {SIZE} FROM tasks
    WHERE id = ANY(%s::bigint[]) AND state IN {state_list(_UNFINISHED)} AND NOT cancelling
    ORDER BY id FOR UPDATE"""
CANCEL_WAITING = f"""UPDATE tasks SET state = {State.CANCELLED:d}, finished = {NOW}, expires = {NOW} + %s
    WHERE id = ANY(%s::bigint[])"""
CANCEL_RUNNING = "UPDATE tasks SET cancelling = true WHERE id = ANY(%s::bigint[])"


def _lock_tasks(states: Iterable[State]) -> str:
    """Return the part of a statement that locks the tasks of given ids that are in *states*, in their order."""
    return f"""WITH these AS MATERIALIZED (SELECT id FROM tasks
        WHERE id = ANY(%s::bigint[]) AND state IN {state_list(states)} ORDER BY id FOR UPDATE)"""


REQUEUE = f"""{_lock_tasks((State.DEAD, State.CANCELLED))}
    UPDATE tasks SET state = {State.READY:d}, at = {NOW}, attempts = 0, crashes = 0, finished = NULL,
    expires = NULL FROM these WHERE tasks.id = these.id RETURNING tasks.id, {SIZE}"""
DROP = f"""{_lock_tasks(_FINISHED)} DELETE FROM tasks USING these WHERE tasks.id = these.id
    RETURNING tasks.id"""


@implementer(ISpoolStore)
class PostgresStore(SqlStore):
    """Tasks in a database that several spoolers share.

    :param url: ``postgresql://user:password@host/database``, as :func:`.address.parse_address` takes it.
    :param keep: how long a finished task is kept, in seconds.
    :param bounds: what it holds at most. The variables and bodies of unfinished tasks count.
    :raises SpoolError: if *url* can't be understood.
    """

    heartbeat = HEARTBEAT

    def __init__(self, url: str, *, keep: float = KEEP_RESULTS, bounds: Bounds = NO_BOUNDS) -> None:
        self._database = PostgresDatabase(parse_address(url))
        super().__init__(self._database, keep, bounds)
        self.description = self._database.address.description
        self._listener: NotificationListener | None = None
        self._lease = Lease()
        self._claimer = Claimer()

    def open(self, woken: Callable[[], None]) -> None:
        """Connect, and create the tables if they don't exist.

        :raises SpoolCorrupt: if the schema holds something else, or a newer spool; it was left unchanged.
        :raises SpoolError: if the server can't be reached, or doesn't keep what it commits.
        """
        self._lease = Lease()
        self._database.open()
        try:
            with self._database.transaction() as connection:
                inherit(connection, self._lease.owner)
            self._listener = NotificationListener(self._database, woken)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the connections. Other spoolers take over the tasks that this one runs."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.stop()
        try:
            with self._database.reading() as connection:
                self._lease.release(connection)
        except SpoolError:
            pass  # then the others notice that the heartbeats stop
        finally:
            self._database.close()

    # What the spooler's loop calls.

    def add(self, tasks: Sequence[Task]) -> list[int]:
        """Store *tasks* in one transaction and return their ids, in the same order.

        If the answer to the commit is lost, they may be stored although this raises ``StoreUnavailable``. If
        the caller then adds them again, they run twice, unless they have idempotency keys.
        """
        with self._database.transaction() as connection:
            return add_tasks(connection, tasks, self._lease)

    def usage(self) -> Usage:
        """Return how full the spool is, by what all spoolers have committed."""
        with self._database.reading() as connection:
            return read_usage(connection)

    def waiting_queues(self, limit: int) -> set[str]:
        """Return the queues with a name in which tasks wait, up to *limit* of them."""
        rows = self._database.fetch(WAITING_QUEUES, (limit, limit))
        return set(list(dict.fromkeys(queue for (queue,) in rows))[:limit])

    def advance(self, settlements: Sequence[Settlement], demand: Demand, now: float) -> Cycle:
        """Write outcomes of tasks and claim the next ones, in one transaction."""
        try:
            with self._database.transaction() as connection:
                start = self._lease.begin_cycle(connection)
                cycle = self._advance(connection, start, settlements, demand)
        except BaseException:
            self._lease.cycle_failed()
            self._renew_lease()
            raise
        given = [task.id for task in (*cycle.claimed, *cycle.orphans)]
        self._lease.cycle_committed(start, [settlement.id for settlement in settlements], given)
        return cycle

    def _renew_lease(self) -> None:
        """Keep the lease although the cycle failed: it fails as long as somebody locks one of its tasks."""
        with suppress(SpoolError), self._database.transaction() as connection:
            self._lease.renew(connection)

    def _advance(
        self, connection: Connection[Any], start: CycleStart, settlements: Sequence[Settlement], demand: Demand
    ) -> Cycle:
        now, owner = start.now, self._lease.owner
        settled = settle_tasks(connection, owner, settlements, now, self.keep)
        expired = first_expired(connection.execute(EXPIRED, (now, EXPIRE_LIMIT)))
        if expired:
            connection.execute(EXPIRE, (expired,))
        connection.execute(PROMOTE, (now, PROMOTE_LIMIT))
        held = self._lease.held.difference(settlement.id for settlement in settlements)
        claimant = {"owner": owner, "held": list(held), "now": now}
        claimed, ready = self._claimer.claim(PostgresTasks(connection, claimant), demand)
        ((next_at, next_expiry, cancelling),) = connection.execute(OUTLOOK, (owner,))
        if settled:
            connection.execute(NOTIFY)
        wait, upkeep = seconds_until(next_at, now), seconds_until(next_expiry, now)
        return Cycle(claimed, ready, wait, start.orphans, cancelling, upkeep)

    def shift(self, seconds: float, latest: float) -> None:
        """Do nothing: everything goes by the server's clock."""

    def occur(self, name: str, at: float, task: Task | None) -> bool:
        """Store an occurrence of the periodic task *name*, unless it was stored before."""
        with self._database.transaction() as connection:
            new = connection.execute(mark_values(OCCURRED), (name, at, OCCURRENCE_SPAN)).rowcount == 1
            if new and task is not None:
                add_tasks(connection, [task], self._lease)
            return new

    # What people change.

    def cancel(self, ids: Iterable[int], now: float) -> list[int]:
        """Cancel tasks; the ids of running ones are reported to their spooler in its next cycle."""
        with self._database.changing() as connection:
            rows = connection.execute(CANCELLABLE, (possible_ids(ids),)).fetchall()
            running = [identifier for identifier, state, _ in rows if state == State.RUNNING]
            waiting = [identifier for identifier, state, _ in rows if state != State.RUNNING]
            sizes = [size for _, state, size in rows if state != State.RUNNING]
            connection.execute(CANCEL_WAITING, (self.keep, waiting))
            connection.execute(CANCEL_RUNNING, (running,))
            count(connection, self._lease.owner, sizes, -1)
        return [identifier for identifier, *_ in rows]

    def retry(self, ids: Iterable[int], now: float) -> list[int]:
        """Queue dead letters and cancelled tasks again, as if they had never run."""
        with self._database.changing() as connection:
            changed = connection.execute(REQUEUE, (possible_ids(ids),)).fetchall()
            count(connection, self._lease.owner, [size for _, size in changed], 1)
        return sorted(identifier for identifier, _ in changed)

    def drop(self, ids: Iterable[int]) -> list[int]:
        """Delete finished tasks."""
        with self._database.changing() as connection:
            dropped = connection.execute(DROP, (possible_ids(ids),)).fetchall()
        return sorted(identifier for (identifier,) in dropped)
