"""What becomes of a task after a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from uwsgitwisted.spool.retry import ERROR_LIMIT, Action, Decision, Outcome, OutcomeKind, RetryPolicy
from uwsgitwisted.spool.task import Task

TASK = Task(b"", at=0.0, created=0.0)
POLICY = RetryPolicy(max_attempts=4, max_crashes=2, first_delay=1.0, max_delay=100.0, jitter=0.5)


def judge(ending: OutcomeKind, *, attempts: int = 0, crashes: int = 0, random: float = 0.0) -> Decision:
    task = dataclasses.replace(TASK, attempts=attempts, crashes=crashes)
    return POLICY.decide(task, Outcome(ending, "why"), lambda: random)


def test_done() -> None:
    """A task that is done is finished, also in its last attempt."""
    assert judge(OutcomeKind.DONE, attempts=3).action is Action.FINISH


def test_returned() -> None:
    """A task that did not run keeps its place and its counts."""
    assert judge(OutcomeKind.RETURNED, attempts=3, crashes=1) == Decision(Action.RETRY, 3, 1)


@pytest.mark.parametrize(
    "ending", [OutcomeKind.RETRY, OutcomeKind.IGNORED, OutcomeKind.FAILED, OutcomeKind.INTERRUPTED]
)
def test_attempts(ending: OutcomeKind) -> None:
    """These count as attempts, up to the limit."""
    assert judge(ending, attempts=2) == Decision(Action.RETRY, 3, 0, 4.0, "why")
    assert judge(ending, attempts=3) == Decision(Action.DEAD_LETTER, 4, 0, error="why")


def test_crashes() -> None:
    """A crash counts twice over, and its own limit is the lower one."""
    assert judge(OutcomeKind.CRASHED) == Decision(Action.RETRY, 1, 1, 1.0, "why")
    assert judge(OutcomeKind.CRASHED, attempts=1, crashes=1) == Decision(Action.DEAD_LETTER, 2, 2, error="why")


def test_again() -> None:
    """A run of what runs for ever counts for nothing, at whatever counts; earlier failures stay counted."""
    assert judge(OutcomeKind.AGAIN, attempts=3, crashes=1) == Decision(Action.RETRY, 3, 1, 1.0)


def test_every_ending_has_a_verdict() -> None:
    """The tables have every outcome."""
    assert all(judge(ending) for ending in OutcomeKind)


def test_backoff() -> None:
    """The delay doubles up to the maximum, however many attempts there were."""
    patient = dataclasses.replace(POLICY, max_attempts=10**9)
    delays = [
        patient.decide(dataclasses.replace(TASK, attempts=n), Outcome(OutcomeKind.FAILED), lambda: 0.0).delay
        for n in (0, 1, 2, 6, 7, 10**6)
    ]
    assert delays == [1.0, 2.0, 4.0, 64.0, 100.0, 100.0]


def test_jitter() -> None:
    """Jitter takes up to its part of the delay away, and never adds."""
    assert judge(OutcomeKind.FAILED, random=0.5).delay == 0.75


def test_error_is_storable() -> None:
    """Of a long error the end is kept, and what no database takes as text is escaped."""
    outcome = Outcome(OutcomeKind.FAILED, "x" * ERROR_LIMIT + "\0\udc80 KeyError")
    error = POLICY.decide(TASK, outcome, lambda: 0.0).error
    assert error.endswith("\\x00\\udc80 KeyError")
    assert len(error) < ERROR_LIMIT + 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"max_crashes": 0},
        {"first_delay": 0.0},
        {"first_delay": 9.0, "max_delay": 1.0},
        {"jitter": 2},
    ],
)
def test_nonsense(wrong: dict[str, Any]) -> None:
    """A policy that could never end, or never begin, is refused."""
    with pytest.raises(ValueError, match=r"max_|delay|jitter"):
        RetryPolicy(**wrong)
