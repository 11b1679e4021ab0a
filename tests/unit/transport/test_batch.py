"""The end of a batch: delayed calls are made once and in order, whatever has happened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from uwsgitwisted.transport.batch import BATCH, SLICE_SIZE, SLICE_TIME, Batch, Slices


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Give the formats of what is logged while the test runs."""
    formats: list[str] = []

    def observe(event: dict[str, object]) -> None:
        formats.append(str(event["log_format"]))

    globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
    yield formats
    globalLogPublisher.removeObserver(observe)  # type: ignore[arg-type]


class Notes:
    """Calls that note their names."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def first(self) -> None:
        self.done.append("first")

    def second(self) -> None:
        self.done.append("second")

    def third(self) -> None:
        self.done.append("third")

    def failing(self) -> None:
        self.done.append("failing")
        raise ValueError("a fault")


def test_outside_of_a_batch() -> None:
    """Where no batch is, a call is made at once."""
    notes = Notes()
    Batch().at_end(notes.first)
    assert notes.done == ["first"]


def test_at_the_end_in_order() -> None:
    """Within a batch calls wait for its end, and are made in the order in which they were asked for."""
    batch, notes = Batch(), Notes()
    with batch:
        for call in (notes.second, notes.first, notes.third):
            batch.at_end(call)
        assert notes.done == []
    assert notes.done == ["second", "first", "third"]


def test_once() -> None:
    """A call that is asked for several times is made once, in its first place; a bound method equals itself."""
    batch, notes = Batch(), Notes()
    with batch:
        batch.at_end(notes.first)
        batch.at_end(notes.second)
        batch.at_end(notes.first)
    assert notes.done == ["first", "second"]
    with batch:
        batch.at_end(notes.first)
    assert notes.done == ["first", "second", "first"]


def test_a_batch_within_a_batch() -> None:
    """The end of an inner batch is none: only the outermost one makes the calls."""
    batch, notes = Batch(), Notes()
    with batch:
        with batch:
            batch.at_end(notes.first)
        assert notes.done == []
        batch.at_end(notes.second)
    assert notes.done == ["first", "second"]


@pytest.mark.parametrize("again", [False, True])
def test_calls_during_the_end(again: bool) -> None:
    """What a call puts off is done in a round of its own, after the others; also the same call again."""
    batch, notes = Batch(), Notes()

    def cause() -> None:
        notes.first()
        if len(notes.done) == 1:
            batch.at_end(cause if again else notes.third)
            assert notes.done == ["first"]

    with batch:
        batch.at_end(cause)
        batch.at_end(notes.second)
    assert notes.done == ["first", "second", "first" if again else "third"]


def test_input_during_the_end() -> None:
    """A batch that a call begins at the end of another puts its calls off to the next round."""
    batch, notes = Batch(), Notes()

    def work() -> None:
        with batch:
            batch.at_end(notes.second)
        notes.first()

    batch.at_end(work)
    assert notes.done == ["first", "second"]


def test_a_call_that_raises(logged: list[str]) -> None:
    """It is logged and keeps no other call from being made, in this batch or the next."""
    batch, notes = Batch(), Notes()
    with batch:
        for call in (notes.first, notes.failing, notes.second):
            batch.at_end(call)
    assert notes.done == ["first", "failing", "second"]
    assert any("at the end of a batch" in text for text in logged)
    batch.at_end(notes.third)
    assert notes.done[-1] == "third"


def test_an_exception_within_a_batch() -> None:
    """The exception propagates; the calls delayed before it are made, and the batch ends."""
    batch, notes = Batch(), Notes()

    def work() -> None:
        with batch, batch:
            batch.at_end(notes.first)
            raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        work()
    assert notes.done == ["first"]
    batch.at_end(notes.second)
    assert notes.done == ["first", "second"]


def test_an_interrupt_at_the_end() -> None:
    """Ctrl-C, which is not an error, ends the batch, and the next batch works."""
    batch, notes = Batch(), Notes()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.at_end(interrupt)
    batch.at_end(notes.first)
    assert notes.done == ["first"]


def test_there_is_one() -> None:
    """The batch that all connections share is none at rest."""
    notes = Notes()
    BATCH.at_end(notes.first)
    assert notes.done == ["first"]


@pytest.mark.parametrize(
    ("number", "goes"), [(SLICE_SIZE, [SLICE_SIZE]), (2 * SLICE_SIZE + 1, [SLICE_SIZE, 2 * SLICE_SIZE, None])]
)
def test_strides(number: int, goes: list[int | None]) -> None:
    """Many things of one chunk cause their output in several goes; few cause it at the end."""
    batch = Batch()
    done: list[int] = []
    given: list[int] = []

    def note() -> None:
        done.append(len(given))

    with batch:
        for thing in batch.slices(list(range(number))):
            batch.at_end(note)
            given.append(thing)
    assert given == list(range(number))
    assert done == [number if go is None else go for go in goes]


class TurningClock(Clock):
    """A clock that makes the calls that are due as the reactor does: those that they cause in the next turn."""

    def turn(self) -> None:
        due = [call for call in self.calls if call.getTime() <= self.rightNow]
        for call in due:
            self.calls.remove(call)
            call.called = 1
            call.func()


class Worker:
    """Somebody with so many steps to do, each of which takes so many seconds."""

    def __init__(self, clock: TurningClock, slices: Slices, steps: int, seconds: float) -> None:
        self.clock = clock
        self.slices = slices
        self.left = steps
        self.seconds = seconds
        slices.schedule(self.step)

    def step(self) -> None:
        self.clock.rightNow += self.seconds
        self.left -= 1
        if self.left:
            self.slices.schedule(self.step)


def test_slices_share() -> None:
    """Those with much to do take turns, and all together take no more than a slice of each batch."""
    clock = TurningClock()
    slices = Slices(clock)
    workers = [Worker(clock, slices, 5, SLICE_TIME) for _ in range(3)]
    for number in range(15):
        assert sum(worker.left for worker in workers) == 15 - number
        assert max(worker.left for worker in workers) - min(worker.left for worker in workers) <= 1
        clock.turn()
    assert [worker.left for worker in workers] == [0, 0, 0]


def test_short_steps_share_a_slice() -> None:
    """Steps that take little time are done in one batch."""
    clock = TurningClock()
    slices = Slices(clock)
    workers = [Worker(clock, slices, 4, SLICE_TIME / 10) for _ in range(2)]
    clock.turn()
    assert [worker.left for worker in workers] == [0, 0]
    clock.turn()
    assert not clock.getDelayedCalls()


def test_a_step_that_raises(logged: list[str]) -> None:
    """It is logged, and the others go on."""
    clock = TurningClock()
    slices = Slices(clock)
    slices.schedule(Notes().failing)
    worker = Worker(clock, slices, 1, 0)
    clock.turn()
    assert worker.left == 0
    assert any("at the end of a batch" in text for text in logged)


def test_a_step_is_waited_for_once() -> None:
    """A step that is asked for again before it was done is done once."""
    clock = TurningClock()
    slices = Slices(clock)
    notes = Notes()
    slices.schedule(notes.first)
    slices.schedule(notes.first)
    assert notes.done == []
    clock.turn()
    assert notes.done == ["first"]
