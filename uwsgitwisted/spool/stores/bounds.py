"""Admission control: what a queue holds at most, and which new tasks it therefore refuses.

A store says how full it is; this module decides what follows. It refuses only new tasks: tasks in the queue are
retried, cancelled and finished, however full it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from uwsgitwisted.errors import Busy
from uwsgitwisted.spool.task import Task

#: In how many queues tasks may wait. Queues that share workers take turns, so between two of its tasks one
#: waits for so many others.
MAX_QUEUES = 1_000
#: What a task takes on the disk besides its variables and its body, in bytes: its row and its index entries.
TASK_OVERHEAD = 300
#: How long what a store said is cached, in seconds. Tasks admitted since are added to it, so only tasks that
#: others add at the same time can exceed a bound. To go through the queues takes longer: some milliseconds for
#: a thousand.
USAGE_AGE, QUEUES_AGE = 0.1, 1.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a queue holds at most; None stands for no limit.

    :param tasks: how many unfinished tasks.
    :param size: how many bytes, as its store counts them.
    :param queues: in how many queues tasks may wait. The queue without a name and those in *reserved* don't
        count.
    :param reserved: the queues that always take tasks.
    """

    tasks: int | None = None
    size: int | None = None
    queues: int | None = None
    reserved: frozenset[str] = frozenset()


NO_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a store is.

    :param tasks: how many tasks are not finished.
    :param size: how many bytes count against the bound.
    :param spare: how many bytes new tasks may still take on the disk; None if that is not known.
    """

    tasks: int
    size: int
    spare: int | None = None


class AdmissionControl:
    """Decides which new tasks a store takes.

    :param usage: says how full the store is.
    :param queues: says in which queues tasks wait, up to a number of them.
    :param monotonic: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        bounds: Bounds,
        usage: Callable[[], Usage],
        queues: Callable[[int], set[str]],
        monotonic: Callable[[], float],
    ) -> None:
        self._bounds = bounds
        self._usage = usage
        self._queues = queues
        self._monotonic = monotonic
        self._always = bounds.reserved | {""}
        # What the store said, plus what was admitted since. The queues are those that count.
        self._tasks, self._size, self._spare = 0, 0, 0
        self._known: set[str] = set()
        self._read_usage_at = self._read_queues_at = -float("inf")

    def refusals(self, tasks: Sequence[Task]) -> list[Busy | None]:
        """Return why each of *tasks* is refused, None for those that are admitted; these count from now on."""
        self._refresh_usage()
        size = sum([task.size for task in tasks]) + len(tasks) * TASK_OVERHEAD
        queues = {task.queue for task in tasks} - self._always
        # Nearly always there is room for all; to check each would take a tenth of the time to store it.
        if not self._check_space(size, len(tasks)) and (self._bounds.queues is None or queues <= self._known):
            self._count(size, len(tasks))
            return [None] * len(tasks)
        return [self._admit(task) for task in tasks]

    def _refresh_usage(self) -> None:
        now = self._monotonic()
        if now - self._read_usage_at >= USAGE_AGE:
            usage = self._usage()
            self._tasks, self._size = usage.tasks, usage.size
            self._spare = usage.spare if usage.spare is not None else 1 << 62
            self._read_usage_at = now

    def _admit(self, task: Task) -> Busy | None:
        size = task.size + TASK_OVERHEAD
        reason = self._check_space(size) or self._check_queue(task.queue)
        if reason:
            return Busy(reason)
        self._count(size, 1)
        if self._bounds.queues is not None and task.queue not in self._always:
            self._known.add(task.queue)
        return None

    def _count(self, size: int, number: int) -> None:
        self._tasks += number
        self._size += size
        self._spare -= size

    def _check_space(self, size: int, number: int = 1) -> str:
        """Return why so many tasks of so many bytes together are refused; empty if they aren't."""
        bounds = self._bounds
        if bounds.tasks is not None and self._tasks + number > bounds.tasks:
            return (
                f"{self._tasks} tasks wait or run already; {bounds.tasks} is the most (--max-tasks). Try again "
                "later"
            )
        if bounds.size is not None and self._size + size > bounds.size:
            return (
                f"the tasks take {self._size} bytes already; {bounds.size} is the most (--max-spool-size). Try "
                "again later"
            )
        if self._spare < size:
            return (
                "the disk is almost full; the rest is for the outcomes of the tasks there are. Try again later"
            )
        return ""

    def _check_queue(self, queue: str) -> str:
        """Return why *queue* takes no task; empty if it takes some."""
        limit = self._bounds.queues
        if limit is None or queue in self._always or queue in self._known:
            return ""
        now = self._monotonic()
        if now - self._read_queues_at >= QUEUES_AGE:
            self._known = self._queues(limit + len(self._always)) - self._always
            self._read_queues_at = now
        if queue in self._known or len(self._known) < limit:
            return ""
        return (
            f"tasks wait in {limit} queues already (--max-queues), and none in {queue!r}. Use one of those, or "
            "try again later"
        )


class _Store(Protocol):
    """The part of a store that is used here."""

    def refusals(self, tasks: Sequence[Task]) -> list[Busy | None]: ...

    def add(self, tasks: Sequence[Task]) -> list[int]: ...


def add_each(store: _Store, tasks: Sequence[Task]) -> list[int | Busy]:
    """Store those of *tasks* that are admitted, and return for each its id, or why it was refused."""
    refusals = store.refusals(tasks)
    if not any(refusals):
        return [*store.add(tasks)]
    ids = iter(store.add([task for task, refusal in zip(tasks, refusals, strict=True) if refusal is None]))
    return [next(ids) if refusal is None else refusal for refusal in refusals]


def add_all(store: _Store, tasks: Sequence[Task]) -> list[int]:
    """Store *tasks*, all of them or none, and return their ids.

    :raises Busy: if one of them is refused.
    """
    for refusal in store.refusals(tasks):
        if refusal is not None:
            raise refusal
    return store.add(tasks)
