"""Which tasks may run at once: each queue with workers of its own is a pool, all other queues share one.

While its tasks are short, a pool claims more of them than it has workers. The workers then go on while the next
tasks are claimed, and one commit serves many tasks. A prefetched task waits here for a worker. If that takes
long, it returns to the queue, where other spoolers find it and more urgent tasks overtake it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from uwsgitwisted.spool.stores.interface import Demand, Want
from uwsgitwisted.spool.task import Task

#: As many tasks are prefetched as are expected to run in this time, in seconds: it is some cycles of the loop,
#: each of which waits for the disk once.
PREFETCH_TIME = 0.05
#: How long a prefetched task waits for a worker before it returns to the queue, in seconds.
PREFETCH_TIMEOUT = 0.25
#: The most tasks that a pool prefetches.
MAX_PREFETCH = 256


@dataclass(slots=True)
class _Pool:
    workers: int
    max_prefetch: int
    #: When each running task started, by id, in the clock's time.
    running: dict[int, float] = field(default_factory=dict)
    #: The claimed tasks that wait for a worker, and when each was claimed.
    waiting: deque[tuple[Task, float]] = field(default_factory=deque)
    #: How long one of its recent tasks took, in seconds.
    duration: float = math.inf

    def want(self, now: float) -> Want:
        start = max(self.workers - len(self.running) - len(self.waiting), 0)
        oldest = next(iter(self.running.values()), now)
        prefetch = int(PREFETCH_TIME / max(self.duration, now - oldest, 1e-6)) * self.workers
        return Want(start, max(min(prefetch, self.max_prefetch) - len(self.waiting), 0))

    def release(self, identifier: int, now: float) -> None:
        took = now - self.running.pop(identifier)
        # A slow task counts at once, a fast one little by little.
        self.duration = max(took, took if math.isinf(self.duration) else 0.9 * self.duration + 0.1 * took)

    @property
    def recall_at(self) -> float:
        return self.waiting[0][1] + PREFETCH_TIMEOUT if self.waiting else math.inf

    def recall_all(self) -> Iterator[Task]:
        while self.waiting:
            yield self.waiting.popleft()[0]


class WorkerSlots:
    """The worker slots of a spooler, in pools.

    :param workers: how many tasks run at once of the queues that share workers.
    :param queues: how many run at once of each queue that has workers of its own.
    :param max_prefetch: the most tasks that a pool prefetches.
    """

    def __init__(self, workers: int, queues: Mapping[str, int], max_prefetch: int = MAX_PREFETCH) -> None:
        self._pools: dict[str | None, _Pool] = {
            name: _Pool(number, max_prefetch) for name, number in ({None: workers} | dict(queues)).items()
        }

    @property
    def names(self) -> Collection[str | None]:
        """The names of the pools."""
        return self._pools.keys()

    def pool_of(self, queue: str) -> str | None:
        """Return the name of the pool that runs the tasks of *queue*."""
        return queue if queue in self._pools else None

    def _pool(self, task: Task) -> _Pool:
        return self._pools[self.pool_of(task.queue)]

    def demand(self, now: float, *, claiming: bool = True) -> Demand:
        """Return how many tasks each pool wants now: none, unless *claiming*."""
        return {name: pool.want(now) if claiming else Want(0) for name, pool in self._pools.items()}

    def has_capacity(self, names: Collection[str | None], now: float) -> bool:
        """Return whether one of the pools *names* wants a task."""
        return any(any(self._pools[name].want(now)) for name in names)

    def add_claimed(self, task: Task, now: float) -> None:
        """Have a claimed task wait for a worker."""
        self._pool(task).waiting.append((task, now))

    def start_next(self, now: float) -> Task | None:
        """Give a free worker to a waiting task and return the task; None if there is no such pair."""
        for pool in self._pools.values():
            if pool.waiting and len(pool.running) < pool.workers:
                task, _ = pool.waiting.popleft()
                pool.running[task.id] = now
                return task
        return None

    def release(self, task: Task, now: float) -> None:
        """Free the worker of a task whose run ended."""
        self._pool(task).release(task.id, now)

    @property
    def recall_at(self) -> float:
        """When the first waiting task is overdue, in the clock's time; infinity if no task waits."""
        return min(pool.recall_at for pool in self._pools.values())

    def recall_overdue(self, now: float) -> list[Task]:
        """Remove and return the waiting tasks of the pools where one has waited for too long."""
        overdue = [pool for pool in self._pools.values() if pool.recall_at <= now]
        return [task for pool in overdue for task in pool.recall_all()]

    def recall_all(self) -> list[Task]:
        """Remove and return all waiting tasks."""
        return [task for pool in self._pools.values() for task in pool.recall_all()]

    def recall(self, identifier: int) -> Task | None:
        """Remove and return a waiting task; None if it doesn't wait."""
        for pool in self._pools.values():
            for entry in pool.waiting:
                if entry[0].id == identifier:
                    pool.waiting.remove(entry)
                    return entry[0]
        return None
