"""Which new tasks a full queue refuses, by what its store says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from uwsgitwisted.errors import Busy
from uwsgitwisted.spool.stores.bounds import (
    QUEUES_AGE,
    TASK_OVERHEAD,
    USAGE_AGE,
    AdmissionControl,
    Bounds,
    Usage,
    add_all,
    add_each,
)
from uwsgitwisted.spool.task import Task


class Store:
    """A store that says of itself what the test wants."""

    def __init__(self, bounds: Bounds, usage: Usage | None = None, queues: Sequence[str] = ()) -> None:
        self.told = usage or Usage(0, 0)
        self.queues = set(queues)
        self.asked: list[int] = []
        self.now = 0.0
        self.added: list[Task] = []
        self._gate = AdmissionControl(bounds, lambda: self.told, self._waiting_queues, lambda: self.now)

    def _waiting_queues(self, limit: int) -> set[str]:
        self.asked.append(limit)
        return set(sorted(self.queues)[:limit])

    def refusals(self, tasks: Sequence[Task]) -> list[Busy | None]:
        return self._gate.refusals(tasks)

    def add(self, tasks: Sequence[Task]) -> list[int]:
        self.added += tasks
        return list(range(len(self.added) - len(tasks), len(self.added)))

    def takes(self, *queues: str, size: int = 1) -> list[bool]:
        """Return which tasks of *queues* it takes."""
        return [refusal is None for refusal in self.refusals([task(queue, size) for queue in queues])]


def task(queue: str = "", size: int = 1) -> Task:
    return Task(bytes(size), 1.0, 1.0, queue=queue)


def test_tasks() -> None:
    """Tasks are taken up to the number, those of a batch counted one by one, and again when some finish."""
    store = Store(Bounds(tasks=5), Usage(3, 0))
    assert store.takes("", "", "") == [True, True, False]
    assert store.takes("") == [False]
    store.told = Usage(4, 0)
    assert store.takes("") == [False]
    store.now += USAGE_AGE
    assert store.takes("", "") == [True, False]


def test_size() -> None:
    """What doesn't fit any more is refused, and something smaller is still taken."""
    store = Store(Bounds(size=10_000), Usage(0, 5_000))
    sizes = (4_000, 2_000, 100)
    refusals = store.refusals([task(size=size) for size in sizes])
    assert [refusal is None for refusal in refusals] == [True, False, True]
    assert "10000 is the most (--max-spool-size)" in str(refusals[1])


def test_spare_space() -> None:
    """Without any bound set, the space that the disk needs for itself is left to it."""
    store = Store(Bounds(), Usage(0, 0, TASK_OVERHEAD + 1))
    first, second = store.refusals([task(), task()])
    assert first is None
    assert "the disk is almost full" in str(second)


def test_queues() -> None:
    """A new name is refused where there are enough; one that is there, an own one, and none are not."""
    store = Store(Bounds(queues=3, reserved=frozenset({"mail"})), queues=["a", "mail"])
    assert store.takes("b", "c", "d", "a", "c", "mail", "") == [True, True, False, True, True, True, True]
    (refusal,) = store.refusals([task("d" * 255)])
    assert "tasks wait in 3 queues already (--max-queues), and none in 'ddd" in str(refusal)


def test_queues_are_asked_for_now_and_then() -> None:
    """The store is asked once for a number of new names, and again after a while; only so many are named."""
    store = Store(Bounds(queues=3))
    for name in "abcdefgh":
        store.takes(name)
    assert store.asked == [4]
    store.queues = {"x"}
    assert store.takes("h") == [False]
    store.now += QUEUES_AGE
    assert store.takes("h", "i", "j", "x") == [True, True, False, True]
    assert store.asked == [4, 4]


def test_no_queues() -> None:
    """Where no other queues are wanted, only those with workers of their own and the unnamed one take tasks."""
    store = Store(Bounds(queues=0, reserved=frozenset({"mail"})))
    assert store.takes("a", "", "mail") == [False, True, True]


def test_add_each() -> None:
    """Of a batch, those that are refused don't keep the others from being stored."""
    store = Store(Bounds(queues=1))
    first, refused, third = add_each(store, [task("a"), task("b"), task("a")])
    assert (first, third) == (0, 1)
    assert isinstance(refused, Busy)
    assert [one.queue for one in store.added] == ["a", "a"]


def test_add_all() -> None:
    """A batch that is to be stored whole is refused whole."""
    store = Store(Bounds(queues=1))
    with pytest.raises(Busy, match="none in 'b'"):
        add_all(store, [task("a"), task("b")])
    assert store.added == []
    assert add_all(store, [task("a"), task("a")]) == [0, 1]
