"""What people ask of a queue, by name: look at its tasks, change what becomes of them, add more.

Each operation takes a store and plain arguments, which may be a stranger's, and returns plain values. So the
same ones serve a spooler that runs, over the network, and a store that is opened directly. Who may ask for what
is not decided here.

An operation does its work in slices, as :mod:`uwsgitwisted.spool.slices` has them, and what it returns is
bounded in bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from uwsgitwisted.errors import SpoolError
from uwsgitwisted.spool.records import Description, describe_record
from uwsgitwisted.spool.slices import SLICE, Job, Steps, finish, slices
from uwsgitwisted.spool.stores.bounds import add_all
from uwsgitwisted.spool.stores.interface import LARGEST_ID, SMALL_RESULT, ISpoolStore, Record, possible_ids
from uwsgitwisted.spool.task import QUEUE_LIMIT, UNPRIORITIZED, State, Task, new_task
from uwsgitwisted.tasks import MAX_BATCH, decode_batch
from uwsgitwisted.wire.objects import loads_plain
from uwsgitwisted.wire.vars import decode_vars

#: How many ids one call takes; of how many it tells all, since each may have a traceback and variables of
#: 64 KiB; how many it lists.
MAX_IDS, MAX_DETAILS, MAX_LIST = 1_000, 20, 1_000
#: How many tasks a change to all of them looks at in one call.
CHANGE_BATCH = 1_000
#: How many tasks are looked through, and how many new ones are read, in one slice: some milliseconds each.
SCAN, READ = 10_000, 500
#: How many queues are counted one by one.
MAX_QUEUES = 10_000
#: A call that exports tasks stops when it has so many bytes of them. Results have as many together; those for
#: which there is no room are left out.
ANSWER_BYTES = 8 * 1024 * 1024
#: How much of its variables a list shows of a task, in characters.
SUMMARY_LIMIT = 200

#: The states by the names that people use.
STATES = {state.name.lower(): state for state in State}
#: The states of tasks that are not over, and of those that are.
LIVE, OVER = (State.SCHEDULED, State.READY, State.RUNNING), (State.DONE, State.DEAD, State.CANCELLED)

#: Variables that tell the spooler something; a list has what they say in columns of their own.
_SPOOLING_KEYS = frozenset({b"at", b"priority", b"spooler", b"idempotency_key", b"CONTENT_LENGTH"})
_REQUIRED = object()


def manage(store: ISpoolStore, operation: object, arguments: object, now: float) -> object:
    """Do what is asked, all at once.

    :param operation: the name of one of :data:`OPERATIONS`.
    :param arguments: a dict of those that it takes.
    :param now: the time, in unix seconds.
    :return: None, or what was asked for, of types that can be marshalled.
    :raises SpoolError: if there is no such operation, or it doesn't take these arguments; the text says what it
        does take. And whatever the store raises.
    """
    return finish(question(operation, arguments, now).job(store))


class Question(NamedTuple):
    """Something that is asked of a queue, understood.

    :param job: does it.
    :param weight: how many slices it has, about.
    :param ended: from its answer, the ids of the tasks that it may have ended; None if it only looks.
    """

    job: Job[Any]
    weight: int
    ended: Callable[[Any], Sequence[int]] | None


def question(operation: object, arguments: object, now: float) -> Question:
    """Return what is asked, to be done later.

    :raises SpoolError: as :func:`manage`.
    """
    known = OPERATIONS.get(operation) if isinstance(operation, str) else None
    if known is None:
        raise SpoolError(f"there is no such operation; there are {', '.join(OPERATIONS)}")
    values = read_arguments(f"{operation}", known.takes, arguments)
    looks_at = CHANGE_BATCH if values.get("all") else values.get("limit", len(values.get("ids") or ()))
    return Question(lambda store: known.run(store, now, **values), 1 + looks_at // SLICE, known.ended)


def batch(payload: bytes, now: float) -> Question:
    """Return the question to take in a batch of tasks.

    :param payload: what :func:`uwsgitwisted.tasks.encode_batch` gives, marshalled.
    """

    def job(store: ISpoolStore) -> Steps[list[int]]:
        data = loads_plain(payload)
        assert isinstance(data, bytes), "its type code said so"
        return (yield from _enqueue(store, now, tasks=decode_batch(data)))

    return Question(job, 1, _none_ended)


class Argument(NamedTuple):
    """An argument of an operation.

    :param read: returns it, or raises ``ValueError`` with what it takes.
    :param default: what it is where it isn't given.
    """

    read: Callable[[Any], Any]
    default: Any = _REQUIRED


def read_arguments(operation: str, takes: Mapping[str, Argument], arguments: object) -> dict[str, Any]:
    """Return the arguments of an operation, checked.

    :param takes: those that it takes.
    :raises SpoolError: if *arguments* is not a dict of these; the text says what is.
    """
    if not isinstance(arguments, dict) or not takes.keys() >= arguments.keys():
        raise SpoolError(f"{operation} takes a dict of {', '.join(takes) or 'nothing'}")
    values = {}
    for name, argument in takes.items():
        try:
            values[name] = argument.read(arguments[name]) if name in arguments else argument.default
        except ValueError as error:
            raise SpoolError(f"{operation}: {name} has to be {error}") from None
        if values[name] is _REQUIRED:
            raise SpoolError(f"{operation} needs {name}")
    return values


# How arguments are read.


def _integer(lowest: int, highest: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError(f"an integer from {lowest} to {highest}")
        return value

    return read


_read_id = _integer(1, LARGEST_ID)


def _ids(limit: int) -> Callable[[Any], list[int]]:
    def read(value: Any) -> list[int]:
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= limit:
            raise ValueError(f"a list of 1 to {limit} ids")
        return [_read_id(item) for item in value]

    return read


def _state(value: Any) -> State:
    state = STATES.get(value) if isinstance(value, str) else None
    if state is None:
        raise ValueError(f"one of {', '.join(STATES)}")
    return state


def _queue(value: Any) -> str:
    try:
        if isinstance(value, str) and "\0" not in value and len(value.encode()) <= QUEUE_LIMIT:
            return value
    except UnicodeEncodeError:  # lone surrogates, which marshal can carry
        pass
    raise ValueError(f"the name of a queue, which is text of up to {QUEUE_LIMIT} bytes")


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _tasks(value: Any) -> Sequence[Sequence[bytes]]:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_BATCH:
        raise ValueError(f"a list of up to {MAX_BATCH} tasks")
    for item in value:
        if not isinstance(item, (list, tuple)) or [type(part) for part in item] != [bytes] * 3:
            raise ValueError(
                "a list of tasks, each a vars block, a body, and a vars block of settings or nothing"
            )
    return value


# What reads.


def _pages(
    store: ISpoolStore, limit: int, after: int, *, state: State | None = None, queue: str | None = None
) -> Iterator[list[Record]]:
    """Give tasks in the order of their ids, as many as are read in a slice; that may be none."""
    while limit and after < LARGEST_ID:
        until = store.horizon(after, SCAN)
        more = True
        while limit and more:
            size = min(limit, SLICE)
            page = store.records(size, after, until=until, state=state, queue=queue)
            yield page
            limit -= len(page)
            more = len(page) == size
            after = page[-1].task.id if more else until


def _list(store: ISpoolStore, now: float, *, limit: int, after: int, **wanted: Any) -> Steps[list[Description]]:
    tasks: list[Description] = []
    for page in _pages(store, limit, after, **wanted):
        tasks += map(_summary, page)
        yield
    return tasks


def _find(
    describe: Callable[[Record], Description], store: ISpoolStore, now: float, *, ids: list[int]
) -> Steps[list[Description]]:
    """Return what is known of tasks, with their results as far as there is room; there is for the first."""
    tasks: list[Description] = []
    size = 0
    for some in slices(possible_ids(ids)):
        for record in store.find(some):
            task = describe(record)
            if task["result"] is None and (not size or size + record.result_size <= ANSWER_BYTES):
                size += record.result_size
                yield
                task["result"] = store.result(record.task.id)
            tasks.append(task)
        yield
    return tasks


def _stats(store: ISpoolStore, now: float) -> Steps[list[Description]]:
    counts: dict[str | None, Counter[State]] = {queue: Counter() for queue in store.paused()}
    paused = set(counts)
    after = 0
    while after < LARGEST_ID:
        until = store.horizon(after, SCAN)
        for (queue, state), number in store.counts(after, until).items():
            known = queue in counts or len(counts) < MAX_QUEUES
            counts.setdefault(queue if known else None, Counter())[state] += number
        after = until
        yield
    return [
        {
            "queue": queue,
            "paused": queue in paused,
            **{name: counts[queue][state] for name, state in STATES.items()},
        }
        for queue in sorted(counts, key=lambda queue: (queue is None, queue))
    ]


def _export(
    store: ISpoolStore, now: float, *, limit: int, after: int, **wanted: Any
) -> Steps[list[Description]]:
    """Return tasks with all that makes them up: up to *limit*, and not many more bytes than ANSWER_BYTES."""
    exported: list[Description] = []
    size = 0
    for page in _pages(store, limit, after, **wanted):
        for record in page:
            task = record.task
            if record.body_size > SMALL_RESULT:
                yield
            body = store.body(task.id) if record.body_size else b""
            content = {"variables": task.variables, "body": body, "idempotency_key": task.key}
            exported.append({**_described(record), **content})
            size += task.size + len(body)
            if size > ANSWER_BYTES:
                return exported
        yield
    return exported


def _described(record: Record) -> Description:
    """Return what a list says of a task: no result, which may be large."""
    described = describe_record(record)
    del described["result"]
    return {**described, **_priority(record)}


def _summary(record: Record) -> Description:
    return {**_described(record), "summary": _summarize(record.task.variables)}


def _details(record: Record) -> Description:
    return {
        **describe_record(record),
        **_priority(record),
        "error": record.error,
        "idempotency_key": record.task.key,
        "variables": decode_vars(record.task.variables),
        "body_size": record.body_size,
    }


def _priority(record: Record) -> dict[str, object]:
    priority = record.task.priority
    return {"priority": None if priority == UNPRIORITIZED else priority}


def _summarize(variables: bytes) -> str:
    """Return variables in one line, short, without those that tell the spooler something."""
    pairs = [(key, value) for key, value in decode_vars(variables).items() if key not in _SPOOLING_KEYS]
    text = " ".join(f"{_text(key)}={_text(value)}" for key, value in pairs)
    return text if len(text) <= SUMMARY_LIMIT else text[:SUMMARY_LIMIT] + "..."


def _text(data: bytes) -> str:
    return data[:SUMMARY_LIMIT].decode(errors="backslashreplace")


# What changes.


class _Change(NamedTuple):
    """A change to tasks.

    :param apply: makes it to some and returns those that it changed.
    :param states: the states in which it changes a task.
    :param default: those of them that are meant where all tasks are and no state is named.
    """

    apply: Callable[[ISpoolStore, Sequence[int], float], list[int]]
    states: tuple[State, ...]
    default: tuple[State, ...]


#: The changes that are made to tasks by their ids, or to all of a state and a queue.
CHANGES = {
    "cancel": _Change(lambda store, ids, now: store.cancel(ids, now), LIVE, LIVE),
    "retry": _Change(
        lambda store, ids, now: store.retry(ids, now), (State.DEAD, State.CANCELLED), (State.DEAD,)
    ),
    "drop": _Change(lambda store, ids, now: store.drop(ids), OVER, OVER),
}


def _change(
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
    """Change the tasks *ids*, or the next ones of all behind *after*.

    :return: which were ``changed``, whether there are ``more`` to be looked at, and ``after`` which.
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
    # The store leaves alone what is in another state.
    one = states[0] if len(states) == 1 else None
    seen: list[int] = []
    for page in _pages(store, CHANGE_BATCH, after, state=one, queue=queue):
        seen += [record.task.id for record in page]
        yield
    changed = change.apply(store, seen, now) if seen else []
    return {"changed": changed, "more": len(seen) == CHANGE_BATCH, "after": seen[-1] if seen else after}


