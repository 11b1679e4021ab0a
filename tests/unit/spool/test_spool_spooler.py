"""The spooler's loop: real SQLite files, an engine in memory, a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.base import DelayedCall
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.errors import (
    Busy,
    MalformedPacket,
    NoSuchTask,
    RemoteError,
    RequestTimeout,
    SpoolCorrupt,
    SpoolError,
    StartupError,
    StoreUnavailable,
    Unavailable,
    WorkerDied,
)
from uwsgitwisted.interfaces import IEngine, Request
from uwsgitwisted.spool import group_commit, waiters
from uwsgitwisted.spool import loop as loop_module
from uwsgitwisted.spool.loop import FLUSH_ATTEMPTS, MAX_UPKEEP, MIN_UPKEEP, STORE_PAUSE
from uwsgitwisted.spool.retry import RetryPolicy
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.spool.stores.interface import Cycle, Demand, Record, Settlement, Want
from uwsgitwisted.spool.stores.sqlite import store as sqlite
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.spool.task import State, Task, new_task
from uwsgitwisted.wire.packet import ANSWER, Packet
from uwsgitwisted.wire.tasks import AGAIN, DONE, IGNORE, RETRY, decode_run
from uwsgitwisted.wire.vars import decode_vars, encode_vars

T = TypeVar("T")
START = 1_700_000_000.0
POLICY = RetryPolicy(max_attempts=3, max_crashes=2, first_delay=10.0, jitter=0.0)


def answer(code: int) -> Packet:
    return Packet(ANSWER, code)


@implementer(IEngine)
class MemoryEngine:
    """Runs tasks in memory, by their ``name``: as *handlers* says, else they are done at once.

    A handler that is an exception fails, a code is answered, None leaves the task running until the test
    fires its Deferred in ``running``.
    """

    description = "memory"

    def __init__(self) -> None:
        self.handlers: dict[str, int | Exception | None] = {}
        self.seen: list[str] = []
        self.requests: list[Request] = []
        self.running: dict[str, Deferred[Packet]] = {}
        self.start_error: Exception | None = None
        self.stopping: Callable[[], Deferred[None]] = lambda: succeed(None)
        self.stopped_with: list[float] = []

    def start(self) -> Deferred[None]:
        return fail(self.start_error) if self.start_error else succeed(None)

    def stop(self, seconds: float) -> Deferred[None]:
        self.stopped_with.append(seconds)
        return self.stopping()

    def submit(self, request: Request) -> Deferred[Packet]:
        name = decode_vars(decode_run(request.packet)[1])[b"name"].decode()
        self.requests.append(request)
        self.seen.append(name)
        how = self.handlers.get(name, DONE)
        if how is None:
            self.running[name] = Deferred()
            return self.running[name]
        return fail(how) if isinstance(how, Exception) else succeed(answer(how))


class InlineRunner:
    """Makes the store's calls at once, or, while it is held, when it is released."""

    def __init__(self) -> None:
        self.alive = False
        self.held: list[Callable[[], None]] | None = None

    def start(self) -> None:
        self.alive = True

    def stop(self) -> None:
        self.alive = False

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> Deferred[T]:
        if self.held is None:
            return maybeDeferred(function, *args, **kwargs)
        called: Deferred[T] = Deferred()
        self.held.append(lambda: maybeDeferred(function, *args, **kwargs).chainDeferred(called))
        return called

    def step(self) -> None:
        """Make the one call that is held, and hold the next ones."""
        assert self.held is not None
        (call,) = self.held
        self.held = []
        call()

    def release(self) -> None:
        """Make the calls that are held, and no longer hold any."""
        calls, self.held = self.held or [], None
        for call in calls:
            call()


