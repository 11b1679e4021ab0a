"""The operations that change a queue. Each takes a store, the time and checked arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from uwsgitwisted.errors import SpoolError
from uwsgitwisted.spool.management.queries import read_pages
from uwsgitwisted.spool.slices import Steps, slices
from uwsgitwisted.spool.stores.bounds import add_all
from uwsgitwisted.spool.stores.interface import ISpoolStore
from uwsgitwisted.spool.task import State, Task, new_task

#: How many tasks a change to all of them looks at in one call.
CHANGE_BATCH = 1_000
#: How many new tasks are read in one slice: it takes some milliseconds.
READ = 500

#: The states of tasks that are not finished, and of those that are.
UNFINISHED = tuple(state for state in State if not state.final)
FINISHED = tuple(state for state in State if state.final)


class _Change(NamedTuple):
    """A change to tasks.

    :param apply: makes it to some tasks and returns the ids of those that it changed.
    :param states: the states in which it changes a task.
    :param default: which of them are meant where all tasks are to be changed and no state is named.
    """

    apply: Callable[[ISpoolStore, Sequence[int], float], list[int]]
    states: tuple[State, ...]
    default: tuple[State, ...]


#: The changes that are made to tasks by their ids, or to all of a state and a queue.
CHANGES = {
    "cancel": _Change(lambda store, ids, now: store.cancel(ids, now), UNFINISHED, UNFINISHED),
    "retry": _Change(
        lambda store, ids, now: store.retry(ids, now), (State.DEAD, State.CANCELLED), (State.DEAD,)
    ),
    "drop": _Change(lambda store, ids, now: store.drop(ids), FINISHED, FINISHED),
}


def change_tasks(
    name: str,
    store: ISpoolStore,
    now: float,
    *,
    ids: list[int] | None,
    all: bool,  # noqa: A002 - as it is called in a request
    state: State | None,
    queue: str | None,
    after: int,
) -> Steps[dict[str, object]]:
    """Change the tasks *ids*, or the next of all tasks above *after*.

    :return: ``changed``, the ids of those that it changed; ``more``, whether there may be others; ``after``,
        the last id that it looked at.
    """
    change = CHANGES[name]
    if (ids is None) is not all:
        raise SpoolError(f"{name} needs either ids or all")
    if ids is not None:
        yield
        return {"changed": change.apply(store, ids, now), "more": False, "after": max(ids)}
    states = change.default if state is None else (state,)
    if not set(states) <= set(change.states):
        possible = ", ".join(possible.name.lower() for possible in change.states)
        raise SpoolError(f"{name} changes tasks in these states only: {possible}")
    # The store leaves tasks in other states alone.
    one = states[0] if len(states) == 1 else None
    seen: list[int] = []
    for page in read_pages(store, CHANGE_BATCH, after, state=one, queue=queue):
        seen += [record.task.id for record in page]
        yield
    changed = change.apply(store, seen, now) if seen else []
    return {"changed": changed, "more": len(seen) == CHANGE_BATCH, "after": seen[-1] if seen else after}


def enqueue_tasks(store: ISpoolStore, now: float, *, tasks: Sequence[Sequence[bytes]]) -> Steps[list[int]]:
    """Store new tasks in one transaction, all of them or none, and return their ids."""
    new: list[Task] = []
    for some in slices(tasks, READ):
        new += [_read_task(now, *parts) for parts in some]
        yield
    return add_all(store, new)


def _read_task(now: float, variables: bytes, body: bytes, settings: bytes) -> Task:
    task = new_task(variables, now, body)
    return replace(new_task(settings, now), variables=variables, body=body) if settings else task


def pause_queue(store: ISpoolStore, now: float, *, queue: str, paused: bool) -> Steps[None]:
    """Pause a queue, or resume it."""
    yield
    store.pause(queue, paused)