def _enqueue(store: ISpoolStore, now: float, *, tasks: Sequence[Sequence[bytes]]) -> Steps[list[int]]:
    """Store new tasks in one transaction, all of them or none, and return their ids."""
    new: list[Task] = []
    for some in slices(tasks, READ):
        new += [_new(now, *parts) for parts in some]
        yield
    return add_all(store, new)


def _new(now: float, variables: bytes, body: bytes, settings: bytes) -> Task:
    task = new_task(variables, now, body)
    return replace(new_task(settings, now), variables=variables, body=body) if settings else task


def _pause(store: ISpoolStore, now: float, *, queue: str, paused: bool) -> Steps[None]:
    yield
    store.pause(queue, paused)


def _none_ended(_answer: object) -> Sequence[int]:
    return ()


def _changed(answer: Mapping[str, Any]) -> Sequence[int]:
    ids: Sequence[int] = answer["changed"]
    return ids


_WANTED = {
    "state": Argument(_state, None),
    "queue": Argument(_queue, None),
    "after": Argument(_integer(0, LARGEST_ID), 0),
}
_LISTED = {**_WANTED, "limit": Argument(_integer(1, MAX_LIST), 100)}
_CHANGED = {**_WANTED, "ids": Argument(_ids(MAX_IDS), None), "all": Argument(_flag, False)}
_QUEUE = {"queue": Argument(_queue)}


