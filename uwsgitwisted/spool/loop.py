"""The spooler's loop: when a cycle runs, and what it writes to the store.

A cycle writes the outcomes of tasks and claims the next tasks, in one transaction. One cycle runs at a time.
Outcomes that arrive meanwhile go into the next cycle. How tasks run is the business of :class:`.runs.Runs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.spool.clock import WallClockMonitor
from uwsgitwisted.spool.runs import Runs
from uwsgitwisted.spool.store_thread import Runner
from uwsgitwisted.spool.stores.interface import Cycle, Demand, ISpoolStore, Settlement
from uwsgitwisted.spool.task import Task

#: How long to leave a store alone that failed, in seconds.
STORE_PAUSE = 1.0
#: The longest sleep while tasks wait for a time of day, in seconds. A step of the wall clock is noticed within
#: it.
MAX_SLEEP = 5.0
#: The shortest and the longest time until a cycle that the store needs for itself, in seconds. Tasks that
#: expire at almost the same time are deleted together; a reactor can't sleep for more than 24 days.
MIN_UPKEEP, MAX_UPKEEP = 0.05, 86_400.0
#: How often to try to write the last outcomes before the spooler ends. A task whose outcome can't be written
#: runs again.
FLUSH_ATTEMPTS = 3

_log = Logger()


class CycleTimer:
    """Says when the next cycle runs, in the reactor's time.

    :param run: runs it.
    """

    def __init__(self, clock: IReactorTime, run: Callable[[], None]) -> None:
        self._clock = clock
        self._run = run
        self._call: IDelayedCall | None = None
        self._due = math.inf
        self._not_before = 0.0

    def require(self, seconds: float, longest: float = MAX_SLEEP) -> None:
        """Have a cycle run in at most *seconds*, and in at most *longest*, even if nothing else needs one."""
        self._due = min(self._due, self._clock.seconds() + min(seconds, longest))

    def pause(self, seconds: float) -> None:
        """Have no cycle run within *seconds*, and one then."""
        self._not_before = self._clock.seconds() + seconds
        self.require(seconds)

    def cycle_begins(self) -> None:
        """Forget what was required of the cycle that begins now."""
        self._due = math.inf

    def schedule(self, at: float) -> None:
        """Schedule the next cycle for *at*, or for what was required if that is earlier."""
        at = max(min(at, self._due), self._not_before)
        if math.isinf(at):
            return
        delay = max(at - self._clock.seconds(), 0.0)
        if self._call is None or not self._call.active():
            self._call = self._clock.callLater(delay, self._run)
        elif self._call.getTime() > self._clock.seconds() + delay:
            self._call.reset(delay)

    def cancel(self) -> None:
        """Run no further cycle."""
        if self._call is not None and self._call.active():
            self._call.cancel()


class CycleLoop:
    """Runs cycles, as long as the spooler runs.

    :param runs: takes the tasks that a cycle claims, and gives their outcomes.
    :param clock: the wall clock.
    :param max_delay: the longest pause between two tries of a task, in seconds.
    :param written: is called after each cycle with the ids of the tasks whose outcomes it wrote.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        store: ISpoolStore,
        runner: Runner,
        runs: Runs,
        clock: WallClockMonitor,
        max_delay: float,
        *,
        written: Callable[[Iterable[int]], None],
    ) -> None:
        self._reactor = reactor
        self._store = store
        self._runner = runner
        self._runs = runs
        runs.on_settled = self._add_settlement
        self._clock = clock
        self._max_delay = max_delay
        self._written = written
        self._active = False
        self._lock = DeferredLock()
        self._timer = CycleTimer(reactor, self._run_cycle)
        self._settlements: list[Settlement] = []
        #: The pools for which there are tasks, as far as is known.
        self._ready: frozenset[str | None] = frozenset()
        self._store_failed = False

    async def prepare(self) -> None:
        """Shorten pauses that a wrong wall clock made, which could last for years."""
        await self._runner.run(self._store.shift, 0.0, self._latest_retry())

    def start(self) -> None:
        """Run cycles from now on."""
        self._active = True
        self._settlements = []
        self.look_for_tasks()

    async def flush(self) -> None:
        """Write the last outcomes and run no further cycle. It doesn't fail."""
        await self._lock.acquire()
        try:
            for _ in range(FLUSH_ATTEMPTS):
                batch = self._settlements
                if not batch:
                    break
                try:
                    await self._runner.run(self._store.advance, batch, self._runs.demand(), self._clock.now())
                    self._settlements = self._settlements[len(batch) :]
                except Exception:
                    _log.failure("writing the outcomes of {n} tasks", n=len(batch))
                    await deferLater(self._reactor, STORE_PAUSE)
            if self._settlements:
                _log.error("{n} tasks that ended will run again", n=len(self._settlements))
        finally:
            self._active = False
            self._timer.cancel()
            self._lock.release()

    def look_for_tasks(self) -> None:
        """Run a cycle soon that claims tasks, since the store may have new ones."""
        self._ready = self._runs.pools
        self._timer.require(0.0)
        self._schedule_cycle()

    def note_new_tasks(self, tasks: Collection[Task]) -> None:
        """Run a cycle when the first of the new *tasks* can run."""
        self._ready |= self._runs.pools_of(task for task in tasks if task.at <= task.created)
        for task in tasks:
            if task.at > task.created:
                self._timer.require(task.at - task.created)
        self._schedule_cycle()

    def _add_settlement(self, settlement: Settlement) -> None:
        """Write *settlement* in the next cycle."""
        self._settlements.append(settlement)
        self._schedule_cycle()

    def _schedule_cycle(self) -> None:
        """Schedule the next cycle, unless one runs: at its end, that one schedules the next."""
        if self._lock.locked or not self._active:
            return
        at = min(self._runs.next_claim_at(self._ready), self._runs.recall_at)
        self._timer.schedule(self._reactor.seconds() if self._settlements else at)

    def _run_cycle(self) -> None:
        if self._lock.locked or not self._active:
            return
        self._lock.acquire()
        self._timer.cycle_begins()
        self._runs.recall_overdue()
        batch, self._settlements = self._settlements, []
        self._clock.check()
        running = self._runner.run(self._advance, batch, self._runs.demand(), self._clock.now())
        running.addCallbacks(self._end_cycle, self._fail_cycle, callbackArgs=(batch,), errbackArgs=(batch,))
        running.addErrback(_log_unexpected)
        running.addBoth(lambda _: self._lock.release())
        running.addCallback(lambda _: self._schedule_cycle())

    def _advance(self, batch: list[Settlement], demand: Demand, now: float) -> Cycle:
        """Do a cycle's work in the store's thread."""
        if self._clock.pending:
            self._store.shift(self._clock.pending, self._latest_retry())
            self._clock.pending = 0.0
        return self._store.advance(batch, demand, now)

    def _latest_retry(self) -> float:
        return self._clock.now() + self._max_delay

    def _end_cycle(self, cycle: Cycle, batch: list[Settlement]) -> None:
        if self._store_failed:
            self._store_failed = False
            _log.info("the spool {store} can be written again", store=self._store.description)
        self._ready = cycle.ready
        if cycle.wait is not None:
            self._timer.require(cycle.wait)
        if cycle.upkeep is not None:
            self._timer.require(max(cycle.upkeep, MIN_UPKEEP), MAX_UPKEEP)
        if self._store.heartbeat is not None:
            self._timer.require(self._store.heartbeat)
        self._runs.take(cycle)
        self._written(settlement.id for settlement in batch)

    def _fail_cycle(self, failure: Failure, batch: list[Settlement]) -> None:
        """Keep the outcomes for the next cycle. Their tasks are marked as running, so none runs twice."""
        self._settlements = batch + self._settlements
        if not self._store_failed:
            self._store_failed = True
            _log.failure("the spool {store} can't be written", failure, store=self._store.description)
        self._timer.pause(STORE_PAUSE)


def _log_unexpected(failure: Failure) -> None:
    _log.failure("the spooler's loop", failure)
