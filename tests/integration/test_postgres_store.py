"""The PostgreSQL store on a real server: what every store promises, and what several spoolers share."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.integration.postgres import PostgresServer, postgres_server
from tests.integration.services import PATIENCE, until
from tests.store_contract import Bench, StoreContract, about, names, nothing, settle
from uwsgitwisted.errors import SpoolCorrupt, SpoolError, StartupError, StoreUnavailable
from uwsgitwisted.spool import postgres, postgres_add, postgres_claim, postgres_lease, postgres_listener
from uwsgitwisted.spool import postgres_server as server_module
from uwsgitwisted.spool.descriptions import make_store
from uwsgitwisted.spool.postgres import PostgresStore
from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.stores import Settlement, Want
from uwsgitwisted.spool.task import State, Task

pytestmark = [pytest.mark.integration, pytest.mark.needs("postgresql")]

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        yield running


class Spool:
    """A schema for one test, and its stores."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.schema = f"spool_{next(_numbers)}"
        self.url = server.url(schema=self.schema)
        self._stores: list[PostgresStore] = []

    def open(self, woken: Callable[[], None] = nothing, **options: Any) -> Bench:
        """Return another spooler's bench."""
        store = PostgresStore(self.url, **options)
        store.open(woken)
        self._stores.append(store)
        return Bench(store, time.time, self.pass_time)  # the server has this machine's clock

    def close(self) -> None:
        for store in self._stores:
            store.close()

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Do what an administrator would; the schema stands in the statement as ``{}``."""
        return self.server.execute(statement.replace("{}", self.schema), *values)

    def server_age(self) -> float:
        """Return for how many seconds the server has run."""
        return time.time() - float(self.execute("SELECT extract(epoch FROM pg_postmaster_start_time())")[0][0])

    def pass_time(self, seconds: float) -> None:
        """Move all times back: the server's clock can't be set."""
        self.execute("UPDATE {}.tasks SET at = at - %s, expires = expires - %s", seconds, seconds)

    def silence(self, bench: Bench, seconds: float = 1000.0) -> None:
        """Have the last heartbeat of a spooler be so much older."""
        owner = lease_of(bench).owner
        self.execute("UPDATE {}.spoolers SET beat = beat - %s WHERE id = %s", seconds, owner)

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """Give another program's connection, whose transaction is committed when the block ends."""
        with psycopg.connect(self.server.url(), options=f"-csearch_path={self.schema}") as connection:
            yield connection

    def blocked(self) -> bool:
        """Whether somebody waits for a lock."""
        return bool(self.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


@pytest.fixture
def spool(server: PostgresServer) -> Iterator[Spool]:
    spool = Spool(server)
    yield spool
    spool.close()


@pytest.fixture
def bench(spool: Spool) -> Bench:
    return spool.open()


@pytest.fixture
def hasty(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each turn be one with a heartbeat, and leases be over soon; the server ran for longer than one."""
    monkeypatch.setattr(postgres_lease, "HEARTBEAT", 0.0)
    monkeypatch.setattr(postgres_lease, "LEASE", 0.5)
    until(lambda: spool.server_age() > postgres_lease.LEASE, "a lease since the server's start is over")


def store_of(bench: Bench) -> PostgresStore:
    assert isinstance(bench.store, PostgresStore)
    return bench.store


def lease_of(bench: Bench) -> postgres_lease.Lease:
    return store_of(bench)._lease


def in_thread(function: Callable[..., Any], *arguments: object) -> Future[Any]:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments)


class TestPostgresStore(StoreContract):
    """All that every store promises."""


# Several spoolers.


def test_race(spool: Spool) -> None:
    """Two spoolers that claim at the same time share a thousand tasks, each of which is claimed once."""
    benches = [spool.open(), spool.open()]
    ids = benches[0].add(*(str(number) for number in range(1000)))
    claimed: list[int] = []

    def work(bench: Bench) -> int:
        mine = 0
        while len(claimed) < len(ids):
            tasks = bench.turn(4, ahead=3).claimed
            claimed.extend(task.id for task in tasks)
            mine += len(tasks)
        return mine

    with ThreadPoolExecutor(2) as pool:
        shares = list(pool.map(work, benches))
    assert sorted(claimed) == ids
    assert min(shares) > 0


def test_locked_tasks_are_stepped_over(spool: Spool, bench: Bench) -> None:
    """What another is about to claim is left to it, without waiting; it is still said to be ready."""
    first, second = bench.add("a", "b")
    with spool.transaction() as other:
        other.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (first,))
        turn = bench.turn(5)
        assert ([task.id for task in turn.claimed], turn.ready) == ([second], {None})
    assert [task.id for task in bench.turn(5).claimed] == [first]


def test_same_keys_at_the_same_time(spool: Spool) -> None:
    """Spoolers that add the same keys at the same time, in any order, get the same ids, and both go on."""
    benches = [spool.open(), spool.open()]
    barrier = threading.Barrier(2)
    keys = [f"key {number}" for number in range(100)]

    def add(bench: Bench, place: int) -> list[dict[str, int]]:
        seen = []
        for round_number in range(20):
            mine = [f"{round_number} {key}" for key in keys]
            mine = mine[::-1] if place else mine
            tasks = [bench.task(key=key) for key in mine]
            barrier.wait(PATIENCE)
            seen.append(dict(zip(mine, bench.store.add(tasks), strict=True)))
        return seen

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(add, benches, (0, 1))
    assert one == other
    assert benches[0].store.counts() == {("", State.READY): 20 * len(keys)}


def test_key_is_forgotten_meanwhile(spool: Spool, bench: Bench) -> None:
    """A task whose key was stored, and is forgotten while it is added, is stored."""
    (old,) = bench.add("a", key="k")
    with ThreadPoolExecutor(1) as pool:
        with spool.transaction() as other:
            other.execute("DELETE FROM tasks")
            adding = pool.submit(bench.add, "a", key="k")
            until(spool.blocked, "the task waits for the other with its key")
        (new,) = adding.result(PATIENCE)
    assert new > old
    assert list(bench.states()) == [new]


def test_key_is_forgotten_between(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose key was there when it was tried, and is gone when that one is looked up, is stored too."""
    (old,) = bench.add("a", key="k")
    monkeypatch.setattr(
        postgres_add,
        "FIND_KEYS",
        "WITH gone AS (DELETE FROM tasks WHERE key = ANY(%s::text[])) SELECT key, id FROM tasks WHERE false",
    )
    first, second, third = bench.store.add([bench.task(key="k"), bench.task(), bench.task(key="k")])
    assert old < first == third < second
    assert list(bench.states()) == [first, second]


def test_occurrence_at_the_same_time(spool: Spool) -> None:
    """Of several spoolers that have the same occurrence, one stores it."""
    benches = [spool.open(), spool.open()]
    barrier = threading.Barrier(2)
    now = time.time()

    def occur(bench: Bench) -> list[bool]:
        answers = []
        for minute in range(50):
            barrier.wait(PATIENCE)
            answers.append(bench.store.occur("clean", now + 60 * minute, bench.task("t")))
        return answers

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(occur, benches)
    assert all(first != second for first, second in zip(one, other, strict=True))
    assert len(benches[0].states()) == 50


def test_cancelled_while_it_is_claimed(spool: Spool, bench: Bench) -> None:
    """A task that begins to run at the moment when it is cancelled is reported to the spooler that runs it."""
    (identifier,) = bench.add("a")
    with ThreadPoolExecutor(1) as pool:
        with spool.transaction() as other:
            other.execute("UPDATE tasks SET state = 2, owner = %s", (lease_of(bench).owner,))
            cancelling = pool.submit(bench.store.cancel, [identifier], 0.0)
            until(spool.blocked, "the cancelling waits for the claim")
        assert cancelling.result(PATIENCE) == [identifier]
    lease_of(bench).held.add(identifier)
    assert bench.turn(0).cancelling == [identifier]


def test_cancelled_while_it_ends(spool: Spool, bench: Bench) -> None:
    """A task that is cancelled at the moment when it ends for another try isn't tried again."""
    (identifier,) = bench.run("a")
    with ThreadPoolExecutor(1) as pool:
        with spool.transaction() as other:
            other.execute("UPDATE tasks SET cancelling = true")
            settling = pool.submit(bench.turn, 9, settle(identifier, Action.RETRY, 1, 0, 0.0))
            until(spool.blocked, "the end waits for the cancelling")
        assert settling.result(PATIENCE).claimed == []
    assert bench.states() == {identifier: State.CANCELLED}


class Turmoil:
    """One of several that do everything at once: whatever comes to mind, to whichever tasks.

    :param running: the ids of the tasks that anybody runs.
    """

    def __init__(self, bench: Bench, seed: int, running: set[int]) -> None:
        self._bench = bench
        self._random = random.Random(seed)
        self._everybody_runs = running
        self._mine: dict[int, Task] = {}

    def some_ids(self) -> list[int]:
        return self._random.sample(range(1, 600), 20)

    def ending(self, identifier: int) -> Settlement:
        attempts = self._mine.pop(identifier).attempts + 1
        self._everybody_runs.remove(identifier)
        action = self._random.choice([Action.FINISH, Action.RETRY, Action.RETRY, Action.BURY, Action.CANCEL])
        return settle(identifier, action, attempts, 0, self._random.choice([None, 0.0, 0.01]), "why")

    def turn(self) -> None:
        ended = self._random.sample(sorted(self._mine), len(self._mine) // 2)
        turn = self._bench.turn(8, *map(self.ending, ended), ahead=4)
        for task in turn.claimed:
            assert task.id not in self._everybody_runs
            self._everybody_runs.add(task.id)
            self._mine[task.id] = task

    def work(self) -> None:
        store = self._bench.store
        steps: list[Callable[[], object]] = [
            self.turn,
            self.turn,
            lambda: self._bench.add("a", "b", "c", queue=self._random.choice("xyz")),
            lambda: store.add([self._bench.task(key=str(number)) for number in self.some_ids()]),
            lambda: store.cancel(self.some_ids(), 0.0),
            lambda: store.retry(self.some_ids(), 0.0),
            lambda: store.drop(self.some_ids()),
            lambda: store.find(self.some_ids()),
        ]
        for _ in range(200):
            self._random.choice(steps)()
        self._bench.finish(*self._mine)


def test_turmoil(spool: Spool) -> None:
    """Whatever several spoolers do at once, they don't wait in a circle, and no task is lost or runs twice."""
    running: set[int] = set()
    everybody = [Turmoil(spool.open(), seed, running) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Turmoil.work, everybody))
    bench = spool.open()

    def is_over() -> bool:
        bench.finish(*(task.id for task in bench.turn(500).claimed))
        return all(state.final for state in bench.states().values())

    until(is_over, "the end of all tasks")


# Leases.

HOLDER = """
import sys
from uwsgitwisted.spool.postgres import PostgresStore
from uwsgitwisted.spool.stores import Settlement, Want
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
    assert not [orphan for bench in benches for orphan in bench.turn(0).orphans]
    holder.kill()
    holder.communicate()
    orphans: list[Task] = []

    def taken_over() -> bool:
        with ThreadPoolExecutor(2) as pool:
            for turn in pool.map(lambda bench: bench.turn(0), benches):
                orphans.extend(turn.orphans)
        return bool(orphans)

    until(taken_over, "the tasks are taken over")
    taken_over()
    assert [(orphan.id, orphan.ahead) for orphan in orphans] == [(ids[0], False), (ids[1], True)]
    assert len(spool.execute("SELECT 1 FROM {}.spoolers")) == 2


def test_lease(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spooler keeps its tasks, however long they run, unless it is silent for a whole lease."""
    monkeypatch.setattr(postgres_lease, "HEARTBEAT", 0.0)
    until(lambda: spool.server_age() > postgres_lease.LEASE, "a lease since the server's start is over")
    holder, other = spool.open(), spool.open()
    (identifier,) = holder.run("a")
    spool.execute("UPDATE {}.tasks SET started = started - 86400")
    spool.silence(holder, postgres_lease.LEASE / 2)
    assert other.turn(0).orphans == []
    holder.turn(0)
    spool.silence(holder, postgres_lease.LEASE / 2)
    assert other.turn(0).orphans == []
    spool.silence(holder, postgres_lease.LEASE)
    assert [orphan.id for orphan in other.turn(0).orphans] == [identifier]
    assert other.turn(0).orphans == []


@pytest.mark.usefixtures("hasty")
def test_lost_lease(spool: Spool) -> None:
    """A spooler that was taken for dead changes nothing any more, and doesn't run twice what it still runs."""
    lame, other = spool.open(), spool.open()
    (identifier,) = lame.run("a")
    spool.silence(lame)
    until(lambda: other.turn(0).orphans, "the task is taken over")
    assert lame.turn(9).orphans == []
    assert lame.turn(0, settle(identifier, Action.FINISH, 1)).claimed == []
    assert lame.states() == {identifier: State.RUNNING}
    # Once more, and this time it comes back while the first still runs it.
    other.turn(0, settle(identifier, Action.RETRY, 1))
    lame.turn(1)
    spool.silence(lame)
    until(lambda: other.turn(0).orphans, "the task is taken over")
    other.turn(0, settle(identifier, Action.RETRY, 2))
    turn = lame.turn(9)
    assert (turn.claimed, turn.ready) == ([], set())
    (again,) = lame.turn(9, settle(identifier, Action.FINISH, 2)).claimed
    assert (again.id, again.attempts) == (identifier, 2)


@pytest.mark.usefixtures("hasty")
def test_whoever_was_away_itself_takes_nothing_over(spool: Spool) -> None:
    """A spooler that could not show that it lives doesn't hold that against others."""
    holder, other = spool.open(), spool.open()
    (identifier,) = holder.run("a")
    other.turn(0)
    spool.silence(holder)
    lease = lease_of(other)
    assert lease._last_beat is not None
    lease._last_beat -= 1000
    assert other.turn(0).orphans == []
    until(lambda: other.turn(0).orphans, "the task is taken over")
    assert other.record(identifier).state is State.RUNNING


@pytest.mark.usefixtures("hasty")
def test_heartbeat_from_the_future(spool: Spool) -> None:
    """A heartbeat from before the server's clock was set back doesn't keep a dead spooler's tasks."""
    holder, other = spool.open(), spool.open()
    holder.run("a")
    spool.silence(holder, -1000)
    until(lambda: other.turn(0).orphans, "the task is taken over")


@pytest.mark.usefixtures("hasty")
def test_in_the_middle_of_a_transaction(spool: Spool) -> None:
    """A spooler whose large batch is under way lives, however long that takes."""
    holder, other = spool.open(), spool.open()
    holder.run("a")
    spool.silence(holder)
    with spool.transaction() as connection:
        lease_of(holder).show(connection)
        assert other.turn(0).orphans == []
    assert other.turn(0).orphans == []


def test_large_batch_shows_life(spool: Spool, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that takes many statements doesn't have its spooler taken for dead."""
    bench.turn(0)
    spool.silence(bench)
    monkeypatch.setattr(postgres_add, "CHUNK_BYTES", 1)
    bench.add("one", "two", "three")
    assert float(spool.execute("SELECT beat FROM {}.spoolers")[0][0]) == about(bench.now())


def test_quiet_turns_write_nothing(spool: Spool, bench: Bench) -> None:
    """Between heartbeats, a turn that finds nothing to do leaves nothing to be written to the disk."""
    bench.add("t", later=1000)
    bench.turn(1)
    count = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    before = spool.execute(count)[0][0]
    for _ in range(100):
        bench.turn(1)
    assert spool.execute(count)[0][0] - before < 20


def lose_answers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next transactions be committed, and their answers be lost."""
    server = store_of(bench)._server
    transaction = server.transaction

    @contextmanager
    def lost() -> Iterator[psycopg.Connection[Any]]:
        with transaction() as connection:
            yield connection
        raise StoreUnavailable("the connection broke")

    monkeypatch.setattr(server, "transaction", lost)


def test_lost_answer_to_a_claim(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of which the spooler never heard that it claimed them are given out once more, as they were."""
    (running,) = bench.run("runs")
    ids = bench.add("a", "b")
    with monkeypatch.context() as patch:
        lose_answers(bench, patch)
        with pytest.raises(StoreUnavailable):
            bench.turn(2)
    assert bench.states() == dict.fromkeys([running, *ids], State.RUNNING)
    turn = bench.turn(1)
    assert [(task.id, task.attempts) for task in turn.claimed] == [(ids[0], 0)]
    assert turn.orphans == []
    assert bench.states() == {running: State.RUNNING, ids[0]: State.RUNNING, ids[1]: State.READY}


def test_lost_answer_to_a_settlement(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """How tasks ended may be written down twice, also of one that was claimed again in the lost turn."""
    done, retried = bench.run("a", "b")
    endings = [settle(done, Action.FINISH, 1), settle(retried, Action.RETRY, 1, 0, 0.0, "why")]
    with monkeypatch.context() as patch:
        lose_answers(bench, patch)
        with pytest.raises(StoreUnavailable):
            bench.turn(5, *endings)
    assert bench.states() == {done: State.DONE, retried: State.RUNNING}
    (again,) = bench.turn(5, *endings).claimed
    assert (again.id, again.attempts) == (retried, 1)
    assert bench.record(done).task.attempts == 1


@pytest.mark.usefixtures("hasty")
def test_lost_answer_to_a_takeover(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orphans of which the spooler never heard come up in the next turn, still as orphans."""
    holder, other = spool.open(), spool.open()
    (identifier,) = holder.run("a")
    holder.store.close()
    with monkeypatch.context() as patch:
        lose_answers(other, patch)
        with pytest.raises(StoreUnavailable):
            other.turn(5)
    turn = other.turn(5)
    assert ([orphan.id for orphan in turn.orphans], turn.claimed) == ([identifier], [])
    # When it runs again, it is no orphan any more.
    other.turn(0, settle(identifier, Action.RETRY, 1))
    with monkeypatch.context() as patch:
        lose_answers(other, patch)
        with pytest.raises(StoreUnavailable):
            other.turn(5)
    turn = other.turn(5)
    assert ([claimed.id for claimed in turn.claimed], turn.orphans) == ([identifier], [])


def test_lost_answer_to_a_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose answer was lost is stored twice if it is sent again, unless it has keys."""
    with monkeypatch.context() as patch:
        lose_answers(bench, patch)
        with pytest.raises(StoreUnavailable):
            bench.store.add([bench.task("a", key="k"), bench.task("b")])
    bench.store.add([bench.task("a", key="k"), bench.task("b")])
    assert names(bench.turn(9)) == ["a", "b", "b"]


# Being woken.


@contextmanager
def heard(spool: Spool) -> Iterator[Callable[[], int]]:
    """Give a function that says how often the spoolers were told of something since it was last asked."""
    with closing(psycopg.connect(spool.server.url(), autocommit=True)) as connection:
        connection.execute(f"LISTEN {spool.schema}")

        def count() -> int:
            spool.execute("NOTIFY {}, 'that is all'")
            number = 0
            for notification in connection.notifies(timeout=PATIENCE):
                if notification.payload == "that is all":
                    break
                number += 1
            return number

        yield count


def test_notifications(spool: Spool, bench: Bench) -> None:
    """The spoolers are told, once a transaction, of what there is to do, earlier times, and what has ended."""
    with heard(spool) as count:
        ids = bench.add("a", "b", "c")
        assert count() == 1
        bench.add("t", later=1000)
        assert count() == 1
        bench.add("t", later=2000)
        bench.store.add([])
        assert count() == 0
        bench.store.add([bench.task(later=500), bench.task(later=3000)])
        assert count() == 1
        bench.turn(3)
        bench.turn(0)
        assert count() == 0
        bench.turn(0, settle(ids[0], Action.FINISH), settle(ids[1], Action.BURY), settle(ids[2], Action.RETRY))
        assert count() == 1
        bench.turn(0, settle(ids[0], Action.FINISH))
        assert count() == 0
        for change in (
            lambda: bench.store.retry([ids[1]], 0.0),
            lambda: bench.store.pause("q", True),
            lambda: bench.store.pause("q", False),
            lambda: bench.store.cancel(ids, 0.0),
            lambda: bench.store.occur("clean", 1.0, bench.task()),
        ):
            change()
            assert count() == 1


def test_woken(spool: Spool) -> None:
    """A spooler is woken by what another does, not by what it does itself."""
    woken = threading.Event()
    bench, other = spool.open(woken.set), spool.open()
    bench.add("a")
    other.store.add([])
    assert not woken.is_set()
    other.add("b")
    assert woken.wait(PATIENCE)


def test_burst_wakes_a_few_times(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often another commits, a spooler is woken at once, and then once in a while."""
    monkeypatch.setattr(postgres_listener, "PAUSE", PATIENCE)
    calls: list[int] = []
    woken = threading.Event()

    def wake() -> None:
        calls.append(1)
        woken.set()

    spool.open(wake)
    other = spool.open()
    for _ in range(50):
        other.add("a")
    assert woken.wait(PATIENCE)
    assert len(calls) == 1
    spool.close()


def test_nothing_is_left_running(spool: Spool) -> None:
    """A store that is closed leaves neither a thread nor a connection."""
    count = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'uwsgitwisted'"
    bench = spool.open()
    assert len(spool.execute(count)) == 2
    bench.store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "spool-listener"]
    until(lambda: not spool.execute(count), "the connections end")


# The server goes and comes.


@pytest.fixture
def restarted(server: PostgresServer) -> Iterator[PostgresServer]:
    """The server, for a test that stops it."""
    yield server
    server.stop()
    server.start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["ends", "crashes"])
def test_server_restarts(restarted: PostgresServer, spool: Spool, number: signal.Signals) -> None:
    """While the server is away all is refused; then all goes on by itself, with all that was acknowledged."""
    woken = threading.Event()
    bench, other = spool.open(woken.set), spool.open()
    (running,) = bench.run("runs", queue="a")
    (kept,) = bench.add("kept")
    restarted.stop(number)
    calls: tuple[Callable[[], object], ...] = (
        lambda: bench.store.add([Task(b"x", 1.0, 1.0)]),
        lambda: bench.store.advance([], {None: Want(1)}, 0.0),
        bench.store.counts,
    )
    for call in calls * 2:
        with pytest.raises(StoreUnavailable, match=r"can't be reached|the connection broke"):
            call()
    woken.clear()
    restarted.start()
    assert names(bench.turn(5)) == ["kept"]
    assert bench.states() == {running: State.RUNNING, kept: State.RUNNING}
    assert woken.wait(PATIENCE), "it looks for what it may not have heard"
    until(lambda: store_of(bench)._listener._session.usable, "it listens again")  # type: ignore[union-attr]
    woken.clear()
    (new,) = other.add("new")
    assert new > kept
    assert woken.wait(PATIENCE)


def test_first_call_after_a_restart(restarted: PostgresServer, bench: Bench) -> None:
    """A restart that happened while nobody asked anything is not noticed by who asks next."""
    bench.add("a")
    restarted.stop()
    restarted.start()
    assert names(bench.turn(5)) == ["a"]


def test_leases_after_a_restart(
    restarted: PostgresServer, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the server was away everybody gets a whole lease to come back, also from a spooler that is new."""
    monkeypatch.setattr(postgres_lease, "HEARTBEAT", 0.0)
    monkeypatch.setattr(postgres_lease, "LEASE", 3600.0)
    holder = spool.open()
    (identifier,) = holder.run("a")
    spool.silence(holder, 1e6)
    restarted.stop()
    restarted.start()
    new = spool.open()
    assert new.turn(0).orphans == []
    monkeypatch.setattr(postgres_lease, "LEASE", 0.1)
    until(lambda: new.turn(0).orphans, "the task is taken over")
    assert new.record(identifier).state is State.RUNNING


def test_connection_is_ended(spool: Spool, bench: Bench) -> None:
    """A connection that an administrator ends in the middle of a statement is made again."""
    pid = store_of(bench)._server.process
    with ThreadPoolExecutor(1) as pool:
        with spool.transaction() as other:
            other.execute("LOCK TABLE tasks")
            adding = pool.submit(bench.add, "a")
            until(spool.blocked, "the task waits for the lock")
            spool.execute("SELECT pg_terminate_backend(%s)", pid)
            with pytest.raises(StoreUnavailable, match="may have been done, or not"):
                adding.result(PATIENCE)
        assert len(bench.add("b")) == 1
    assert store_of(bench)._server.process != pid


def test_hung_server(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing any more is given up after a while; the next call has a new connection."""
    monkeypatch.setattr(server_module, "CALL_LIMIT", 0.2)
    monkeypatch.setattr(postgres_listener, "WATCH_INTERVAL", 0.05)
    bench = spool.open()
    pid = store_of(bench)._server.process
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        try:
            with pytest.raises(StoreUnavailable, match="the connection broke"):
                pool.submit(bench.add, "a").result(PATIENCE)
            monkeypatch.setattr(server_module, "CALL_LIMIT", 60.0)
            assert len(pool.submit(bench.add, "b").result(PATIENCE)) == 1
        finally:
            os.kill(pid, signal.SIGCONT)


def test_busy_server(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that waits for too long is given up, and nothing is changed."""
    monkeypatch.setattr(server_module, "STATEMENT_LIMIT", 0.1)
    bench = spool.open()
    with spool.transaction() as other:
        other.execute("LOCK TABLE tasks")
        with pytest.raises(StoreUnavailable, match="nothing was changed; look at what keeps the server busy"):
            bench.add("a")
    assert bench.states() == {}
    assert len(bench.add("b")) == 1


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("53100", StoreUnavailable, "goes on when the server's disk has space again"),
        ("53200", StoreUnavailable, "look at the server's memory"),
        ("58030", StoreUnavailable, "look at the server's disk"),
        ("25006", StoreUnavailable, "name a server that can be written"),
        ("40P01", StoreUnavailable, "another program works on the same tasks"),
        ("42501", StoreUnavailable, "give the user the rights"),
        ("42703", SpoolCorrupt, "restore them"),
        ("XX001", SpoolCorrupt, "may be damaged"),
        ("22003", SpoolError, "can't be stored"),
        ("P0001", SpoolError, "it is raised"),
    ],
)
def test_errors(spool: Spool, bench: Bench, code: str, kind: type[SpoolError], reason: str) -> None:
    """What goes wrong at the server is said in our words, undoes the batch, and doesn't end the connection."""
    spool.execute(
        "CREATE FUNCTION {}.fail() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE 'it is raised' USING ERRCODE = '{code}'; END $$;"
        "CREATE TRIGGER fail AFTER INSERT ON {}.tasks EXECUTE FUNCTION {}.fail()"
    )
    pid = store_of(bench)._server.process
    with pytest.raises(SpoolError, match=reason) as raised:
        bench.add("a")
    assert type(raised.value) is kind
    assert "it is raised" in str(raised.value)
    spool.execute("DROP TRIGGER fail ON {}.tasks")
    assert bench.states() == {}
    assert store_of(bench)._server.process == pid


@pytest.mark.parametrize("queue", ["a\0b", "\ud800"])
def test_names_that_are_no_text(bench: Bench, queue: str) -> None:
    """A name that the server can't hold is refused as such."""
    with pytest.raises(SpoolError, match="can't be stored"):
        bench.store.pause(queue, True)
    assert bench.store.paused() == set()


# What is promised of the disk.


def test_commits_wait_for_the_disk(spool: Spool) -> None:
    """A commit is on the disk whatever is the default of the user or the database; what asks for more stays."""
    for default, expected in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        spool.execute(f"ALTER ROLE postgres SET synchronous_commit = {default}")
        try:
            bench = spool.open()
            with store_of(bench)._server.reading() as connection:
                assert connection.execute("SHOW synchronous_commit").fetchone() == (expected,)
        finally:
            spool.execute("ALTER ROLE postgres RESET synchronous_commit")


def test_server_without_fsync(restarted: PostgresServer, spool: Spool) -> None:
    """A server that doesn't wait for its disk is refused, also later; but not if one says that it may be so."""
    bench = spool.open()
    restarted.stop()
    restarted.start(fsync="off")
    with pytest.raises(SpoolError, match="fsync is off"):
        bench.add("a")
    with pytest.raises(SpoolError, match="add fsync=off to the address"):
        spool.open()
    spool.url += "&fsync=off"
    assert len(spool.open().add("a")) == 1


# What is accepted as a spool.


def contents(spool: Spool) -> list[tuple[Any, ...]]:
    return spool.execute(
        "SELECT relname, relfilenode FROM pg_class WHERE relnamespace = to_regnamespace('{}') ORDER BY 1"
    )


def refused(spool: Spool, kind: type[SpoolError], reason: str) -> None:
    before = contents(spool)
    with pytest.raises(kind, match=reason):
        spool.open()
    assert contents(spool) == before


def test_created_once(spool: Spool) -> None:
    """Several spoolers that begin at the same time agree on the tables."""
    barrier = threading.Barrier(4)

    def open_and_add(number: int) -> list[int]:
        barrier.wait(PATIENCE)
        return spool.open().add("a")

    with ThreadPoolExecutor(4) as pool:
        ids = [identifier for some in pool.map(open_and_add, range(4)) for identifier in some]
    assert sorted(ids) == [1, 2, 3, 4]


def test_newer(spool: Spool, bench: Bench) -> None:
    """The spool of a newer release is refused and unchanged."""
    spool.execute("UPDATE {}.spool SET version = 99")
    refused(spool, SpoolCorrupt, "version 99, this program knows 1; nothing was changed")


@pytest.mark.parametrize(
    "table", ["tasks (id bigint)", "spool (id bigint)", "spool (version text)", "spool (version integer)"]
)
def test_foreign(spool: Spool, table: str) -> None:
    """A schema with something else in it is refused and unchanged."""
    spool.execute(f"CREATE SCHEMA {{}}; CREATE TABLE {{}}.{table}")
    refused(spool, SpoolCorrupt, "nothing was changed")


def test_prepared_schema(spool: Spool) -> None:
    """An empty schema that an administrator made is used, also by a user who could not make it."""
    spool.execute("CREATE ROLE {} LOGIN; CREATE SCHEMA {} AUTHORIZATION {}")
    spool.url = spool.url.replace("postgres@", f"{spool.schema}@")
    assert spool.open().add("a") == [1]


def test_user_without_rights(spool: Spool) -> None:
    """A user who may not create a schema is told so."""
    spool.execute("CREATE ROLE {} LOGIN")
    spool.url = spool.url.replace("postgres@", f"{spool.schema}@")
    refused(spool, StoreUnavailable, "give the user the rights")


def test_tables_are_gone(spool: Spool, bench: Bench) -> None:
    """Tables that vanish are reported, and not made anew, neither now nor after a new connection."""
    bench.add("a")
    spool.execute("ALTER SCHEMA {} RENAME TO gone")
    try:
        with pytest.raises(SpoolCorrupt, match="missing or were altered"):
            bench.add("b")
        session = store_of(bench)._server._session
        assert session is not None
        spool.execute("SELECT pg_terminate_backend(%s)", session.process)
        until(lambda: not session.usable, "the end of the connection")
        with pytest.raises(SpoolCorrupt, match="nothing any more"):
            bench.add("b")
    finally:
        spool.execute("ALTER SCHEMA gone RENAME TO {}")
    assert len(bench.add("c")) == 1
    assert len(bench.states()) == 2


def test_encoding(server: PostgresServer) -> None:
    """A database that can't hold every text is refused."""
    server.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(SpoolError, match="encoding is LATIN1; create one with ENCODING 'UTF8'"):
        PostgresStore(server.url("latin")).open(nothing)


def test_read_only_server(server: PostgresServer) -> None:
    """A server that can't be written, such as a replica, is refused."""
    server.execute("CREATE DATABASE replica")
    server.execute("ALTER DATABASE replica SET default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match=r"can't be reached.*read-only"):
        PostgresStore(server.url("replica")).open(nothing)


def test_no_such_database(server: PostgresServer) -> None:
    """A database that isn't there is named."""
    with pytest.raises(StoreUnavailable, match=r'can\'t be reached.*"missing" does not exist'):
        PostgresStore(server.url("missing")).open(nothing)


# The address.


@pytest.mark.parametrize(
    ("url", "description"),
    [
        ("postgresql://u:secret@h:99/d", "postgresql://u@h:99/d"),
        ("postgresql://h/d?password=secret&user=u", "postgresql://u@h/d"),
        ("postgresql://u:se%63ret@h1:1,h2:2/d", "postgresql://u@h1,h2:1,2/d"),
        ("postgresql://%2Frun%2Fpg/d?sslpassword=secret", "postgresql://%2Frun%2Fpg/d"),
        ("postgresql:///?schema=mine", "postgresql:///?schema=mine"),
    ],
)
def test_description(url: str, description: str) -> None:
    """A store says where it is without the password."""
    store = make_store(url)
    assert isinstance(store, PostgresStore)
    assert store.description == description
    assert "secret" not in repr(vars(store)) + repr(store._server.address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:secret@[h/d", "can't be understood"),
        ("postgresql://u:secret%zz@h/d", "%-codes for special characters"),
        ("postgresql://u:secret@h/d?nonsense=1", "can't be understood"),
        ("postgresql://u:secret\udc80@h/d", "can't be understood"),
        ("postgresql://u:secret@h/d?schema=pg_catalog", "names no schema"),
        ("postgresql://u:secret@h/d?schema=a;b", "small letters"),
        ("postgresql://u:secret@h/d?schema=", "names no schema"),
        ("postgresql://u:secret@h/d?fsync=on", "takes only 'off'"),
    ],
)
def test_bad_address(url: str, reason: str) -> None:
    """An address that can't be understood is refused without the password, also where a cause is shown."""
    with pytest.raises(StartupError, match=reason) as raised:
        make_store(url)
    error: BaseException | None = raised.value
    while error is not None:
        assert "secret" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_without_psycopg() -> None:
    """Where the library is missing, it is said how to get it."""
    program = """
import sys
sys.modules["psycopg"] = None
from uwsgitwisted.spool.descriptions import make_store
make_store("postgresql://h/d")
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert "pip install 'uwsgitwisted[postgres]'" in shown.stderr


# How much is done at once.


def test_many_become_due_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When more tasks become due than one turn makes ready, the earliest go first and none is forgotten."""
    monkeypatch.setattr(postgres, "PROMOTE_LIMIT", 2)
    bench.store.add([bench.task(str(number), later=100 + number) for number in range(5)])
    bench.pass_time(200)
    turns = [bench.turn(9) for _ in range(3)]
    assert [names(turn) for turn in turns] == [["0", "1"], ["2", "3"], ["4"]]
    assert [turn.wait for turn in turns] == [0, 0, None]


def test_many_are_forgotten_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When much is to be forgotten, one turn does a part of it."""
    monkeypatch.setattr(postgres, "EXPIRE_LIMIT", 2)
    bench.finish(*bench.run("a", "b", "c"))
    bench.pass_time(1e6)
    bench.turn(0)
    assert len(bench.states()) == 1
    bench.turn(0)
    assert bench.states() == {}


def test_large_bodies_ahead(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more is taken ahead than so many bytes; to begin, it is."""
    monkeypatch.setattr(postgres_claim, "AHEAD_BYTES", 1000)
    bench.store.add([bench.task(str(number), body=b"x" * 600) for number in range(9)])
    assert names(bench.turn(0, ahead=9)) == ["0", "1"]
    assert names(bench.turn(4, ahead=9)) == ["2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("statement", "values", "indexes"),
    [
        (postgres_claim.READY, {"queues": ["a"], "held": [1], "share": 5}, {"tasks_ready"}),
        (postgres_claim.ANY_READY, {"queues": ["a"], "held": [1]}, {"tasks_ready"}),
        (postgres_claim.QUEUES, {"last": "a", "others": ["b"]}, {"tasks_ready"}),
        (postgres.PROMOTE, (1.0, 5), {"tasks_scheduled", "tasks_pkey"}),
        (postgres.EXPIRE, (1.0, 5), {"tasks_expiring", "tasks_pkey"}),
        (postgres_add.NEXT_SCHEDULED, (), {"tasks_scheduled"}),
        (postgres_add.FIND_KEYS, (["a"],), {"tasks_key"}),
        (postgres.OUTLOOK, (uuid4(),), {"tasks_scheduled", "tasks_cancelling"}),
        (postgres_lease.LEFT, {"limit": 5}, {"tasks_running", "spoolers_pkey"}),
        (postgres_lease.ORPHANS, {"owner": uuid4(), "held": [1]}, {"tasks_running"}),
        (postgres_lease.GIVE_BACK, {"owner": uuid4(), "held": [1]}, {"tasks_running"}),
    ],
)
def test_plans(spool: Spool, bench: Bench, statement: str, values: Any, indexes: set[str]) -> None:
    """Each step of a turn reads its own index in order, whatever the statistics say, and sorts nothing."""
    spool.execute("ANALYZE {}.tasks")
    bench.store.add([bench.task(later=1000) for _ in range(1000)])
    with store_of(bench)._server.reading() as connection:
        connection.execute(statement, values, prepare=True)
        ((name, number),) = connection.execute(
            "SELECT name, cardinality(parameter_types) FROM pg_prepared_statements ORDER BY prepare_time DESC "
            "LIMIT 1"
        )
        nulls = f"({', '.join(['NULL'] * number)})" if number else ""
        plan = "\n".join(row[0] for row in connection.execute(f'EXPLAIN EXECUTE "{name}"{nulls}'))
    used = set(re.findall(r" using (\w+)", plan))
    assert used == indexes, plan
    assert not re.search("Seq Scan|Sort|Bitmap", plan)
