"""Workers that take web requests from ports, as the engine sees them: busy ones, hanging ones, and the stop."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent

from tests.unit.peers import peer_at
from uwsgitwisted.activity import CacheCounts, Counts
from uwsgitwisted.engines.job import Job
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.errors import Interrupted, RemoteError, RequestTimeout, Unavailable, WorkerDied
from uwsgitwisted.interfaces import Request
from uwsgitwisted.wire.packet import SIGNAL, WSGI, Packet
from uwsgitwisted.worker.spec import NO_REQUEST, Accepting, Loader, WorkerSpec

TIMEOUT = 9.0
LONG = 1.0


class FakePipe:
    """What the engine uses of a worker's pipe."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.begun = 0
        self.waits_for_peer = False
        self.uploading = 0
        self.running_since = 0.0
        self.accepting = True

    @property
    def in_flight(self) -> int:
        return len(self.jobs)

    @property
    def running(self) -> list[Job]:
        return self.jobs[:1]

    def find(self, request: int) -> Job | None:
        return None

    def assign(self, job: Job, now: float) -> None:
        if not self.jobs:
            self.running_since = now
        self.jobs.append(job)

    def recall(self, spared: int = 1) -> list[Job]:
        kept = max(spared, self.begun)
        recalled, self.jobs = self.jobs[kept:], self.jobs[:kept]
        return recalled

    def stop_accepting(self) -> None:
        self.accepting = False


class FakeWorker:
    """A worker that does what the test says."""

    def __init__(self, worker_id: int, capacity: int = 1) -> None:
        self.worker_id = worker_id
        self.pipe = FakePipe()
        self._busy_for = self._working_for = 0.0
        self.retired = False
        self.kills = 0
        self.counts: list[Counts] = []
        self.warning = (0.0, b"")
        self.signals = 0
        self.cache = CacheCounts()
        self.place = ""
        self.has_data = False
        self._capacity = capacity

    @property
    def capacity(self) -> int:
        return 0 if self.retired else self._capacity - self.pipe.in_flight

    @property
    def killed(self) -> bool:
        return bool(self.kills)

    def kill(self, *, trace: bool = False) -> None:
        self.kills += 1

    def accepted(self, seconds: float = 0.0) -> int:
        return int(self._busy_for > seconds)

    def overdue(self, seconds: float) -> list[int]:
        return [NO_REQUEST] if self._working_for > seconds else []

    def overdue_peers(self, seconds: float) -> list[str]:
        return ["192.0.2.1:5" for _ in self.overdue(seconds)]

    def work(self, seconds: float = LONG) -> None:
        """Run a request of a port."""
        self._busy_for = self._working_for = seconds

    def wait(self, seconds: float = LONG) -> None:
        """Wait for the peer of a request of a port."""
        self._busy_for, self._working_for = seconds, 0.0

    def rest(self) -> None:
        self._busy_for = self._working_for = 0.0

    def take_unfinished(self) -> tuple[list[Job], list[Job]]:
        jobs, self.pipe.jobs = self.pipe.jobs, []
        return jobs[: self.pipe.begun], jobs[self.pipe.begun :]


class FakeShared:
    """Ports that are shared."""

    def __init__(self) -> None:
        self.accepting = Accepting(ports=1, networks=None, max_body=1_000, write_timeout=5.0)
        self.descriptors = {7: 1}
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


class Bench:
    """An engine with workers that are ready."""

    def __init__(self, *workers: FakeWorker) -> None:
        self.clock = MemoryReactorClock()
        spec = WorkerSpec((Loader("nothing:load"),))
        loop: Any = self.clock
        self.engine = ProcessEngine(loop, spec, processes=len(workers), timeout=TIMEOUT)
        self.shared: Any = FakeShared()
        self.engine.share(self.shared)
        self.engine._workers.extend(workers)  # type: ignore[arg-type]
        self.results: list[Any] = []

    def submit(self) -> Deferred[Any]:
        answer = self.engine.submit(Request(Packet(WSGI, 0), peer_at("192.0.2.7")))
        answer.addBoth(lambda result: self.results.append(getattr(result, "value", result)))
        return answer

    def look(self) -> bool:
        return self.engine._look()


