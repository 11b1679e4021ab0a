"""The spooler: takes tasks in, runs each when its time has come, and writes down how it ended.

Where tasks are kept is the store's business, where handlers run the engine's, and how often a task is tried the
retry policy's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from enum import Enum
from typing import cast

from twisted.internet.defer import Deferred, DeferredLock, fail, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import Unavailable, UwsgiError
from uwsgitwisted.interfaces import IEngine, Request
from uwsgitwisted.spool.endings import outcome_of_answer, outcome_of_failure
from uwsgitwisted.spool.intake import Intake
from uwsgitwisted.spool.retry import Action, Ending, Outcome, RetryPolicy, Verdict
from uwsgitwisted.spool.stores import ISpoolStore, Settlement, Turn
from uwsgitwisted.spool.task import Task, new_task
from uwsgitwisted.spool.thread import Runner, StoreThread
from uwsgitwisted.wire.packet import SPOOL, Packet

#: How many tasks may wait for their commit: at 64 KiB each, 64 MiB of memory.
MAX_PENDING = 1_000
#: How long to leave a store alone that failed, and an engine that had no room, in seconds.
STORE_PAUSE = 1.0
ENGINE_PAUSE = 1.0
#: The longest sleep, in seconds. Tasks wait for a time of day, timers measure how much time has passed: when
#: the clock is set, they part, for no longer than this.
MAX_SLEEP = 30.0
#: How often to try to write down, at the end, how the last tasks ended. What can't be written runs again.
FLUSH_ATTEMPTS = 3

_log = Logger()


class _State(Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Spooler:
    """A durable queue in front of an engine.

    It owns the store and the engine: it starts and stops both.

    A turn of its loop writes down how tasks ended and claims the next ones, in one transaction. One turn is
    under way at a time; what ends meanwhile goes into the next one.

    :param policy: how often a task is tried.
    :param workers: how many tasks the engine is given at once.
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
        max_pending: int = MAX_PENDING,
        runner: Runner | None = None,
        now: Callable[[], float] = time.time,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._store = store
        self._engine = engine
        self._policy = policy or RetryPolicy()
        self._workers = workers
        self._runner: Runner = runner or StoreThread(IReactorFromThreads(reactor))
        self._now = now
        self._random = random
        self._intake = Intake(
            reactor, store, self._runner, max_pending=max_pending, committed=self._task_committed
        )
        self._state = _State.STOPPED
        self._changing_state = DeferredLock()
        self._turning = DeferredLock()
        self._timer: IDelayedCall | None = None
        self._running: dict[int, Deferred[Packet]] = {}
        self._settlements: list[Settlement] = []
        self._next_at: float | None = None
        # In the reactor's time.
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
        self._state = _State.STARTING
        try:
            await self._runner.run(self._store.open)
            interrupted = await self._runner.run(self._store.interrupted)
            await self._engine.start()
        except BaseException:
            self._state = _State.STOPPED
            await self._close()
            raise
        self._state = _State.RUNNING
        self._settlements = []
        self._next_at = self._now()
        for task in interrupted:
            self._settle(task, Outcome(Ending.INTERRUPTED, "the spooler ended while the task ran"))
        self._wake()

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
        try:
            await self._engine.stop(seconds)
        except Exception:
            _log.failure("stopping the engine {engine}", engine=self._engine.description)
        for running in list(self._running.values()):
            running.cancel()
        await self._flush()
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
                    await self._runner.run(self._store.advance, batch, 0, self._now())
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
        try:
            await self._runner.run(self._store.close)
        except Exception:
            _log.failure("closing the spool {store}", store=self._store.description)
        self._runner.stop()

    # New tasks.

    def enqueue(self, variables: bytes) -> Deferred[int]:
        """Accept a task.

        :param variables: its vars block.
        :return: fires with its id when it is on the disk. Fails with ``MalformedPacket`` or ``SpoolError`` if
            it can't be understood or stored, ``Busy`` if too many wait, and ``Unavailable`` if the spooler
            doesn't run. Cancelling it takes the task out if its commit has not begun; otherwise it stays.
        """
        # While it starts, the store's thread opens the store before it comes to the task.
        if self._state not in (_State.STARTING, _State.RUNNING):
            return fail(Unavailable("the spooler is not running; try again later"))
        try:
            task = new_task(variables, self._now())
        except UwsgiError as error:
            return fail(error)
        return self._intake.add(task)

    def _task_committed(self, tasks: Collection[Task]) -> None:
        earliest = min(task.at for task in tasks)
        if self._next_at is None or earliest < self._next_at:
            self._next_at = earliest
        self._plan_turn()

    # The loop.

    def _plan_turn(self) -> None:
        """See to it that the next turn comes when there is something to do."""
        if self._state is _State.STARTING:
            return
        if self._settlements:
            self._wake()
        elif self._next_at is not None and self._free_slots():
            self._wake(min(max(self._next_at - self._now(), 0.0), MAX_SLEEP))

    def _free_slots(self) -> int:
        return self._workers - len(self._running) if self._state is _State.RUNNING else 0

    def _wake(self, delay: float = 0.0) -> None:
        """Have a turn in *delay* seconds, if none comes sooner, and not while the store is left alone."""
        wait = max(delay, self._no_turn_before - self._reactor.seconds())
        if self._timer is None or not self._timer.active():
            self._timer = self._reactor.callLater(wait, self._turn)
        elif self._timer.getTime() > self._reactor.seconds() + wait:
            self._timer.reset(wait)

    def _claimable(self) -> int:
        """Return how many tasks to claim in this turn."""
        due = self._next_at is not None and self._next_at <= self._now()
        return self._free_slots() if due and self._reactor.seconds() >= self._no_claim_before else 0

    def _turn(self) -> None:
        if self._turning.locked or self._state is _State.STOPPED:
            return
        if self._reactor.seconds() < self._no_turn_before:
            self._wake()
            return
        limit = self._claimable()
        if not self._settlements and not limit:
            self._sleep()
            return
        self._turning.acquire()
        batch, self._settlements = self._settlements, []
        turning = self._runner.run(self._store.advance, batch, limit, self._now())
        turning.addCallbacks(self._turned, self._turn_failed, errbackArgs=(batch,))
        turning.addErrback(_unexpected)
        turning.addBoth(lambda _: self._turning.release())

    def _sleep(self) -> None:
        """Wait for the end of the engine's pause, or for the next task's time."""
        pause = self._no_claim_before - self._reactor.seconds()
        if pause > 0 and self._free_slots():
            self._wake(pause)
        else:
            self._plan_turn()

    def _turned(self, turn: Turn) -> None:
        if self._store_failed:
            self._store_failed = False
            _log.info("the spool {store} can be written again", store=self._store.description)
        self._next_at = turn.next_at
        for task in turn.claimed:
            self._run(task)
        self._plan_turn()

    def _turn_failed(self, failure: Failure, batch: list[Settlement]) -> None:
        """Keep what could not be written down: its tasks are marked as running, so that none runs twice."""
        self._settlements = batch + self._settlements
        if not self._store_failed:
            self._store_failed = True
            _log.failure("the spool {store} can't be written", failure, store=self._store.description)
        self._no_turn_before = self._reactor.seconds() + STORE_PAUSE
        self._wake()

    def _run(self, task: Task) -> None:
        if self._state is not _State.RUNNING:
            self._settle(task, Outcome(Ending.RETURNED))
            return
        request = Request(Packet(SPOOL, 0, task.variables), peer=f"task {task.id}")
        submit = cast(Callable[[Request], Packet], self._engine.submit)  # or a Deferred of it
        running = maybeDeferred(submit, request)
        self._running[task.id] = running
        ended = running.addCallbacks(outcome_of_answer, outcome_of_failure)
        ended.addCallback(self._ended, task)
        ended.addErrback(_unexpected)

    def _ended(self, outcome: Outcome, task: Task) -> None:
        del self._running[task.id]
        if outcome.ending is Ending.RETURNED:
            self._no_claim_before = self._reactor.seconds() + ENGINE_PAUSE
        self._settle(task, outcome)

    def _settle(self, task: Task, outcome: Outcome) -> None:
        """Decide what becomes of *task* and have it written down in the next turn."""
        verdict = self._policy.verdict(task, outcome, self._random)
        _report(task, outcome, verdict)
        self._settlements.append(_settlement(task, verdict, self._now()))
        self._wake()


def _settlement(task: Task, verdict: Verdict, now: float) -> Settlement:
    """Return what the store is to write down. A task that is given back keeps its time, and so its place."""
    at = None if verdict.delay is None else now + verdict.delay
    if verdict.action is Action.BURY:
        at = now
    return Settlement(task.id, verdict.action, verdict.attempts, verdict.crashes, at, verdict.error)


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
    elif verdict.delay is not None:
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