class _Operation(NamedTuple):
    """Something that can be asked of a queue.

    :param run: does it, with a store, the time, and the arguments.
    :param takes: the arguments.
    :param ended: see :class:`Question`.
    """

    run: Callable[..., Steps[object]]
    takes: Mapping[str, Argument]
    ended: Callable[[Any], Sequence[int]] | None = None


#: All that can be asked of a store.
OPERATIONS = {
    "list": _Operation(_list, _LISTED),
    "dead": _Operation(
        partial(_list, state=State.DEAD),
        {name: argument for name, argument in _LISTED.items() if name != "state"},
    ),
    "show": _Operation(partial(_find, _details), {"ids": Argument(_ids(MAX_DETAILS))}),
    "status": _Operation(partial(_find, describe_record), {"ids": Argument(_ids(MAX_IDS))}),
    "stats": _Operation(_stats, {}),
    "export": _Operation(_export, _LISTED),
    "enqueue": _Operation(_enqueue, {"tasks": Argument(_tasks)}, _none_ended),
    **{name: _Operation(partial(_change, name), _CHANGED, _changed) for name in CHANGES},
    "pause": _Operation(partial(_pause, paused=True), _QUEUE, _none_ended),
    "resume": _Operation(partial(_pause, paused=False), _QUEUE, _none_ended),
}

#: What whoever waits for a task says.
WAIT = {"id": Argument(_read_id)}
