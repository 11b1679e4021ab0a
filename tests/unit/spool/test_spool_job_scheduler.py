"""The jobs of peers on the store: in slices, in turns, bounded, behind the spooler's own work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.python.failure import Failure

from uwsgitwisted.errors import Busy, SpoolError, Unavailable
from uwsgitwisted.spool import job_scheduler
from uwsgitwisted.spool.job_scheduler import JobScheduler
from uwsgitwisted.spool.slices import Job, at_once, finish, slices


class Thread:
    """Keeps the calls until the test has them made, one by one."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def run(self, function: Callable[..., Any], *args: object) -> Deferred[Any]:
        called: Deferred[Any] = Deferred()
        self.calls.append(lambda: maybeDeferred(function, *args).chainDeferred(called))
        return called


class Bench:
    def __init__(self) -> None:
        self.thread = Thread()
        self.jobs = JobScheduler(self.thread, None)  # type: ignore[arg-type]
        self.jobs.open()
        #: The slices that were done, by the names of their jobs.
        self.done: list[str] = []

    def job(self, name: str, number: int = 1) -> Job[str]:
        """Return a job of so many slices, whose answer is its name."""

        def steps(store: object) -> Generator[None, None, str]:
            for _ in range(number - 1):
                self.done.append(name)
                yield
            self.done.append(name)
            return name

        return steps

    def submit(self, group: str | None, name: str, number: int = 1, **options: Any) -> list[Any]:
        """Ask, and return a list that gets the answer or the error."""
        results: list[Any] = []
        asked = self.jobs.submit(group, self.job(name, number), **options)
        asked.addCallbacks(results.append, lambda failure: results.append(failure.value))
        return results

    def step(self) -> None:
        """Have the one slice done that is in the thread."""
        (call,) = self.thread.calls
        self.thread.calls.clear()
        call()

    def finish(self) -> None:
        while self.thread.calls:
            self.step()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    assert not made.thread.calls
    assert not made.jobs._queues
    assert (made.jobs._weight, made.jobs._size) == (0, 0)


def test_one_slice_at_a_time(bench: Bench) -> None:
    """The thread has one slice at most, so that the spooler's own calls come next."""
    answers = [bench.submit(f"peer{n}", f"{n}", 3) for n in range(3)]
    for _ in range(9):
        assert len(bench.thread.calls) == 1
        bench.step()
    assert answers == [["0"], ["1"], ["2"]]


def test_peers_take_turns(bench: Bench) -> None:
    """Each peer has one question in progress, and their slices alternate."""
    for name in ("a1", "a2"):
        bench.submit("a", name, 3)
    bench.submit("b", "b1")
    bench.submit("c", "c1", 2)
    bench.finish()
    assert "".join(bench.done) == "a1b1c1a1c1a1a2a2a2"


