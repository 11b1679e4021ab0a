"""What every store of tasks promises, as tests: a subclass of :class:`StoreContract` brings the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from uwsgitwisted.errors import StoreUnavailable
from uwsgitwisted.spool.retry import ERROR_LIMIT, Action, Decision, Outcome, OutcomeKind, RetryPolicy
from uwsgitwisted.spool.stores.interface import (
    EXPIRE_BYTES,
    LARGEST_ID,
    OCCURRENCE_SPAN,
    SMALL_RESULT,
    Cycle,
    ISpoolStore,
    Record,
    Settlement,
    Want,
)
from uwsgitwisted.spool.task import LATEST, PRIORITY_LIMIT, UNPRIORITIZED, State, Task

#: How far a store's clock may be from the bench's, and how long a test may take between two looks at it, in
#: seconds. Times in the tests are further apart.
SLACK = 30.0


@dataclass
class Bench:
    """An open store, and what the tests do with it.

    :param now: the time that the store goes by, in unix seconds.
    :param pass_time: has so many seconds go by.
    """

    store: ISpoolStore
    now: Callable[[], float]
    pass_time: Callable[[float], None]

    def task(self, name: str = "t", later: float = 0.0, **fields: Any) -> Task:
        """Return a new task that is to run so many seconds from now."""
        now = self.now()
        return replace(Task(name.encode(), at=now + later, created=now), **fields)

    def add(self, *names: str, **fields: Any) -> list[int]:
        """Store tasks that may run at once, and return their ids."""
        return self.store.add([self.task(name, **fields) for name in names])

    def cycle(self, limit: int, *settlements: Settlement, prefetch: int = 0) -> Cycle:
        """Have a cycle in which the only pool wants so many tasks."""
        return self.pools({None: Want(limit, prefetch)}, *settlements)

    def pools(self, demand: Mapping[str | None, Want], *settlements: Settlement) -> Cycle:
        """Have a cycle in which several pools want tasks."""
        return self.store.advance(settlements, demand, self.now())

    def run(self, *names: str, **fields: Any) -> list[int]:
        """Store tasks, claim them, and return their ids."""
        ids = self.add(*names, **fields)
        assert sorted(claimed.id for claimed in self.cycle(len(ids)).claimed) == ids
        return ids

    def finish(self, *ids: int) -> None:
        """Have tasks that run be done."""
        self.cycle(0, *(settle(identifier, Action.FINISH, 1) for identifier in ids))

    def record(self, identifier: int) -> Record:
        """Return what is known of a task."""
        (record,) = self.store.find([identifier])
        return record

    def states(self) -> dict[int, State]:
        """Return the states of all tasks."""
        return {record.task.id: record.state for record in self.store.records(10_000)}

    def reopen(self) -> None:
        """Close the store and open it again."""
        self.store.close()
        self.store.open(nothing)


def nothing() -> None:
    """Be woken and do nothing."""


def settle(
    identifier: int,
    action: Action,
    attempts: int = 0,
    crashes: int = 0,
    delay: float | None = None,
    error: str = "",
    result: bytes = b"",
) -> Settlement:
    """Return the settlement of a task that ran."""
    return Settlement(identifier, Decision(action, attempts, crashes, delay, error), result)


def names(cycle: Cycle) -> list[str]:
    """Return the names of the tasks that a cycle gave out."""
    return [task.variables.decode() for task in cycle.claimed]


def about(seconds: float) -> Any:
    """Return a time that equals those near it."""
    return pytest.approx(seconds, abs=SLACK)


class StoreContract:
    """The tests. A subclass gives a fixture ``bench``, with a store that is open and empty."""

    # Tasks go in and come out.

    def test_interface(self, bench: Bench) -> None:
        """It has all that a store needs."""
        assert verifyObject(ISpoolStore, bench.store)

    def test_order(self, bench: Bench) -> None:
        """Tasks come by priority, then time, then id."""
        bench.add("plain")
        bench.store.add(
            [
                bench.task("last", priority=PRIORITY_LIMIT + 1),
                bench.task("second", priority=5),
                bench.task("earlier", -100),
                bench.task("first", priority=-PRIORITY_LIMIT),
                bench.task("third", priority=6),
            ]
        )
        cycle = bench.cycle(3)
        assert names(cycle) == ["first", "second", "third"]
        assert (cycle.ready, cycle.wait) == ({None}, None)
        cycle = bench.cycle(10)
        assert names(cycle) == ["earlier", "plain", "last"]
        assert (cycle.ready, cycle.wait) == (set(), None)
        assert bench.cycle(10).claimed == []

    def test_ids_ascend(self, bench: Bench) -> None:
        """Tasks that are stored later have higher ids; those of one batch are in its order."""
        ids = bench.add("a", "b") + bench.store.add([bench.task(key="z"), bench.task(key="a")]) + bench.add("c")
        assert ids == sorted(set(ids))
        assert [bench.record(identifier).task.key for identifier in ids] == ["", "", "z", "a", ""]

    def test_nothing_to_add(self, bench: Bench) -> None:
        """An empty batch is no mistake."""
        assert bench.store.add([]) == []
        bench.add("t", later=1000)
        assert bench.store.add([]) == []

    def test_claimed_task_is_whole(self, bench: Bench) -> None:
        """A claimed task is the one that was added, with its id."""
        added = Task(
            bytes(range(256)),
            at=bench.now() - 0.25,
            created=bench.now(),
            priority=7,
            queue="mäil'\"\\;--%s",
            attempts=2,
            crashes=1,
            key="önce\n",
            body=b"\x00\xfe" * 70_000,
        )
        (identifier,) = bench.store.add([added])
        (claimed,) = bench.cycle(1).claimed
        assert claimed == replace(added, id=identifier)
        known = replace(claimed, body=b"")
        assert bench.record(identifier).task == known
        assert bench.store.body(identifier) == added.body

    def test_largest(self, bench: Bench) -> None:
        """A task at the limits of what a request can ask for is stored as it is."""
        added = bench.task(
            variables=b"x" * 65_535, at=LATEST, priority=UNPRIORITIZED, queue="q" * 255, key="k" * 255
        )
        (identifier,) = bench.store.add([added])
        assert bench.record(identifier).task == replace(added, id=identifier)

    def test_many_bytes(self, bench: Bench) -> None:
        """A batch that is too large to be sent at once is stored all the same."""
        bodies = [bytes([number]) * 5_000_000 for number in range(5)]
        ids = bench.store.add([bench.task(str(place), body=body) for place, body in enumerate(bodies)])
        assert [task.body for task in bench.cycle(5).claimed] == bodies
        assert [record.body_size for record in bench.store.find(ids)] == [5_000_000] * 5

    def test_failed_batch_leaves_nothing(self, bench: Bench) -> None:
        """A batch is stored whole or not at all, and the store goes on."""
        with pytest.raises(Exception, match=r"."):
            bench.store.add([bench.task("good"), bench.task("bad", priority=2**70)])
        assert bench.cycle(9).claimed == []
        assert len(bench.add("next")) == 1

    # Bounds.

    def test_usage_counts_what_is_not_over(self, bench: Bench) -> None:
        """Tasks count from when they are stored until they are finished, also for the next opener."""

        def unfinished() -> int:
            return bench.store.usage().tasks

        assert unfinished() == 0
        done, dead, cancelled, failed, kept = bench.run(*"abcde", key="")
        waiting, later = bench.store.add([bench.task(key="k"), bench.task(later=1000)])
        bench.add("again", key="k")
        assert unfinished() == 7
        bench.cycle(
            0, settle(done, Action.FINISH), settle(dead, Action.DEAD_LETTER), settle(cancelled, Action.CANCEL)
        )
        bench.cycle(0, settle(failed, Action.RETRY, 1, 0, 100.0), settle(done, Action.FINISH))
        assert unfinished() == 4
        bench.store.cancel([waiting, later, kept], bench.now())
        assert unfinished() == 2
        bench.reopen()
        assert unfinished() == 2
        bench.cycle(0, settle(kept, Action.RETRY, 1, 0, 5.0))
        assert bench.record(kept).state is State.CANCELLED
        assert unfinished() == 1
        bench.store.retry([dead, cancelled, done], bench.now())
        assert unfinished() == 3
        assert bench.store.drop([done, waiting]) == [done, waiting]
        now = bench.now()
        assert [bench.store.occur("clean", now, bench.task("t")) for _ in range(2)] == [True, False]
        assert unfinished() == 4
        bench.reopen()
        assert unfinished() == 4

    def test_usage_counts_nothing_of_what_failed(self, bench: Bench) -> None:
        """What is not stored is not counted."""
        with pytest.raises(Exception, match=r"."):
            bench.store.add([bench.task("good"), bench.task("bad", priority=2**70)])
        assert bench.store.usage().tasks == 0

    def test_usage_of_what_is_not_kept(self, bench: Bench) -> None:
        """Tasks that are deleted at once don't count any more either."""
        bench.store.keep = 0.0
        done, cancelled = bench.run("a", "b")
        bench.cycle(0, settle(done, Action.FINISH), settle(cancelled, Action.CANCEL))
        assert bench.store.usage().tasks == 0

    def test_size(self, bench: Bench) -> None:
        """The size grows with the bytes of tasks, and shrinks when these are done."""
        before = bench.store.usage().size
        ids = bench.run(*"abcd", body=bytes(100_000))
        assert 400_000 <= bench.store.usage().size - before < 500_000
        bench.finish(*ids)
        assert bench.store.usage().size - before < 50_000

    def test_waiting_queues(self, bench: Bench) -> None:
        """The store names queues with tasks that wait, for a worker or their time, up to a number."""
        bench.run("a", queue="running")
        bench.store.add([bench.task(queue=f"r{number}") for number in range(5)] * 2)
        bench.store.add([bench.task(queue=f"s{number}", later=1000) for number in range(5)] * 2)
        bench.add("unnamed")
        names = {f"{letter}{number}" for letter in "rs" for number in range(5)}
        assert bench.store.waiting_queues(100) == names
        assert bench.store.waiting_queues(3) == {"r0", "r1", "r2"}
        assert len(bench.store.waiting_queues(7)) == 7

    def test_no_bounds(self, bench: Bench) -> None:
        """Without bounds every task is taken."""
        assert bench.store.refusals([bench.task(queue=str(number)) for number in range(2000)]) == [None] * 2000

    # Time.

    def test_later(self, bench: Bench) -> None:
        """A task whose time has not come waits for it, and the cycle says how long."""
        now = bench.now()
        (identifier,) = bench.store.add([replace(bench.task("tomorrow", priority=-9), at=now + 86400)])
        bench.store.add([replace(bench.task("never"), at=now + 9e6)])
        cycle = bench.cycle(9)
        assert (cycle.claimed, cycle.ready, cycle.wait) == ([], set(), about(86400))
        assert bench.record(identifier).state is State.SCHEDULED
        bench.pass_time(80_000)
        assert bench.cycle(9).wait == about(6400)
        bench.pass_time(7000)
        cycle = bench.cycle(9)
        assert (names(cycle), cycle.ready, cycle.wait) == (["tomorrow"], set(), about(9e6 - 87_000))

    def test_due_and_not_claimed(self, bench: Bench) -> None:
        """A task whose time has come is ready, whether or not there is a worker for it."""
        (identifier,) = bench.add("t", later=100)
        bench.pass_time(200)
        cycle = bench.cycle(0)
        assert (cycle.ready, cycle.wait) == ({None}, None)
        assert bench.record(identifier).state is State.READY

    def test_due_before_it_was_made(self, bench: Bench) -> None:
        """A task for a time that has passed is ready at once, whatever the store's own clock says."""
        long_ago = Task(b"t", at=5.0, created=6.0)
        bench.store.add([long_ago, replace(long_ago, at=6.0)])
        assert len(bench.cycle(2).claimed) == 2

    # How tasks end.

    def test_finish(self, bench: Bench) -> None:
        """What is known of a task that is done is its result and its times; its body is not kept."""
        (identifier,) = bench.run("t", body=b"large")
        before = bench.record(identifier)
        assert (before.state, before.started, before.finished) == (State.RUNNING, about(bench.now()), None)
        bench.cycle(0, settle(identifier, Action.FINISH, 1, result=b"\x00result"))
        record = bench.record(identifier)
        assert (record.state, record.result, record.task.attempts) == (State.DONE, b"\x00result", 1)
        assert (record.started, record.finished) == (before.started, about(bench.now()))
        assert (bench.store.body(identifier), record.body_size) == (b"", 0)

    def test_forgotten(self, bench: Bench) -> None:
        """A task that is not kept is gone when it is finished, and its id is not given again."""
        bench.store.keep = 0.0
        done, cancelled = bench.run("a", "b")
        bench.cycle(0, settle(done, Action.FINISH), settle(cancelled, Action.CANCEL))
        assert bench.store.find([done, cancelled]) == []
        bench.reopen()
        assert bench.add("next")[0] > cancelled

    def test_kept_for_a_while(self, bench: Bench) -> None:
        """What is done or cancelled is kept as long as was asked for; dead letters stay."""
        bench.store.keep = 1000.0
        done, dead, cancelled, taken_back = bench.run("a", "b", "c", "d")
        bench.cycle(
            0, settle(done, Action.FINISH), settle(dead, Action.DEAD_LETTER), settle(cancelled, Action.CANCEL)
        )
        bench.store.cancel([taken_back], bench.now())
        bench.cycle(0, settle(taken_back, Action.RETRY, 1, 0, 5.0))
        (waiting,) = bench.add("e")
        bench.store.cancel([waiting], bench.now())
        bench.pass_time(900)
        bench.cycle(0)
        assert len(bench.states()) == 5
        bench.pass_time(200)
        bench.cycle(0)
        assert bench.states() == {dead: State.DEAD}

    def test_upkeep(self, bench: Bench) -> None:
        """A cycle says when the next one is due, so that finished tasks are deleted in time."""
        bench.store.keep = 1000.0
        assert bench.cycle(0).upkeep is None
        (done,) = bench.run("a")
        bench.add("waits", later=50)
        bench.finish(done)
        cycle = bench.cycle(0)
        assert (cycle.upkeep, cycle.wait) == (about(1000), about(50))
        bench.pass_time(1100)
        assert bench.cycle(0).upkeep is None
        assert done not in bench.states()

    def test_much_is_forgotten_in_pieces(self, bench: Bench) -> None:
        """One cycle deletes no more than so many bytes, and says that there is more."""
        bench.store.keep = 1000.0
        ids = bench.run(*"abcdefgh")
        result = bytes(EXPIRE_BYTES // 4)
        bench.cycle(0, *(settle(identifier, Action.FINISH, 1, result=result) for identifier in ids))
        bench.pass_time(1100)
        assert bench.cycle(0).upkeep == 0.0
        assert len(bench.states()) == 3
        bench.cycle(0)
        assert bench.states() == {}

    def test_retry(self, bench: Bench) -> None:
        """A task to retry waits for its time, with its new counts; without a time it keeps its place."""
        failed, returned = bench.run("a", "b")
        cycle = bench.cycle(9, settle(failed, Action.RETRY, 3, 1, 100.0, "why"), settle(returned, Action.RETRY))
        assert names(cycle) == ["b"]
        assert cycle.wait == about(100)
        assert (bench.record(failed).state, bench.record(failed).error) == (State.SCHEDULED, "why")
        bench.pass_time(150)
        (again,) = bench.cycle(9).claimed
        assert (again.id, again.attempts, again.crashes) == (failed, 3, 1)
        assert again.at == about(bench.now() - 50)

    def test_retry_at_once(self, bench: Bench) -> None:
        """A task without a pause may be claimed in the cycle that writes its outcome."""
        (identifier,) = bench.run("a")
        assert names(bench.cycle(1, settle(identifier, Action.RETRY, 1, 0, 0.0))) == ["a"]

    def test_bury(self, bench: Bench) -> None:
        """A dead letter has its counts, its last error, the times and its body."""
        first, second, _ = bench.run("a", "b", "c", body=b"body")
        bench.cycle(0, settle(first, Action.DEAD_LETTER, 4, 2, error="Traceback: KeyError"))
        bench.cycle(1, settle(second, Action.RETRY, 1, 0, 0.0, "earlier"))
        bench.cycle(0, settle(second, Action.DEAD_LETTER, 2))
        bench.reopen()
        dead, other = bench.store.records(10, state=State.DEAD)
        assert (dead.task.attempts, dead.task.crashes, dead.error) == (4, 2, "Traceback: KeyError")
        assert (dead.started, dead.finished) == (about(bench.now()), about(bench.now()))
        assert bench.store.body(first) == b"body"
        assert (other.task.id, other.error) == (second, "earlier")

    def test_hostile_error(self, bench: Bench) -> None:
        """Whatever text an error has, it can be stored."""
        (identifier,) = bench.run("a")
        error = "\0'; DROP TABLE tasks; -- \ud800 \U0001f4a9" + "x" * ERROR_LIMIT + "\0%s %(id)s {}"
        task = bench.record(identifier).task
        decision = RetryPolicy(max_attempts=1).decide(task, Outcome(OutcomeKind.FAILED, error), lambda: 0.0)
        bench.cycle(0, Settlement(identifier, decision))
        assert bench.record(identifier).error == decision.error
        assert decision.error.endswith("%s %(id)s {}")

    def test_settled_twice(self, bench: Bench) -> None:
        """Only a task that runs can be settled; all else changes nothing."""
        (done,) = bench.run("a")
        bench.finish(done)
        (waiting,) = bench.add("b")
        bench.cycle(
            0,
            settle(done, Action.DEAD_LETTER, 9),
            settle(waiting, Action.FINISH, 9),
            settle(waiting + 1, Action.CANCEL),
        )
        assert bench.states() == {done: State.DONE, waiting: State.READY}
        assert bench.record(done).task.attempts == 1

    # Spoolers end, and others begin.

    def test_orphans(self, bench: Bench) -> None:
        """What ran when the spooler ended is an orphan to the next one, and so on, until it is settled."""
        (ran,) = bench.run("ran", body=b"large")
        bench.add("waits")
        for _ in range(2):
            bench.reopen()
            (orphan,) = bench.cycle(0).orphans
            assert (orphan.id, orphan.variables, orphan.body) == (ran, b"ran", b"")
            assert not bench.cycle(0).orphans
        bench.cycle(0, settle(ran, Action.DEAD_LETTER, 1))
        bench.reopen()
        cycle = bench.cycle(9)
        assert (list(cycle.orphans), names(cycle)) == ([], ["waits"])

    def test_orphan_that_was_ahead(self, bench: Bench) -> None:
        """An orphan says whether it may not have begun; one that runs again is not marked any more."""
        bench.add("begun", "ahead")
        bench.cycle(1, prefetch=1)
        bench.reopen()
        orphans = bench.cycle(0).orphans
        assert {orphan.variables: orphan.prefetched for orphan in orphans} == {b"begun": False, b"ahead": True}
        cycle = bench.cycle(2, *(settle(orphan.id, Action.RETRY, 1, 0, 0.0) for orphan in orphans))
        assert [claimed.prefetched for claimed in cycle.claimed] == [False, False]

    def test_closed(self, bench: Bench) -> None:
        """A store that is closed says so; to close it twice is no mistake, and it can be opened again."""
        bench.store.close()
        bench.store.close()
        with pytest.raises(StoreUnavailable, match="not open"):
            bench.add("t")
        with pytest.raises(StoreUnavailable, match="not open"):
            bench.cycle(1)
        with pytest.raises(StoreUnavailable, match="not open"):
            bench.store.counts()
        bench.store.open(nothing)
        assert len(bench.add("t")) == 1

    # Queues and pools.

    def test_own_workers(self, bench: Bench) -> None:
        """A queue with workers of its own is claimed for them only, however much waits in others."""
        bench.add(*(f"a{number}" for number in range(9)), queue="a")
        bench.add(*(f"m{number}" for number in range(9)), queue="mail")
        cycle = bench.pools({None: Want(2), "mail": Want(3), "idle": Want(5)})
        assert names(cycle) == ["a0", "a1", "m0", "m1", "m2"]
        assert cycle.ready == {None, "mail"}
        cycle = bench.pools({"mail": Want(0), None: Want(9)})
        assert names(cycle) == ["a2", "a3", "a4", "a5", "a6", "a7", "a8"]
        assert cycle.ready == {"mail"}
        cycle = bench.pools({"mail": Want(6), None: Want(9)})
        assert (len(cycle.claimed), cycle.ready) == (6, set())

    def test_queues_take_turns(self, bench: Bench) -> None:
        """A queue with few tasks is served beside one with many, whatever their priorities."""
        bench.add(*["many"] * 50, queue="many", priority=-5)
        bench.add(*["few"] * 2, queue="few")
        bench.add(*["unnamed"] * 2)
        assert sorted(names(bench.cycle(6))) == ["few"] * 2 + ["many"] * 2 + ["unnamed"] * 2

    def test_what_one_queue_leaves(self, bench: Bench) -> None:
        """What a queue does not need of its share goes to the others."""
        bench.add(*["many"] * 50, queue="many")
        bench.add("few", queue="few")
        assert sorted(names(bench.cycle(9))) == ["few"] + ["many"] * 8

    def test_one_worker_serves_all(self, bench: Bench) -> None:
        """With one worker, each queue has its turn before one has a second."""
        for queue in ("a", "", "b", "c"):
            bench.add(*[queue or "-"] * 5, queue=queue)
        served = [names(bench.cycle(1))[0] for _ in range(8)]
        assert sorted(served[:4]) == sorted(served[4:]) == ["-", "a", "b", "c"]

    @pytest.mark.parametrize("limit", [10, 1000])
    def test_many_queues(self, bench: Bench, limit: int) -> None:
        """However many queues there are, none has a second turn before all had one, and none is left out."""
        queues = [f"q{number:03}" for number in range(200)]
        bench.store.add([bench.task(queue, queue=queue) for queue in queues for _ in range(2)])
        served: list[str] = []
        while len(served) < 400:
            cycle = bench.cycle(limit)
            served += names(cycle)
            assert cycle.ready or len(served) == 400
        assert sorted(served) == sorted(queues * 2)
        assert sorted(served[:200]) == queues or limit > len(queues)

    def test_failing_queue_starves_nobody(self, bench: Bench) -> None:
        """A queue whose tasks all failed before has its turns, beside one whose tasks are prefetched."""
        failed = bench.run("old1", "old2", queue="old")
        bench.cycle(0, *(settle(identifier, Action.RETRY, 1, 0, 0.0) for identifier in failed))
        bench.add(*["new"] * 100, queue="new")
        served = [name for _ in range(4) for name in names(bench.cycle(1, prefetch=5))]
        assert {"old1", "old2"} < set(served)

    # Taking ahead.

    def test_ahead(self, bench: Bench) -> None:
        """The first may be any; only tasks that never failed are prefetched, and none behind one that did."""
        (failed,) = bench.run("failed", priority=3)
        bench.cycle(0, settle(failed, Action.RETRY, 1, 0, 0.0))
        for place, name in enumerate(("first", "second", "third", "fourth")):
            bench.add(name, priority=place + (place > 1) * 2)
        cycle = bench.cycle(1, prefetch=9)
        assert (names(cycle), [task.prefetched for task in cycle.claimed]) == (
            ["first", "second"],
            [False, True],
        )
        assert cycle.ready == {None}
        cycle = bench.cycle(1, prefetch=1)
        assert (names(cycle), [task.prefetched for task in cycle.claimed]) == (
            ["failed", "third"],
            [False, True],
        )
        assert names(bench.cycle(0, prefetch=9)) == ["fourth"]

    def test_not_ahead_after_an_error(self, bench: Bench) -> None:
        """A task that was run before is not prefetched even if the run counted for nothing."""
        (interrupted,) = bench.run("a")
        cycle = bench.cycle(0, settle(interrupted, Action.RETRY, 0, 0, 0.0, "the spooler ended"), prefetch=9)
        assert cycle.claimed == []
        (returned,) = bench.run("b", priority=0)
        assert names(bench.cycle(0, settle(returned, Action.RETRY), prefetch=9)) == ["b"]

    def test_what_cannot_be_taken_ahead_is_not_ready(self, bench: Bench) -> None:
        """A pool without a free worker doesn't hear again and again of tasks that it can't prefetch."""
        (failed,) = bench.run("failed")
        cycle = bench.cycle(0, settle(failed, Action.RETRY, 1, 0, 0.0), prefetch=5)
        assert (cycle.claimed, cycle.ready) == ([], set())
        cycle = bench.cycle(1, prefetch=5)
        assert names(cycle) == ["failed"]

    # Keys.

    def test_same_key(self, bench: Bench) -> None:
        """Tasks with the same key are one, within a batch and across batches; others are not."""
        batch = [
            bench.task(name, key=key)
            for name, key in (("a", "k"), ("b", "k"), ("c", ""), ("d", "l"), ("e", ""))
        ]
        first, again, plain, other, plain_too = bench.store.add(batch)
        assert first == again
        assert len({first, plain, other, plain_too}) == 4
        assert bench.add("f", key="k") == [first]
        assert sorted(names(bench.cycle(9))) == ["a", "c", "d", "e"]

    def test_keys_are_of_their_queue(self, bench: Bench) -> None:
        """The same key in another queue is another key, within a batch and across batches."""
        batch = [bench.task(queue=queue, key="k") for queue in ("", "a", "b", "a")]
        unnamed, first, second, again = bench.store.add(batch)
        assert first == again
        assert len({unnamed, first, second}) == 3
        assert [bench.add("t", queue=queue, key="k") for queue in ("b", "a", "")] == [
            [second],
            [first],
            [unnamed],
        ]

    def test_key_of_one_that_is_over(self, bench: Bench) -> None:
        """A key stands for its task however that ended, until the task is deleted."""
        bench.store.keep = 1000.0
        done, dead, cancelled = (bench.run(key, key=key)[0] for key in "abc")
        bench.cycle(
            0, settle(done, Action.FINISH), settle(dead, Action.DEAD_LETTER), settle(cancelled, Action.CANCEL)
        )
        assert [bench.add("again", key=key) for key in "abc"] == [[done], [dead], [cancelled]]
        assert bench.store.drop([dead]) == [dead]
        bench.pass_time(1100)
        bench.cycle(0)
        fresh = [bench.add("again", key=key)[0] for key in "abc"]
        assert min(fresh) > max(done, dead, cancelled)
        assert len(bench.cycle(9).claimed) == 3

    # What people ask for.

    def test_cancel_waiting(self, bench: Bench) -> None:
        """A task that waits is cancelled and keeps its body; a second time changes nothing."""
        ready, later = bench.store.add([bench.task(body=b"body"), bench.task(later=1000)])
        assert bench.store.cancel([later, 999_999, ready], bench.now()) == [ready, later]
        assert bench.states() == {ready: State.CANCELLED, later: State.CANCELLED}
        assert bench.record(ready).finished == about(bench.now())
        assert bench.store.body(ready) == b"body"
        assert bench.store.cancel([ready, later], bench.now()) == []
        cycle = bench.cycle(9)
        assert (cycle.claimed, cycle.wait) == ([], None)

    def test_cancel_running(self, bench: Bench) -> None:
        """That a task that runs is to be cancelled is said to its spooler until the task ends."""
        first, second, third = bench.run("a", "b", "c")
        assert bench.store.cancel([second, first], bench.now()) == [first, second]
        assert bench.store.cancel([first], bench.now()) == []
        assert sorted(bench.cycle(0).cancelling) == [first, second]
        cycle = bench.cycle(0, settle(first, Action.CANCEL))
        assert list(cycle.cancelling) == [second]
        assert list(bench.cycle(0, settle(second, Action.FINISH)).cancelling) == []
        assert bench.states() == {first: State.CANCELLED, second: State.DONE, third: State.RUNNING}

    @pytest.mark.parametrize("delay", [None, 0.0, 10.0])
    def test_cancelled_before_a_retry(self, bench: Bench, delay: float | None) -> None:
        """A task that was to be cancelled and would run again is cancelled instead; a dead letter it can be."""
        first, second = bench.run("a", "b")
        bench.store.cancel([first, second], bench.now())
        cycle = bench.cycle(9, settle(first, Action.RETRY, 1, 0, delay), settle(second, Action.DEAD_LETTER, 1))
        assert (cycle.claimed, list(cycle.cancelling)) == ([], [])
        assert bench.states() == {first: State.CANCELLED, second: State.DEAD}

    def test_cancelled_orphan(self, bench: Bench) -> None:
        """The order to cancel a task survives the end of its spooler."""
        (identifier,) = bench.run("a")
        bench.store.cancel([identifier], bench.now())
        bench.reopen()
        assert [orphan.id for orphan in bench.cycle(0).orphans] == [identifier]
        bench.cycle(9, settle(identifier, Action.RETRY, 1, 0, 0.0))
        assert bench.states() == {identifier: State.CANCELLED}

    def test_retry_of_what_is_over(self, bench: Bench) -> None:
        """Dead letters and cancelled tasks run again as if they were new; done ones don't."""
        dead, cancelled, done, running = bench.run("a", "b", "c", "d", body=b"body")
        bench.cycle(
            0,
            settle(dead, Action.DEAD_LETTER, 5, 3, error="why"),
            settle(cancelled, Action.CANCEL, 2),
            settle(done, Action.FINISH),
        )
        assert bench.store.retry([done, running, cancelled, dead, 999_999], bench.now()) == [dead, cancelled]
        assert bench.record(dead).finished is None
        cycle = bench.cycle(9)
        assert [(task.id, task.attempts, task.crashes) for task in cycle.claimed] == [
            (dead, 0, 0),
            (cancelled, 0, 0),
        ]
        assert [task.body for task in cycle.claimed] == [b"body", b"body"]
        bench.pass_time(bench.store.keep + 100)
        bench.cycle(0)
        assert bench.states() == {dead: State.RUNNING, cancelled: State.RUNNING, running: State.RUNNING}

    def test_drop(self, bench: Bench) -> None:
        """Finished tasks can be deleted, others can't."""
        dead, cancelled, done, running = bench.run("a", "b", "c", "d")
        waiting, later = bench.store.add([bench.task(), bench.task(later=1000)])
        bench.cycle(
            0, settle(dead, Action.DEAD_LETTER), settle(cancelled, Action.CANCEL), settle(done, Action.FINISH)
        )
        everything = [later, waiting, running, done, cancelled, dead, 999_999]
        assert bench.store.drop(everything) == [dead, cancelled, done]
        assert list(bench.states()) == [running, waiting, later]

    def test_pause(self, bench: Bench) -> None:
        """Of a paused queue nothing is given out, and nothing is said to be ready; what runs goes on."""
        (running,) = bench.run("running", queue="mail")
        bench.add("letter", queue="mail")
        bench.add("other")
        for queue in ("mail", "mail", "", "unknown"):
            bench.store.pause(queue, True)
        assert bench.store.paused() == {"mail", "", "unknown"}
        cycle = bench.cycle(9, settle(running, Action.RETRY, 1))
        assert (cycle.claimed, cycle.ready) == ([], set())
        cycle = bench.pools({None: Want(9), "mail": Want(9)})
        assert (cycle.claimed, cycle.ready) == ([], set())
        bench.reopen()
        bench.store.pause("mail", False)
        bench.store.pause("never", False)
        assert sorted(names(bench.cycle(9))) == ["letter", "running"]
        assert bench.store.paused() == {"", "unknown"}

    def test_find(self, bench: Bench) -> None:
        """Tasks are found by id, in order, once each; an id that no task can have is unknown, no mistake."""
        first, second = bench.add("a", "b")
        found = bench.store.find([second, 999_999, first, second, 0, -1, 2**63 - 1])
        assert [record.task.id for record in found] == [first, second]
        assert bench.store.find([]) == []
        assert bench.store.body(999_999) == b""
        assert bench.store.result(999_999) == b""

    def test_results(self, bench: Bench) -> None:
        """A small result comes with what else is known of a task; a large one has to be asked for."""
        small, large = bench.run("a", "b")
        results = {small: bytes(SMALL_RESULT), large: bytes(SMALL_RESULT) + b"x"}
        bench.cycle(0, *(settle(each, Action.FINISH, result=results[each]) for each in (small, large)))
        for found in (bench.store.find([small, large]), bench.store.records(10)):
            assert [record.result for record in found] == [results[small], b""]
            assert [record.result_size for record in found] == list(map(len, results.values()))
        assert {each: bench.store.result(each) for each in (small, large)} == results

    def test_states(self, bench: Bench) -> None:
        """The states of tasks can be looked up without all else; unknown ones are missing."""
        (running,) = bench.run("a")
        ready, later = *bench.add("b"), *bench.add("c", later=1000)
        assert bench.store.states([later, ready, running, ready, 999_999, 0, 2**70]) == {
            running: State.RUNNING,
            ready: State.READY,
            later: State.SCHEDULED,
        }
        assert bench.store.states([]) == {}

    def test_horizon(self, bench: Bench) -> None:
        """All tasks can be gone through a number of them at a time."""
        assert bench.store.horizon(0, 1) == LARGEST_ID
        ids = bench.add(*"abcde")
        bench.store.cancel(ids[1:2], bench.now())
        bench.store.drop(ids[1:2])
        assert bench.store.horizon(0, 2) == ids[2]
        assert bench.store.horizon(ids[2], 2) == ids[4]
        assert bench.store.horizon(ids[2], 3) == bench.store.horizon(ids[4], 1) == LARGEST_ID
        counts = [bench.store.counts(0, ids[2]), bench.store.counts(ids[2], LARGEST_ID)]
        assert counts == [{("", State.READY): 2}] * 2
        assert bench.store.counts(ids[4], LARGEST_ID) == {}

    @pytest.mark.parametrize("identifier", [2**63, 2**64, -(2**70)])
    def test_impossible_id(self, bench: Bench, identifier: int) -> None:
        """An id that the database can't even hold is unknown too, whatever is asked for."""
        assert bench.store.find([identifier]) == []
        assert bench.store.states([identifier]) == {}
        assert bench.store.body(identifier) == bench.store.result(identifier) == b""
        assert bench.store.cancel([identifier], bench.now()) == []
        assert bench.store.retry([identifier], bench.now()) == []
        assert bench.store.drop([identifier]) == []

    def test_records(self, bench: Bench) -> None:
        """All tasks can be gone through in pieces, or those of a state or queue; their bodies stay behind."""
        dead, running = bench.run("a", "b", body=b"body")
        bench.cycle(0, settle(dead, Action.DEAD_LETTER))
        (ready,) = bench.add("c", queue="mail")
        (later,) = bench.add("d", later=1000, queue="mail", body=b"body")
        every = [dead, running, ready, later]

        def ids(limit: int, after: int = 0, **filters: Any) -> list[int]:
            return [record.task.id for record in bench.store.records(limit, after, **filters)]

        assert ids(10) == every
        assert ids(2) == every[:2]
        assert ids(2, running) == every[2:]
        assert ids(10, later) == []
        assert [ids(10, state=state) for state in State] == [[later], [ready], [running], [], [dead], []]
        assert ids(10, queue="mail") == [ready, later]
        assert ids(10, queue="") == [dead, running]
        assert ids(1, ready, state=State.SCHEDULED, queue="mail") == [later]
        assert ids(10, until=running) == ids(10, until=ready, queue="") == [dead, running]
        assert ids(10, ready, until=ready) == ids(10, until=running, queue="mail") == []
        assert ids(10, queue="unknown") == []
        assert {record.task.body for record in bench.store.records(10)} == {b""}
        assert [record.body_size for record in bench.store.records(10)] == [4, 4, 0, 4]

    def test_counts(self, bench: Bench) -> None:
        """Tasks are counted by queue and state."""
        assert bench.store.counts() == {}
        bench.run("a", "b")
        bench.add("c", "d", queue="mail")
        bench.add("e", queue="mail", later=1000)
        assert bench.store.counts() == {
            ("", State.RUNNING): 2,
            ("mail", State.READY): 2,
            ("mail", State.SCHEDULED): 1,
        }

    # Periodic tasks.

    def test_occur(self, bench: Bench) -> None:
        """Each occurrence of a periodic task is stored once; an earlier one comes too late."""
        now = bench.now()
        assert bench.store.last_occurrence("clean") is None
        assert bench.store.occur("clean", now, None)
        assert bench.cycle(9).claimed == []
        assert bench.store.occur("clean", now + 60, bench.task("first"))
        assert not bench.store.occur("clean", now + 60, bench.task("first"))
        assert not bench.store.occur("clean", now, bench.task("before"))
        assert bench.store.occur("other", now, bench.task("other"))
        assert bench.store.last_occurrence("clean") == now + 60
        bench.reopen()
        assert bench.store.last_occurrence("clean") == now + 60
        assert sorted(names(bench.cycle(9))) == ["first", "other"]

    def test_occurrence_of_a_wrong_clock(self, bench: Bench) -> None:
        """An occurrence in the far future was a mistake, and doesn't hold up those of today."""
        now = bench.now()
        assert bench.store.occur("clean", now + 2 * OCCURRENCE_SPAN, None)
        assert bench.store.occur("clean", now, bench.task("today"))
        assert bench.store.last_occurrence("clean") == now

    def test_occurrence_with_a_key(self, bench: Bench) -> None:
        """An occurrence whose task is there already, by its key, counts, and stores nothing."""
        bench.add("t", key="k")
        assert bench.store.occur("clean", bench.now(), bench.task("t", key="k"))
        assert len(bench.states()) == 1