class WatchedStore(SqliteStore):
    """An SQLite store that counts its transactions and fails them while *broken* is set."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.broken = False
        self.added: list[int] = []
        self.advances = 0

    def add(self, tasks: Sequence[Task]) -> list[int]:
        if self.broken:
            raise StoreUnavailable("the disk is full")
        self.added.append(len(tasks))
        return super().add(tasks)

    def advance(self, settlements: Sequence[Settlement], demand: Demand, now: float) -> Cycle:
        self.advances += 1
        if self.broken:
            raise StoreUnavailable("the disk is full")
        return super().advance(settlements, demand, now)


class BoundedClock(Clock):
    """A clock that refuses one call too many, so that a loop that spins fails instead of hanging."""

    remaining = 5_000

    def callLater(self, delay: float, *args: Any, **kw: Any) -> DelayedCall:
        self.remaining -= 1
        assert self.remaining > 0, "the loop spins"
        return super().callLater(delay, *args, **kw)


class Bench:
    """A spooler and all around it."""

    #: The stores of this test, to be closed when it is over.
    stores: ClassVar[list[SqliteStore]] = []

    def __init__(self, path: Path, **options: Any) -> None:
        self.clock = BoundedClock()
        self.clock.rightNow = START
        self.jump = 0.0
        self.engine = MemoryEngine()
        self.store = WatchedStore(str(path))
        self.stores.append(self.store)
        self.runner = InlineRunner()
        self.spooler = Spooler(
            self.clock,
            self.store,
            self.engine,
            POLICY,
            runner=self.runner,
            now=lambda: self.clock.seconds() + self.jump,
            **options,
        )

    def start(self) -> Bench:
        assert outcome(self.spooler.start()) is None
        self.pass_time(0)
        return self

    def stop(self) -> None:
        stopped = self.spooler.stop(5.0)
        self.pass_time(0)
        assert outcome(stopped) is None
        assert self.clock.getDelayedCalls() == []

    def pass_time(self, seconds: float) -> None:
        """Let time pass, then the reactor turn until it has nothing more to do now."""
        self.clock.advance(seconds)
        for _ in range(30):
            self.clock.advance(0)

    def enqueue(self, name: str, **keys: str) -> Deferred[int]:
        return self.spooler.enqueue(encode_vars({"name": name, **keys}))

    def accept(self, *names: str, **keys: str) -> None:
        """Enqueue tasks and see them acknowledged."""
        accepted = [self.enqueue(name, **keys) for name in names]
        self.pass_time(0)
        assert all(isinstance(outcome(one), int) for one in accepted)

    def left(self) -> tuple[list[str], list[Record]]:
        """Stop, and return the names of the tasks in the file that are not finished, and the dead letters."""
        self.stop()
        orphans, claimed = claim_all(self.store)
        self.store.open(nothing)
        dead = self.store.records(1000, state=State.DEAD)
        self.store.close()
        return [decode_vars(task.variables)[b"name"].decode() for task in orphans + claimed], dead


def nothing() -> None:
    """Be woken and do nothing."""


def claim_all(store: SqliteStore) -> tuple[list[Task], list[Task]]:
    """Return what ran in a closed store when it was closed, and what waits in it, later ones included."""
    store.open(nothing)
    cycle = store.advance([], {None: Want(1000)}, START * 2)
    store.close()
    return list(cycle.orphans), cycle.claimed


def outcome(deferred: Deferred[T]) -> T | BaseException | str:
    """Return what *deferred* has fired with, or the exception that it failed with, or "pending"."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    if not results:
        return "pending"
    return results[0].value if isinstance(results[0], Failure) else results[0]


@pytest.fixture(autouse=True)
def closed_stores() -> Iterator[None]:
    """Close what the test leaves open."""
    yield
    while Bench.stores:
        SqliteStore.close(Bench.stores.pop())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


@pytest.fixture
def bench(path: Path) -> Bench:
    return Bench(path).start()


@pytest.fixture
def logged() -> Any:
    """The events that are logged meanwhile."""
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def test_runs(bench: Bench) -> None:
    """A task is acknowledged with its id, given to the engine as it came, and removed when it is done."""
    accepted = bench.enqueue("one", priority="3")
    bench.pass_time(0)
    assert outcome(accepted) == 1
    (request,) = bench.engine.requests
    assert decode_run(request.packet) == (1, encode_vars({"name": "one", "priority": "3"}), b"")
    assert bench.left() == ([], [])


def test_acknowledged_after_commit(bench: Bench) -> None:
    """Nothing is acknowledged before the store's call has returned."""
    bench.runner.held = []
    accepted = bench.enqueue("one")
    bench.pass_time(60)
    fired: list[int] = []
    accepted.addCallback(fired.append)
    assert fired == []
    bench.runner.release()
    assert fired == [1]


def test_group_commit(bench: Bench) -> None:
    """What arrives in one turn of the reactor, and what arrives during a commit, is one transaction."""
    bench.runner.held = []
    early = [bench.enqueue(f"early{n}") for n in range(3)]
    bench.pass_time(0)
    late = [bench.enqueue(f"late{n}") for n in range(5)]
    bench.pass_time(0)
    bench.runner.release()
    bench.pass_time(0)
    assert bench.store.added == [3, 5]
    assert [outcome(one) for one in early + late] == list(range(1, 9))


def test_bounded(path: Path) -> None:
    """Over the limit enqueues are refused, those in their commit counted; afterwards there is room again."""
    bench = Bench(path, max_pending=3).start()
    bench.runner.held = []
    waiting = [bench.enqueue("a"), bench.enqueue("b")]
    bench.pass_time(0)
    waiting.append(bench.enqueue("c"))
    assert isinstance(outcome(bench.enqueue("d")), Busy)
    bench.runner.release()
    bench.pass_time(0)
    assert [outcome(one) for one in waiting] == [1, 2, 3]
    bench.accept("e")


def test_results_expire_while_idle(bench: Bench) -> None:
    """Finished tasks are deleted in time even while nothing happens, without a cycle before that."""
    bench.store.keep = 1000.0
    bench.accept("one", "two")
    before = bench.store.advances
    bench.pass_time(900)
    assert bench.store.advances == before
    assert len(bench.store.records(10)) == 2
    bench.pass_time(101)
    assert bench.store.records(10) == []
    assert bench.store.advances == before + 1


