"""Keeping workers alive: which one starts when, after which pause, and which one it replaces."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from uwsgitwisted.engines.supervisor import Supervisor


class FakeChild:
    """A worker process that the test controls."""

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.ready: Deferred[FakeChild] = Deferred()
        self.ended: Deferred[str] = Deferred()
        self.retired = False

    def become_ready(self) -> None:
        self.ready.callback(self)

    def end(self, how: str = "it was killed") -> None:
        self.ended.callback(how)

    def retire(self) -> None:
        self.retired = True


class Run:
    """A supervisor on a clock, and every child that it started."""

    def __init__(self, size: int = 2) -> None:
        self.clock = Clock()
        self.children: list[FakeChild] = []
        self.up: list[FakeChild] = []
        self.down: list[FakeChild] = []
        #: What starting a process raises, if anything.
        self.error: OSError | None = None
        self.attempts = 0
        #: Whether the first that comes up is replaced at once.
        self.impatient = False
        self.supervisor = Supervisor(
            self.clock,  # type: ignore[arg-type]
            size,
            self._start,  # type: ignore[arg-type]
            self._on_ready,  # type: ignore[arg-type]
            lambda child, how: self.down.append(child),  # type: ignore[arg-type]
        )
        self.supervisor.start()

    def _on_ready(self, child: FakeChild) -> None:
        self.up.append(child)
        if self.impatient:
            self.impatient = False
            self.supervisor.replace(child.worker_id)

    def _start(self, worker_id: int) -> FakeChild:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        self.children.append(FakeChild(worker_id))
        return self.children[-1]

    def all_up(self) -> None:
        for child in self.children:
            if not child.ready.called:
                child.become_ready()

    def pause_until_next(self) -> float:
        """Let time pass until another child is started, and return how much it was."""
        before, start = self.attempts, self.clock.seconds()
        while self.attempts == before:
            assert self.clock.getDelayedCalls(), "nothing will be started"
            self.clock.advance(
                min(call.getTime() for call in self.clock.getDelayedCalls()) - self.clock.seconds()
            )
        return self.clock.seconds() - start


def _results(deferred: Deferred[Any]) -> list[Any]:
    results: list[Any] = []
    deferred.addBoth(results.append)
    return results


def test_starting() -> None:
    """All are started at once, with their numbers, and each is reported when it is up."""
    run = Run(3)
    assert [child.worker_id for child in run.children] == [1, 2, 3]
    run.children[1].become_ready()
    assert run.up == [run.children[1]]


def test_one_that_ends_is_replaced() -> None:
    """A worker that ends after it has worked for a while is replaced at once, by one of its number."""
    run = Run()
    run.all_up()
    run.clock.advance(5)
    run.children[1].end()
    assert run.down == [run.children[1]]
    assert run.pause_until_next() == 0
    assert run.children[2].worker_id == 2


def test_one_that_does_not_come_up() -> None:
    """It is tried again at once, then after pauses that double up to half a minute."""
    run = Run(1)
    pauses = []
    for _ in range(9):
        run.children[-1].end()
        pauses.append(run.pause_until_next())
    assert pauses == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    run.children[-1].become_ready()
    run.clock.advance(2)
    run.children[-1].end()
    assert run.pause_until_next() == 0


def test_one_that_does_not_come_up_for_hours() -> None:
    """However often a worker has failed to start, it is tried again after half a minute."""
    run = Run(1)
    for _ in range(2_000):
        run.children[-1].end()
        pause = run.pause_until_next()
    assert pause == 30


def test_one_that_ends_young() -> None:
    """A worker that starts and is soon crashed by its requests restarts within a second."""
    run = Run(1)
    pauses = []
    for _ in range(5):
        run.children[-1].become_ready()
        run.children[-1].end()
        pauses.append(run.pause_until_next())
    assert pauses == [0, 0.5, 1, 1, 1]


def test_one_that_is_killed_while_it_starts() -> None:
    """Early exits don't count as failed starts: the worker has shown that it can start."""
    run = Run(1)
    for _ in range(8):
        run.children[-1].become_ready()
        run.children[-1].end()
        run.pause_until_next()
    run.children[-1].end()
    assert run.pause_until_next() == 0
    run.children[-1].end()
    assert run.pause_until_next() == 0.5


def test_no_process_to_be_had() -> None:
    """Where the system gives no process, it is asked again later."""
    run = Run(1)
    run.error = OSError("Resource temporarily unavailable")
    run.all_up()
    run.clock.advance(5)
    run.children[0].end()
    assert [run.pause_until_next() for _ in range(4)] == [0, 0.5, 1, 2]
    run.error = None
    run.pause_until_next()
    run.all_up()
    assert len(run.up) == 2