def test_few_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many peers have one in progress; the others come next, before the second ones of those."""
    monkeypatch.setattr(job_scheduler, "MAX_STARTED", 2)
    for name in ("a1", "a2", "b1", "c1"):
        bench.submit(name[0], name, 2)
    bench.finish()
    assert "".join(bench.done) == "a1b1a1b1c1a2c1a2"


@pytest.mark.parametrize("what", [{"weight": 50}, {"size": 50}])
def test_one_peer_asks_too_much(bench: Bench, monkeypatch: pytest.MonkeyPatch, what: dict[str, int]) -> None:
    """A peer that asks too much is refused until there is room; others, and the spooler, are not."""
    monkeypatch.setattr(job_scheduler, "MAX_PEER_PENDING", 100)
    monkeypatch.setattr(job_scheduler, "MAX_PEER_PENDING_BYTES", 100)
    accepted = [bench.submit("a", "a", **what) for _ in range(2)]
    (refused,) = bench.submit("a", "refused", **what)
    assert isinstance(refused, Busy)
    accepted += [bench.submit("b", "b", **what), *(bench.submit(None, "own", **what) for _ in range(3))]
    bench.finish()
    assert accepted == [["a"], ["a"], ["b"], ["own"], ["own"], ["own"]]
    again = bench.submit("a", "a")
    bench.finish()
    assert again == ["a"]


@pytest.mark.parametrize("what", [{"weight": 50}, {"size": 50}])
def test_all_ask_too_much(bench: Bench, monkeypatch: pytest.MonkeyPatch, what: dict[str, int]) -> None:
    """So it is with all of them together; the spooler's own jobs don't count."""
    monkeypatch.setattr(job_scheduler, "MAX_PENDING", 100)
    monkeypatch.setattr(job_scheduler, "MAX_PENDING_BYTES", 100)
    bench.submit(None, "own", **what)
    bench.submit("a", "a", **what)
    bench.submit("b", "b", **what)
    (refused,) = bench.submit("c", "c", **what)
    assert isinstance(refused, Busy)
    bench.finish()


@pytest.mark.parametrize("when", [0, 1])
def test_failures(bench: Bench, when: int) -> None:
    """What a slice raises fails its question; the others go on."""

    def broken(store: object) -> Generator[None, None, None]:
        if when:
            yield
        raise SpoolError("broken")

    failures: list[Failure] = []
    bench.jobs.submit("a", broken).addErrback(failures.append)
    other = bench.submit("a", "a")
    bench.finish()
    assert isinstance(failures[0].value, SpoolError)
    assert other == ["a"]


def test_withdrawn(bench: Bench) -> None:
    """A question that has not begun is taken out; one that has is done, and what follows from it too."""
    told: list[str] = []
    errors: list[Failure] = []
    begun = bench.jobs.submit("a", bench.job("begun", 2), then=told.append)
    waiting = bench.jobs.submit("a", bench.job("waiting"), then=told.append)
    for each in (begun, waiting):
        each.addErrback(errors.append)
        each.cancel()
    bench.finish()
    assert bench.done == ["begun"] * 2
    assert told == ["begun"]
    assert all(failure.check(CancelledError) for failure in errors)
    assert len(errors) == 2


def test_withdrawn_of_another_peer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer whose only job is dropped has no turn any more; one that has more keeps it."""
    monkeypatch.setattr(job_scheduler, "MAX_STARTED", 1)
    bench.submit("a", "a", 2)
    withdrawn = [bench.jobs.submit(group, bench.job("never")) for group in "bc"]
    kept = bench.submit("c", "c")
    for each in withdrawn:
        each.addErrback(lambda _: None)
        each.cancel()
    bench.finish()
    assert (bench.done, kept) == (["a", "a", "c"], ["c"])


def test_close(bench: Bench) -> None:
    """When it closes, what is being done is answered if it is done, all else fails; then it may open again."""
    last, waiting, other = bench.submit("a", "a"), bench.submit("a", "a"), bench.submit("b", "b", 3)
    bench.jobs.close()
    assert [type(error) for (error,) in (waiting, other)] == [Unavailable, Unavailable]
    (refused,) = bench.submit("a", "a")
    assert isinstance(refused, Unavailable)
    bench.finish()
    assert last == ["a"]
    bench.jobs.open()
    again = bench.submit("a", "again")
    bench.finish()
    assert again == ["again"]


def test_close_in_the_middle(bench: Bench) -> None:
    """A question of which more is to be done then fails."""
    asked = bench.submit("a", "a", 3)
    bench.step()
    bench.jobs.close()
    bench.step()
    assert isinstance(asked[0], Unavailable)


def test_close_without_any(bench: Bench) -> None:
    """There may be nothing to fail."""
    bench.jobs.close()


def test_from_an_answer(bench: Bench) -> None:
    """Whoever gets an answer may ask the next question."""
    answers: list[str] = []
    asked = bench.jobs.submit("a", bench.job("first"))
    asked.addCallback(lambda _: bench.jobs.submit("a", bench.job("second"))).addCallback(answers.append)
    bench.finish()
    assert answers == ["second"]


def test_slices() -> None:
    """Things come in parts; a job of one slice is done at once."""
    assert list(slices(range(5), 2)) == [range(2), range(2, 4), range(4, 5)]
    assert list(slices([], 2)) == []
    assert finish(at_once(lambda store: 8)(None)) == 8  # type: ignore[arg-type]
