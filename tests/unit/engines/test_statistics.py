"""What is known of an engine's workers, across their processes."""

from __future__ import annotations

from typing import Any

from uwsgitwisted.activity import CacheCounts, Counts
from uwsgitwisted.engines.statistics import History, figures


class Process:
    """A worker's process."""

    def __init__(self, worker_id: int, pid: int, counts: list[Counts], warning: tuple[float, bytes]) -> None:
        self.worker_id = worker_id
        self.worker_pid = pid
        self.counts = counts
        self.warning = warning
        self.signals = 0
        self.cache = CacheCounts(hits=1, misses=2, pages=3, size=4)
        self.pipe: Any = self
        self.in_flight = 1

    def accepted(self) -> int:
        return 1


ONE = Counts(1, 0, 100, 5, 100)
TWO = Counts(2, 1, 500, 6, 200)


def test_processes_follow_each_other() -> None:
    """What ended processes have counted is kept; while one replaces another, both count."""
    history: Any = History(2, 1)
    first, second = Process(1, 11, [ONE], (1.0, b"")), Process(1, 12, [TWO], (0.0, b""))
    for worker_id in (1, 2, 1):
        history.on_start(worker_id)
    history.on_timeout(first)
    both, absent = history.reports([first, second])
    assert (both.pid, both.threads, both.since_start) == (12, [Counts(3, 1, 600, 11, 200)], 2)
    assert (both.in_flight, both.timeouts, both.starts) == (4, 1, 2)
    assert both.cache == CacheCounts(hits=2, misses=4, pages=6, size=8)
    assert (absent.pid, absent.threads, absent.starts) == (0, [Counts()], 1)
    history.on_exit(first)
    assert history.reports([second])[0].threads == both.threads
    assert history.reports([second])[0].cache == CacheCounts(hits=2, misses=4, pages=3, size=4)
    second.counts = []  # it has ended, and was not noticed yet
    assert history.reports([second])[0].threads == [ONE]


def test_signals_are_no_requests() -> None:
    """What is told of a worker has its signals apart from its requests, over all of its processes."""
    history: Any = History(2, 1)
    first, second = Process(1, 11, [TWO], (0.0, b"")), Process(1, 12, [TWO], (0.0, b""))
    first.signals = second.signals = 1
    for _ in range(2):
        history.on_start(1)
    history.on_exit(first)
    worker, absent = map(figures, history.reports([second]))
    spawned = worker.pop("last_spawn")
    assert isinstance(spawned, int)
    assert spawned > 1_000_000_000
    assert worker == {
        "id": 1,
        "pid": 12,
        "requests": 2,
        "delta_requests": 1,
        "signals": 2,
        "exceptions": 2,
        "status": "busy",
        "running_time": 1_000,
        "respawn_count": 2,
        "tx": 12,
        "avg_rt": 200,
    }
    assert (absent["status"], absent["pid"], absent["requests"]) == ("cheap", 0, 0)
    second.in_flight = 0
    second.accepted = lambda: 0  # type: ignore[method-assign]
    assert figures(history.reports([second])[0])["status"] == "idle"


def test_the_last_warning() -> None:
    """The warning that was set last is the service's, also when its process has ended."""
    history: Any = History(2, 1)
    first, second = Process(1, 11, [ONE], (2.0, b"new")), Process(2, 12, [ONE], (1.0, b"old"))
    assert history.warning([first, second]) == (2.0, b"new")
    history.on_exit(first)
    assert history.warning([second]) == (2.0, b"new")
    second.warning = (3.0, b"")
    assert history.warning([second]) == (3.0, b"")
    assert History(1, 1).warning([]) == (0.0, b"")