def test_replacing() -> None:
    """The successor takes over when it is up; until then the present one stays."""
    run = Run(1)
    run.all_up()
    old = run.children[0]
    replaced = _results(run.supervisor.replace(1))
    new = run.children[1]
    assert not old.retired
    new.become_ready()
    assert (replaced, old.retired, run.up) == ([True], True, [old, new])
    old.end("it ended with status 0")
    assert run.down == [old]
    assert run.attempts == 2
    assert run.clock.getDelayedCalls() == []


def test_replacing_twice_at_once() -> None:
    """Two who want the same worker replaced get the same successor."""
    run = Run(1)
    run.all_up()
    results = [_results(run.supervisor.replace(1)) for _ in range(2)]
    assert run.attempts == 2
    run.children[1].become_ready()
    assert results == [[True], [True]]


def test_a_successor_that_does_not_come_up() -> None:
    """The present one stays, and nothing is tried again by itself."""
    run = Run(1)
    run.all_up()
    replaced = _results(run.supervisor.replace(1))
    run.children[1].end("it ended with status 1")
    assert replaced == [False]
    assert not run.children[0].retired
    assert run.clock.getDelayedCalls() == []


@pytest.mark.parametrize("comes_up", [True, False])
def test_one_that_ends_while_its_successor_starts(comes_up: bool) -> None:
    """No third worker is started while the replacement starts; if that fails, one is."""
    run = Run(1)
    run.all_up()
    run.clock.advance(5)
    replaced = _results(run.supervisor.replace(1))
    run.children[0].end()
    run.clock.advance(0)
    assert run.attempts == 2
    if comes_up:
        run.children[1].become_ready()
        run.clock.advance(60)
        assert run.attempts == 2
    else:
        run.children[1].end()
        run.pause_until_next()
        assert run.attempts == 3
    assert replaced == [comes_up]


def test_replacing_all() -> None:
    """One after the other: the next one's successor is started when the one before has taken over."""
    run = Run(2)
    run.all_up()
    done = _results(Deferred.fromCoroutine(run.supervisor.replace_all()))
    for number in (1, 2):
        assert run.attempts == 2 + number
        assert run.children[-1].worker_id == number
        assert done == []
        run.children[-1].become_ready()
    assert done == [True]
    assert [child.retired for child in run.children] == [True, True, False, False]


@pytest.mark.parametrize("comes_up", [True, False])
def test_replacing_all_while_one_is_starting(comes_up: bool) -> None:
    """A worker that is already starting may have loaded the old code: it is awaited, then replaced too."""
    run = Run(1)
    done = _results(Deferred.fromCoroutine(run.supervisor.replace_all()))
    assert (run.attempts, done) == (1, [])
    if comes_up:
        run.children[0].become_ready()
    else:
        run.children[0].end("it ended with status 1")
    assert (run.attempts, done) == (2, [])
    run.children[1].become_ready()
    assert done == [True]
    assert run.children[0].retired == comes_up
    run.clock.advance(60)
    assert run.attempts == 2


def test_replacing_as_soon_as_it_is_up() -> None:
    """Replacing a worker in the moment in which it is ready starts another one."""
    run = Run(1)
    run.impatient = True
    run.children[0].become_ready()
    assert run.attempts == 2


def test_replacing_all_stops_at_the_first_failure() -> None:
    """If a replacement fails to start, that worker and all after it stay."""
    run = Run(2)
    run.all_up()
    done = _results(Deferred.fromCoroutine(run.supervisor.replace_all()))
    run.children[-1].end("it ended with status 1")
    assert done == [False]
    assert run.attempts == 3
    assert not any(child.retired for child in run.children)


def test_replacing_all_without_a_process_to_be_had() -> None:
    """The same if none can be started at all."""
    run = Run(2)
    run.all_up()
    run.error = OSError("Too many open files")
    assert _results(Deferred.fromCoroutine(run.supervisor.replace_all())) == [False]


def test_stopping() -> None:
    """Every process is retired, the starting one too; the Deferred fires when all have ended."""
    run = Run(2)
    run.all_up()
    run.clock.advance(5)
    run.children[0].end()
    run.pause_until_next()
    stopped = _results(run.supervisor.stop())
    assert [child.retired for child in run.children] == [False, True, True]
    run.children[1].end()
    assert stopped == []
    run.children[2].end()
    assert stopped == [None]
    run.clock.advance(60)
    assert run.attempts == 3


def test_stopping_during_a_pause() -> None:
    """Nothing is started any more that was to be later."""
    run = Run(1)
    for _ in range(2):
        run.children[-1].end()
        run.clock.advance(0)
    assert _results(run.supervisor.stop()) == [None]
    attempts = run.attempts
    run.clock.advance(60)
    assert run.attempts == attempts


def test_one_that_comes_up_during_the_end() -> None:
    """It gets no requests and is told to end."""
    run = Run(1)
    stopped = _results(run.supervisor.stop())
    run.children[0].become_ready()
    assert (run.up, run.children[0].retired) == ([], True)
    run.children[0].end()
    assert stopped == [None]
