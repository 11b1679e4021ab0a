"""Spoolers that share a PostgreSQL spool: what becomes of tasks when one ends, or an answer is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests.integration.postgresql.postgres import Spool, lease_of, store_of
from tests.integration.services import until
from tests.store_contract import Bench, about, names, settle
from uwsgitwisted.errors import StoreUnavailable
from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.stores.postgres import add as postgres_add
from uwsgitwisted.spool.stores.postgres import connection as postgres_connection
from uwsgitwisted.spool.stores.postgres import lease as postgres_lease
from uwsgitwisted.spool.task import State, Task

pytestmark = [pytest.mark.integration, pytest.mark.needs("postgresql")]


@pytest.fixture
def hasty(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each cycle be one with a heartbeat; the server ran for longer than a lease.

    That is shorter than usual, and longer than a spooler or this process may stand still.
    """
    monkeypatch.setattr(postgres_lease, "HEARTBEAT", 0.0)
    monkeypatch.setattr(postgres_lease, "LEASE", 5.0)
    until(lambda: spool.server_age() > postgres_lease.LEASE, "a lease since the server's start is over")


HOLDER = """
import sys
from uwsgitwisted.spool.stores.postgres.store import PostgresStore
from uwsgitwisted.spool.stores.interface import Settlement, Want
store = PostgresStore(sys.argv[1])
store.open(lambda: None)
print(*(task.id for task in store.advance([], {None: Want(1, 1)}, 0.0).claimed), flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("hasty")
def test_killed_spooler(spool: Spool) -> None:
    """What a spooler ran that was killed is taken over within seconds, by one of the others, once."""
    benches = [spool.open(), spool.open()]
    ids = benches[0].add("begun", "ahead", "waits")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, spool.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert list(map(int, holder.stdout.readline().split())) == ids[:2]
    assert not [orphan for bench in benches for orphan in bench.cycle(0).orphans]
    holder.kill()
    holder.communicate()
    spool.silence_others(*benches)
    orphans: list[Task] = []

    def taken_over() -> bool:
        with ThreadPoolExecutor(2) as pool:
            for cycle in pool.map(lambda bench: bench.cycle(0), benches):
                orphans.extend(cycle.orphans)
        return bool(orphans)

    until(taken_over, "the tasks are taken over")
    taken_over()
    assert [(orphan.id, orphan.prefetched) for orphan in orphans] == [(ids[0], False), (ids[1], True)]
    assert len(spool.execute("SELECT 1 FROM {}.spoolers")) == 2


@pytest.mark.usefixtures("hasty")
def test_a_task_that_somebody_holds(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that was left open keeps a spooler from writing down how a task ended, not from living."""
    monkeypatch.setattr(postgres_connection, "LOCK_LIMIT", 0.1)
    holder, other = spool.open(), spool.open()
    identifier, _ = holder.run("held", "runs on")
    with spool.transaction() as left_open:
        left_open.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (identifier,))
        for _ in range(3):  # for longer than a lease
            spool.silence(holder, 0.9 * postgres_lease.LEASE)
            with pytest.raises(StoreUnavailable, match="look for a transaction that was left open"):
                holder.cycle(1, settle(identifier, Action.FINISH, 1))
            assert other.cycle(0).orphans == []
    holder.finish(identifier)
    assert holder.record(identifier).state is State.DONE


def test_a_stuck_statement_is_shorter_than_a_lease() -> None:
    """A heartbeat that comes due while a statement is stuck comes in time."""
    assert postgres_lease.HEARTBEAT + postgres_connection.STATEMENT_LIMIT < postgres_lease.LEASE
    assert postgres_connection.LOCK_LIMIT < postgres_connection.STATEMENT_LIMIT


