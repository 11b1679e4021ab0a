"""What becomes of a task after a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from uwsgitwisted.spool.retry import ERROR_LIMIT, Action, Ending, Outcome, RetryPolicy, Verdict
from uwsgitwisted.spool.task import Task

TASK = Task(b"", at=0.0, created=0.0)
POLICY = RetryPolicy(max_attempts=4, max_crashes=2, first_delay=1.0, max_delay=100.0, jitter=0.5)


def judge(ending: Ending, *, attempts: int = 0, crashes: int = 0, random: float = 0.0) -> Verdict:
    task = dataclasses.replace(TASK, attempts=attempts, crashes=crashes)
    return POLICY.verdict(task, Outcome(ending, "why"), lambda: random)


def test_done() -> None:
    """A task that is done is over, also in its last attempt."""
    assert judge(Ending.DONE, attempts=3).action is Action.FINISH


def test_returned() -> None:
    """A task that did not run keeps its place and its counts."""
    assert judge(Ending.RETURNED, attempts=3, crashes=1) == Verdict(Action.RETRY, 3, 1)


@pytest.mark.parametrize("ending", [Ending.RETRY, Ending.IGNORED, Ending.FAILED, Ending.INTERRUPTED])
def test_attempts(ending: Ending) -> None:
    """These count as attempts, up to the limit."""
    assert judge(ending, attempts=2) == Verdict(Action.RETRY, 3, 0, 4.0, "why")
    assert judge(ending, attempts=3) == Verdict(Action.BURY, 4, 0, error="why")


def test_crashes() -> None:
    """A crash counts twice over, and its own limit is the lower one."""
    assert judge(Ending.CRASHED) == Verdict(Action.RETRY, 1, 1, 1.0, "why")
    assert judge(Ending.CRASHED, attempts=1, crashes=1) == Verdict(Action.BURY, 2, 2, error="why")


def test_every_ending_has_a_verdict() -> None:
    """No ending is forgotten in the tables."""
    assert all(judge(ending) for ending in Ending)


def test_backoff() -> None:
    """The delay doubles up to the maximum, however many attempts there were."""
    patient = dataclasses.replace(POLICY, max_attempts=10**9)
    delays = [
        patient.verdict(dataclasses.replace(TASK, attempts=n), Outcome(Ending.FAILED), lambda: 0.0).delay
        for n in (0, 1, 2, 6, 7, 10**6)
    ]
    assert delays == [1.0, 2.0, 4.0, 64.0, 100.0, 100.0]


def test_jitter() -> None:
    """Jitter takes up to its part of the delay away, and never adds."""
    assert judge(Ending.FAILED, random=0.5).delay == 0.75


def test_error_is_storable() -> None:
    """Of a long error the end is kept, and what no database takes as text is escaped."""
    outcome = Outcome(Ending.FAILED, "x" * ERROR_LIMIT + "\0\udc80 KeyError")
    error = POLICY.verdict(TASK, outcome, lambda: 0.0).error
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
