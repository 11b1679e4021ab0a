"""Tasks that come again and again: their times, and that each is stored once."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import tzlocal
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from uwsgitwisted.errors import StartupError, StoreUnavailable
from uwsgitwisted.spool.periodic import (
    PAUSE,
    Cron,
    Interval,
    PeriodicScheduler,
    PeriodicTask,
    last_until,
    parse_cron,
)
from uwsgitwisted.spool.stores.interface import ISpoolStore
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.wire.vars import decode_vars, encode_vars

#: A full hour.
NOON = 1_700_002_800.0
DAY = 86_400.0


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the tests into a time zone that has daylight saving."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    tzlocal.reload_localzone()
    yield
    monkeypatch.undo()
    time.tzset()
    tzlocal.reload_localzone()


class Bench:
    """A scheduler on a real store, with a clock that the test turns."""

    def __init__(self, store: SqliteStore, *tasks: PeriodicTask) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOON
        self.jump = 0.0
        self.store = store
        self.broken = False
        self.scheduler = PeriodicScheduler(
            self.clock, tasks, self.manage, now=lambda: self.clock.seconds() + self.jump
        )

    def manage(self, change: Callable[[ISpoolStore], float]) -> Deferred[float]:
        def call() -> float:
            if self.broken:
                raise StoreUnavailable("the disk is full")
            return change(self.store)  # type: ignore[arg-type]

        return maybeDeferred(call)

    def start(self) -> Bench:
        self.scheduler.start()
        self.pass_time(0)
        return self

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1)
        for _ in range(5):
            self.clock.advance(0)

    def stored(self) -> list[str]:
        """Return the jobs of the tasks that were stored."""
        return [decode_vars(record.task.variables)[b"job"].decode() for record in self.store.records(1000)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(str(tmp_path / "spool.sqlite"))
    store.open(lambda: None)
    yield store
    store.close()


def every(seconds: float, job: str = "tick") -> PeriodicTask:
    return PeriodicTask(job, Interval(seconds), encode_vars({"job": job}))


def test_interval(store: SqliteStore) -> None:
    """A task that comes every minute comes at every full minute after the start."""
    bench = Bench(store, every(60), every(90, "tock"))
    bench.clock.rightNow = NOON + 10
    bench.start()
    assert bench.stored() == []
    bench.pass_time(49)
    assert bench.stored() == []
    bench.pass_time(1)
    assert bench.stored() == ["tick"]
    bench.pass_time(120)
    assert bench.stored() == ["tick", "tock", "tick", "tock", "tick"]


def test_stopped(store: SqliteStore) -> None:
    """A stopped scheduler sets no timer and stores nothing."""
    bench = Bench(store, every(60)).start()
    bench.scheduler.stop()
    assert bench.clock.getDelayedCalls() == []


def test_stopped_while_it_asks() -> None:
    """A scheduler that is stopped while the store answers sets no timer when the answer is there."""
    answer: Deferred[float] = Deferred()
    clock = Clock()
    scheduler = PeriodicScheduler(clock, [every(60)], lambda change: answer, now=clock.seconds)
    scheduler.start()
    scheduler.stop()
    answer.callback(60.0)
    assert clock.getDelayedCalls() == []


def test_made_up_for_once(store: SqliteStore) -> None:
    """Of what was missed while no spooler ran, the last occurrence is stored, once."""
    Bench(store, every(60)).start().scheduler.stop()
    bench = Bench(store, every(60))
    bench.clock.rightNow = NOON + 3 * DAY + 10
    bench.start()
    assert bench.stored() == ["tick"]
    assert store.last_occurrence("tick") == NOON + 3 * DAY
    bench.pass_time(50)
    assert bench.stored() == ["tick", "tick"]


def test_two_spoolers(store: SqliteStore) -> None:
    """Two spoolers of one store store each occurrence once."""
    benches = [Bench(store, every(60)).start() for _ in range(2)]
    for _ in range(180):
        for bench in benches:
            bench.pass_time(1)
    assert benches[0].stored() == ["tick"] * 3


def test_clock_set_back(store: SqliteStore) -> None:
    """What has been stored is not stored again when its time comes a second time."""
    bench = Bench(store, every(60)).start()
    bench.pass_time(60)
    bench.jump = -60
    bench.pass_time(60)
    assert bench.stored() == ["tick"]
    bench.pass_time(60)
    assert bench.stored() == ["tick", "tick"]


def test_clock_set_forward(store: SqliteStore) -> None:
    """A wall clock that steps forward brings one occurrence, within seconds."""
    bench = Bench(store, every(600)).start()
    bench.jump = 6_000
    bench.pass_time(6)
    assert bench.stored() == ["tick"]


def test_clock_was_wrong(store: SqliteStore) -> None:
    """A clock that was years ahead doesn't end a periodic task for years."""
    bench = Bench(store, every(60))
    bench.jump = 1e9
    bench.start()
    bench.scheduler.stop()
    again = Bench(store, every(60)).start()
    again.pass_time(60)
    assert again.stored() == ["tick"]


