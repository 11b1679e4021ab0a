"""What a worker's threads do, seen from the front in the memory that they share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from uwsgitwisted import activity
from uwsgitwisted.activity import (
    MAX_THREADS,
    MAX_WARNING,
    NOTICE,
    Activity,
    CacheCounts,
    Counts,
    Notice,
    Slot,
    open_slots,
)


class Shared:
    """Both ends of a worker's activity, and the time."""

    def __init__(self, threads: int) -> None:
        descriptor = Activity.create()
        self.front = Activity(descriptor, threads)
        self.slots: list[Slot] = open_slots(descriptor, threads)
        self.now = 1_000.0
        os.close(descriptor)


@pytest.fixture(params=[1, 3, MAX_THREADS])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    """Give the activity of a worker."""
    made = Shared(request.param)
    monkeypatch.setattr(activity, "monotonic", lambda: made.now)
    yield made
    made.front.close()


def test_idle(shared: Shared) -> None:
    """An idle worker runs nothing."""
    assert (shared.front.accepted(), shared.front.overdue(0.0), shared.front.working_for) == (0, [], 0.0)


def test_accepted(shared: Shared) -> None:
    """Each thread counts whose request the worker has accepted, also one that waits for its peer."""
    for number, slot in enumerate(shared.slots, 1):
        slot.begin(0)
        assert shared.front.accepted() == number
        slot.wait()
        assert shared.front.accepted() == number
    assert shared.front.accepted(2.0) == 0
    shared.now += 3
    shared.slots[-1].work()
    assert shared.front.accepted(2.0) == len(shared.slots) - 1
    for slot in shared.slots:
        slot.rest()
    assert shared.front.accepted() == 0


def test_overdue(shared: Shared) -> None:
    """A request is overdue that makes no progress for too long, unless it waits for its peer."""
    slot = shared.slots[-1]
    slot.begin(7)
    assert shared.front.accepted() == 0
    shared.now += 3
    assert shared.front.overdue(2.0) == [7]
    assert shared.front.working_for == 3
    slot.wait()
    shared.now += 3
    assert (shared.front.overdue(2.0), shared.front.working_for) == ([], 0.0)
    slot.work()
    assert shared.front.overdue(2.0) == []
    shared.now += 2
    assert shared.front.overdue(2.0) == [7]
    assert shared.front.overdue_peers(2.0) == []
    for peer in ("[fd00:1111:2222:3333:4444:5555:6666:7777%enp0s31f6]:65535", "192.0.2.1:5", "x" * 100):
        slot.begin(0, peer)
        shared.now += 2
        assert shared.front.overdue(2.0) == [0]
        assert shared.front.overdue_peers(2.0) == [peer[:64]]


def test_the_longest() -> None:
    """Of several threads, the one counts that has made no progress for longest."""
    shared = Shared(3)
    for request, slot in enumerate(shared.slots, 1):
        slot.begin(request)
    shared.slots[1].wait()
    assert sorted(shared.front.overdue(0.0)) == [1, 3]
    shared.slots[0].rest()
    assert shared.front.overdue(0.0) == [3]


def test_counts(shared: Shared) -> None:
    """The front sees what each thread has counted, and whose process it is."""
    slot = shared.slots[-1]
    slot.count(0.25, False, 100)
    slot.count(0.75, True, 1)
    assert shared.front.counts() == [
        *[Counts()] * (len(shared.slots) - 1),
        Counts(2, 1, 1_000_000, 101, 500_000),
    ]
    assert shared.front.pid == os.getpid()
    shared.slots[0].begin(2**64 - 1)
    assert shared.front.counts()[-1].requests == 2


def test_warning(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The front sees the last warning, of which so much is kept as fits."""
    assert shared.front.warning() == (0.0, b"")
    notice = Notice(shared.slots[0]._memory)
    notice.write(b"x" * 1_000)
    since, text = shared.front.warning()
    assert text == b"x" * MAX_WARNING
    notice.write(b"short")
    assert shared.front.warning() >= (since, b"short")
    notice.write(b"")
    assert shared.front.warning()[1] == b""
    assert NOTICE.read()[1] == b""


def test_signals(shared: Shared) -> None:
    """The front sees how many signals a worker has handled."""
    notice = Notice(shared.slots[0]._memory)
    notice.count_signal()
    notice.count_signal()
    assert (notice.signals, shared.front.signals) == (2, 2)
    assert shared.front.warning() == (0.0, b"")


def test_cache(shared: Shared) -> None:
    """The front sees the figures of a worker's result cache."""
    assert shared.front.cache() == CacheCounts()
    counts = CacheCounts(hits=1, misses=2**63, pages=3, size=2**64 - 1)
    Notice(shared.slots[0]._memory).write_cache(counts)
    assert shared.front.cache() == counts
    assert shared.front.warning() == (0.0, b"")
    assert str(counts).startswith("1 hits, ")


def test_private_memory() -> None:
    """A worker that nobody looks at counts for itself."""
    (slot,) = open_slots()
    slot.count(1.0, False, 1)
    assert slot.counts == Counts(1, 0, 1_000_000, 1, 1_000_000)


def test_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no memory of that kind, a file takes its place."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    descriptor = Activity.create()
    front, (slot,) = Activity(descriptor), open_slots(descriptor)
    os.close(descriptor)
    slot.count(1.0, False, 5)
    assert front.counts() == [Counts(1, 0, 1_000_000, 5, 1_000_000)]
