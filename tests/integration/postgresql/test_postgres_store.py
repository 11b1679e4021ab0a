"""The PostgreSQL store: what every store promises, and what several spoolers share."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.postgresql.postgres import Spool, lease_of, store_of
from tests.integration.services import PATIENCE, until
from tests.store_contract import Bench, StoreContract, names, settle
from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.stores import sql
from uwsgitwisted.spool.stores.bounds import Usage
from uwsgitwisted.spool.stores.interface import Settlement
from uwsgitwisted.spool.stores.postgres import add as postgres_add
from uwsgitwisted.spool.stores.postgres import claim as postgres_claim
from uwsgitwisted.spool.stores.postgres import lease as postgres_lease
from uwsgitwisted.spool.stores.postgres import store as postgres
from uwsgitwisted.spool.stores.postgres.schema import mark_values
from uwsgitwisted.spool.task import State, Task

pytestmark = [pytest.mark.integration, pytest.mark.needs("postgresql")]


class TestPostgresStore(StoreContract):
    """All that every store promises."""


# Several spoolers.


def test_race(spool: Spool) -> None:
    """Two spoolers that claim at the same time share a thousand tasks, each of which is claimed once."""
    benches = [spool.open(), spool.open()]
    ids = benches[0].add(*(str(number) for number in range(1000)))
    claimed: list[int] = []
    barrier = threading.Barrier(2)

    def work(bench: Bench) -> int:
        mine = cycles = 0
        while len(claimed) < len(ids):
            cycles += 1
            if cycles <= 10:  # at first they are in step, so that each gets some
                barrier.wait(PATIENCE)
            tasks = bench.cycle(4, prefetch=3).claimed
            claimed.extend(task.id for task in tasks)
            mine += len(tasks)
        return mine

    with ThreadPoolExecutor(2) as pool:
        shares = list(pool.map(work, benches))
    assert sorted(claimed) == ids
    assert min(shares) > 0


def test_usage_of_several(spool: Spool) -> None:
    """What is counted of the queue is the same for all spoolers, and no count is lost when one ends."""
    first, second = spool.open(), spool.open()
    ids = first.add("one", "two", key="")
    assert first.store.usage() == second.store.usage() == Usage(2, 6)
    second.cycle(2)
    second.finish(*ids)
    second.add("three")
    assert first.store.usage() == second.store.usage() == Usage(1, 5)
    for bench in (first, second):
        bench.store.close()
    third, fourth = spool.open(), spool.open()
    assert third.store.usage() == fourth.store.usage() == Usage(1, 5)
    assert len(spool.execute("SELECT owner FROM {}.usage")) == 1


def test_locked_tasks_are_stepped_over(spool: Spool, bench: Bench) -> None:
    """What another is about to claim is left to it, without waiting; it is still said to be ready."""
    first, second = bench.add("a", "b")
    with spool.transaction() as other:
        other.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (first,))
        cycle = bench.cycle(5)
        assert ([task.id for task in cycle.claimed], cycle.ready) == ([second], {None})
    assert [task.id for task in bench.cycle(5).claimed] == [first]


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
    """A task is stored whose key was there, but is deleted while the task is added."""
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
        "WITH gone AS (DELETE FROM tasks WHERE queue = ANY(%s::text[]) AND key = ANY(%s::text[])) "
        "SELECT queue, key, id FROM tasks WHERE false",
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
    """The cancellation of a task that starts at that moment is reported to the spooler that runs it."""
    (identifier,) = bench.add("a")
    with ThreadPoolExecutor(1) as pool:
        with spool.transaction() as other:
            other.execute("UPDATE tasks SET state = 2, owner = %s", (lease_of(bench).owner,))
            cancelling = pool.submit(bench.store.cancel, [identifier], 0.0)
            until(spool.blocked, "the cancelling waits for the claim")
        assert cancelling.result(PATIENCE) == [identifier]
    lease_of(bench).held.add(identifier)
    assert bench.cycle(0).cancelling == [identifier]


def test_cancelled_while_it_ends(spool: Spool, bench: Bench) -> None:
    """A task that is cancelled at the moment when it ends for another try isn't tried again."""
    (identifier,) = bench.run("a")
    with ThreadPoolExecutor(1) as pool:
        with spool.transaction() as other:
            other.execute("UPDATE tasks SET cancelling = true")
            settling = pool.submit(bench.cycle, 9, settle(identifier, Action.RETRY, 1, 0, 0.0))
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
        action = self._random.choice(
            [Action.FINISH, Action.RETRY, Action.RETRY, Action.DEAD_LETTER, Action.CANCEL]
        )
        return settle(identifier, action, attempts, 0, self._random.choice([None, 0.0, 0.01]), "why")

    def cycle(self) -> None:
        ended = self._random.sample(sorted(self._mine), len(self._mine) // 2)
        cycle = self._bench.cycle(8, *map(self.ending, ended), prefetch=4)
        for task in cycle.claimed:
            assert task.id not in self._everybody_runs
            self._everybody_runs.add(task.id)
            self._mine[task.id] = task

    def work(self) -> None:
        store = self._bench.store
        steps: list[Callable[[], object]] = [
            self.cycle,
            self.cycle,
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
        bench.finish(*(task.id for task in bench.cycle(500).claimed))
        return all(state.final for state in bench.states().values())

    until(is_over, "the end of all tasks")


# How much is done at once.


def test_many_become_due_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When more tasks become due than one cycle makes ready, the earliest go first and none is left out."""
    monkeypatch.setattr(postgres, "PROMOTE_LIMIT", 2)
    bench.store.add([bench.task(str(number), later=100 + number) for number in range(5)])
    bench.pass_time(200)
    cycles = [bench.cycle(9) for _ in range(3)]
    assert [names(cycle) for cycle in cycles] == [["0", "1"], ["2", "3"], ["4"]]
    assert [cycle.wait for cycle in cycles] == [0, 0, None]


def test_many_are_forgotten_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When many tasks expire, one cycle deletes a part of them."""
    monkeypatch.setattr(postgres, "EXPIRE_LIMIT", 2)
    bench.finish(*bench.run("a", "b", "c"))
    bench.pass_time(1e6)
    bench.cycle(0)
    assert len(bench.states()) == 1
    bench.cycle(0)
    assert bench.states() == {}


def test_large_bodies_ahead(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many bytes are prefetched; a free worker gets more."""
    monkeypatch.setattr(postgres_claim, "PREFETCH_BYTES", 1000)
    bench.store.add([bench.task(str(number), body=b"x" * 600) for number in range(9)])
    assert names(bench.cycle(0, prefetch=9)) == ["0", "1"]
    assert names(bench.cycle(4, prefetch=9)) == ["2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("statement", "values", "indexes"),
    [
        (postgres_claim.READY, {"queues": ["a"], "held": [1], "share": 5}, {"tasks_ready"}),
        (postgres_claim.ANY_READY, {"queues": ["a"], "held": [1]}, {"tasks_ready"}),
        (postgres_claim.QUEUES, {"last": "a", "others": ["b"]}, {"tasks_ready"}),
        (mark_values(postgres_claim.WAITING_QUEUES), (5, 5), {"tasks_ready", "tasks_later"}),
        (postgres.PROMOTE, (1.0, 5), {"tasks_scheduled", "tasks_pkey"}),
        (postgres.EXPIRED, (1.0, 5), {"tasks_expiring"}),
        (postgres.EXPIRE, ([1],), {"tasks_pkey"}),
        (sql.NEXT_SCHEDULED, (), {"tasks_scheduled"}),
        (postgres_add.FIND_KEYS, (["a"], ["k"]), {"tasks_key"}),
        (postgres.OUTLOOK, (uuid4(),), {"tasks_scheduled", "tasks_expiring", "tasks_cancelling"}),
        (postgres_lease.LEFT, {"limit": 5}, {"tasks_running", "spoolers_pkey"}),
        (postgres_lease.ORPHANS, {"owner": uuid4(), "held": [1]}, {"tasks_running"}),
        (postgres_lease.RETURN, {"owner": uuid4(), "held": [1]}, {"tasks_running"}),
    ],
)
def test_plans(spool: Spool, bench: Bench, statement: str, values: Any, indexes: set[str]) -> None:
    """Each step of a cycle reads its own index in order, whatever the statistics say, and sorts nothing."""
    spool.execute("ANALYZE {}.tasks")
    bench.store.add([bench.task(later=1000) for _ in range(1000)])
    with store_of(bench)._database.reading() as connection:
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