class TestPinned:
    """Requests that one worker alone may run, such as its signals."""

    @staticmethod
    def submit(bench: Bench, worker_id: int, count: int) -> None:
        for _ in range(count):
            bench.engine.submit(Request(Packet(SIGNAL, 0), peer_at("192.0.2.8")), worker_id)

    @staticmethod
    def finish(bench: Bench, worker: FakeWorker) -> int:
        """End what a worker runs, and return the modifier1 of what it runs then."""
        worker.pipe.jobs.clear()
        bench.engine._dispatch()
        return worker.pipe.jobs[0].packet.modifier1

    def test_turns(self) -> None:
        """However many of them wait, the other requests get every second turn."""
        worker = FakeWorker(1)
        bench = Bench(worker)
        self.submit(bench, 1, 10)
        for _ in range(3):
            bench.submit()
        assert [self.finish(bench, worker) for _ in range(6)] == [WSGI, SIGNAL] * 3
        assert self.finish(bench, worker) == SIGNAL

    def test_no_worker_is_left_idle(self) -> None:
        """A worker whose turn it isn't has one of its own, if another worker takes the other request."""
        busy, free = FakeWorker(1), FakeWorker(2)
        bench = Bench(free, busy)
        self.submit(bench, 1, 3)
        bench.submit()
        assert free.pipe.in_flight == 1
        assert self.finish(bench, busy) == SIGNAL
        bench.submit()
        free.pipe.jobs.clear()
        assert self.finish(bench, busy) == SIGNAL
        assert free.pipe.jobs[0].packet.modifier1 == WSGI


class TestLook:
    def test_idle(self) -> None:
        """While a worker is idle, the ports are left to it."""
        idle, busy = FakeWorker(1), FakeWorker(2)
        bench = Bench(idle, busy)
        assert not bench.look()
        busy.work()
        assert not bench.look()

    def test_all_busy(self) -> None:
        """If all are busy, at work or waiting, with a port's request or the front's, the front accepts."""
        workers = FakeWorker(1), FakeWorker(2), FakeWorker(3)
        bench = Bench(*workers)
        workers[0].work()
        workers[1].wait()
        assert not bench.look()
        bench.submit()
        assert workers[2].pipe.in_flight == 1
        assert bench.look()
        workers[0].rest()
        assert not bench.look()

    def test_short_requests(self) -> None:
        """A worker that has just begun a request will soon accept again."""
        worker = FakeWorker(1)
        bench = Bench(worker)
        worker.work(0.001)
        assert not bench.look()
        worker.work(0.01)
        assert bench.look()

    def test_no_workers(self) -> None:
        """Without workers the front accepts; their requests wait."""
        bench = Bench()
        assert bench.look()
        old = FakeWorker(1)
        old.retired = True
        assert Bench(old).look()

    def test_idle_workers_come_first(self) -> None:
        """A request goes to an idle worker rather than to one that is busy with a port's request."""
        busy, idle = FakeWorker(1, capacity=2), FakeWorker(2)
        bench = Bench(busy, idle)
        busy.work()
        bench.submit()
        assert (busy.pipe.in_flight, idle.pipe.in_flight) == (0, 1)
        bench.submit()
        assert (busy.pipe.in_flight, idle.pipe.in_flight) == (1, 1)
        bench.submit()
        assert busy.pipe.in_flight == 1, "one request at most waits behind a port's"

    def test_recall(self) -> None:
        """A request behind a port's is recalled as soon as another worker is idle, and runs there."""
        busy, other = FakeWorker(1), FakeWorker(2)
        bench = Bench(busy, other)
        busy.work()
        other.work()
        bench.submit()
        (job,) = busy.pipe.jobs
        assert bench.look()
        assert busy.pipe.jobs == [job]
        other.rest()
        assert not bench.look()
        assert busy.pipe.jobs == []
        assert other.pipe.jobs == [job]

    def test_no_recall_of_what_has_begun(self) -> None:
        """A request that the worker has begun stays with it."""
        busy, idle = FakeWorker(1), FakeWorker(2)
        bench = Bench(busy, idle)
        idle.work()
        bench.submit()
        busy.pipe.begun = 1
        idle.rest()
        assert not bench.look()
        assert busy.pipe.in_flight == 1


