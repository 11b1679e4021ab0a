"""Those who wait for tasks: what is looked up for them, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from uwsgitwisted.errors import Busy, NoSuchTask, StoreUnavailable
from uwsgitwisted.spool import waiters as waiters_module
from uwsgitwisted.spool.slices import Job
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.spool.task import new_task
from uwsgitwisted.spool.waiters import Waiters
from uwsgitwisted.wire.vars import encode_vars

NOW = 1_700_000_000.0


class Bench:
    """A store that is asked when the test says so."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(str(path))
        self.store.open(lambda: None)
        self.waiters = Waiters(self)
        self.asked: list[tuple[Job[Any], Deferred[Any]]] = []
        self.looks = 0
        self.between: list[Any] = []

    def submit(self, group: str | None, job: Job[Any]) -> Deferred[Any]:
        assert group is None
        answer: Deferred[Any] = Deferred()
        self.asked.append((job, answer))
        return answer

    def look(self) -> None:
        """Have the one look done that was asked for."""
        ((job, answer),) = self.asked
        self.asked.clear()
        self.looks += 1
        steps = job(self.store)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                answer.callback(end.value)
                return
            for change in self.between:
                change()
            self.between.clear()

    def look_all(self) -> None:
        while self.asked:
            self.look()

    def add(self, number: int) -> list[int]:
        return self.store.add([new_task(encode_vars({"a": "b"}), NOW) for _ in range(number)])

    def wait(self, identifier: int, group: str = "peer") -> list[Any]:
        """Wait, and return a list that gets what comes of it."""
        results: list[Any] = []
        over = self.waiters.wait(identifier, group)
        over.addCallbacks(results.append, lambda failure: results.append(failure.value))
        return results


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "spool.sqlite")
    yield made
    made.store.close()


def test_looks_are_merged(bench: Bench) -> None:
    """One look is in flight; what comes meanwhile is looked up together in the next."""
    ids = bench.add(100)
    waiting = [bench.wait(identifier) for identifier in ids]
    bench.store.cancel(ids[:50], NOW)
    bench.look_all()
    assert bench.looks == 2
    assert [bool(results) for results in waiting] == [True] * 50 + [False] * 50
    assert waiting[0][0]["state"] == "cancelled"


def test_looks_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait, a look is for so many tasks at most."""
    monkeypatch.setattr(waiters_module, "LOOK", 10)
    ids = bench.add(95)
    for identifier in ids:
        bench.wait(identifier)
    bench.look_all()
    assert bench.looks == 1 + 10
    bench.waiters.look()
    bench.waiters.look()
    bench.look_all()
    assert bench.looks == 11 + 11  # those of the look in flight may have ended since


def test_only_what_somebody_waits_for(bench: Bench) -> None:
    """Tasks that nobody waits for aren't looked up, nor twice the same."""
    first, second = bench.add(2)
    bench.waiters.look([first])
    bench.waiters.look()
    assert not bench.asked
    waiting = [bench.wait(second) for _ in range(3)]
    bench.look_all()
    bench.waiters.look([first, second, second])
    bench.store.cancel([second], NOW)
    bench.look_all()
    assert bench.looks == 3
    assert [results[0]["id"] for results in waiting] == [second] * 3


def test_a_change_during_a_look(bench: Bench) -> None:
    """A task that ends while it is looked up is looked up again."""
    (task,) = bench.add(1)
    waiting = bench.wait(task)

    def end() -> None:
        bench.store.cancel([task], NOW)
        bench.waiters.look([task])

    bench.between.append(end)
    bench.look()
    assert not waiting
    bench.look_all()
    assert waiting[0]["state"] == "cancelled"


def test_a_task_that_runs_again(bench: Bench) -> None:
    """A task that was finished, but runs again, is still waited for; one that is gone by then is unknown."""
    ids = bench.add(2)
    bench.store.cancel(ids, NOW)
    waiting = [bench.wait(identifier) for identifier in ids]
    bench.look()

    def change() -> None:
        bench.store.retry(ids[1:], NOW)

    bench.between.append(change)
    bench.look_all()
    assert [bool(results) for results in waiting] == [True, False]
    again = bench.wait(ids[0])
    bench.between.append(lambda: bench.store.drop(ids[:1]))
    bench.look_all()
    assert isinstance(again[0], NoSuchTask)


def test_bounds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many of a peer wait, and so many in all; who leaves or gets an answer makes room."""
    monkeypatch.setattr(waiters_module, "MAX_PEER_WAITERS", 2)
    monkeypatch.setattr(waiters_module, "MAX_WAITERS", 3)
    first, second = bench.add(2)
    leaving = bench.waiters.wait(first, "a")
    told = bench.wait(second, "a")
    assert isinstance(bench.wait(first, "a")[0], Busy)
    assert bench.wait(first, "b") == []
    assert isinstance(bench.wait(first, "c")[0], Busy)
    leaving.addErrback(lambda _: None)
    leaving.cancel()
    assert bench.wait(first, "a") == []
    bench.store.cancel([second], NOW)
    bench.look_all()
    assert told[0]["state"] == "cancelled"
    assert bench.wait(first, "a") == []


def test_looked(bench: Bench) -> None:
    """A caller can wait until all have been told, and doesn't wait if nothing is looked up."""
    fired: list[None] = []
    bench.waiters.looked().addCallback(fired.append)
    assert fired == [None]
    bench.wait(*bench.add(1))
    bench.waiters.looked().addCallback(fired.append)
    assert fired == [None]
    bench.look_all()
    assert fired == [None, None]


def test_failures(bench: Bench) -> None:
    """When a look-up fails, its callers hear why, and the next tasks are looked up."""
    first, second = bench.add(2)
    waiting = bench.wait(first)
    bench.wait(second)
    ((_, answer),) = bench.asked
    bench.asked.clear()
    answer.errback(StoreUnavailable("gone"))
    assert isinstance(waiting[0], StoreUnavailable)
    assert len(bench.asked) == 1


def test_give_up(bench: Bench) -> None:
    """All who wait can be failed; leaving after that is safe."""
    waiting = [bench.wait(identifier) for identifier in bench.add(3)]
    bench.waiters.give_up(StoreUnavailable("gone"))
    assert all(isinstance(results[0], StoreUnavailable) for results in waiting)
    bench.look_all()
