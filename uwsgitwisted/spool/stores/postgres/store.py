"""The store of tasks in a PostgreSQL database, for several spoolers at once.

All of them go by the server's clock. What several do at the same time is kept apart by the locks of rows: a
spooler steps over what another is about to take, and whoever waits for several tasks or keys does so in their
order, so that no two wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from zope.interface import implementer

from uwsgitwisted.errors import Busy, SpoolError

try:
    from psycopg import Connection
except ImportError as error:
    raise SpoolError(
        "a spool in PostgreSQL needs the package psycopg: pip install 'uwsgitwisted[postgres]'"
    ) from error

from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.stores.bounds import NO_BOUNDS, AdmissionControl, Bounds, Usage
from uwsgitwisted.spool.stores.interface import (
    EXPIRE_LIMIT,
    KEEP_RESULTS,
    LARGEST_ID,
    OCCURRENCE_SPAN,
    SMALL_RESULT,
    Cycle,
    Demand,
    ISpoolStore,
    Record,
    Settlement,
    first_expired,
    possible_ids,
)
from uwsgitwisted.spool.stores.postgres.add import NEXT_SCHEDULED, NOTIFY, add_tasks, chunks
from uwsgitwisted.spool.stores.postgres.claim import PAUSED, WAITING_QUEUES, Claimer
from uwsgitwisted.spool.stores.postgres.lease import HEARTBEAT, Lease, Moment
from uwsgitwisted.spool.stores.postgres.listener import Listener
from uwsgitwisted.spool.stores.postgres.schema import BODILESS, NOW, SIZE
from uwsgitwisted.spool.stores.postgres.server import Server, parse_address
from uwsgitwisted.spool.stores.postgres.usage import count, inherit, read_usage
from uwsgitwisted.spool.task import State, Task

#: How many tasks whose time has come are made ready in one turn. With more, the earliest go first.
PROMOTE_LIMIT = 1_000

# ruff: noqa: S608 - the statements are put together from constants
PROMOTE = """WITH due AS MATERIALIZED (
        SELECT id FROM tasks WHERE state = 0 AND at <= %s ORDER BY at LIMIT %s FOR UPDATE SKIP LOCKED)
    UPDATE tasks SET state = 1 FROM due WHERE tasks.id = due.id"""
EXPIRED = """SELECT id, octet_length(body) + octet_length(result) FROM tasks WHERE expires <= %s
    ORDER BY expires LIMIT %s FOR UPDATE SKIP LOCKED"""
EXPIRE = "DELETE FROM tasks WHERE id = ANY(%s)"
NEXT_EXPIRY = "SELECT expires FROM tasks WHERE expires IS NOT NULL ORDER BY expires LIMIT 1"
OUTLOOK = f"""SELECT ({NEXT_SCHEDULED}), ({NEXT_EXPIRY}),
    ARRAY(SELECT id FROM tasks WHERE cancelling AND owner = %s)"""

MINE = f"""SELECT id, cancelling, {SIZE} FROM tasks WHERE id = ANY(%(ids)s) AND state = 2 AND owner = %(owner)s
    ORDER BY id FOR UPDATE"""
_ENDED = """FROM unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(crashes)s::integer[],
        %(delays)s::float8[], %(errors)s::text[], %(results)b::bytea[])
        AS ended (id, attempts, crashes, delay, error, result)
    WHERE tasks.id = ended.id"""
_COUNTED = "owner = NULL, cancelling = false, attempts = ended.attempts, crashes = ended.crashes"
_ERROR = "error = coalesce(nullif(ended.error, ''), tasks.error)"
FINISH = f"""UPDATE tasks SET state = 3, {_COUNTED}, finished = %(now)s, expires = %(now)s + %(keep)s,
    body = '', result = ended.result {_ENDED}"""
POSTPONE = f"""UPDATE tasks SET state = CASE WHEN ended.delay IS NULL THEN 1 ELSE 0 END,
    at = coalesce(%(now)s + ended.delay, tasks.at), {_COUNTED}, {_ERROR} {_ENDED}"""
DEAD_LETTER = f"UPDATE tasks SET state = 4, {_COUNTED}, {_ERROR}, finished = %(now)s {_ENDED}"
CANCELLED = f"""UPDATE tasks SET state = 5, owner = NULL, cancelling = false, finished = %(now)s,
    expires = %(now)s + %(keep)s {_ENDED}"""
FORGET = f"DELETE FROM tasks USING {_ENDED.removeprefix('FROM ')}"
#: How each action is written down, where what is over is kept for a while, and where it is not.
_SETTLE = {
    Action.FINISH: FINISH,
    Action.RETRY: POSTPONE,
    Action.DEAD_LETTER: DEAD_LETTER,
    Action.CANCEL: CANCELLED,
}
_SETTLE_UNKEPT = _SETTLE | {Action.FINISH: FORGET, Action.CANCEL: FORGET}

# Locked before anything is decided about it: it may begin to run, or end, at the same moment.
CANCELLABLE = f"""SELECT id, state, {SIZE} FROM tasks
    WHERE id = ANY(%s::bigint[]) AND state <= 2 AND NOT cancelling ORDER BY id FOR UPDATE"""
CANCEL_WAITING = f"""UPDATE tasks SET state = 5, finished = {NOW}, expires = {NOW} + %s
    WHERE id = ANY(%s::bigint[])"""
CANCEL_RUNNING = "UPDATE tasks SET cancelling = true WHERE id = ANY(%s::bigint[])"
_THESE = """WITH these AS MATERIALIZED (
    SELECT id FROM tasks WHERE id = ANY(%s::bigint[]) AND {} ORDER BY id FOR UPDATE)"""
AGAIN = f"""{_THESE.format("state IN (4, 5)")}
    UPDATE tasks SET state = 1, at = {NOW}, attempts = 0, crashes = 0, finished = NULL, expires = NULL
    FROM these WHERE tasks.id = these.id RETURNING tasks.id, {SIZE}"""
DROP = f"""{_THESE.format("state >= 3")} DELETE FROM tasks USING these WHERE tasks.id = these.id
    RETURNING tasks.id"""
_SMALL_RESULT = f"CASE WHEN octet_length(result) <= {SMALL_RESULT} THEN result ELSE '' END"
RECORDS = f"""SELECT {BODILESS}, state, started, finished, error, {_SMALL_RESULT}, octet_length(body),
    octet_length(result) FROM tasks"""
HORIZON = "SELECT id FROM tasks WHERE id > %s ORDER BY id LIMIT 1 OFFSET %s"
COUNTS = "SELECT queue, state, count(*) FROM tasks WHERE id > %s AND id <= %s GROUP BY 1, 2"
OCCURRED = """INSERT INTO periodic (name, at) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET at = excluded.at
    WHERE periodic.at < excluded.at OR periodic.at > excluded.at + %s"""


@implementer(ISpoolStore)
class PostgresStore:
    """Tasks in a database that several spoolers share.

    :param url: ``postgresql://user:password@host/database``; see :func:`.server.parse_address`.
    :param keep: for how long what is known of a task that is over is kept, in seconds.
    :param bounds: what it holds at most. What counts are the variables and bodies of tasks that are not over.
    :raises SpoolError: if *url* can't be understood.
    """

    heartbeat = HEARTBEAT

    def __init__(self, url: str, *, keep: float = KEEP_RESULTS, bounds: Bounds = NO_BOUNDS) -> None:
        address = parse_address(url)
        self.description = address.description
        self.keep = keep
        self._server = Server(address)
        self._listener: Listener | None = None
        self._lease = Lease()
        self._claimer = Claimer()
        self._gate = AdmissionControl(bounds, self.usage, self.waiting_queues, time.monotonic)

    def open(self, woken: Callable[[], None]) -> None:
        """Connect, and create the tables where there are none.

        :raises SpoolCorrupt: if the schema holds something else, or a newer spool; it was left as it is.
        :raises SpoolError: if the server can't be reached, or doesn't keep what it commits.
        """
        self._lease = Lease()
        self._server.open()
        try:
            with self._server.transaction() as connection:
                inherit(connection, self._lease.owner)
            self._listener = Listener(self._server, woken)
        except BaseException:
            self._server.close()
            raise

    def close(self) -> None:
        """Close the connections. Tasks that this spooler runs are taken over by others."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.stop()
        try:
            with self._server.reading() as connection:
                self._lease.leave(connection)
        except SpoolError:
            pass  # then the others notice by its silence
        finally:
            self._server.close()

    # What the spooler's loop calls.

    def add(self, tasks: Sequence[Task]) -> list[int]:
        """Store *tasks* in one transaction and return their ids, in the same order.

        If the answer to the commit is lost, they may be stored although this raises ``StoreUnavailable``.
        Whoever then asks again has them run twice, unless they have idempotency keys.
        """
        with self._server.transaction() as connection:
            return add_tasks(connection, tasks, self._lease)

    def usage(self) -> Usage:
        """Return how full the spool is, by what all spoolers have committed."""
        with self._server.reading() as connection:
            return read_usage(connection)

    def waiting_queues(self, limit: int) -> set[str]:
        """Return the queues with a name in which tasks wait, up to *limit* of them."""
        with self._server.reading() as connection:
            rows = connection.execute(WAITING_QUEUES, (limit, limit)).fetchall()
        return set(list(dict.fromkeys(queue for (queue,) in rows))[:limit])

    def refusals(self, tasks: Sequence[Task]) -> list[Busy | None]:
        """Return why each of *tasks* is refused; None for those that are to be added."""
        return self._gate.refusals(tasks)

    def advance(self, settlements: Sequence[Settlement], demand: Demand, now: float) -> Cycle:
        """Write down how tasks ended and claim the next ones, in one transaction."""
        try:
            with self._server.transaction() as connection:
                moment, turn = self._turn(connection, settlements, demand)
        except BaseException:
            self._lease.failed()
            self._show_alive()
            raise
        given = [task.id for task in (*turn.claimed, *turn.orphans)]
        self._lease.committed(moment, [settlement.id for settlement in settlements], given)
        return turn

    def _show_alive(self) -> None:
        """Keep the lease although the turn failed, as it does as long as somebody holds a task of it."""
        with suppress(SpoolError), self._server.transaction() as connection:
            self._lease.show(connection)

    def _turn(
        self, connection: Connection[Any], settlements: Sequence[Settlement], demand: Demand
    ) -> tuple[Moment, Cycle]:
        moment = self._lease.begin(connection)
        now = moment.now
        settled = self._settle(connection, settlements, now)
        over = first_expired(connection.execute(EXPIRED, (now, EXPIRE_LIMIT)))
        if over:
            connection.execute(EXPIRE, (over,))
        connection.execute(PROMOTE, (now, PROMOTE_LIMIT))
        held = self._lease.held.difference(settlement.id for settlement in settlements)
        claimant = {"owner": self._lease.owner, "held": list(held), "now": now}
        claimed, ready = self._claimer.claim(connection, demand, claimant)
        ((next_at, next_expiry, cancelling),) = connection.execute(OUTLOOK, (self._lease.owner,))
        if settled:
            connection.execute(NOTIFY)
        wait = None if next_at is None else max(next_at - now, 0.0)
        upkeep = None if next_expiry is None else max(next_expiry - now, 0.0)
        return moment, Cycle(claimed, ready, wait, moment.orphans, cancelling, upkeep)

    def _settle(self, connection: Connection[Any], settlements: Sequence[Settlement], now: float) -> bool:
        """Write down how tasks ended, those that are still this spooler's; return whether there were any."""
        if not settlements:
            return False
        endings = {settlement.id: settlement for settlement in settlements}
        actions: dict[Action, list[Settlement]] = {}
        over: list[int] = []  # their sizes
        mine = connection.execute(MINE, {"ids": list(endings), "owner": self._lease.owner})
        for identifier, cancelling, size in mine:
            action = endings[identifier].decision.action
            if action is Action.RETRY and cancelling:
                action = Action.CANCEL
            if action is not Action.RETRY:
                over.append(size)
            actions.setdefault(action, []).append(endings[identifier])
        statements = _SETTLE if self.keep else _SETTLE_UNKEPT
        for action, all_ended in actions.items():
            for ended in chunks(all_ended, _size):
                connection.execute(statements[action], _columns(ended) | {"now": now, "keep": self.keep})
        count(connection, self._lease.owner, over, -1)
        return bool(actions)

    def shift(self, seconds: float, latest: float) -> None:
        """Do nothing: all goes by the server's clock."""

    def occur(self, name: str, at: float, task: Task | None) -> bool:
        """Store an occurrence of the periodic task *name*, if that is still to be done."""
        with self._server.transaction() as connection:
            new = connection.execute(OCCURRED, (name, at, OCCURRENCE_SPAN)).rowcount == 1
            if new and task is not None:
                add_tasks(connection, [task], self._lease)
            return new

    def last_occurrence(self, name: str) -> float | None:
        """Return the time of the last occurrence of the periodic task *name*, in unix seconds."""
        with self._server.reading() as connection:
            row = connection.execute("SELECT at FROM periodic WHERE name = %s", (name,)).fetchone()
        return None if row is None else row[0]

    # What people ask.

    def find(self, ids: Iterable[int]) -> list[Record]:
        """Return what is known of the tasks *ids*, in the order of their ids."""
        return self._records(f"{RECORDS} WHERE id = ANY(%s::bigint[]) ORDER BY id", (possible_ids(ids),))

    def states(self, ids: Iterable[int]) -> dict[int, State]:
        """Return the states of the tasks *ids*, without those that are unknown."""
        statement = "SELECT id, state FROM tasks WHERE id = ANY(%s::bigint[])"
        with self._server.reading() as connection:
            rows = connection.execute(statement, (possible_ids(ids),)).fetchall()
        return {identifier: State(state) for identifier, state in rows}

    def body(self, identifier: int) -> bytes:
        """Return the body of a task; empty if it has none, or is unknown."""
        return self._column("body", identifier)

    def result(self, identifier: int) -> bytes:
        """Return what a task's handler returned; empty for nothing, or if it is unknown."""
        return self._column("result", identifier)

    def _column(self, name: str, identifier: int) -> bytes:
        statement = f"SELECT {name} FROM tasks WHERE id = ANY(%s::bigint[])"
        with self._server.reading() as connection:
            row = connection.execute(statement, (possible_ids([identifier]),), binary=True).fetchone()
        return row[0] if row else b""

    def horizon(self, after: int, number: int) -> int:
        """Return the id of the task that is the *number*-th above *after*; LARGEST_ID if there are fewer."""
        with self._server.reading() as connection:
            row = connection.execute(HORIZON, (after, number - 1)).fetchone()
        return LARGEST_ID if row is None else row[0]

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
        statement = f"{RECORDS} WHERE id > %s AND id <= %s"
        values: list[Any] = [after, until]
        # Written so that no index of these columns is used, whose entries would all have to be sorted.
        if state is not None:
            statement += f" AND state + 0 = {int(state)}"
        if queue is not None:
            statement += " AND queue || '' = %s"
            values.append(queue)
        return self._records(f"{statement} ORDER BY id LIMIT %s", (*values, limit))

    def _records(self, statement: str, values: Sequence[Any]) -> list[Record]:
        with self._server.reading() as connection:
            rows = connection.execute(statement, values, binary=True).fetchall()
        return list(map(_record, rows))

    def counts(self, after: int = 0, until: int = LARGEST_ID) -> dict[tuple[str, State], int]:
        """Return how many tasks there are with an id above *after* and up to *until*, by queue and state."""
        with self._server.reading() as connection:
            rows = connection.execute(COUNTS, (after, until)).fetchall()
        return {(queue, State(state)): number for queue, state, number in rows}

    def paused(self) -> set[str]:
        """Return the queues that are paused."""
        with self._server.reading() as connection:
            return {queue for (queue,) in connection.execute(PAUSED)}

    def pause(self, queue: str, paused: bool) -> None:
        """Give out no task of *queue* any more, or do so again."""
        statement = (
            "INSERT INTO paused VALUES (%s) ON CONFLICT DO NOTHING"
            if paused
            else "DELETE FROM paused WHERE queue = %s"
        )
        with self._server.transaction() as connection:
            connection.execute(statement, (queue,))
            connection.execute(NOTIFY)

    def cancel(self, ids: Iterable[int], now: float) -> list[int]:
        """Take tasks back that wait; those that run are reported to their spooler in its next turn."""
        with self._server.transaction() as connection:
            rows = connection.execute(CANCELLABLE, (possible_ids(ids),)).fetchall()
            running = [identifier for identifier, state, _ in rows if state == State.RUNNING]
            waiting = [identifier for identifier, state, _ in rows if state != State.RUNNING]
            sizes = [size for _, state, size in rows if state != State.RUNNING]
            connection.execute(CANCEL_WAITING, (self.keep, waiting))
            connection.execute(CANCEL_RUNNING, (running,))
            count(connection, self._lease.owner, sizes, -1)
            connection.execute(NOTIFY)
        return [identifier for identifier, *_ in rows]

    def retry(self, ids: Iterable[int], now: float) -> list[int]:
        """Have dead letters and cancelled tasks run again, as if they had never run."""
        with self._server.transaction() as connection:
            changed = connection.execute(AGAIN, (possible_ids(ids),)).fetchall()
            count(connection, self._lease.owner, [size for _, size in changed], 1)
            connection.execute(NOTIFY)
        return sorted(identifier for identifier, _ in changed)

    def drop(self, ids: Iterable[int]) -> list[int]:
        """Forget tasks that are over."""
        with self._server.transaction() as connection:
            dropped = connection.execute(DROP, (possible_ids(ids),)).fetchall()
            connection.execute(NOTIFY)
        return sorted(identifier for (identifier,) in dropped)


def _size(settlement: Settlement) -> int:
    return len(settlement.result) + len(settlement.decision.error)


def _columns(ended: Sequence[Settlement]) -> dict[str, Any]:
    decisions = [settlement.decision for settlement in ended]
    return {
        "ids": [settlement.id for settlement in ended],
        "attempts": [decision.attempts for decision in decisions],
        "crashes": [decision.crashes for decision in decisions],
        "delays": [decision.delay for decision in decisions],
        "errors": [decision.error for decision in decisions],
        "results": [settlement.result for settlement in ended],
    }


def _record(row: tuple[Any, ...]) -> Record:
    *task, state, started, finished, error, result, body_size, result_size = row
    return Record(Task(*task), State(state), started, finished, error, result, body_size, result_size)
