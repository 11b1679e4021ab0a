"""The operations that read a queue. Each takes a store, the time and checked arguments, and changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from uwsgitwisted.spool.management.arguments import STATES
from uwsgitwisted.spool.records import Description, describe_record
from uwsgitwisted.spool.slices import SLICE, Steps, slices
from uwsgitwisted.spool.stores.interface import LARGEST_ID, SMALL_RESULT, ISpoolStore, Record, possible_ids
from uwsgitwisted.spool.task import UNPRIORITIZED, State
from uwsgitwisted.wire.vars import decode_vars

#: How many tasks are scanned in one slice: it takes some milliseconds.
SCAN = 10_000
#: How many queues are counted one by one.
MAX_QUEUES = 10_000
#: An operation that exports tasks stops when it has so many bytes of them. Results have as many together; those
#: for which there is no room are left out.
ANSWER_BYTES = 8 * 1024 * 1024
#: How much of its variables a list shows of a task, in characters.
SUMMARY_LIMIT = 200

#: Variables that are meant for the spooler; a list has columns of its own for them.
_SPOOLING_KEYS = frozenset({b"at", b"priority", b"spooler", b"idempotency_key", b"CONTENT_LENGTH"})


def read_pages(
    store: ISpoolStore, limit: int, after: int, *, state: State | None = None, queue: str | None = None
) -> Iterator[list[Record]]:
    """Yield tasks in the order of their ids, page by page: what is read in a slice, which may be nothing."""
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


def list_tasks(
    store: ISpoolStore, now: float, *, limit: int, after: int, **wanted: Any
) -> Steps[list[Description]]:
    """Return a line about each task."""
    tasks: list[Description] = []
    for page in read_pages(store, limit, after, **wanted):
        tasks += map(_summarize_record, page)
        yield
    return tasks


def find_tasks(
    describe: Callable[[Record], Description], store: ISpoolStore, now: float, *, ids: list[int]
) -> Steps[list[Description]]:
    """Return descriptions of tasks. The first has its result; others lack it where there is no room."""
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


def count_tasks(store: ISpoolStore, now: float) -> Steps[list[Description]]:
    """Return how many tasks each queue has in each state."""
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


def export_tasks(
    store: ISpoolStore, now: float, *, limit: int, after: int, **wanted: Any
) -> Steps[list[Description]]:
    """Return whole tasks: up to *limit*, and not many more bytes than :data:`ANSWER_BYTES`."""
    exported: list[Description] = []
    size = 0
    for page in read_pages(store, limit, after, **wanted):
        for record in page:
            task = record.task
            if record.body_size > SMALL_RESULT:
                yield
            body = store.body(task.id) if record.body_size else b""
            content = {"variables": task.variables, "body": body, "idempotency_key": task.key}
            exported.append({**_describe_briefly(record), **content})
            size += task.size + len(body)
            if size > ANSWER_BYTES:
                return exported
        yield
    return exported


def describe_details(record: Record) -> Description:
    """Return all that is known of a task, except for its body."""
    return {
        **describe_record(record),
        **_describe_priority(record),
        "error": record.error,
        "idempotency_key": record.task.key,
        "variables": decode_vars(record.task.variables),
        "body_size": record.body_size,
    }


def _describe_briefly(record: Record) -> Description:
    """Return a description without the result, which may be large."""
    described = describe_record(record)
    del described["result"]
    return {**described, **_describe_priority(record)}


def _summarize_record(record: Record) -> Description:
    return {**_describe_briefly(record), "summary": _summarize_variables(record.task.variables)}


def _describe_priority(record: Record) -> dict[str, object]:
    priority = record.task.priority
    return {"priority": None if priority == UNPRIORITIZED else priority}


def _summarize_variables(variables: bytes) -> str:
    """Return variables on one short line, without those that are meant for the spooler."""
    pairs = [(key, value) for key, value in decode_vars(variables).items() if key not in _SPOOLING_KEYS]
    text = " ".join(f"{_show_text(key)}={_show_text(value)}" for key, value in pairs)
    return text if len(text) <= SUMMARY_LIMIT else text[:SUMMARY_LIMIT] + "..."


def _show_text(data: bytes) -> str:
    return data[:SUMMARY_LIMIT].decode(errors="backslashreplace")
