"""Describes tasks in plain values, for programs and people."""

from __future__ import annotations

from typing import Any

from uwsgitwisted.spool.stores.interface import Record

#: A description of a task: what is known of it, by name.
Description = dict[str, Any]

#: How much of the last line of an error a description has, in characters.
ERROR_LINE_LIMIT = 1_000
#: How much is shown of a result that JSON can't represent, in characters.
RESULT_REPR_LIMIT = 4_000
#: The largest integer that every reader of JSON reads exactly, in either direction: a float holds it.
_LARGEST_INTEGER = 2**53


def describe_record(record: Record) -> Description:
    """Return the description of a task.

    Of the last error it has only the last line, which says what happened; a traceback names files. All values
    can be marshalled, and JSON can represent all but the result.

    :return: ``id``, ``state``, ``queue``, ``attempts``, ``crashes``, the times ``created``, ``at``, ``started``
        and ``finished`` in unix seconds or None, ``error``, and ``result``: what the handler returned, still
        marshalled, for :func:`uwsgitwisted.wire.tasks.load_result`; None if it is too large to be here.
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
    """Return a description, whose result is loaded, as JSON can represent it.

    A result that it can't represent, such as bytes or a dict whose keys are numbers, becomes None, and
    ``result_repr`` is its text as Python writes it, up to a length.
    """
    if _is_json(described["result"]):
        return described
    return {**described, "result": None, "result_repr": _repr(described["result"])}


def _is_json(value: object) -> bool:
    """Return whether JSON can represent *value* so that a reader gets the same, with lists for tuples."""
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
