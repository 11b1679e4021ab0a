"""What a store of tasks promises to the spooler, and the values that pass between the two."""

# ruff: noqa: N805 - methods of a zope Interface have no self

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from zope.interface import Attribute, Interface

from uwsgitwisted.errors import Busy
from uwsgitwisted.spool.retry import Decision
from uwsgitwisted.spool.stores.bounds import Usage
from uwsgitwisted.spool.task import State, Task

#: No more tasks are prefetched once those of the same pool and cycle have bodies of so many bytes.
PREFETCH_BYTES = 16 * 1024 * 1024
#: How many of the queues that share workers are looked at in one cycle; the next one goes on behind the last.
QUEUES_PER_CYCLE = 64
#: How many tasks whose time has come are made ready in one cycle, which takes about five milliseconds. With
#: more, the earliest go first.
PROMOTE_LIMIT = 1_000
#: How many expired tasks are deleted in one cycle, and up to how many bytes of them, which takes some ten
#: milliseconds.
EXPIRE_LIMIT, EXPIRE_BYTES = 1_000, 16 * 1024 * 1024
#: The largest id that a store can hold.
LARGEST_ID = 2**63 - 1
#: The largest result that is part of a record, in bytes.
SMALL_RESULT = 4_096
#: A later occurrence of a periodic task keeps an earlier one from being stored, unless it is later by more
#: seconds than this.
OCCURRENCE_SPAN = 86_400.0
#: How long a store keeps a finished task by default, in seconds.
KEEP_RESULTS = 3_600.0


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a store is to write about a task that was claimed.

    :param result: what its handler returned, marshalled; empty for nothing.
    """

    id: int
    decision: Decision
    result: bytes = b""


class Want(NamedTuple):
    """How many tasks a pool of workers wants now.

    :param now: how many it starts at once.
    :param prefetch: how many more it claims, so that no worker waits for the next cycle. Only tasks that never
        failed are prefetched: a prefetched task may not have started when its spooler ends, so no attempt is
        counted.
    """

    now: int
    prefetch: int = 0


#: What each pool wants: the queues that have workers of their own by their names, all others as None. A queue
#: that has workers of its own is always there, even if it wants nothing now.
Demand = Mapping[str | None, Want]


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one cycle of the spooler's loop gives.

    :param claimed: the tasks to run now; they are marked as running, by this spooler.
    :param orphans: tasks whose spooler ended while they ran. They are marked as running by this one, which has
        to settle them, not to run them.
    :param cancelling: the ids of tasks that this spooler runs and that somebody asked to cancel.
    :param ready: the pools for which there are tasks that may run now.
    :param wait: seconds until the next task's time comes, at least 0; None if no task waits for its time.
    :param upkeep: seconds until the store needs a cycle for itself, at least 0: to delete expired tasks, or to
        give space back to the disk; None if it needs none.
    """

    claimed: list[Task]
    ready: frozenset[str | None] = frozenset()
    wait: float | None = None
    orphans: Sequence[Task] = ()
    cancelling: Sequence[int] = ()
    upkeep: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """All that a store knows of a task, except for its body, which may be large: that of *task* is empty.

    :param started: when it last began to run, in unix seconds; None if it never did.
    :param finished: when it was done, dead-lettered or cancelled, in unix seconds; None before that.
    :param error: the last error, with its traceback where there was one.
    :param result: what its handler returned, marshalled; empty for nothing, and if it has more bytes than
        :data:`SMALL_RESULT`.
    :param body_size: how many bytes its body has. A task that is done has no body any more.
    :param result_size: how many bytes its result has.
    """

    task: Task
    state: State
    started: float | None = None
    finished: float | None = None
    error: str = ""
    result: bytes = b""
    body_size: int = 0
    result_size: int = 0


