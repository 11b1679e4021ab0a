"""What a store of tasks promises to the spooler, and the values that pass between the two."""

# ruff: noqa: N805 - methods of a zope Interface have no self

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zope.interface import Attribute, Interface

from uwsgitwisted.errors import SpoolError
from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.task import Task


class StoreUnavailable(SpoolError):
    """The store can't be read or written now: a disk that is full, failing or read-only, a lock.

    Nothing was written. The same call may succeed later.
    """


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a store is to write down about a task that was claimed.

    :param at: for a retry, when it may run again, in unix seconds; for a burial, the time of it; None to leave
        the task the time that it has.
    :param error: its last error; empty to keep the one before.
    """

    id: int
    action: Action
    attempts: int = 0
    crashes: int = 0
    at: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a store gives out for the next turn of the run loop.

    :param claimed: the tasks to run now; they are marked as running.
    :param next_at: when the earliest task that waits may run, in unix seconds, possibly in the past; None if
        none waits.
    """

    claimed: list[Task]
    next_at: float | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A task that was given up.

    :param error: the last error, with its traceback where there was one.
    :param started: when it last began to run, in unix seconds; None if it never did.
    :param buried: when it was given up, in unix seconds.
    """

    task: Task
    error: str
    started: float | None
    buried: float


class ISpoolStore(Interface):
    """Keeps tasks. Its methods block, and are called one at a time, though not always from the same thread.

    A method that changes something does so wholly and durably before it returns, or not at all.

    Every method raises :class:`StoreUnavailable` if the store can't be used now, and
    :class:`~uwsgitwisted.errors.SpoolCorrupt` if it is damaged.
    """

    description: str = Attribute("The string that describes it, such as ``sqlite:spool.sqlite``.")

    def open() -> None:
        """Make the store ready, creating it where there is none.

        :raises SpoolCorrupt: if what is there is no store of ours; it was left as it is.
        :raises SpoolError: if another spooler has it, or it can't be created.
        """

    def close() -> None:
        """Let go of the store. Closing it twice is no mistake."""

    def add(tasks: Sequence[Task]) -> list[int]:
        """Store *tasks* in one transaction and return their ids, in the same order."""

    def interrupted() -> list[Task]:
        """Return the tasks that were running when the process that ran them ended without settling them.

        They stay marked as running until they are settled. To be called before the first claim.
        """

    def advance(settlements: Sequence[Settlement], limit: int, now: float) -> Turn:
        """Write down how tasks ended and claim the next ones, in one transaction.

        :param limit: how many to claim at most. They come in the order of priority, time and id.
        :param now: the time, in unix seconds.
        """

    def dead_letters(limit: int, after: int = 0) -> list[DeadLetter]:
        """Return up to *limit* dead letters in the order of their ids, from the first above *after*."""