def test_full_disk(store: SqliteStore) -> None:
    """What can't be stored is tried again until it can."""
    bench = Bench(store, every(60)).start()
    bench.broken = True
    bench.pass_time(90)
    assert bench.stored() == []
    bench.broken = False
    bench.pass_time(PAUSE)
    assert bench.stored() == ["tick"]


def test_cron() -> None:
    """A cron expression means times of the local time zone."""
    assert Cron("*/15 * * * *").after(NOON) == NOON + 900
    midnight = Cron("0 0 * * *").after(NOON)
    assert time.localtime(midnight)[3:5] == (0, 0)
    assert 0 < midnight - NOON <= DAY


def test_cron_over_daylight_saving() -> None:
    """A daily time comes once a day also where the clocks are changed, at the same time of day."""
    moment = time.mktime((2026, 3, 27, 12, 0, 0, 0, 0, -1))
    seen = []
    for _ in range(4):
        moment = Cron("30 7 * * *").after(moment)
        seen.append(time.localtime(moment)[2:5])
    assert seen == [(28, 7, 30), (29, 7, 30), (30, 7, 30), (31, 7, 30)]


def test_cron_in_the_hour_that_comes_twice() -> None:
    """A task of every half hour comes in both of the hours that have the same name."""
    moment = time.mktime((2026, 10, 25, 1, 59, 0, 0, 0, -1))
    times = []
    for _ in range(6):
        moment = Cron("*/30 * * * *").after(moment)
        times.append(moment)
    assert [later - earlier for earlier, later in pairwise(times)] == [1800.0] * 5


def test_cron_that_never_comes() -> None:
    """A date that doesn't exist is refused, or never comes."""
    with pytest.raises(StartupError, match="is no cron expression"):
        Cron("0 0 30 2 * *  x")
    assert Cron("0 0 29 2 *").after(NOON) > NOON


def test_last_until() -> None:
    """The last time is found after a long while too, and where times are rare."""
    assert last_until(Interval(60), NOON, NOON + 59) is None
    assert last_until(Interval(60), NOON, NOON + 60) == NOON + 60
    assert last_until(Interval(60), NOON, NOON + 1000 * DAY + 1) == NOON + 1000 * DAY
    yearly = Cron("0 0 1 1 *")
    found = last_until(yearly, NOON, NOON + 900 * DAY)
    assert found is not None
    assert time.localtime(found)[:3] == (2026, 1, 1)


def test_parse_cron() -> None:
    """A line has five fields of time, then a task's keys and values, quoted as in a shell."""
    task = parse_cron("0 7 * * mon-fri job=report to='Ann Lee' spooler=mail")
    assert decode_vars(task.variables) == {b"job": b"report", b"to": b"Ann Lee", b"spooler": b"mail"}
    assert task.schedule.after(NOON) < math.inf


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "keys and values"),
        ("* * * * *", "keys and values"),
        ("* * * * * job", "keys and values"),
        ("* * * * job=x", "no cron expression"),
        ("* * * * * =x", "keys and values"),
        ("* * * * * a='b", "quotation"),
        ("61 * * * * job=x", "no cron expression"),
        ("* * * * * job=x priority=high", "priority='high' is no priority"),
    ],
)
def test_bad_lines(line: str, reason: str) -> None:
    """A line that can't be understood says why, and how one looks."""
    with pytest.raises(StartupError, match=reason):
        parse_cron(line)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library for cron expressions, it is said how to get it."""
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(StartupError, match=r"pip install 'uwsgitwisted\[cron\]'"):
        Cron("* * * * *")
