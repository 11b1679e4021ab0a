"""Checks the arguments of the operations on a queue, which may come from a stranger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from uwsgitwisted.errors import SpoolError
from uwsgitwisted.spool.stores.interface import LARGEST_ID
from uwsgitwisted.spool.task import QUEUE_LIMIT, State
from uwsgitwisted.wire.tasks import MAX_BATCH

#: The states by the names that people use.
STATES = {state.name.lower(): state for state in State}

_REQUIRED = object()


class Argument(NamedTuple):
    """An argument of an operation.

    :param read: returns its value, or raises ``ValueError`` with what it takes.
    :param default: its value where it isn't given.
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


def read_integer(lowest: int, highest: int) -> Callable[[Any], int]:
    """Return what reads an integer within these bounds."""

    def read(value: Any) -> int:
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError(f"an integer from {lowest} to {highest}")
        return value

    return read


#: Reads the id of a task.
read_id = read_integer(1, LARGEST_ID)


def read_ids(limit: int) -> Callable[[Any], list[int]]:
    """Return what reads up to *limit* ids."""

    def read(value: Any) -> list[int]:
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= limit:
            raise ValueError(f"a list of 1 to {limit} ids")
        return [read_id(item) for item in value]

    return read


def read_state(value: Any) -> State:
    """Read the name of a state."""
    state = STATES.get(value) if isinstance(value, str) else None
    if state is None:
        raise ValueError(f"one of {', '.join(STATES)}")
    return state


def read_queue(value: Any) -> str:
    """Read the name of a queue."""
    try:
        if isinstance(value, str) and "\0" not in value and len(value.encode()) <= QUEUE_LIMIT:
            return value
    except UnicodeEncodeError:  # lone surrogates, which marshal can carry
        pass
    raise ValueError(f"the name of a queue, which is text of up to {QUEUE_LIMIT} bytes")


def read_flag(value: Any) -> bool:
    """Read a truth value."""
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def read_tasks(value: Any) -> Sequence[Sequence[bytes]]:
    """Read new tasks: a vars block, a body and a vars block of settings each."""
    if not isinstance(value, (list, tuple)) or len(value) > MAX_BATCH:
        raise ValueError(f"a list of up to {MAX_BATCH} tasks")
    for item in value:
        if not isinstance(item, (list, tuple)) or [type(part) for part in item] != [bytes] * 3:
            raise ValueError(
                "a list of tasks, each a vars block, a body, and a vars block of settings or nothing"
            )
    return value
