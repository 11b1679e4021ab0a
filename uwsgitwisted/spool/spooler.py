"""The spooler: takes tasks in, runs each when its time has come, and writes down how it ended.

Where tasks are kept is the store's business, where handlers run the engine's, and how often a task is tried the
retry policy's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from enum import Enum
from typing import NamedTuple, TypeVar, cast

from twisted.internet.defer import Deferred, DeferredLock, fail, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import Unavailable, UwsgiError
from uwsgitwisted.interfaces import IEngine, Request
from uwsgitwisted.spool.clock import ClockWatch
from uwsgitwisted.spool.group_commit import Intake
from uwsgitwisted.spool.job_scheduler import Questions
from uwsgitwisted.spool.outcomes import outcome_of_answer, outcome_of_failure
from uwsgitwisted.spool.records import Description
from uwsgitwisted.spool.retry import Action, Ending, Outcome, RetryPolicy, Verdict
from uwsgitwisted.spool.store_thread import Runner, StoreThread
from uwsgitwisted.spool.stores.interface import Demand, ISpoolStore, Settlement, Turn
from uwsgitwisted.spool.task import Task, encode_run, new_task
from uwsgitwisted.spool.waiters import Waiters
from uwsgitwisted.spool.worker_slots import MAX_AHEAD, PATIENCE, Pools
from uwsgitwisted.wire.packet import Packet

#: How many tasks may wait for their commit: at 64 KiB each, 64 MiB of memory.
MAX_PENDING = 1_000
#: How long to leave a store alone that failed, and an engine that had no room, in seconds.
STORE_PAUSE = 1.0
ENGINE_PAUSE = 1.0
#: The longest sleep while tasks wait for a time of day, in seconds: within it, it is noticed that the clock was
#: set.
MAX_SLEEP = 5.0
#: The shortest and the longest time until a turn that the store needs for its own sake, in seconds. Tasks that
#: are over at almost the same time are forgotten together; a reactor can't sleep for more than 24 days.
MIN_UPKEEP, MAX_UPKEEP = 0.05, 86_400.0
#: How often to try to write down, at the end, how the last tasks ended. What can't be written runs again.
FLUSH_ATTEMPTS = 3

_T = TypeVar("_T")
_log = Logger()


class _State(Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class _Run(NamedTuple):
    """A task in the engine's hands."""

    task: Task
    answer: Deferred[Packet]


