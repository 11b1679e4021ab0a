"""What a store of tasks promises to the spooler, and the values that pass between the two."""

# ruff: noqa: N805 - methods of a zope Interface have no self

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from zope.interface import Attribute, Interface

from uwsgitwisted.errors import Busy
from uwsgitwisted.spool.retry import Verdict
from uwsgitwisted.spool.stores.bounds import Usage
from uwsgitwisted.spool.task import State, Task

#: No more tasks are claimed ahead once those of the same pool and turn have bodies of so many bytes.
AHEAD_BYTES = 16 * 1024 * 1024
#: How many of the queues that share workers are looked at in one turn; the next turn goes on behind the last.
QUEUES_A_TURN = 64
#: How many tasks that are over are forgotten in one turn, and up to how many bytes of them: a turn takes no
#: longer than it takes for these, some ten milliseconds.
EXPIRE_LIMIT, EXPIRE_BYTES = 1_000, 16 * 1024 * 1024
#: The largest id that a store can hold.
LARGEST_ID = 2**63 - 1
#: The largest result that is read along with what else is known of a task, in bytes.
SMALL_RESULT = 4_096
#: A later occurrence of a periodic task keeps an earlier one from being stored, unless it is later by more than
#: this, in seconds.
OCCURRENCE_SPAN = 86_400.0
#: For how long a store keeps what is known of a task that is over, unless it is told otherwise, in seconds.
KEEP_RESULTS = 3_600.0


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a store is to write down about a task that was claimed.

    :param result: what its handler returned, marshalled; empty for nothing.
    """

    id: int
    verdict: Verdict
    result: bytes = b""


class Want(NamedTuple):
    """How many tasks a pool of workers takes now.

    :param now: how many it begins at once.
    :param ahead: how many more it takes so that no worker waits for the next turn. Only tasks that never
        failed are given out ahead: what is ahead when its spooler ends may not have begun, and isn't counted.
    """

    now: int
    ahead: int = 0


#: What each pool takes: the queues that have workers of their own by their names, all others as None. A queue
#: stands here as long as it has workers of its own, whatever it takes now.
Demand = Mapping[str | None, Want]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a store gives out for the next turn of the run loop.

    :param claimed: the tasks to run now; they are marked as running, by this spooler.
    :param orphans: tasks whose spooler ended while they ran. They are marked as running by this one and are
        to be settled, not run.
    :param cancelling: the ids of tasks that this spooler runs and that somebody asked to cancel.
    :param ready: the pools for which tasks wait that might run now.
    :param wait: seconds until the next task's time comes, at least 0; None if none waits for its time.
    :param upkeep: seconds until the store needs a turn for its own sake, at least 0: to forget tasks that are
        over, or to give space back to the disk; None if it needs none.
    """

    claimed: list[Task]
    ready: frozenset[str | None] = frozenset()
    wait: float | None = None
    orphans: Sequence[Task] = ()
    cancelling: Sequence[int] = ()
    upkeep: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """All that a store knows of a task, but for its body, which may be large: that of *task* is empty.

    :param started: when it last began to run, in unix seconds; None if it never did.
    :param finished: when it was done, given up or cancelled, in unix seconds; None before that.
    :param error: the last error, with its traceback where there was one.
    :param result: what its handler returned, marshalled; empty for nothing, and if it has more bytes than
        :data:`SMALL_RESULT`.
    :param body_size: how many bytes its body has. One that is done has none any more.
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

    A method that changes something does so wholly and durably before it returns, or not at all.

    Every method raises :class:`~uwsgitwisted.errors.StoreUnavailable` if the store can't be used now, and
    :class:`~uwsgitwisted.errors.SpoolCorrupt` if it is damaged. A method that was called while the store could
    not be used may be called again later.
    """

    description: str = Attribute("The string that describes it, such as ``sqlite:spool.sqlite``.")
    keep: float = Attribute(
        "For how long what is known of a task that is done or cancelled is kept, in seconds; 0 for not at all."
    )
    heartbeat: float | None = Attribute(
        "How often ``advance`` must be called so that this spooler is known to live, in seconds; None if it "
        "need not."
    )

    def open(woken: Callable[[], None]) -> None:
        """Make the store ready, creating it where there is none.

        :param woken: is called, in any thread, when another process may have given this one something to do.
        :raises SpoolCorrupt: if what is there is no store of ours; it was left as it is.
        :raises SpoolError: if another spooler has it, or it can't be created.
        """

    def close() -> None:
        """Let go of the store. Closing it twice is no mistake."""

    # What the spooler's loop calls.

    def add(tasks: Sequence[Task]) -> list[int]:
        """Store *tasks* in one transaction and return their ids, in the same order, however full the store is.

        A task whose idempotency key is that of a stored one of its queue, however that ended, is not stored
        again; its id is that one's.
        """

    def usage() -> Usage:
        """Return how full the store is. It is cheap, whatever is stored."""

    def waiting_queues(limit: int) -> set[str]:
        """Return the queues with a name in which tasks wait, up to *limit* of them."""

    def refusals(tasks: Sequence[Task]) -> list[Busy | None]:
        """Return why each of *tasks* is refused by the store's bounds; None for those that are to be added."""

    def advance(settlements: Sequence[Settlement], demand: Demand, now: float) -> Turn:
        """Write down how tasks ended and claim the next ones, in one transaction.

        Of a queue, the tasks come in the order of priority, time and id; queues that share workers take turns.
        A settlement of a task that this spooler does not run any more, as it was taken over, changes nothing.

        :param now: the time, in unix seconds; a store with a clock of its own goes by that.
        """

    def shift(seconds: float, latest: float) -> None:
        """Move the times of tasks that wait for their next try, since the clock was set by *seconds*.

        The times that were asked for, by the key ``at``, stay. A store with a clock of its own does nothing.

        :param latest: none of them waits longer than until then, in unix seconds.
        """

    def occur(name: str, at: float, task: Task | None) -> bool:
        """Store *task*, which is what the periodic task *name* is at the time *at*, unless that was done.

        :param task: None to write down only that occurrences count from *at* on.
        :return: whether it was: not if it, or a later one, has been stored before, by whomever. One that is
            more than a day later is taken for the trace of a clock that was wrong.
        """

    def last_occurrence(name: str) -> float | None:
        """Return the time of the last occurrence of the periodic task *name*, in unix seconds; None if none."""

    # What people ask.

    def find(ids: Iterable[int]) -> list[Record]:
        """Return what is known of the tasks *ids*, in the order of their ids; unknown ones are left out."""

    def states(ids: Iterable[int]) -> dict[int, State]:
        """Return the states of the tasks *ids*, without those that are unknown."""

    def body(identifier: int) -> bytes:
        """Return the body of a task; empty if it has none, or is unknown."""

    def result(identifier: int) -> bytes:
        """Return what a task's handler returned, however large; empty for nothing, or if it is unknown."""

    def horizon(after: int, number: int) -> int:
        """Return the id of the task that is the *number*-th above *after*; LARGEST_ID if there are fewer.

        Whoever looks through all tasks does so in steps, as the time that each takes depends on how many it
        looks at.
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
        """Give out no task of *queue* any more, or do so again. What runs goes on."""

    def cancel(ids: Iterable[int], now: float) -> list[int]:
        """Take tasks back that wait; those that run are reported to their spooler, in its next turn.

        :return: those that this changed, in the order of their ids.
        """

    def retry(ids: Iterable[int], now: float) -> list[int]:
        """Have dead letters and cancelled tasks run again, as if they had never run.

        :return: those that this changed, in the order of their ids.
        """

    def drop(ids: Iterable[int]) -> list[int]:
        """Forget tasks that are over.

        :return: those that this changed, in the order of their ids.
        """


def first_expired(rows: Iterable[tuple[int, int]]) -> list[int]:
    """Return the ids of the first of *rows*, (id, size in bytes) each, that are to be forgotten in one turn."""
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
