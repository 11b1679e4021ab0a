"""Which tasks may run at once: each queue with workers of its own is a pool, all other queues share one.

A pool claims a little more than it has workers as long as its tasks are short, so that the workers go on while
the next ones are claimed, and one commit serves many of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from uwsgitwisted.spool.stores import Demand, Want

#: As many tasks are claimed ahead as are expected to run in this time, in seconds: some turns of the loop, each
#: of which waits for the disk once.
AHEAD_TIME = 0.05
#: The most tasks that a pool claims ahead.
MAX_AHEAD = 256


@dataclass(frozen=True, slots=True)
class _Run:
    """A task that runs: since when, in the clock's time, and how many went before it to the same worker."""

    started: float
    before: int


@dataclass(slots=True)
class _Pool:
    workers: int
    max_ahead: int
    runs: dict[int, _Run] = field(default_factory=dict)
    #: How long one of its tasks takes, in seconds, by the last ones.
    took: float = math.inf

    def want(self) -> Want:
        running = len(self.runs)
        ahead = min(int(AHEAD_TIME / max(self.took, 1e-6)) * self.workers, self.max_ahead)
        return Want(max(self.workers - running, 0), max(ahead - max(running - self.workers, 0), 0))

    def started(self, identifier: int, now: float) -> None:
        self.runs[identifier] = _Run(now, len(self.runs) // self.workers)

    def ended(self, identifier: int, now: float) -> None:
        run = self.runs.pop(identifier)
        took = (now - run.started) / (run.before + 1)
        # A slow one counts at once, a fast one little by little.
        self.took = max(took, took if math.isinf(self.took) else 0.9 * self.took + 0.1 * took)


class Pools:
    """All pools of a spooler.

    :param workers: how many tasks run at once of the queues that share workers.
    :param queues: how many run at once of each queue that has workers of its own.
    :param max_ahead: the most tasks that a pool is given ahead.
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

    def demand(self, *, claiming: bool = True) -> Demand:
        """Return what each pool takes now: nothing, unless *claiming*."""
        return {name: pool.want() if claiming else Want(0) for name, pool in self._pools.items()}

    def hungry(self, ready: Collection[str | None]) -> bool:
        """Whether one of the pools *ready* takes something."""
        return any(any(self._pools[name].want()) for name in ready)

    def started(self, queue: str, identifier: int, now: float) -> None:
        """Note that a task was given to the engine."""
        self._pools[self.name_of(queue)].started(identifier, now)

    def ended(self, queue: str, identifier: int, now: float) -> None:
        """Note that it has left the engine."""
        self._pools[self.name_of(queue)].ended(identifier, now)
