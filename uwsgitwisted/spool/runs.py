"""Runs claimed tasks in the engine, and decides what becomes of each.

The worker slots say how many tasks may run, the retry policy says how often each is tried. Writing the
decisions to the store is the loop's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from uwsgitwisted.interfaces import IEngine, Request
from uwsgitwisted.spool.outcomes import outcome_of_answer, outcome_of_failure
from uwsgitwisted.spool.retry import Action, Decision, Outcome, OutcomeKind, RetryPolicy
from uwsgitwisted.spool.stores.interface import Cycle, Demand, Settlement
from uwsgitwisted.spool.task import Task
from uwsgitwisted.spool.worker_slots import WorkerSlots
from uwsgitwisted.transport.reports import Reports, last_call
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.tasks import encode_run

#: How long nothing is claimed after the engine had no room for a task, in seconds.
ENGINE_PAUSE = 1.0

_log = Logger()


@dataclass(slots=True)
class _Run:
    """A task in flight.

    :param cancelled: whether somebody asked to cancel it while it ran.
    """

    task: Task
    answer: Deferred[Packet]
    cancelled: bool = False


class Runs:
    """The tasks that this spooler has claimed: those in flight, and those that wait for a worker.

    :param clock: a monotonic clock.
    :param policy: how often a task is tried.
    :param random: gives numbers from 0 up to 1, for the jitter of retries.
    """

    def __init__(
        self,
        clock: IReactorTime,
        engine: IEngine,
        slots: WorkerSlots,
        policy: RetryPolicy,
        random: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._engine = engine
        self._slots = slots
        self._policy = policy
        self._random = random
        self._reports = Reports(_log)
        #: Is called with what the store is to write about each task.
        self.on_settled: Callable[[Settlement], None] = _ignore
        self._in_flight: dict[int, _Run] = {}
        self._open = False
        self._starting = False
        self._no_claim_before = 0.0

    def open(self) -> None:
        """Start the tasks that are claimed from now on."""
        self._open = True

    def close(self) -> None:
        """Start no task any more: waiting tasks and those claimed from now on return to the queue."""
        self._open = False
        self._return(self._slots.recall_all())

    def cancel_all(self) -> None:
        """Cancel the tasks in flight; those that had not finished return to the queue."""
        for run in list(self._in_flight.values()):
            run.answer.cancel()

    # What the loop asks.

    def pools_of(self, tasks: Iterable[Task]) -> set[str | None]:
        """Return the names of the pools that run *tasks*."""
        return {self._slots.pool_of(task.queue) for task in tasks}

    @property
    def pools(self) -> frozenset[str | None]:
        """The names of all pools."""
        return frozenset(self._slots.names)

    def demand(self) -> Demand:
        """Return how many tasks each pool wants now."""
        now = self._clock.seconds()
        return self._slots.demand(now, claiming=self._open and now >= self._no_claim_before)

    def next_claim_at(self, ready: Collection[str | None]) -> float:
        """Return when to claim tasks, in the clock's time; infinity for never.

        :param ready: the pools for which there are tasks.
        """
        now = self._clock.seconds()
        if self._open and self._slots.has_capacity(ready, now):
            return max(now, self._no_claim_before)
        return math.inf

    @property
    def recall_at(self) -> float:
        """When :meth:`recall_overdue` has something to do, in the clock's time; infinity for never."""
        return self._slots.recall_at

    def recall_overdue(self) -> None:
        """Return the tasks to the queue that have waited for a worker for too long."""
        self._return(self._slots.recall_overdue(self._clock.seconds()))

    def take(self, cycle: Cycle) -> None:
        """Run the tasks that a cycle claimed, settle its orphans, and cancel what it was asked to cancel."""
        for task in cycle.orphans:
            self._settle(task, Outcome(OutcomeKind.INTERRUPTED, "the spooler ended while the task ran"))
        for task in cycle.claimed:
            self._slots.add_claimed(task, self._clock.seconds())
        for identifier in cycle.cancelling:
            self._cancel(identifier)
        if self._open:
            self._start_waiting()
        else:
            self._return(self._slots.recall_all())

    # Runs.

    def _start_waiting(self) -> None:
        """Start waiting tasks as long as workers are free."""
        if self._starting:  # a task that ran in the reactor has ended already
            return
        self._starting = True
        try:
            while (task := self._slots.start_next(self._clock.seconds())) is not None:
                self._start_run(task)
        finally:
            self._starting = False

    def _start_run(self, task: Task) -> None:
        request = Request(encode_run(task.id, task.variables, task.body))
        submit = cast(Callable[[Request], Packet], self._engine.submit)  # or a Deferred of it
        answer = maybeDeferred(submit, request)
        # The engine has the body now.
        self._in_flight[task.id] = _Run(replace(task, body=b"") if task.body else task, answer)
        ended = answer.addCallbacks(outcome_of_answer, outcome_of_failure)
        ended.addCallback(self._end_run, task.id)
        ended.addErrback(_log_unexpected)

    def _cancel(self, identifier: int) -> None:
        run = self._in_flight.get(identifier)
        task = self._slots.recall(identifier)
        if run is not None:
            run.cancelled = True
            run.answer.cancel()
        elif task is not None:
            self._settle(task, Outcome(OutcomeKind.CANCELLED))

    def _end_run(self, outcome: Outcome, identifier: int) -> None:
        run = self._in_flight.pop(identifier)
        self._slots.release(run.task, self._clock.seconds())
        if outcome.kind is OutcomeKind.RETURNED:
            if run.cancelled:
                outcome = Outcome(OutcomeKind.CANCELLED)
            else:
                self._no_claim_before = self._clock.seconds() + ENGINE_PAUSE
                self._return(self._slots.recall_all())
        self._settle(run.task, outcome)
        self._start_waiting()

    def _return(self, tasks: Iterable[Task]) -> None:
        """Return tasks that did not start to the queue."""
        for task in tasks:
            self._settle(task, Outcome(OutcomeKind.RETURNED))

    def _settle(self, task: Task, outcome: Outcome) -> None:
        """Decide what becomes of *task*."""
        decision = self._policy.decide(task, outcome, self._random)
        self._report(task, outcome, decision)
        self.on_settled(Settlement(task.id, decision, outcome.result))

    def _report(self, task: Task, outcome: Outcome, decision: Decision) -> None:
        """Log failures, with the traceback when they are final.

        Many tasks that fail in the same way share lines: what they are is in the queue.
        """
        kind = (decision.action, outcome.kind, last_call(decision.error))
        about = {"id": task.id, "attempts": decision.attempts, "crashes": decision.crashes}
        if decision.action is Action.DEAD_LETTER:
            self._reports.report(
                kind,
                "task {id} moves to the dead letters after {attempts} attempts and {crashes} crashes: {error}",
                level=LogLevel.error,
                error=decision.error,
                **about,
            )
        elif decision.delay is not None and outcome.kind is not OutcomeKind.AGAIN:
            self._reports.report(
                kind,
                "task {id} runs again in {delay:.1f} s ({outcome}, attempt {attempts}): {error}",
                delay=decision.delay,
                outcome=outcome.kind.value,
                error=decision.error.rstrip().rpartition("\n")[2],
                **about,
            )


def _ignore(_settlement: Settlement) -> None:
    """Do nothing: no loop has connected itself."""


def _log_unexpected(failure: Failure) -> None:
    _log.failure("ending a task's run", failure)
