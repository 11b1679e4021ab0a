"""Tells the outcome of a run from what the engine answered, or failed with."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from uwsgitwisted.errors import (
    Interrupted,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    Unavailable,
    WorkerDied,
)
from uwsgitwisted.interfaces import TimedAnswer
from uwsgitwisted.spool.retry import Outcome, OutcomeKind
from uwsgitwisted.wire.packet import ANSWER, Packet
from uwsgitwisted.wire.tasks import AGAIN, DONE, IGNORE, RETRY

_ANSWERS = {
    DONE: Outcome(OutcomeKind.DONE),
    RETRY: Outcome(OutcomeKind.RETRY, "the handler asked for another run"),
    IGNORE: Outcome(OutcomeKind.IGNORED, "the handler left the task for others (SPOOL_IGNORE); there are none"),
    AGAIN: Outcome(OutcomeKind.AGAIN),
}

_FAILURES: tuple[tuple[type[Exception], OutcomeKind], ...] = (
    (WorkerDied, OutcomeKind.CRASHED),
    (RequestTimeout, OutcomeKind.CRASHED),
    (Interrupted, OutcomeKind.INTERRUPTED),
    (Unavailable, OutcomeKind.RETURNED),
    (RequestCancelled, OutcomeKind.RETURNED),
    (CancelledError, OutcomeKind.RETURNED),
)


def outcome_of_answer(answered: Packet | TimedAnswer) -> Outcome:
    """Return the outcome of a run that the engine answered."""
    answer = answered.packet if isinstance(answered, TimedAnswer) else answered
    known = _ANSWERS.get(answer.modifier2) if answer.modifier1 == ANSWER else None
    if known is not None:
        return replace(known, result=answer.payload) if answer.payload else known
    return Outcome(
        OutcomeKind.FAILED,
        f"the handler's answer has the modifiers {answer.modifier1} and {answer.modifier2}, which have no "
        "meaning for a task",
    )


def outcome_of_failure(failure: Failure) -> Outcome:
    """Return the outcome of a run that the engine failed with *failure*.

    A failure that is not known to be the engine's counts against the task, or the task could run for ever.
    """
    error = failure.value
    if isinstance(error, RemoteError):
        return Outcome(OutcomeKind.FAILED, error.traceback or str(error))
    for kind, ending in _FAILURES:
        if isinstance(error, kind):
            return Outcome(ending, f"{kind.__name__}: {error}")
    return Outcome(OutcomeKind.FAILED, failure.getTraceback())
