"""Draining a spool directory: on a clock that the test turns, with a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from tests.unit.spool.test_spool_directory import (
    is_locked,
    path,  # noqa: F401 - a fixture
    put,
    spool,  # noqa: F401 - a fixture
)
from uwsgitwisted.errors import StoreUnavailable
from uwsgitwisted.spool.task import Task
from uwsgitwisted.spool.uwsgi.broken import BROKEN
from uwsgitwisted.spool.uwsgi.directory import SpoolDirectory
from uwsgitwisted.spool.uwsgi.drain import DirectoryDrain
from uwsgitwisted.spool.uwsgi.files import PREFIX
from uwsgitwisted.spool.uwsgi.taking import BATCH_LIMIT, TaskFileTaker

T = TypeVar("T")

# ruff: noqa: F811 - the fixtures


class InlineRunner:
    """Makes the calls at once."""

    alive = False

    def start(self) -> None:
        self.alive = True

    def stop(self) -> None:
        self.alive = False

    def run(self, function: Callable[..., T], *args: Any, **keywords: Any) -> Deferred[T]:
        assert self.alive
        return maybeDeferred(function, *args, **keywords)


class Bench:
    """A drain on a clock that the test turns, and what it has stored."""

    def __init__(self, spool: SpoolDirectory) -> None:
        self.clock = Clock()
        self.runner = InlineRunner()
        self.stored: list[Task] = []
        self.calls = 0
        self.answer: Callable[[], Deferred[list[int]]] = lambda: succeed([])
        self.drain = DirectoryDrain(self.clock, spool, self.store, 5.0, runner=self.runner)

    def store(self, tasks: list[Task]) -> Deferred[list[int]]:
        self.calls += 1
        return self.answer().addCallback(self._keep, tasks)

    def _keep(self, ids: list[int], tasks: list[Task]) -> list[int]:
        self.stored += tasks
        return ids


@pytest.fixture
def bench(spool: SpoolDirectory) -> Iterator[Bench]:
    made = Bench(spool)
    yield made
    assert not made.clock.getDelayedCalls()
    assert not made.runner.alive


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The texts of what is logged."""
    texts: list[str] = []

    def observe(event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).startswith("uwsgitwisted.spool.uwsgi.drain"):
            texts.append(str(event["log_format"]).format(**event))

    globalLogPublisher.addObserver(observe)
    yield texts
    globalLogPublisher.removeObserver(observe)


def test_drain(bench: Bench, path: Path) -> None:
    """What is there is moved at once, and what comes later at the next look."""
    for number in range(BATCH_LIMIT + 5):
        put(path, str(number))
    bench.drain.start()
    assert (len(bench.stored), bench.calls) == (BATCH_LIMIT + 5, 2)
    assert list(path.iterdir()) == []
    put(path)
    bench.clock.advance(4.9)
    assert len(list(path.iterdir())) == 1
    bench.clock.advance(0.1)
    assert len(bench.stored) == BATCH_LIMIT + 6
    assert list(path.iterdir()) == []
    stopped: list[None] = []
    bench.drain.stop().addCallback(stopped.append)
    assert stopped == [None]


def test_drain_deletes_what_is_stored(bench: Bench, path: Path) -> None:
    """A file stays, locked, until its task is stored; stopping waits for that."""
    waiting: Deferred[list[int]] = Deferred()
    bench.answer = lambda: waiting
    files = [put(path / "1"), put(path)]
    bench.drain.start()
    stopped: list[None] = []
    bench.drain.stop().addCallback(stopped.append)
    assert (stopped, all(file.exists() for file in files), is_locked(files[0])) == ([], True, True)
    waiting.callback([1])
    assert stopped == [None]
    assert [file.exists() for file in files] == [False, True]
    assert not is_locked(files[1])


def test_drain_survives_failures(bench: Bench, path: Path, logged: list[str]) -> None:
    """A store that is away is asked again after a pause, without a word until it is back."""
    file = put(path)
    bench.answer = lambda: fail(StoreUnavailable("the disk is full"))
    bench.drain.start()
    bench.clock.pump([5.0] * 3)
    assert bench.calls == 4
    assert file.exists()
    assert not is_locked(file)
    assert logged == [f"{path} can't be drained at present: the disk is full"]
    bench.answer = lambda: succeed([1])
    bench.clock.advance(5.0)
    assert (len(bench.stored), file.exists()) == (1, False)
    assert logged[1:] == [f"the spool directory {path} is drained again"]
    bench.answer = lambda: fail(ZeroDivisionError())
    put(path)
    bench.clock.advance(5.0)
    assert logged[2:] == [f"draining {path}"]
    bench.drain.stop()


def test_drain_without_a_directory(bench: Bench, path: Path, logged: list[str]) -> None:
    """A directory that is missing for a while is looked for again."""
    path.rmdir()
    bench.drain.start()
    bench.clock.advance(5.0)
    assert len(logged) == 1
    path.mkdir()
    put(path)
    bench.clock.advance(5.0)
    assert len(bench.stored) == 1
    bench.drain.stop()


def test_drain_reports(bench: Bench, path: Path, logged: list[str]) -> None:
    """Each file that is set aside is logged, and once that there are some which stay."""
    put(path, "bad", b"?")
    (path / BROKEN).write_bytes(b"")
    bench.drain.start()
    bench.clock.advance(5.0)
    assert len(logged) == 1
    assert f"files stay in {path}, such as {PREFIX}bad: " in logged[0]
    (path / BROKEN).unlink()
    bench.clock.pump([5.0] * 2)
    assert [f"set aside in {path}: {PREFIX}bad: " in text for text in logged[1:]] == [True]
    assert bench.calls == 0
    put(path, "worse", b"?")
    (path / BROKEN).rename(path / "elsewhere")
    (path / BROKEN).write_bytes(b"")
    bench.clock.advance(5.0)
    assert f"files stay in {path}, such as {PREFIX}worse: " in logged[2]
    bench.drain.stop()


def test_drain_stops_twice(bench: Bench) -> None:
    """Stopping what doesn't run is no mistake."""
    for _ in range(2):
        assert bench.drain.stop().called
    bench.drain.start()
    for _ in range(2):
        assert bench.drain.stop().called


@pytest_twisted.inlineCallbacks
def test_drain_with_a_thread(spool: SpoolDirectory, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """By itself, it reads files outside of the reactor's thread, and stores tasks in it."""
    put(path)
    threads = []
    stored: Deferred[list[Task]] = Deferred()
    take_all = TaskFileTaker.take_all

    def watched(taker: TaskFileTaker) -> Any:
        threads.append(threading.current_thread())
        yield from take_all(taker)

    def store(tasks: list[Task]) -> Deferred[list[int]]:
        threads.append(threading.current_thread())
        stored.callback(tasks)
        return succeed([1])

    monkeypatch.setattr(TaskFileTaker, "take_all", watched)
    drain = DirectoryDrain(reactor, spool, store)  # type: ignore[arg-type]
    drain.start()
    tasks = yield stored.addTimeout(20, reactor)  # type: ignore[arg-type]
    yield drain.stop()
    assert len(tasks) == 1
    assert threads[0] is not threading.main_thread()
    assert threads[1] is threading.main_thread()
    assert list(path.iterdir()) == []
