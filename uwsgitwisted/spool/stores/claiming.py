"""Which tasks a cycle claims: what each pool wants, in turns among the queues that share workers."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

from uwsgitwisted.spool.stores.interface import QUEUES_PER_CYCLE, Demand, Want
from uwsgitwisted.spool.task import Task


class Claimed(NamedTuple):
    """What a cycle claimed.

    :param tasks: those that are to run now; they are marked as running.
    :param ready: the pools for which there are more.
    """

    tasks: list[Task]
    ready: frozenset[str | None]


class TaskSource(Protocol):
    """The tasks in a store, during one cycle."""

    def paused(self) -> set[str]:
        """Return the queues that are paused."""

    def next_queues(self, last: str, others: Collection[str]) -> list[str]:
        """Return queues that have ready tasks, in the order of their names, from the one behind *last*.

        :param others: queues that are left out.
        :return: up to ``QUEUES_PER_CYCLE`` of them.
        """

    def claim(self, want: Want, queues: list[str]) -> list[Task]:
        """Claim what a pool wants: from each queue its share; what one has not goes to the others."""

    def ready_queues(self, queues: Collection[str]) -> set[str]:
        """Return those of *queues* that have ready tasks."""


class Claimer:
    """Claims tasks, and remembers which queue's turn it was."""

    def __init__(self) -> None:
        self._last_queue = ""

    def claim(self, source: TaskSource, demand: Demand) -> Claimed:
        """Claim what the pools want."""
        paused = source.paused()
        claimed: list[Task] = []
        # Where more tasks may be ready, by the pool that runs them.
        looked_at: dict[str | None, list[str]] = {}
        for pool, want in demand.items():
            if pool is None:
                queues = source.next_queues(self._last_queue, paused.union(filter(None, demand)))
            else:
                queues = [] if pool in paused else [pool]
            tasks = source.claim(want, queues)
            if pool is None and tasks:
                self._last_queue = tasks[-1].queue
            claimed += tasks
            # What a pool without free workers leaves has failed before, or is large. It waits for a worker.
            only_prefetched = not want.now and len(tasks) < want.prefetch
            looked_at[pool] = [] if only_prefetched else queues
        ready = source.ready_queues([queue for queues in looked_at.values() for queue in queues])
        return Claimed(
            claimed,
            frozenset(
                pool
                for pool, queues in looked_at.items()
                if len(queues) >= QUEUES_PER_CYCLE or not ready.isdisjoint(queues)
            ),
        )