class ISpoolStore(Interface):
    """Keeps tasks. Its methods block, and are called one at a time, though not always from the same thread.

    A method makes its change completely and durably before it returns, or not at all.

    Every method raises :class:`~uwsgitwisted.errors.StoreUnavailable` if the store can't be used now, and
    :class:`~uwsgitwisted.errors.SpoolCorrupt` if it is damaged. After ``StoreUnavailable`` the method may be
    called again later.
    """

    description: str = Attribute("The string that describes it, such as ``sqlite:spool.sqlite``.")
    keep: float = Attribute("How long a task that is done or cancelled is kept, in seconds; 0 for not at all.")
    heartbeat: float | None = Attribute(
        "How often ``advance`` must be called to show that this spooler is alive, in seconds; None for never."
    )

    def open(woken: Callable[[], None]) -> None:
        """Open the store; create it if it doesn't exist.

        :param woken: is called, in any thread, when another process may have given this one something to do.
        :raises SpoolCorrupt: if something else than a store of ours is there; it was left unchanged.
        :raises SpoolError: if another spooler has it, or it can't be created.
        """

    def close() -> None:
        """Close the store. It may be closed twice."""

    # What the spooler's loop calls.

    def add(tasks: Sequence[Task]) -> list[int]:
        """Store *tasks* in one transaction and return their ids, in the same order, however full the store is.

        A task is not stored if its queue has one with the same idempotency key, in whatever state; the id of
        that one is returned.
        """

    def usage() -> Usage:
        """Return how full the store is. It is cheap, whatever is stored."""

    def waiting_queues(limit: int) -> set[str]:
        """Return the queues with a name in which tasks wait, up to *limit* of them."""

    def refusals(tasks: Sequence[Task]) -> list[Busy | None]:
        """Return why each of *tasks* is refused by the store's bounds; None for those that are to be added."""

    def advance(settlements: Sequence[Settlement], demand: Demand, now: float) -> Cycle:
        """Write outcomes of tasks and claim the next ones, in one transaction.

        Within a queue, tasks are claimed in the order of priority, time and id; queues that share workers take
        turns. A settlement changes nothing if another spooler took the task over.

        :param now: the wall clock, in unix seconds; a store with a clock of its own ignores it.
        """

    def shift(seconds: float, latest: float) -> None:
        """Move the times of tasks that wait for their next try, after the wall clock stepped by *seconds*.

        The times that callers asked for, by the key ``at``, stay. A store with a clock of its own does nothing.

        :param latest: no such task waits longer than until then, in unix seconds.
        """

    def occur(name: str, at: float, task: Task | None) -> bool:
        """Store *task*, the occurrence of the periodic task *name* at *at*, unless it was stored before.

        :param task: None to note only that occurrences count from *at* on.
        :return: whether it was stored. It is not if any spooler has stored it, or a later one, before. An
            occurrence that is more than a day later is ignored: a wrong clock made it.
        """

    def last_occurrence(name: str) -> float | None:
        """Return the time of the last occurrence of the periodic task *name*, in unix seconds; None if none."""

    # What people ask.

    def find(ids: Iterable[int]) -> list[Record]:
        """Return the records of the tasks *ids*, in the order of their ids; unknown ones are left out."""

    def states(ids: Iterable[int]) -> dict[int, State]:
        """Return the states of the tasks *ids*, without those that are unknown."""

    def body(identifier: int) -> bytes:
        """Return the body of a task; empty if it has none, or is unknown."""

    def result(identifier: int) -> bytes:
        """Return what a task's handler returned, however large; empty for nothing, or if it is unknown."""

    def horizon(after: int, number: int) -> int:
        """Return the id of the task that is the *number*-th above *after*; LARGEST_ID if there are fewer.

        To go through all tasks takes long, so a caller does it in steps of bounded size.
        """

    def records(
        limit: int,
        after: int = 0,
        *,
        until: int = LARGEST_ID,
        state: State | None = None,
        queue: str | None = None,
    ) -> list[Record]:
        """Return up to *limit* tasks in the order of their ids, from the first above *after*.

        :param until: none with an id above this one.
        :param state: only those in this state; None for all.
        :param queue: only those of this queue; None for all.
        """

    def counts(after: int = 0, until: int = LARGEST_ID) -> dict[tuple[str, State], int]:
        """Return how many tasks there are with an id above *after* and up to *until*, by queue and state."""

    def paused() -> set[str]:
        """Return the queues that are paused."""

    def pause(queue: str, paused: bool) -> None:
        """Stop to claim tasks of *queue*, or claim them again. Running tasks go on."""

    def cancel(ids: Iterable[int], now: float) -> list[int]:
        """Cancel tasks; the ids of running ones are reported to their spooler in its next cycle.

        :return: the ids of those that this changed, in order.
        """

    def retry(ids: Iterable[int], now: float) -> list[int]:
        """Queue dead letters and cancelled tasks again, as if they had never run.

        :return: the ids of those that this changed, in order.
        """

    def drop(ids: Iterable[int]) -> list[int]:
        """Delete finished tasks.

        :return: the ids of those that this deleted, in order.
        """


def first_expired(rows: Iterable[tuple[int, int]]) -> list[int]:
    """Return the ids of the first of *rows*, (id, size in bytes) each, that are deleted in one cycle."""
    ids: list[int] = []
    total = 0
    for identifier, size in rows:
        ids.append(identifier)
        total += size
        if total > EXPIRE_BYTES:
            break
    return ids


def possible_ids(ids: Iterable[int]) -> list[int]:
    """Return those of *ids* that a store can hold, each once, in order; there is no task of another one."""
    return sorted(identifier for identifier in set(ids) if 0 < identifier <= LARGEST_ID)
