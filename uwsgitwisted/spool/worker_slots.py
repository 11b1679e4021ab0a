"""Which tasks may run at once: each queue with workers of its own is a pool, all other queues share one.

A pool claims a little more than it has workers as long as its tasks are short, so that the workers go on
while the next ones are claimed, and one commit serves many of them. What was claimed ahead waits here for a
worker. If that takes long, it goes back to the queue, where other spoolers find it, and whatever is more urgent
goes first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from uwsgitwisted.spool.stores.interface import Demand, Want
from uwsgitwisted.spool.task import Task

#: As many tasks are claimed ahead as are expected to run in this time, in seconds: some turns of the loop, each
#: of which waits for the disk once.
AHEAD_TIME = 0.05
#: For how long a task that was claimed ahead waits for a worker before it goes back, in seconds.
PATIENCE = 0.25
#: The most tasks that a pool claims ahead.
MAX_AHEAD = 256


@dataclass(slots=True)
class _Pool:
    workers: int
    max_ahead: int
    #: What runs, by id, and since when, in the clock's time.
    running: dict[int, float] = field(default_factory=dict)
    #: What was claimed and waits for a worker, and since when.
    waiting: deque[tuple[Task, float]] = field(default_factory=deque)
    #: How long one of its tasks takes, in seconds, by the last ones.
    took: float = math.inf

    def want(self, now: float) -> Want:
        begin = max(self.workers - len(self.running) - len(self.waiting), 0)
        oldest = next(iter(self.running.values()), now)
        ahead = int(AHEAD_TIME / max(self.took, now - oldest, 1e-6)) * self.workers
        return Want(begin, max(min(ahead, self.max_ahead) - len(self.waiting), 0))

    def ended(self, identifier: int, now: float) -> None:
        took = now - self.running.pop(identifier)
        # A slow one counts at once, a fast one little by little.
        self.took = max(took, took if math.isinf(self.took) else 0.9 * self.took + 0.1 * took)

    def overdue(self, now: float) -> Iterator[Task]:
        if self.waiting and self.waiting[0][1] <= now - PATIENCE:
            yield from self.give_back()

    def give_back(self) -> Iterator[Task]:
        while self.waiting:
            yield self.waiting.popleft()[0]


class Pools:
    """All pools of a spooler.

    :param workers: how many tasks run at once of the queues that share workers.
    :param queues: how many run at once of each queue that has workers of its own.
    :param max_ahead: the most tasks that a pool claims ahead.
    """

    def __init__(self, workers: int, queues: Mapping[str, int], max_ahead: int = MAX_AHEAD) -> None:
        self._pools: dict[str | None, _Pool] = {
            name: _Pool(number, max_ahead) for name, number in ({None: workers} | dict(queues)).items()
        }

    @property
    def names(self) -> Collection[str | None]:
        """What the pools are called."""
        return self._pools.keys()

    def name_of(self, queue: str) -> str | None:
        """Return the pool that runs the tasks of *queue*."""
        return queue if queue in self._pools else None

    def _of(self, task: Task) -> _Pool:
        return self._pools[self.name_of(task.queue)]

    def demand(self, now: float, *, claiming: bool = True) -> Demand:
        """Return what each pool takes now: nothing, unless *claiming*."""
        return {name: pool.want(now) if claiming else Want(0) for name, pool in self._pools.items()}

    def hungry(self, ready: Collection[str | None], now: float) -> bool:
        """Whether one of the pools *ready* takes something."""
        return any(any(self._pools[name].want(now)) for name in ready)

    @property
    def waiting(self) -> bool:
        """Whether a task that was claimed waits for a worker."""
        return any(pool.waiting for pool in self._pools.values())

    def put(self, task: Task, now: float) -> None:
        """Note that a task was claimed."""
        self._of(task).waiting.append((task, now))

    def next(self, now: float) -> Task | None:
        """Return a task that waits for a worker which is free, and note that it runs; None if there is none."""
        for pool in self._pools.values():
            if pool.waiting and len(pool.running) < pool.workers:
                task, _ = pool.waiting.popleft()
                pool.running[task.id] = now
                return task
        return None

    def ended(self, task: Task, now: float) -> None:
        """Note that a task that ran has ended."""
        self._of(task).ended(task.id, now)

    def overdue(self, now: float) -> list[Task]:
        """Take out what has waited for a worker for too long, and return it."""
        return [task for pool in self._pools.values() for task in pool.overdue(now)]

    def give_back(self) -> list[Task]:
        """Take out all that waits for a worker, and return it."""
        return [task for pool in self._pools.values() for task in pool.give_back()]

    def withdraw(self, identifier: int) -> Task | None:
        """Take out a task that waits for a worker, and return it; None if it doesn't."""
        for pool in self._pools.values():
            for entry in pool.waiting:
                if entry[0].id == identifier:
                    pool.waiting.remove(entry)
                    return entry[0]
        return None
