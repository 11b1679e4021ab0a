"""What a worker does, in the memory that it shares with the front."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from uwsgitwisted import activity
from uwsgitwisted.activity import Activity


class Watch:
    """A worker's side and the front's of one activity, and their clock."""

    def __init__(self) -> None:
        self.now = 100.0
        descriptor = Activity.create()
        self.worker, self.front = Activity(descriptor), Activity(descriptor)
        os.close(descriptor)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Give both sides, with a clock that stands still."""
    made = Watch()
    monkeypatch.setattr(activity, "monotonic", lambda: made.now)
    yield made
    made.worker.close()
    made.front.close()


def state(watch: Watch) -> tuple[float, float]:
    return watch.front.busy_for, watch.front.working_for


def test_states(watch: Watch) -> None:
    """The front sees how long the worker has been busy, whether it works or waits, and that it rests."""
    assert state(watch) == (0, 0)
    watch.worker.work()
    watch.now += 2
    assert state(watch) == (2, 2)
    watch.worker.wait()
    watch.now += 3
    assert state(watch) == (3, 0)
    watch.worker.work()
    watch.now += 1
    assert state(watch) == (1, 1)
    watch.worker.rest()
    assert state(watch) == (0, 0)


def test_busy_at_once(watch: Watch) -> None:
    """A worker that has just begun counts as busy, also if the clock has not moved."""
    watch.worker.work()
    busy, working = state(watch)
    assert 0 < busy < 0.001
    assert 0 < working < 0.001
    watch.worker.wait()
    assert 0 < watch.front.busy_for < 0.001
    assert watch.front.working_for == 0