class TestTimeLimit:
    def test_hangs(self) -> None:
        """A worker that hangs in a port's request is killed, and logged; one that waits for a peer isn't."""
        hanging, waiting = FakeWorker(1), FakeWorker(2)
        bench = Bench(hanging, waiting)
        hanging.work(TIMEOUT + 0.1)
        waiting.wait(TIMEOUT + 0.1)
        with capturedLogs() as logs:
            for _ in range(5):
                bench.look()
        assert hanging.kills
        assert not waiting.kills
        assert len([event for event in logs if "exceeded the node's limit of 9 s" in str(event)]) == 1

    def test_within_the_limit(self) -> None:
        """A request may take as long as the limit says."""
        worker = FakeWorker(1)
        bench = Bench(worker)
        worker.work(TIMEOUT)
        bench.look()
        assert not worker.kills

    def test_retired(self) -> None:
        """A worker that was replaced while it hung in a port's request is killed as well."""
        old, new = FakeWorker(1), FakeWorker(1)
        old.retired = True
        bench = Bench(old, new)
        old.work(TIMEOUT + 0.1)
        with capturedLogs():
            assert not bench.look()
        assert old.kills
        assert not new.kills

    def test_request_behind_a_ports(self) -> None:
        """The limit of a request doesn't run while its worker is busy with a port's, or waits for its peer."""
        worker = FakeWorker(1)
        bench = Bench(worker)
        worker.work()
        bench.submit()
        bench.clock.advance(TIMEOUT + 1)
        assert not worker.kills
        worker.rest()
        worker.pipe.waits_for_peer = True
        bench.clock.advance(TIMEOUT + 1)
        assert not worker.kills
        worker.pipe.waits_for_peer = False
        bench.clock.advance(TIMEOUT + 1)
        assert worker.kills == 1
        worker.pipe.begun = 1
        bench.engine._on_exit(worker, "killed")  # type: ignore[arg-type]
        assert isinstance(bench.results[0], RequestTimeout)

    def test_answer_that_was_not_read(self) -> None:
        """A worker that has answered in time lives, although the front was held up until the time was over."""
        worker = FakeWorker(1)
        bench = Bench(worker)
        bench.submit()
        worker.has_data = True
        bench.clock.advance(TIMEOUT + 1)
        bench.clock.advance(1)
        assert not worker.kills
        worker.has_data = False
        bench.clock.advance(1)
        assert worker.kills == 1


class TestExit:
    def test_begun(self) -> None:
        """A request that a dead worker had begun fails; one that waited behind a port's goes to another one."""
        worker, other = FakeWorker(1), FakeWorker(2)
        bench = Bench(worker)
        bench.submit()
        worker.pipe.begun = 1
        bench.engine._on_exit(worker, "it was killed by SIGKILL")  # type: ignore[arg-type]
        assert isinstance(bench.results.pop(), WorkerDied)
        bench.engine._workers.append(worker)  # type: ignore[arg-type]
        worker.pipe.begun = 0
        bench.submit()
        (job,) = worker.pipe.jobs
        bench.engine._workers.append(other)  # type: ignore[arg-type]
        bench.engine._on_exit(worker, "it was killed by SIGKILL")  # type: ignore[arg-type]
        assert other.pipe.jobs == [job]
        assert bench.results == []


class TestStop:
    def test_accepts_no_more(self) -> None:
        """The workers leave the ports alone, and the stop waits for what they run."""
        worker = FakeWorker(1)
        bench = Bench(worker)
        worker.work()
        stopped = bench.engine.stop(5)
        assert not worker.pipe.accepting
        bench.look()
        assert not stopped.called
        worker.rest()
        bench.look()
        assert stopped.called
        assert bench.shared.stopped
        refused = bench.submit()
        assert refused.called
        assert isinstance(bench.results[0], Unavailable)

    def test_ready_too_late(self) -> None:
        """A worker that becomes ready only after the stop has begun leaves the ports alone, too."""
        bench = Bench(FakeWorker(1))
        bench.submit()
        bench.engine.stop(5)
        late = FakeWorker(2)
        bench.engine._on_ready(late)  # type: ignore[arg-type]
        assert not late.pipe.accepting

    def test_timeout(self) -> None:
        """Over its time limit, workers that are still busy are killed, with whatever request."""
        port, front, idle = FakeWorker(1), FakeWorker(2), FakeWorker(3)
        port.work()
        idle.retired = True
        bench = Bench(port, front, idle)
        bench.submit()
        (job,) = front.pipe.jobs
        bench.engine.stop(5)
        bench.clock.advance(5)
        assert (port.kills, front.kills, idle.kills) == (1, 1, 0)
        assert isinstance(job.error, Interrupted)

    def test_report(self) -> None:
        """A failure that a worker reports is logged, with its traceback."""
        bench = Bench(FakeWorker(1))
        with capturedLogs() as logs:
            error = RemoteError("boom", type="KeyError", traceback="Traceback: here")
            bench.engine.on_report(error, "192.0.2.1:5")
        (event,) = logs
        assert "192.0.2.1:5: the handler of modifier1 0 raised boom" in formatEvent(event)
        assert "Traceback: here" in formatEvent(event)


@pytest.mark.parametrize("ready", [0, 1])
def test_look_before_the_start(ready: int) -> None:
    """The ports may be looked at from the beginning, whatever is ready."""
    bench = Bench(*[FakeWorker(number) for number in range(ready)])
    assert bench.look() == (not ready)
