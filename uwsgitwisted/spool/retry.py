"""Decides what becomes of a task after a run. Values in, values out: no clock, no store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from uwsgitwisted.spool.task import Task

#: How much of an error is kept, in characters: a traceback, but not the megabytes that may be in its message.
ERROR_LIMIT = 65_536
#: After so many doublings every maximum is reached.
_MOST_DOUBLINGS = 62


class OutcomeKind(Enum):
    """How a run of a task ended, in a word."""

    DONE = "done"
    #: The handler asked to run it again.
    RETRY = "retry"
    #: The handler wants the task to run for ever.
    AGAIN = "again"
    #: The handler left the task for others.
    IGNORED = "ignored"
    #: The handler raised.
    FAILED = "failed"
    #: The worker died, or was killed since the task timed out.
    CRASHED = "crashed"
    #: The spooler itself ended while the task ran.
    INTERRUPTED = "interrupted"
    #: The task did not run: the engine had no room, or is stopping.
    RETURNED = "returned"
    #: Somebody cancelled the task while it ran.
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    :param error: the error's text or traceback, where there was one.
    :param result: what the handler returned, marshalled; empty if it was nothing but a return code.
    """

    kind: OutcomeKind
    error: str = ""
    result: bytes = b""


class Action(Enum):
    """What a store does with a task that ran."""

    FINISH = "finish"
    RETRY = "retry"
    DEAD_LETTER = "dead letter"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a task after a run.

    :param delay: how long it waits before the next run, in seconds; None if it keeps its place.
    :param attempts: its attempts now.
    :param crashes: its crashes now.
    :param error: its last error; empty to keep the one before.
    """

    action: Action
    attempts: int
    crashes: int
    delay: float | None = None
    error: str = ""


#: What an outcome adds to the attempts and the crashes.
#:
#: INTERRUPTED counts as an attempt, not as a crash: a spooler is rarely killed because of the task, but a task
#: that crashes the whole machine must be given up some day. IGNORED counts because there is no other spooler to
#: leave the task for; without a limit it would stay for ever. A prefetched task may not have begun when its
#: spooler ended; that counts for nothing, and the task isn't prefetched again.
_COUNTS = {
    OutcomeKind.RETRY: (1, 0),
    OutcomeKind.IGNORED: (1, 0),
    OutcomeKind.FAILED: (1, 0),
    OutcomeKind.INTERRUPTED: (1, 0),
    OutcomeKind.CRASHED: (1, 1),
}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how soon, a task is run again.

    The n-th retry comes ``first_delay * 2**(n - 1)`` seconds after the run, at most *max_delay*, less a random
    part of up to *jitter* of it. So tasks that failed together don't run again together.

    :param max_attempts: after so many runs without success the task is dead-lettered. The default of 10 spreads
        them over about a quarter of an hour.
    :param max_crashes: after so many dead workers the task is dead-lettered.
    :param first_delay: seconds.
    :param max_delay: seconds.
    :param jitter: between 0 and 1.
    :raises ValueError: if a number makes no sense.
    """

    max_attempts: int = 10
    max_crashes: int = 3
    first_delay: float = 2.0
    max_delay: float = 3600.0
    jitter: float = 0.25

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.max_crashes < 1:
            raise ValueError(
                "max_attempts and max_crashes are at least 1: a task runs once before it is given up"
            )
        if not 0 < self.first_delay <= self.max_delay:
            raise ValueError("0 < first_delay <= max_delay, or a task that fails would run without a pause")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter is a part of the delay, between 0 and 1")

    def decide(self, task: Task, outcome: Outcome, random: Callable[[], float]) -> Decision:
        """Decide what becomes of *task* after *outcome*.

        :param task: as it was before the run.
        :param random: gives numbers from 0 up to 1, as ``random.random`` does.
        """
        if outcome.kind is OutcomeKind.DONE:
            return Decision(Action.FINISH, task.attempts + 1, task.crashes)
        if outcome.kind is OutcomeKind.CANCELLED:
            return Decision(Action.CANCEL, task.attempts, task.crashes)
        if outcome.kind is OutcomeKind.AGAIN:
            return Decision(Action.RETRY, task.attempts, task.crashes, self.first_delay)
        if outcome.kind is OutcomeKind.RETURNED:
            return Decision(Action.RETRY, task.attempts, task.crashes)
        if outcome.kind is OutcomeKind.INTERRUPTED and task.prefetched:
            return Decision(Action.RETRY, task.attempts, task.crashes, 0.0, _storable(outcome.error))
        more_attempts, more_crashes = _COUNTS[outcome.kind]
        attempts, crashes = task.attempts + more_attempts, task.crashes + more_crashes
        error = _storable(outcome.error)
        if attempts >= self.max_attempts or crashes >= self.max_crashes:
            return Decision(Action.DEAD_LETTER, attempts, crashes, error=error)
        return Decision(Action.RETRY, attempts, crashes, self._delay(attempts, random), error)

    def _delay(self, attempts: int, random: Callable[[], float]) -> float:
        full = self.first_delay * 2.0 ** min(attempts - 1, _MOST_DOUBLINGS)
        return min(full, self.max_delay) * (1 - self.jitter * random())


def _storable(error: str) -> str:
    """Return the end of *error*, where the exception is, in a form that every database takes.

    NUL, and the lone surrogates that come with file names, are not text to a database.
    """
    text = error[-ERROR_LIMIT:].replace("\0", "\\x00")
    return text.encode("utf-8", "backslashreplace").decode()