def test_many_results_expire_while_idle(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When more tasks expire than one cycle deletes, the next cycles follow at once."""
    monkeypatch.setattr(sqlite, "EXPIRE_LIMIT", 2)
    bench.store.keep = 1000.0
    bench.accept(*"abcdefg")
    bench.pass_time(1000)
    for _ in range(4):
        bench.pass_time(MIN_UPKEEP)
    assert bench.store.records(10) == []


def test_the_longest_sleep_is_bounded(bench: Bench) -> None:
    """However long results are kept, no timer is longer than a reactor can sleep."""
    bench.store.keep = 1e12
    bench.accept("one")
    assert [call.getTime() - START for call in bench.clock.getDelayedCalls()] == [MAX_UPKEEP]


def test_withdrawn(bench: Bench) -> None:
    """Cancelling drops a task that waits for its commit; one in its commit stays."""
    waits, goes = bench.enqueue("waits"), bench.enqueue("goes")
    waits.cancel()
    assert isinstance(outcome(waits), CancelledError)
    bench.runner.held = []
    bench.pass_time(0)
    goes.cancel()
    assert isinstance(outcome(goes), CancelledError)
    bench.runner.release()
    bench.pass_time(0)
    assert bench.engine.seen == ["goes"]


def test_all_withdrawn(bench: Bench) -> None:
    """When nothing is left to commit, no transaction is made, and stopping doesn't wait for one."""
    one = bench.enqueue("one")
    stopped = bench.spooler.stop(0)
    one.cancel()
    bench.pass_time(0)
    assert isinstance(outcome(one), CancelledError)
    assert outcome(stopped) is None
    assert bench.store.added == []


def test_refused(bench: Bench) -> None:
    """What can't be understood is refused before it reaches the store."""
    assert isinstance(outcome(bench.spooler.enqueue(b"\x01")), MalformedPacket)
    assert isinstance(outcome(bench.enqueue("x", priority="../escaped")), SpoolError)
    assert isinstance(outcome(bench.enqueue("x", at="nan")), SpoolError)
    bench.pass_time(0)
    assert bench.store.added == []


def test_disk_full(bench: Bench) -> None:
    """On a full disk the whole batch is refused, and the next is taken when there is space."""
    bench.store.broken = True
    refused = [bench.enqueue("a"), bench.enqueue("b")]
    bench.pass_time(0)
    assert [type(outcome(one)) for one in refused] == [StoreUnavailable] * 2
    bench.store.broken = False
    bench.accept("c")
    assert bench.engine.seen == ["c"]


def test_withdrawn_from_a_commit_that_fails(bench: Bench) -> None:
    """Where one of a batch was cancelled and the commit fails, the others hear of it."""
    bench.runner.held = []
    gone, stays = bench.enqueue("gone"), bench.enqueue("stays")
    bench.pass_time(0)
    gone.cancel()
    assert isinstance(outcome(gone), CancelledError)
    bench.store.broken = True
    bench.runner.release()
    assert isinstance(outcome(stays), StoreUnavailable)


def test_not_running(path: Path) -> None:
    """Before the start and after the end tasks are refused."""
    bench = Bench(path)
    assert isinstance(outcome(bench.enqueue("x")), Unavailable)
    bench.start().stop()
    assert isinstance(outcome(bench.enqueue("x")), Unavailable)


def test_at(bench: Bench) -> None:
    """A task runs when its time has come, not earlier, and not before an earlier one that came later."""
    bench.accept("later", at=str(START + 100))
    bench.accept("sooner", at=str(START + 50.5))
    bench.pass_time(50)
    assert bench.engine.seen == []
    bench.pass_time(0.5)
    assert bench.engine.seen == ["sooner"]
    bench.pass_time(49.5)
    assert bench.engine.seen == ["sooner", "later"]


def test_idle(bench: Bench) -> None:
    """A spooler that has nothing to run makes no transactions and sets no timer."""
    bench.pass_time(0)
    before = bench.store.advances
    for _ in range(10):
        bench.pass_time(1000)
    assert bench.store.advances == before
    assert bench.clock.getDelayedCalls() == []


def test_clock_set(bench: Bench) -> None:
    """When the wall clock steps forward, tasks that are due then run within the longest sleep."""
    bench.accept("tomorrow", at=str(START + 86400))
    bench.jump = 86400
    bench.pass_time(loop_module.MAX_SLEEP)
    assert bench.engine.seen == ["tomorrow"]


def test_workers_and_order(path: Path) -> None:
    """As many tasks run at once as there are workers, the lowest priority first."""
    bench = Bench(path, workers=2).start()
    for name in "abc":
        bench.engine.handlers[name] = None
    accepted = [
        bench.enqueue(name, priority=priority) for name, priority in (("c", "9"), ("b", "5"), ("a", "-1"))
    ]
    bench.pass_time(0)
    assert len(accepted) == 3
    assert bench.engine.seen == ["a", "b"]
    bench.engine.running["b"].callback(answer(DONE))
    bench.pass_time(0)
    assert bench.engine.seen == ["a", "b", "c"]


@pytest.mark.parametrize(
    "how",
    [
        RETRY,
        IGNORE,
        77,
        RemoteError("boom", traceback="Traceback: boom"),
        ValueError("unknown"),
        WorkerDied("9"),
    ],
)
def test_runs_again(bench: Bench, how: int | Exception) -> None:
    """A task that asked for it, was left, failed or crashed runs again after a while, and is done then."""
    bench.engine.handlers["one"] = how
    bench.accept("one")
    bench.pass_time(9)
    assert bench.engine.seen == ["one"]
    bench.engine.handlers["one"] = DONE
    bench.pass_time(1)
    assert bench.engine.seen == ["one", "one"]
    assert bench.left() == ([], [])


@pytest.mark.parametrize(
    ("how", "attempts", "crashes", "error"),
    [
        (RETRY, 3, 0, "asked for another run"),
        (IGNORE, 3, 0, "SPOOL_IGNORE"),
        (77, 3, 0, "modifiers 255 and 77"),
        (RemoteError("boom", traceback="Traceback: here"), 3, 0, "Traceback: here"),
        (RemoteError(type="KeyError", message="'x'"), 3, 0, "KeyError: 'x'"),
        (ValueError("unknown"), 3, 0, "ValueError: unknown"),
        (WorkerDied("killed by signal 9"), 2, 2, "WorkerDied: killed by signal 9"),
        (RequestTimeout("60 s"), 2, 2, "RequestTimeout: 60 s"),
    ],
)
def test_buried(
    bench: Bench, logged: list[dict[str, Any]], how: int | Exception, attempts: int, crashes: int, error: str
) -> None:
    """At its limit a task moves to the dead letters with its record, and the log says so."""
    bench.engine.handlers["bad"] = how
    bench.accept("bad")
    for _ in range(100):
        bench.pass_time(10)
    assert bench.engine.seen == ["bad"] * attempts
    left, (letter,) = bench.left()
    assert left == []
    assert (letter.task.attempts, letter.task.crashes) == (attempts, crashes)
    assert error in letter.error
    assert letter.started is not None
    assert letter.finished is not None
    assert START < letter.started <= letter.finished
    assert any("dead letters" in str(event.get("log_format")) for event in logged)


def test_poison(path: Path) -> None:
    """Good tasks beside one that kills its worker are all done."""
    bench = Bench(path, workers=3).start()
    bench.engine.handlers["poison"] = WorkerDied("killed")
    names = [f"good{n}" for n in range(40)]
    bench.accept(*names[:20], "poison", *names[20:])
    for _ in range(10):
        bench.pass_time(10)
    assert sorted(set(bench.engine.seen)) == sorted([*names, "poison"])
    left, dead = bench.left()
    assert (left, len(dead)) == ([], 1)


def test_no_room(bench: Bench) -> None:
    """If the engine has no room for a task, it returns uncounted, and nothing is claimed for a moment."""
    bench.engine.handlers["one"] = Busy("full")
    bench.accept("one")
    assert bench.engine.seen == ["one"]
    before = bench.store.advances
    bench.pass_time(0.5)
    assert (bench.engine.seen, bench.store.advances) == (["one"], before)
    for _ in range(10):
        bench.pass_time(1)
    assert len(bench.engine.seen) == 11
    bench.engine.handlers["one"] = DONE
    bench.pass_time(1)
    assert bench.left() == ([], [])


def test_outcome_survives_full_disk(bench: Bench, logged: list[dict[str, Any]]) -> None:
    """When an outcome can't be written, it is kept and written later; nothing runs twice."""
    bench.engine.handlers["one"] = None
    bench.accept("one")
    bench.store.broken = True
    bench.engine.running["one"].callback(answer(DONE))
    for _ in range(5):
        bench.pass_time(STORE_PAUSE)
    assert bench.engine.seen == ["one"]
    assert sum("can't be written" in str(event.get("log_format")) for event in logged) == 1
    bench.store.broken = False
    bench.pass_time(STORE_PAUSE)
    assert sum("written again" in str(event.get("log_format")) for event in logged) == 1
    bench.accept("two")
    assert bench.engine.seen == ["one", "two"]
    assert bench.left() == ([], [])


def test_broken_store_is_left_alone(path: Path) -> None:
    """A store that fails is tried once a pause, however much ends meanwhile."""
    bench = Bench(path, workers=3).start()
    bench.engine.handlers = dict.fromkeys("abc")
    bench.accept("a", "b", "c")
    before = bench.store.advances
    bench.store.broken = True
    for name in "abc":
        bench.engine.running[name].callback(answer(DONE))
        bench.pass_time(0.1)
    assert bench.store.advances == before + 1
    bench.store.broken = False
    bench.pass_time(STORE_PAUSE)
    assert bench.left() == ([], [])


def test_pause_holds_for_what_was_planned(path: Path) -> None:
    """Outcomes that arrive while a cycle fails wait for the end of the pause too."""
    bench = Bench(path, workers=2).start()
    bench.engine.handlers = dict.fromkeys("ab")
    bench.accept("a", "b")
    bench.runner.held = []
    bench.engine.running["a"].callback(answer(DONE))
    bench.pass_time(0)
    bench.engine.running["b"].callback(answer(DONE))
    bench.store.broken = True
    before = bench.store.advances
    bench.runner.release()
    bench.pass_time(STORE_PAUSE / 2)
    assert bench.store.advances == before + 1
    bench.store.broken = False
    bench.pass_time(STORE_PAUSE / 2)
    assert bench.store.advances == before + 2
    assert bench.left() == ([], [])


def test_claim_survives_full_disk(bench: Bench) -> None:
    """When nothing can be claimed, the tasks wait and run later."""
    bench.runner.held = []
    accepted = bench.enqueue("one")
    bench.pass_time(0)
    bench.runner.release()
    bench.store.broken = True
    before = bench.store.advances
    bench.pass_time(0)
    assert outcome(accepted) == 1
    assert (bench.engine.seen, bench.store.advances) == ([], before + 1)
    bench.store.broken = False
    bench.pass_time(STORE_PAUSE)
    assert bench.engine.seen == ["one"]


def test_stop_finishes(bench: Bench) -> None:
    """Stopping refuses new tasks, lets what runs finish, and writes that down; what waits stays."""
    bench.engine.handlers["runs"] = None
    bench.accept("runs", "waits")
    ending: Deferred[None] = Deferred()
    bench.engine.stopping = lambda: ending
    last = bench.enqueue("last")
    stopped = bench.spooler.stop(7.0)
    assert isinstance(outcome(bench.enqueue("too late")), Unavailable)
    bench.pass_time(0)
    assert outcome(last) == 3
    bench.engine.running["runs"].callback(answer(DONE))
    bench.pass_time(0)
    results: list[None] = []
    stopped.addCallback(results.append)
    assert results == []
    ending.callback(None)
    assert results == [None]
    assert bench.engine.stopped_with == [7.0]
    assert bench.left() == (["waits", "last"], [])


def test_stop_commits(bench: Bench) -> None:
    """What was handed over before the end is committed and acknowledged, also with nothing else to wait for."""
    last = bench.enqueue("last")
    stopped = bench.spooler.stop(0)
    bench.pass_time(0)
    assert (outcome(last), outcome(stopped)) == (1, None)
    assert bench.left() == (["last"], [])


def test_stop_gives_back(bench: Bench) -> None:
    """Tasks that the engine leaves unfinished return to the queue uncounted."""
    bench.engine.handlers["runs"] = None
    bench.accept("runs")
    bench.stop()
    orphans, (task,) = claim_all(bench.store)
    assert orphans == []
    assert task.attempts == 0


def test_stop_during_claim(bench: Bench) -> None:
    """A task that is being claimed when the spooler stops returns to the queue instead of running."""
    bench.runner.held = []
    accepted = bench.enqueue("one")
    bench.pass_time(0)
    bench.runner.step()
    assert outcome(accepted) == 1
    bench.pass_time(0)
    assert len(bench.runner.held) == 1
    stopped = bench.spooler.stop(1.0)
    bench.runner.release()
    bench.pass_time(0)
    assert outcome(stopped) is None
    assert bench.engine.seen == []
    assert bench.left() == (["one"], [])


def test_stop_on_full_disk(bench: Bench, logged: list[dict[str, Any]]) -> None:
    """An outcome that can't be written at the end is tried a few times; then its task runs again."""
    bench.engine.handlers["one"] = None
    bench.accept("one")
    bench.store.broken = True
    stopped = bench.spooler.stop(1.0)
    for _ in range(FLUSH_ATTEMPTS):
        bench.pass_time(STORE_PAUSE)
    assert outcome(stopped) is None
    assert any("will run again" in str(event.get("log_format")) for event in logged)
    again = Bench(Path(bench.store._database.path)).start()
    again.pass_time(10)
    assert again.engine.seen == ["one"]
    again.stop()


def test_stop_flushes_late(bench: Bench) -> None:
    """An outcome that can be written at the second try is."""
    bench.engine.handlers["one"] = None
    bench.accept("one")
    bench.store.broken = True
    stopped = bench.spooler.stop(1.0)
    bench.store.broken = False
    bench.pass_time(STORE_PAUSE)
    assert outcome(stopped) is None
    assert bench.left() == (["one"], [])


def test_stop_survives_the_engine(bench: Bench, logged: list[dict[str, Any]]) -> None:
    """An engine that can't be stopped doesn't keep the store open."""
    bench.engine.stopping = lambda: fail(ValueError("stuck"))
    bench.stop()
    assert not bench.runner.alive
    assert any("stopping the engine" in str(event.get("log_format")) for event in logged)


def test_stop_survives_the_store(
    bench: Bench, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that can't be closed is logged."""
    bench.store.close()
    monkeypatch.setattr(bench.store, "close", lambda: fail(StoreUnavailable("stuck")))
    bench.stop()
    assert not bench.runner.alive
    assert any("closing the spool" in str(event.get("log_format")) for event in logged)


def test_late_end(bench: Bench) -> None:
    """A task that ends after all is closed starts nothing."""
    bench.engine.handlers["one"] = None
    bench.accept("one")
    uncancellable = bench.engine.running["one"]
    bench.stop()
    uncancellable.callback(answer(DONE))
    bench.pass_time(0)
    before = bench.store.advances
    bench.spooler._loop._run_cycle()
    assert bench.store.advances == before


def test_twice(bench: Bench) -> None:
    """Starting or stopping twice changes nothing, and after a stop it can be started again."""
    bench.start()
    bench.stop()
    bench.stop()
    assert bench.engine.stopped_with == [5.0]
    bench.start()
    bench.accept("one")
    assert bench.engine.seen == ["one"]
    bench.stop()


def test_start_without_a_spool(path: Path) -> None:
    """A start that fails because of the file leaves nothing running."""
    path.write_bytes(b"not a database")
    bench = Bench(path)
    assert isinstance(outcome(bench.spooler.start()), SpoolCorrupt)
    assert not bench.runner.alive
    assert path.read_bytes() == b"not a database"


def test_start_without_an_engine(path: Path) -> None:
    """A start that fails because of the engine lets go of the file."""
    bench = Bench(path)
    bench.engine.start_error = StartupError("no such handler")
    assert isinstance(outcome(bench.spooler.start()), StartupError)
    assert not bench.runner.alive
    Bench(path).start().stop()


def test_killed_spooler(path: Path) -> None:
    """A task that ran when its spooler was killed runs again after a while, up to its limit."""
    bench = Bench(path).start()
    bench.engine.handlers["one"] = None
    bench.accept("one", "two")
    runs: list[bool] = []
    for _ in range(3):
        bench.store.close()  # as the end of the process does
        bench = Bench(path)
        bench.engine.handlers["one"] = None
        bench.start()
        bench.pass_time(60)
        runs.append("one" in bench.engine.seen)
    assert runs == [True, True, False]
    left, (letter,) = bench.left()
    assert left == []
    assert letter.task.attempts == 3
    assert "the spooler ended" in letter.error


@pytest_twisted.inlineCallbacks
def test_with_threads(path: Path) -> Any:
    """With the real reactor and its own thread, many enqueues take few commits, and every task runs once."""
    store = WatchedStore(str(path))
    engine = MemoryEngine()
    spooler = Spooler(reactor, store, engine, workers=8)
    yield spooler.start()
    finished: Deferred[None] = Deferred()
    names = [f"task{n}" for n in range(100)]
    original = engine.submit

    def submit(request: Request) -> Deferred[Packet]:
        result = original(request)
        if len(engine.seen) == len(names):
            finished.callback(None)
        return result

    engine.submit = submit  # type: ignore[method-assign]
    ids = yield DeferredList([spooler.enqueue(encode_vars({"name": name})) for name in names])
    yield finished
    yield spooler.stop(5.0)
    assert sorted(identifier for _, identifier in ids) == list(range(1, 101))
    assert len(store.added) < 10
    assert sorted(engine.seen) == sorted(names)
    assert claim_all(store) == ([], [])


def test_look_ahead(path: Path) -> None:
    """Short tasks are prefetched, many in one cycle; tasks that turn out slow are not."""
    bench = Bench(path).start()
    bench.accept(*[f"first{n}" for n in range(20)])
    before = bench.store.advances
    bench.accept(*[f"more{n}" for n in range(200)])
    assert len(bench.engine.seen) == 220
    assert bench.store.advances - before < 10
    bench.engine.handlers["slow"] = None
    bench.accept("slow")
    bench.pass_time(1.0)
    bench.engine.running["slow"].callback(answer(DONE))
    bench.pass_time(0)
    bench.engine.handlers = {f"late{n}": None for n in range(5)}
    bench.accept(*bench.engine.handlers)
    assert bench.engine.seen[-1] == "late0"


def test_look_ahead_is_not_counted(path: Path) -> None:
    """A task that was prefetched when its spooler was killed counts no attempt, and isn't prefetched again."""
    bench = Bench(path).start()
    bench.accept("warm", "up")
    bench.engine.handlers = dict.fromkeys("abc")
    bench.accept("a", "b", "c")
    assert bench.engine.seen[2:] == ["a"]
    assert [record.task.id for record in bench.store.records(9, state=State.RUNNING)] == [3, 4, 5]
    bench.store.close()  # as the end of the process does
    bench = Bench(path)
    bench.engine.handlers = dict.fromkeys("abc")
    bench.start()
    assert [bench.store.find([number])[0].task.attempts for number in (3, 4, 5)] == [1, 0, 0]
    bench.accept("warm", "up")
    assert list(bench.engine.running) == ["b"]


def test_what_waits_for_long_goes_back(path: Path) -> None:
    """Tasks prefetched behind one that turns out slow return uncounted, and are not claimed again."""
    bench = Bench(path).start()
    bench.accept("warm", "up")
    bench.engine.handlers = {"slow": None}
    bench.accept("slow", "b", "c")
    assert bench.store.find([5])[0].state is State.RUNNING
    bench.pass_time(0.3)
    assert [(record.state, record.task.attempts) for record in bench.store.find([4, 5])] == [
        (State.READY, 0)
    ] * 2
    before = bench.store.advances
    for _ in range(20):
        bench.pass_time(0.5)
    assert bench.store.advances == before
    bench.engine.running["slow"].callback(answer(DONE))
    bench.pass_time(0)
    assert bench.engine.seen[2:] == ["slow", "b", "c"]


def test_cancel_ahead(bench: Bench) -> None:
    """A prefetched task is cancelled without having run."""
    bench.accept("warm", "up")
    bench.engine.handlers = {"slow": None}
    bench.accept("slow", "b")
    bench.spooler.call_store(lambda store: store.cancel([4], START))
    bench.pass_time(0)
    assert bench.store.find([4])[0].state is State.CANCELLED
    bench.engine.running["slow"].callback(answer(DONE))
    bench.pass_time(0)
    assert bench.engine.seen[2:] == ["slow"]


def test_stop_gives_back_what_is_ahead(bench: Bench) -> None:
    """Prefetched tasks return to the queue when the spooler stops, and running ones finish."""
    bench.accept("warm", "up")
    bench.engine.handlers = {"slow": None}
    bench.accept("slow", "b", "c")
    bench.engine.stopping = lambda: succeed(bench.engine.running["slow"].callback(answer(DONE)))
    assert bench.left() == (["b", "c"], [])


def test_what_is_not_claimed_ahead_waits(path: Path) -> None:
    """A task that failed waits for a free worker, and no cycle is made for it meanwhile."""
    bench = Bench(path).start()
    bench.engine.handlers["again"] = RETRY
    bench.accept("warm", "up", "again")
    bench.engine.handlers = {"a": None}
    bench.accept("a")
    bench.pass_time(10)
    before = bench.store.advances
    bench.pass_time(1)
    assert bench.store.advances - before <= 1
    bench.engine.running["a"].callback(answer(DONE))
    bench.pass_time(0)
    assert bench.engine.seen[-2:] == ["a", "again"]


def test_queues(path: Path) -> None:
    """A queue has its own workers, whatever the others do; all other queues take turns."""
    bench = Bench(path, workers=1, queues={"mail": 2}).start()
    names = [f"{queue}{n}" for queue in ("mail", "a", "b") for n in range(3)]
    bench.engine.handlers = dict.fromkeys(names)
    for name in names:
        bench.accept(name, spooler=name[:-1])
    assert sorted(bench.engine.seen) == ["a0", "mail0", "mail1"]
    order = []
    for _ in range(4):
        order.append(bench.engine.seen[-1])
        bench.pass_time(1.0)
        bench.engine.running[order[-1]].callback(answer(DONE))
        bench.pass_time(0)
    assert order == ["a0", "b0", "a1", "b1"]
    bench.engine.running["mail1"].callback(answer(DONE))
    bench.pass_time(0)
    assert bench.engine.seen[-1] == "mail2"


def test_pause_and_resume(bench: Bench) -> None:
    """Nothing of a paused queue runs until it is resumed; a restart doesn't change that."""
    assert outcome(bench.spooler.call_store(lambda store: store.pause("mail", True))) is None
    bench.accept("one", spooler="mail")
    bench.accept("two")
    assert bench.engine.seen == ["two"]
    bench.stop()
    bench.start()
    assert bench.engine.seen == ["two"]
    assert outcome(bench.spooler.call_store(lambda store: store.pause("mail", False))) is None
    bench.pass_time(0)
    assert bench.engine.seen == ["two", "one"]


def test_cancel(bench: Bench) -> None:
    """A task that waits is cancelled at once, one that runs when its answer has been dropped."""
    bench.engine.handlers["runs"] = None
    bench.accept("runs", "waits")
    assert outcome(bench.spooler.call_store(lambda store: store.cancel([1, 2, 9], START))) == [1, 2]
    bench.pass_time(0)
    assert [record.state for record in bench.store.find([1, 2])] == [State.CANCELLED] * 2
    assert bench.engine.seen == ["runs"]
    bench.accept("next")
    assert bench.engine.seen == ["runs", "next"]


def test_cancel_that_comes_too_late(bench: Bench) -> None:
    """A task that ends while it is being cancelled is done; one that would be tried again is cancelled."""
    for name, how, state in (("done", DONE, State.DONE), ("again", RETRY, State.CANCELLED)):
        bench.engine.handlers[name] = None
        accepted = bench.enqueue(name)
        bench.pass_time(0)
        identifier = outcome(accepted)
        assert isinstance(identifier, int)
        bench.store.cancel([identifier], START)
        bench.engine.running[name].callback(answer(how))
        bench.pass_time(0)
        assert bench.store.find([identifier])[0].state is state


def test_result(bench: Bench) -> None:
    """What the handler returned is kept with the task for a while."""
    bench.engine.handlers["one"] = None
    bench.accept("one")
    waiting = bench.spooler.wait(1, "peer")
    bench.engine.running["one"].callback(Packet(ANSWER, DONE, b"result"))
    bench.pass_time(0)
    told = outcome(waiting)
    assert (told["state"], told["result"], told["attempts"]) == ("done", b"result", 1)
    bench.pass_time(3601)
    bench.accept("two")
    assert bench.store.find([1]) == []


def test_wait(bench: Bench) -> None:
    """Waiting ends with the task, or at once if that is finished; for an unknown one it fails."""
    bench.engine.handlers = {"one": None, "bad": RETRY}
    bench.accept("one")
    first, second, third = (bench.spooler.wait(1, "peer") for _ in range(3))
    second.cancel()
    assert isinstance(outcome(second), CancelledError)
    bench.engine.running["one"].callback(answer(DONE))
    bench.pass_time(0)
    for waiting in (first, third, bench.spooler.wait(1, "peer")):
        assert outcome(waiting)["state"] == "done"
    assert isinstance(outcome(bench.spooler.wait(99, "peer")), NoSuchTask)
    bench.accept("bad")
    buried: list[Mapping[str, object]] = []
    bench.spooler.wait(2, "peer").addCallback(buried.append)
    for _ in range(10):
        assert not buried
        bench.pass_time(10)
        if buried:
            break
    assert buried[0]["state"] == "dead"
    bench.stop()
    assert isinstance(outcome(bench.spooler.wait(1, "peer")), Unavailable)


def test_wait_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many wait at once; one that leaves makes room."""
    monkeypatch.setattr(waiters, "MAX_WAITERS", 1)
    bench.engine.handlers["one"] = None
    bench.accept("one")
    waiting = bench.spooler.wait(1, "peer")
    assert isinstance(outcome(bench.spooler.wait(1, "peer")), Busy)
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    again = bench.spooler.wait(1, "peer")
    bench.store.broken = True
    assert not again.called


def test_wait_on_a_broken_store(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits hears of a store that can't be read."""

    def broken(ids: object) -> list[Record]:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(bench.store, "states", broken)
    assert isinstance(outcome(bench.spooler.wait(1, "peer")), StoreUnavailable)


def test_idempotency_key(bench: Bench) -> None:
    """The same key twice is one task, in one batch or later, waiting or done."""
    first, second = bench.enqueue("one", idempotency_key="k"), bench.enqueue("two", idempotency_key="k")
    bench.pass_time(0)
    assert (outcome(first), outcome(second)) == (1, 1)
    third = bench.enqueue("three", idempotency_key="k")
    bench.pass_time(0)
    assert outcome(third) == 1
    assert bench.engine.seen == ["one"]


def test_what_is_added_behind_its_back_runs(bench: Bench) -> None:
    """What a change of the store brings is run at once."""
    tasks = [new_task(encode_vars({"name": name}), START, b"body") for name in ("one", "two")]
    assert outcome(bench.spooler.call_store(lambda store: store.add(tasks))) == [1, 2]
    bench.pass_time(0)
    assert bench.engine.seen == ["one", "two"]
    assert decode_run(bench.engine.requests[0].packet)[2] == b"body"


def test_who_waits_when_it_stops(bench: Bench) -> None:
    """Who waits for a task that ends while the spooler stops hears of that, all others of the stop."""
    bench.engine.handlers["one"] = None
    bench.accept("one", "two")
    first, second = bench.spooler.wait(1, "peer"), bench.spooler.wait(2, "peer")
    ending: Deferred[None] = Deferred()
    bench.engine.stopping = lambda: ending
    stopped = bench.spooler.stop(5.0)
    bench.engine.running["one"].callback(answer(DONE))
    ending.callback(None)
    bench.pass_time(0)
    assert outcome(stopped) is None
    assert outcome(first)["state"] == "done"
    assert isinstance(outcome(second), Unavailable)


def test_runs_for_ever(bench: Bench) -> None:
    """A task that is to run again and again does so after a pause, and is never given up."""
    bench.engine.handlers["one"] = AGAIN
    bench.accept("one")
    for _ in range(50):
        bench.pass_time(10)
    assert len(bench.engine.seen) == 51
    assert bench.store.find([1])[0].task.attempts == 0


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_clock_set_during_a_pause(bench: Bench, jump: float) -> None:
    """A pause before the next try lasts as long as it should, however the wall clock steps meanwhile."""
    bench.engine.handlers["one"] = RETRY
    bench.accept("one")
    bench.jump = jump
    for _ in range(9):
        bench.pass_time(1)
    assert bench.engine.seen == ["one"]
    bench.pass_time(1 + loop_module.MAX_SLEEP)
    assert bench.engine.seen == ["one", "one"]


def test_clock_set_while_the_disk_is_full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the wall clock is acted on later when the store fails."""
    bench.engine.handlers["one"] = RETRY
    bench.accept("one")

    def full(seconds: float, latest: float) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(bench.store, "shift", full)
    bench.jump = -86400
    bench.pass_time(8)
    monkeypatch.undo()
    bench.pass_time(2 + loop_module.MAX_SLEEP)
    assert bench.engine.seen == ["one", "one"]


def test_clock_set_back(bench: Bench) -> None:
    """With the clock set back, what is ready still runs, and a task for a time of day waits for that time."""
    bench.accept("noon", at=str(START + 100))
    bench.jump = -1000
    bench.accept("now")
    assert bench.engine.seen == ["now"]
    bench.pass_time(1099)
    assert bench.engine.seen == ["now"]
    bench.pass_time(1)
    assert bench.engine.seen == ["now", "noon"]


def test_clock_was_wrong(path: Path) -> None:
    """A pause that a wrong clock put years away doesn't outlast a restart."""
    bench = Bench(path)
    bench.jump = 1e9
    bench.start()
    bench.engine.handlers["one"] = RETRY
    bench.accept("one")
    bench.stop()
    bench = Bench(path).start()
    bench.pass_time(POLICY.max_delay)
    assert bench.engine.seen == ["one"]


def test_pending_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that wait for their commit are bounded by their size too; afterwards there is room again."""
    monkeypatch.setattr(group_commit, "MAX_PENDING_BYTES", 1000)
    variables = encode_vars({"name": "x"})
    taken, withdrawn = (bench.spooler.enqueue(variables, bytes(800)) for _ in range(2))
    assert isinstance(outcome(bench.spooler.enqueue(variables)), Busy)
    withdrawn.cancel()
    assert isinstance(outcome(withdrawn), CancelledError)
    third = bench.spooler.enqueue(variables, bytes(800))
    bench.pass_time(0)
    assert (outcome(taken), outcome(third)) == (1, 2)
    assert bench.spooler._commits._size == 0


def test_woken_by_another_process(bench: Bench) -> None:
    """When the store says that another process changed something, there is a cycle."""
    before = bench.store.advances
    bench.clock.callFromThread = lambda call: call()  # type: ignore[attr-defined]
    bench.spooler._wake_from_thread()
    bench.pass_time(0)
    assert bench.store.advances == before + 1


def test_heartbeat(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that wants heartbeats gets them in time, even with nothing to do."""
    monkeypatch.setattr(bench.store, "heartbeat", 2.0)
    bench.accept("one")
    before = bench.store.advances
    for _ in range(10):
        bench.pass_time(2)
    assert bench.store.advances == before + 10


def test_heartbeat_while_stopping(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spooler that waits for its last tasks sends heartbeats, or others would take those tasks over."""
    monkeypatch.setattr(bench.store, "heartbeat", 2.0)
    bench.engine.handlers["slow"] = None
    bench.accept("slow")
    ending: Deferred[None] = Deferred()
    bench.engine.stopping = lambda: ending
    stopped = bench.spooler.stop(30.0)
    before = bench.store.advances
    for _ in range(10):
        bench.pass_time(1.0)
    assert bench.store.advances >= before + 5
    bench.engine.running["slow"].callback(answer(DONE))
    ending.callback(None)
    bench.pass_time(0)
    assert outcome(stopped) is None
    assert bench.left() == ([], [])