def test_lease(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spooler keeps its tasks, however long they run, unless it is silent for a whole lease."""
    monkeypatch.setattr(postgres_lease, "HEARTBEAT", 0.0)
    until(lambda: spool.server_age() > postgres_lease.LEASE, "a lease since the server's start is over")
    holder, other = spool.open(), spool.open()
    (identifier,) = holder.run("a")
    spool.execute("UPDATE {}.tasks SET started = started - 86400")
    spool.silence(holder, postgres_lease.LEASE / 2)
    assert other.cycle(0).orphans == []
    holder.cycle(0)
    spool.silence(holder, postgres_lease.LEASE / 2)
    assert other.cycle(0).orphans == []
    spool.silence(holder, postgres_lease.LEASE)
    assert [orphan.id for orphan in other.cycle(0).orphans] == [identifier]
    assert other.cycle(0).orphans == []


@pytest.mark.usefixtures("hasty")
def test_lost_lease(spool: Spool) -> None:
    """A spooler that was taken for dead changes nothing any more, and doesn't run twice what it still runs."""
    lame, other = spool.open(), spool.open()
    (identifier,) = lame.run("a")
    spool.silence(lame)
    until(lambda: other.cycle(0).orphans, "the task is taken over")
    assert lame.cycle(9).orphans == []
    assert lame.cycle(0, settle(identifier, Action.FINISH, 1)).claimed == []
    assert lame.states() == {identifier: State.RUNNING}
    # Once more, and this time it comes back while the first still runs it.
    other.cycle(0, settle(identifier, Action.RETRY, 1))
    lame.cycle(1)
    spool.silence(lame)
    until(lambda: other.cycle(0).orphans, "the task is taken over")
    other.cycle(0, settle(identifier, Action.RETRY, 2))
    cycle = lame.cycle(9)
    assert (cycle.claimed, cycle.ready) == ([], set())
    (again,) = lame.cycle(9, settle(identifier, Action.FINISH, 2)).claimed
    assert (again.id, again.attempts) == (identifier, 2)


@pytest.mark.usefixtures("hasty")
def test_whoever_was_away_itself_takes_nothing_over(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spooler that could not show that it lives doesn't hold that against others."""
    holder, other = spool.open(), spool.open()
    (identifier,) = holder.run("a")
    other.cycle(0)
    spool.silence(holder)
    lease = lease_of(other)
    assert lease._last_beat is not None
    lease._last_beat -= 1000
    assert other.cycle(0).orphans == []
    monkeypatch.setattr(postgres_lease, "LEASE", 0.5)
    until(lambda: other.cycle(0).orphans, "the task is taken over")
    assert other.record(identifier).state is State.RUNNING


@pytest.mark.usefixtures("hasty")
def test_heartbeat_from_the_future(spool: Spool) -> None:
    """A heartbeat from before the server's clock stepped back doesn't keep a dead spooler's tasks."""
    holder, other = spool.open(), spool.open()
    holder.run("a")
    spool.silence(holder, -1000)
    until(lambda: other.cycle(0).orphans, "the task is taken over")


@pytest.mark.usefixtures("hasty")
def test_in_the_middle_of_a_transaction(spool: Spool) -> None:
    """A spooler counts as alive during a large batch, however long that takes."""
    holder, other = spool.open(), spool.open()
    holder.run("a")
    spool.silence(holder)
    with spool.transaction() as connection:
        lease_of(holder).renew(connection)
        assert other.cycle(0).orphans == []
    assert other.cycle(0).orphans == []


def test_large_batch_shows_life(spool: Spool, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that takes many statements doesn't have its spooler taken for dead."""
    bench.cycle(0)
    spool.silence(bench)
    monkeypatch.setattr(postgres_add, "CHUNK_BYTES", 1)
    bench.add("one", "two", "three")
    assert float(spool.execute("SELECT beat FROM {}.spoolers")[0][0]) == about(bench.now())


def test_quiet_turns_write_nothing(spool: Spool, bench: Bench) -> None:
    """Between heartbeats, a cycle that finds nothing to do leaves nothing to be written to the disk."""
    bench.add("t", later=1000)
    bench.cycle(1)
    count = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    before = spool.execute(count)[0][0]
    for _ in range(100):
        bench.cycle(1)
    assert spool.execute(count)[0][0] - before < 20


@contextmanager
def lost_answers(bench: Bench) -> Iterator[None]:
    """Commit a transaction and lose its answer, so that its caller gets an error."""
    server = store_of(bench)._database
    transaction = server.transaction

    @contextmanager
    def lost() -> Iterator[psycopg.Connection[Any]]:
        with transaction() as connection:
            yield connection
        raise StoreUnavailable("the connection broke")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "transaction", lost)
        with pytest.raises(StoreUnavailable):
            yield


def test_lost_answer_to_a_claim(bench: Bench) -> None:
    """Tasks of which the spooler never heard that it claimed them are given out once more, as they were."""
    (running,) = bench.run("runs")
    ids = bench.add("a", "b")
    with lost_answers(bench):
        bench.cycle(2)
    assert bench.states() == dict.fromkeys([running, *ids], State.RUNNING)
    cycle = bench.cycle(1)
    assert [(task.id, task.attempts) for task in cycle.claimed] == [(ids[0], 0)]
    assert cycle.orphans == []
    assert bench.states() == {running: State.RUNNING, ids[0]: State.RUNNING, ids[1]: State.READY}


def test_lost_answer_to_a_settlement(bench: Bench) -> None:
    """Outcomes may be written twice, also of a task that was claimed again in the lost cycle."""
    done, retried = bench.run("a", "b")
    endings = [settle(done, Action.FINISH, 1), settle(retried, Action.RETRY, 1, 0, 0.0, "why")]
    with lost_answers(bench):
        bench.cycle(5, *endings)
    assert bench.states() == {done: State.DONE, retried: State.RUNNING}
    (again,) = bench.cycle(5, *endings).claimed
    assert (again.id, again.attempts) == (retried, 1)
    assert bench.record(done).task.attempts == 1


@pytest.mark.usefixtures("hasty")
def test_lost_answer_to_a_takeover(spool: Spool) -> None:
    """Orphans of which the spooler never heard come up in the next cycle, still as orphans."""
    holder, other = spool.open(), spool.open()
    (identifier,) = holder.run("a")
    holder.store.close()
    with lost_answers(other):
        other.cycle(5)
    cycle = other.cycle(5)
    assert ([orphan.id for orphan in cycle.orphans], cycle.claimed) == ([identifier], [])
    # When it runs again, it is no longer an orphan.
    other.cycle(0, settle(identifier, Action.RETRY, 1))
    with lost_answers(other):
        other.cycle(5)
    cycle = other.cycle(5)
    assert ([claimed.id for claimed in cycle.claimed], cycle.orphans) == ([identifier], [])


def test_lost_answer_to_a_batch(bench: Bench) -> None:
    """A batch whose answer was lost is stored twice if it is sent again, unless it has keys."""
    with lost_answers(bench):
        bench.store.add([bench.task("a", key="k"), bench.task("b")])
    bench.store.add([bench.task("a", key="k"), bench.task("b")])
    assert names(bench.cycle(9)) == ["a", "b", "b"]
