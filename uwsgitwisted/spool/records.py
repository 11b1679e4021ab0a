"""What is known of a task as plain values, for programs and people that ask."""

from __future__ import annotations

from typing import Any

from uwsgitwisted.spool.stores.interface import Record

#: What is told of a task, by name.
Description = dict[str, Any]

#: How much of the last line of an error is told, in characters.
ERROR_LINE_LIMIT = 1_000
#: How much of a result is shown that JSON can't have, in characters.
RESULT_REPR_LIMIT = 4_000
#: The integers that every reader of JSON takes as they are, in either direction: a float holds them exactly.
_LARGEST_INTEGER = 2**53


def describe_record(record: Record) -> Description:
    """Return what is known of a task.

    Of the last error there is only the last line, which says what happened; a traceback names files. All values
    can be marshalled, and JSON can have them too, apart from the result.

    :return: ``id``, ``state``, ``queue``, ``attempts``, ``crashes``, the times ``created``, ``at``, ``started``
        and ``finished`` in unix seconds or None, ``error``, and ``result``: what the handler returned, still
        marshalled, for :func:`uwsgitwisted.tasks.load_result`; None if it is too large to be here.
    """
    task = record.task
    return {
        "id": task.id,
        "state": record.state.name.lower(),
        "queue": task.queue,
        "attempts": task.attempts,
        "crashes": task.crashes,
        "created": task.created,
        "at": task.at,
        "started": record.started,
        "finished": record.finished,
        "error": record.error.rstrip().rpartition("\n")[2][:ERROR_LINE_LIMIT],
        "result": record.result if len(record.result) >= record.result_size else None,
    }


def for_json(described: Description) -> Description:
    """Return a description whose result is loaded as JSON can have it.

    A result that JSON has no form for, such as bytes or a dict whose keys are numbers, is None, and
    ``result_repr`` has its text, as Python writes it, up to a length.
    """
    if _is_json(described["result"]):
        return described
    return {**described, "result": None, "result_repr": _repr(described["result"])}


def _is_json(value: object) -> bool:
    """Whether JSON can have *value* so that whoever reads it gets the same, with lists for tuples."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(type(key) is str for key in value) and all(map(_is_json, value.values()))
    if isinstance(value, float):
        return value - value == 0  # neither infinite nor NaN
    if isinstance(value, int):
        return abs(value) <= _LARGEST_INTEGER
    return value is None or isinstance(value, str)


def _repr(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python doesn't write out an int of thousands of digits
        text = f"(a {type(value).__name__} with a number that is too long to be shown)"
    return text if len(text) <= RESULT_REPR_LIMIT else text[:RESULT_REPR_LIMIT] + "..."