class Spooler:
    """A durable queue in front of an engine.

    It owns the store and the engine: it starts and stops both.

    A turn of its loop writes down how tasks ended and claims the next ones, in one transaction. One turn is
    under way at a time; what ends meanwhile goes into the next one.

    :param reactor: its clock must be one that is never set.
    :param policy: how often a task is tried.
    :param workers: how many tasks run at once of the queues that share workers.
    :param queues: how many run at once of each queue that has workers of its own.
    :param max_ahead: how many more the engine is given of each, while they are short.
    :param max_pending: how many tasks may wait for their commit before more are refused.
    :param runner: makes the store's blocking calls; None for a thread of its own.
    :param now: the time of day, in unix seconds.
    :param random: gives numbers from 0 up to 1, for the jitter of retries.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        store: ISpoolStore,
        engine: IEngine,
        policy: RetryPolicy | None = None,
        *,
        workers: int = 1,
        queues: Mapping[str, int] | None = None,
        max_ahead: int = MAX_AHEAD,
        max_pending: int = MAX_PENDING,
        runner: Runner | None = None,
        now: Callable[[], float] = time.time,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._store = store
        #: Runs the handlers.
        self.engine = engine
        self._policy = policy or RetryPolicy()
        self._pools = Pools(workers, queues or {}, max_ahead)
        self._runner: Runner = runner or StoreThread(IReactorFromThreads(reactor))
        self._now = now
        self._random = random
        self._intake = Intake(
            reactor, store, self._runner, max_pending=max_pending, committed=self._tasks_committed
        )
        #: What peers ask of the store.
        self.questions = Questions(self._runner, store)
        self._waiters = Waiters(self.questions)
        self._clock = ClockWatch(now, reactor.seconds)
        #: By how much the clock was set since the store last heard of it, in seconds.
        self._jump = 0.0
        self._state = _State.STOPPED
        self._changing_state = DeferredLock()
        self._turning = DeferredLock()
        self._timer: IDelayedCall | None = None
        self._running: dict[int, _Run] = {}
        self._cancelling: set[int] = set()
        self._beginning = False
        self._settlements: list[Settlement] = []
        self._ready: frozenset[str | None] = frozenset()
        # In the reactor's time.
        self._next_turn_at: float | None = None
        self._no_turn_before = 0.0
        self._no_claim_before = 0.0
        self._store_failed = False

    # The service's life.

    def start(self) -> Deferred[None]:
        """Open the store, start the engine and take up the work.

        :return: fires when tasks can be enqueued. Fails with ``SpoolError`` if the store can't be opened and
            with what the engine failed with; then nothing is left running.
        """
        return self._changing_state.run(lambda: Deferred.fromCoroutine(self._start()))

    async def _start(self) -> None:
        if self._state is _State.RUNNING:
            return
        self._runner.start()
        self.questions.open()
        self._state = _State.STARTING
        try:
            await self._runner.run(self._store.open, self._woken_in_a_thread)
            # A clock that was wrong when a pause began must not make it last for years.
            await self._runner.run(self._store.shift, 0.0, self._latest_retry())
            await self.engine.start()
        except BaseException:
            self._state = _State.STOPPED
            await self._close()
            raise
        self._state = _State.RUNNING
        self._settlements = []
        self._woken()

    def stop(self, seconds: float) -> Deferred[None]:
        """Refuse new tasks, claim none, let those that run finish, write down how, and close the store.

        :param seconds: how long the engine lets them run.
        :return: fires when all is closed. It doesn't fail: what could not be written down runs again after the
            next start.
        """
        return self._changing_state.run(lambda: Deferred.fromCoroutine(self._stop(seconds)))

    async def _stop(self, seconds: float) -> None:
        if self._state is not _State.RUNNING:
            return
        self._state = _State.STOPPING
        await self._intake.drained()
        self._give_back(self._pools.give_back())
        try:
            await self.engine.stop(seconds)
        except Exception:
            _log.failure("stopping the engine {engine}", engine=self.engine.description)
        for run in list(self._running.values()):
            run.answer.cancel()
        await self._flush()
        self._waiters.look()
        await self._waiters.looked()
        self._waiters.give_up(Unavailable("the spooler is stopping, and the task is not over"))
        await self._close()
        self._state = _State.STOPPED

    async def _flush(self) -> None:
        """Write down how the last tasks ended. It keeps the turns to itself from here on."""
        await self._turning.acquire()
        try:
            for _ in range(FLUSH_ATTEMPTS):
                batch = self._settlements
                if not batch:
                    break
                try:
                    await self._runner.run(self._store.advance, batch, self._demand(), self._now())
                    self._settlements = self._settlements[len(batch) :]
                except Exception:
                    _log.failure("writing down how {n} tasks ended", n=len(batch))
                    await deferLater(self._reactor, STORE_PAUSE)
            if self._settlements:
                _log.error("{n} tasks that ended will run again", n=len(self._settlements))
        finally:
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._turning.release()

    async def _close(self) -> None:
        self.questions.close()
        try:
            await self._runner.run(self._store.close)
        except Exception:
            _log.failure("closing the spool {store}", store=self._store.description)
        self._runner.stop()

    # Tasks, as callers see them.

    def enqueue(self, variables: bytes, body: bytes = b"") -> Deferred[int]:
        """Accept a task.

        :param variables: its vars block.
        :param body: what its handler gets besides.
        :return: fires with its id when it is on the disk. Fails with ``MalformedPacket``, ``MessageTooLarge``
            or ``SpoolError`` if it can't be understood or stored, ``Busy`` if too many wait or the queue has
            reached a bound, and ``Unavailable`` if the spooler doesn't run. Cancelling it takes the task out if
            its commit has not begun; otherwise it stays.
        """
        if not self._takes_requests:
            return fail(_not_running())
        try:
            task = new_task(variables, self._now(), body)
        except UwsgiError as error:
            return fail(error)
        return self._intake.add(task)

    def wait(self, identifier: int, group: str) -> Deferred[Description]:
        """Wait until a task is over.

        :param group: who waits, see :attr:`uwsgitwisted.access.Peer.group`.
        :return: fires with what is known of it then. Fails with ``NoSuchTask``, or ``Busy`` if too many wait.
            Cancelling it leaves the task alone.
        """
        return self._waiters.wait(identifier, group) if self._takes_requests else fail(_not_running())

    def manage(self, change: Callable[[ISpoolStore], _T]) -> Deferred[_T]:
        """Call *change* with the store, where it may block, before what peers ask; and look for new tasks.

        :return: fires with what it returned; fails with what it raised.
        """
        if self._state is _State.STOPPED:
            return fail(_not_running())
        return self._runner.run(change, self._store).addCallback(self._changed)

    def _changed(self, result: _T) -> _T:
        self.note_change(())
        return result

    def note_change(self, ended: Iterable[int]) -> None:
        """Act on a change of the store that a peer asked for.

        :param ended: the tasks that it may have ended.
        """
        self._waiters.look(ended)
        self._look_for_tasks()

    @property
    def _takes_requests(self) -> bool:
        # While it starts, the store's thread opens the store before it comes to the request.
        return self._state in (_State.STARTING, _State.RUNNING)

    def _tasks_committed(self, tasks: Collection[Task]) -> None:
        self._ready |= {self._pools.name_of(task.queue) for task in tasks if task.at <= task.created}
        for task in tasks:
            if task.at > task.created:
                self._look_within(task.at - task.created)
        self._plan_turn()

    # The loop.

    def _woken_in_a_thread(self) -> None:
        cast(IReactorFromThreads, self._reactor).callFromThread(self._woken)

    def _woken(self) -> None:
        """Have a turn soon: something has changed, and only the store knows what."""
        self._waiters.look()
        self._look_for_tasks()

    def _look_for_tasks(self) -> None:
        """Have a turn soon, with new tasks."""
        self._ready = frozenset(self._pools.names)
        self._look_within(0.0)
        self._plan_turn()

    def _look_within(self, seconds: float, longest: float = MAX_SLEEP) -> None:
        """Have a turn in at most so many seconds, and *longest*, whatever else is to be done."""
        at = self._reactor.seconds() + min(seconds, longest)
        if self._next_turn_at is None or at < self._next_turn_at:
            self._next_turn_at = at

    def _plan_turn(self) -> None:
        """See to it that the next turn comes when there is something to do; a turn does so when it ends."""
        if self._turning.locked or self._state not in (_State.RUNNING, _State.STOPPING):
            return
        now = self._reactor.seconds()
        times = [now] if self._settlements else []
        if self._state is _State.RUNNING:
            if self._pools.hungry(self._ready, now):
                times.append(max(now, self._no_claim_before))
            if self._pools.waiting:
                times.append(now + PATIENCE)
            if self._next_turn_at is not None:
                times.append(self._next_turn_at)
        if times:
            self._wake(max(min(times), self._no_turn_before) - now)

    def _wake(self, delay: float) -> None:
        """Have a turn in *delay* seconds, if none comes sooner."""
        delay = max(delay, 0.0)
        if self._timer is None or not self._timer.active():
            self._timer = self._reactor.callLater(delay, self._turn)
        elif self._timer.getTime() > self._reactor.seconds() + delay:
            self._timer.reset(delay)

    def _demand(self) -> Demand:
        """Return what to claim in this turn."""
        now = self._reactor.seconds()
        return self._pools.demand(now, claiming=self._state is _State.RUNNING and now >= self._no_claim_before)

    def _turn(self) -> None:
        if self._turning.locked or self._state is _State.STOPPED:
            return
        self._turning.acquire()
        self._next_turn_at = None
        self._give_back(self._pools.overdue(self._reactor.seconds()))
        batch, self._settlements = self._settlements, []
        self._jump += self._clock.jump()
        turning = self._runner.run(self._advance, batch, self._demand(), self._now())
        turning.addCallbacks(self._turned, self._turn_failed, callbackArgs=(batch,), errbackArgs=(batch,))
        turning.addErrback(_unexpected)
        turning.addBoth(lambda _: self._turning.release())
        turning.addCallback(lambda _: self._plan_turn())

    def _advance(self, batch: list[Settlement], demand: Demand, now: float) -> Turn:
        """Do a turn's work in the store's thread."""
        if self._jump:
            self._store.shift(self._jump, self._latest_retry())
            self._jump = 0.0
        return self._store.advance(batch, demand, now)

    def _latest_retry(self) -> float:
        return self._now() + self._policy.max_delay

    def _turned(self, turn: Turn, batch: list[Settlement]) -> None:
        if self._store_failed:
            self._store_failed = False
            _log.info("the spool {store} can be written again", store=self._store.description)
        self._ready = turn.ready
        if turn.wait is not None:
            self._look_within(turn.wait)
        if turn.upkeep is not None:
            self._look_within(max(turn.upkeep, MIN_UPKEEP), MAX_UPKEEP)
        if self._store.heartbeat is not None:
            self._look_within(self._store.heartbeat)
        for task in turn.orphans:
            self._settle(task, Outcome(Ending.INTERRUPTED, "the spooler ended while the task ran"))
        for task in turn.claimed:
            self._pools.put(task, self._reactor.seconds())
        for identifier in turn.cancelling:
            self._cancel(identifier)
        if self._state is _State.RUNNING:
            self._begin()
        else:
            self._give_back(self._pools.give_back())
        self._waiters.look(settlement.id for settlement in batch)

    def _turn_failed(self, failure: Failure, batch: list[Settlement]) -> None:
        """Keep what could not be written down: its tasks are marked as running, so that none runs twice."""
        self._settlements = batch + self._settlements
        if not self._store_failed:
            self._store_failed = True
            _log.failure("the spool {store} can't be written", failure, store=self._store.description)
        self._no_turn_before = self._reactor.seconds() + STORE_PAUSE
        self._look_within(STORE_PAUSE)

    def _begin(self) -> None:
        """Give the engine what waits, as long as workers are free."""
        if self._beginning:  # a handler in the reactor has ended already
            return
        self._beginning = True
        try:
            while (task := self._pools.next(self._reactor.seconds())) is not None:
                self._run(task)
        finally:
            self._beginning = False

    def _give_back(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self._settle(task, Outcome(Ending.RETURNED))

    def _run(self, task: Task) -> None:
        request = Request(encode_run(task))
        submit = cast(Callable[[Request], Packet], self.engine.submit)  # or a Deferred of it
        answer = maybeDeferred(submit, request)
        # The body is the engine's now.
        self._running[task.id] = _Run(replace(task, body=b"") if task.body else task, answer)
        ended = answer.addCallbacks(outcome_of_answer, outcome_of_failure)
        ended.addCallback(self._ended, task.id)
        ended.addErrback(_unexpected)

    def _cancel(self, identifier: int) -> None:
        run = self._running.get(identifier)
        task = self._pools.withdraw(identifier)
        if run is not None:
            self._cancelling.add(identifier)
            run.answer.cancel()
        elif task is not None:
            self._settle(task, Outcome(Ending.CANCELLED))

    def _ended(self, outcome: Outcome, identifier: int) -> None:
        task = self._running.pop(identifier).task
        self._pools.ended(task, self._reactor.seconds())
        if outcome.ending is Ending.RETURNED:
            if identifier in self._cancelling:
                outcome = Outcome(Ending.CANCELLED)
            else:
                self._no_claim_before = self._reactor.seconds() + ENGINE_PAUSE
                self._give_back(self._pools.give_back())
        self._cancelling.discard(identifier)
        self._settle(task, outcome)
        self._begin()

    def _settle(self, task: Task, outcome: Outcome) -> None:
        """Decide what becomes of *task* and have it written down in the next turn."""
        verdict = self._policy.verdict(task, outcome, self._random)
        _report(task, outcome, verdict)
        self._settlements.append(Settlement(task.id, verdict, outcome.result))
        self._plan_turn()


def _not_running() -> Unavailable:
    return Unavailable("the spooler is not running; try again later")


def _report(task: Task, outcome: Outcome, verdict: Verdict) -> None:
    """Log what deserves a look: what went wrong, with the traceback when it is final."""
    if verdict.action is Action.BURY:
        _log.error(
            "task {id} moves to the dead letters after {attempts} attempts and {crashes} crashes: {error}",
            id=task.id,
            attempts=verdict.attempts,
            crashes=verdict.crashes,
            error=verdict.error,
        )
    elif verdict.delay is not None and outcome.ending is not Ending.AGAIN:
        _log.warn(
            "task {id} runs again in {delay:.1f} s ({ending}, attempt {attempts}): {error}",
            id=task.id,
            delay=verdict.delay,
            ending=outcome.ending.value,
            attempts=verdict.attempts,
            error=verdict.error.rstrip().rpartition("\n")[2],
        )


def _unexpected(failure: Failure) -> None:
    _log.failure("the spooler's loop", failure)
