"""The queue of the engine `processes:N`, without a worker; with workers it is tried in tests/integration."""

from __future__ import annotations

from time import process_time

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

from tests.unit.peers import peer_at
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.errors import Busy, RequestCancelled, Unavailable
from uwsgitwisted.interfaces import Request
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.worker.spec import Loader, WorkerSpec


def engine(max_queue: int) -> ProcessEngine:
    """Return an engine that was not started, so that every request waits."""
    reactor = MemoryReactorClock()
    spec = WorkerSpec((Loader("nothing:load"),))
    return ProcessEngine(reactor, spec, processes=1, timeout=9, max_queue=max_queue)  # type: ignore[arg-type]


def submit(engine: ProcessEngine, number: int) -> list[Deferred[Packet]]:
    """Submit that many requests, and return their answers."""
    return [engine.submit(Request(Packet(MARSHAL, 0), peer_at("192.0.2.7"))) for _ in range(number)]


def failures(answers: list[Deferred[Packet]]) -> list[type[BaseException]]:
    """Return what the answers have failed with."""
    found: list[type[BaseException]] = []
    for answer in answers:
        answer.addErrback(lambda failure: found.append(failure.type))
    return found


def test_many_withdrawn() -> None:
    """Cancelling a request takes no longer if many others wait, and makes room."""
    waiting = engine(24_000)
    answers = submit(waiting, 18_000)
    found = failures([*answers, *submit(waiting, 1)])
    assert found == [Busy]
    began = process_time()
    for answer in reversed(answers):
        answer.cancel()
    assert process_time() - began < 3  # it takes 0.3 s; with a search of the queue it took 8 s
    assert found[1:] == [RequestCancelled] * 18_000
    assert failures(submit(waiting, 18_000)) == []


def test_stopped() -> None:
    """The requests that still wait when the stop times out fail, except for cancelled ones."""
    waiting = engine(10)
    answers = submit(waiting, 3)
    found = failures(answers)
    answers[1].cancel()
    waiting.stop(0)
    waiting._on_stop_timeout()
    assert found == [RequestCancelled, Unavailable, Unavailable]


def test_stopped_with_pinned_requests() -> None:
    """The requests for one worker that still wait when the stop times out fail too, as others do."""
    waiting = engine(10)
    answers = [waiting.submit(Request(Packet(MARSHAL, 0)), 1) for _ in range(4)]
    found = failures([*answers, *submit(waiting, 2)])
    answers[0].cancel()
    waiting.stop(0)
    waiting._on_stop_timeout()
    assert found == [RequestCancelled, *[Unavailable] * 5]
    assert failures([waiting.submit(Request(Packet(MARSHAL, 0)), 1)]) == [Unavailable]
