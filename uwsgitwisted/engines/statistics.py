"""What the workers of an engine do and have done, across the processes that follow each other as one worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from uwsgitwisted.activity import CacheCounts, Counts
from uwsgitwisted.engines.worker_process import WorkerProcess


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker.

    :param id: its number, from 1.
    :param pid: its process; 0 while there is none.
    :param threads: what each of its threads has done, signals included.
    :param signals: how many signals it has handled.
    :param since_start: how many requests its current process has answered, without signals.
    :param in_flight: how many requests it has.
    :param timeouts: how many of its processes were killed because a request exceeded the time limit.
    :param starts: how many processes it has had.
    :param last_start: when the last one was started, in seconds since 1970.
    :param cache: the figures of its result cache, with the hits and misses of earlier processes.
    """

    id: int
    pid: int
    threads: Sequence[Counts]
    signals: int = 0
    since_start: int = 0
    in_flight: int = 0
    timeouts: int = 0
    starts: int = 0
    last_start: int = 0
    cache: CacheCounts = field(default_factory=CacheCounts)


def figures(report: WorkerReport) -> dict[str, object]:
    """Return what is told of a worker by the names that uWSGI has for it, in its statistics and to handlers."""
    total = Counts()
    for counts in report.threads:
        total = total.plus(counts)
    return {
        "id": report.id,
        "pid": report.pid,
        "requests": total.requests - report.signals,
        "delta_requests": report.since_start,
        "signals": report.signals,
        "exceptions": total.failed,
        "status": "cheap" if not report.pid else "busy" if report.in_flight else "idle",
        "running_time": total.running_time,
        "last_spawn": report.last_start,
        "respawn_count": report.starts,
        "tx": total.sent,
        "avg_rt": total.average,
    }


def _add(threads: Sequence[Counts], worker: WorkerProcess) -> Sequence[Counts]:
    """Add to what the threads of earlier processes have done what those of *worker* have."""
    return [earlier.plus(own) for earlier, own in zip(threads, worker.counts, strict=False)] or threads


class _Record:
    """What is kept of a worker whose processes have ended."""

    def __init__(self, threads: int) -> None:
        self.threads: Sequence[Counts] = [Counts()] * threads
        self.signals = 0
        self.timeouts = 0
        self.starts = 0
        self.last_start = 0
        self.cache = CacheCounts()


class History:
    """The workers of an engine.

    :param workers: how many workers.
    :param threads: how many threads each has.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self._records = {worker_id: _Record(threads) for worker_id in range(1, workers + 1)}
        self._warning: tuple[float, bytes] = (0.0, b"")

    def on_start(self, worker_id: int) -> None:
        """Note that a process was started."""
        record = self._records[worker_id]
        record.starts += 1
        record.last_start = int(time.time())

    def on_timeout(self, worker: WorkerProcess) -> None:
        """Note that a process is killed because a request exceeded the time limit."""
        self._records[worker.worker_id].timeouts += 1

    def on_exit(self, worker: WorkerProcess) -> None:
        """Keep what a process has counted, which has ended."""
        record = self._records[worker.worker_id]
        record.threads = _add(record.threads, worker)
        record.signals += worker.signals
        record.cache = record.cache.plus(worker.cache._replace(pages=0, size=0))
        self._warning = max(self._warning, worker.warning)

    def warning(self, workers: Sequence[WorkerProcess]) -> tuple[float, bytes]:
        """Return when a warning was set last, and that warning.

        :param workers: the processes that run.
        """
        return max([self._warning, *(worker.warning for worker in workers)])

    def reports(self, workers: Sequence[WorkerProcess]) -> list[WorkerReport]:
        """Return what each worker does and has done.

        :param workers: the processes that run, each behind the one that it replaces.
        """
        own: dict[int, list[WorkerProcess]] = {number: [] for number in self._records}
        for worker in workers:
            own[worker.worker_id].append(worker)
        return [_report(number, record, own[number]) for number, record in self._records.items()]


def _report(number: int, record: _Record, own: Sequence[WorkerProcess]) -> WorkerReport:
    threads: Sequence[Counts] = record.threads
    cache = record.cache
    for worker in own:
        threads = _add(threads, worker)
        cache = cache.plus(worker.cache)
    return WorkerReport(
        id=number,
        pid=own[-1].worker_pid if own else 0,
        threads=threads,
        signals=record.signals + sum(worker.signals for worker in own),
        since_start=sum(each.requests for each in own[-1].counts) - own[-1].signals if own else 0,
        in_flight=sum(worker.pipe.in_flight + worker.accepted() for worker in own),
        timeouts=record.timeouts,
        starts=record.starts,
        last_start=record.last_start,
        cache=cache,
    )
