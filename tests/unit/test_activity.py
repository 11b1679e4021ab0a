"""What a worker's threads do, seen from the front in the memory that they share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from uwsgitwisted import activity
from uwsgitwisted.activity import MAX_THREADS, Activity, Slot, open_slots


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
