"""What can be asked of a queue, by name: the table of operations, and how a request becomes a command.

Each operation takes a store and plain arguments, which may come from a stranger, and returns plain values. So
the same operations serve a running spooler, over the network, and a store that is opened directly. Who may ask
for what is not decided here.

An operation does its work in slices, as :mod:`uwsgitwisted.spool.slices` has them, and bounds its answer in
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from uwsgitwisted.errors import SpoolError
from uwsgitwisted.spool.management.arguments import (
    Argument,
    read_arguments,
    read_flag,
    read_id,
    read_ids,
    read_integer,
    read_queue,
    read_state,
    read_tasks,
)
from uwsgitwisted.spool.management.changes import (
    CHANGE_BATCH,
    CHANGES,
    change_tasks,
    enqueue_tasks,
    pause_queue,
)
from uwsgitwisted.spool.management.queries import (
    count_tasks,
    describe_details,
    export_tasks,
    find_tasks,
    list_tasks,
)
from uwsgitwisted.spool.records import describe_record
from uwsgitwisted.spool.slices import SLICE, Job, Steps, finish
from uwsgitwisted.spool.stores.interface import LARGEST_ID, ISpoolStore
from uwsgitwisted.spool.task import State
from uwsgitwisted.wire.objects import loads_plain
from uwsgitwisted.wire.tasks import decode_batch

#: How many ids one call takes; how many it shows in full, since each may have a traceback and variables of
#: 64 KiB; how many tasks it lists.
MAX_IDS, MAX_DETAILS, MAX_LIST = 1_000, 20, 1_000


class Command(NamedTuple):
    """A request that was understood.

    :param job: executes it.
    :param weight: how many slices the job has, about.
    :param finished: returns, of its answer, the ids of the tasks that it may have finished; None if it only
        reads.
    """

    job: Job[Any]
    weight: int
    finished: Callable[[Any], Sequence[int]] | None


def run_operation(store: ISpoolStore, operation: object, arguments: object, now: float) -> object:
    """Execute an operation, all at once.

    :param operation: the name of one of :data:`OPERATIONS`.
    :param arguments: a dict of those that it takes.
    :param now: the time, in unix seconds.
    :return: its answer, of types that can be marshalled; None if it has none.
    :raises SpoolError: if there is no such operation, or it doesn't take these arguments; the text says what it
        does take. And whatever the store raises.
    """
    return finish(parse_command(operation, arguments, now).job(store))


def parse_command(operation: object, arguments: object, now: float) -> Command:
    """Return the command that executes an operation.

    :raises SpoolError: as :func:`run_operation`.
    """
    known = OPERATIONS.get(operation) if isinstance(operation, str) else None
    if known is None:
        raise SpoolError(f"there is no such operation; there are {', '.join(OPERATIONS)}")
    values = read_arguments(f"{operation}", known.takes, arguments)
    looks_at = CHANGE_BATCH if values.get("all") else values.get("limit", len(values.get("ids") or ()))
    return Command(lambda store: known.run(store, now, **values), 1 + looks_at // SLICE, known.finished)


def parse_batch(payload: bytes, now: float) -> Command:
    """Return the command that stores a batch of tasks.

    :param payload: a batch as :func:`uwsgitwisted.wire.tasks.encode_batch` makes it, marshalled.
    """

    def job(store: ISpoolStore) -> Steps[list[int]]:
        data = loads_plain(payload)
        assert isinstance(data, bytes), "its type code said so"
        return (yield from enqueue_tasks(store, now, tasks=decode_batch(data)))

    return Command(job, 1, _finishes_none)


def _finishes_none(_answer: object) -> Sequence[int]:
    return ()


def _changed_ids(answer: Mapping[str, Any]) -> Sequence[int]:
    ids: Sequence[int] = answer["changed"]
    return ids


class _Operation(NamedTuple):
    """An operation on a queue.

    :param run: executes it, with a store, the time, and the arguments.
    :param takes: the arguments.
    :param finished: as in :class:`Command`.
    """

    run: Callable[..., Steps[object]]
    takes: Mapping[str, Argument]
    finished: Callable[[Any], Sequence[int]] | None = None


_WANTED = {
    "state": Argument(read_state, None),
    "queue": Argument(read_queue, None),
    "after": Argument(read_integer(0, LARGEST_ID), 0),
}
_LISTED = {**_WANTED, "limit": Argument(read_integer(1, MAX_LIST), 100)}
_CHANGED = {**_WANTED, "ids": Argument(read_ids(MAX_IDS), None), "all": Argument(read_flag, False)}
_QUEUE = {"queue": Argument(read_queue)}

#: All operations, by name.
OPERATIONS = {
    "list": _Operation(list_tasks, _LISTED),
    "dead": _Operation(
        partial(list_tasks, state=State.DEAD),
        {name: argument for name, argument in _LISTED.items() if name != "state"},
    ),
    "show": _Operation(partial(find_tasks, describe_details), {"ids": Argument(read_ids(MAX_DETAILS))}),
    "status": _Operation(partial(find_tasks, describe_record), {"ids": Argument(read_ids(MAX_IDS))}),
    "stats": _Operation(count_tasks, {}),
    "export": _Operation(export_tasks, _LISTED),
    "enqueue": _Operation(enqueue_tasks, {"tasks": Argument(read_tasks)}, _finishes_none),
    **{name: _Operation(partial(change_tasks, name), _CHANGED, _changed_ids) for name in CHANGES},
    "pause": _Operation(partial(pause_queue, paused=True), _QUEUE, _finishes_none),
    "resume": _Operation(partial(pause_queue, paused=False), _QUEUE, _finishes_none),
}

#: What whoever waits for a task says.
WAIT = {"id": Argument(read_id)}
