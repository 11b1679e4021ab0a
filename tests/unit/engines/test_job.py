"""A request in flight in an engine: its deadline, its answer and its cancellation."""

from __future__ import annotations

import math
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from uwsgitwisted.engines.job import Job
from uwsgitwisted.errors import RequestCancelled, WorkerDied
from uwsgitwisted.interfaces import Request
from uwsgitwisted.wire.packet import Packet

PACKET = Packet(33, 0, b"N")


def _job(**known: Any) -> tuple[Job, list[Job], list[Any]]:
    """Return a job, the jobs whose cancel was reported, and its results."""
    cancelled: list[Job] = []
    results: list[Any] = []
    job = Job(Request(PACKET, **known), 100.0, cancelled.append)
    job.answer.addCallbacks(results.append, lambda failure: results.append(failure.value))
    return job, cancelled, results


def test_what_it_knows() -> None:
    """It has the request's bytes, and until when its caller waits, in the reactor's time."""
    job, _, _ = _job(seconds=2.5, idempotent=True)
    assert (job.packet, job.deadline, job.idempotent, job.crashes, job.error) == (PACKET, 102.5, True, 0, None)
    assert _job()[0].deadline == math.inf
    assert not _job()[0].idempotent


@pytest.mark.parametrize("result", [PACKET, WorkerDied("it died"), Failure(WorkerDied("it died"))])
def test_settling(result: Any) -> None:
    """It fires once with the first result; a later one is dropped."""
    job, cancelled, results = _job()
    assert not job.completed
    job.complete(result)
    job.complete(Packet(33, 0, b"late"))
    job.complete(ValueError("late"))
    assert results == [result.value if isinstance(result, Failure) else result]
    assert job.completed
    assert cancelled == []


def test_cancelling() -> None:
    """A cancel is reported once and fails with our error; a later answer is dropped."""
    job, cancelled, results = _job()
    job.answer.cancel()
    assert cancelled == [job]
    (error,) = results
    assert isinstance(error, RequestCancelled)
    assert not isinstance(error, CancelledError)
    assert job.completed
    job.complete(PACKET)
    assert len(results) == 1


def test_cancelling_what_is_settled() -> None:
    """A cancel after the answer does nothing."""
    job, cancelled, results = _job()
    answer = job.answer
    job.complete(PACKET)
    answer.cancel()
    assert (cancelled, results) == ([], [PACKET])


def test_cancelling_frees_memory() -> None:
    """A cancelled request keeps none of its bytes, even while a worker still runs it."""
    job, _, _ = _job()
    job.answer.cancel()
    assert job.packet.payload == b""
