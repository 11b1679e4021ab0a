"""Tasks as lines of JSON: ``queue export`` writes them, and ``queue import`` reads them.

Bytes that are UTF-8 are written as text; others are written in base64, under a name that ends with ``_base64``.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from uwsgitwisted.errors import SpoolError, UwsgiError
from uwsgitwisted.spool.task import Task, new_task
from uwsgitwisted.wire.tasks import TaskMessage
from uwsgitwisted.wire.vars import decode_vars, encode_vars, to_bytes

#: The settings for the spooler: their names in a line, and their variables in a task.
_SETTINGS = {"at": b"at", "priority": b"priority", "queue": b"spooler", "idempotency_key": b"idempotency_key"}
#: Names that are for the reader of a line only; import ignores them.
_INFORMATION = {"id", "state", "created", "started", "finished", "attempts", "crashes", "error"}
_CONTENT = {"variables", "variables_base64", "body", "body_base64"}


def write_line(task: Mapping[str, Any]) -> str:
    """Format a task as a line.

    :param task: a task from the operation ``export``.
    """
    line = {name: value for name, value in task.items() if name in _INFORMATION or name in _SETTINGS}
    block: bytes = task["variables"]
    variables = {_text(key): _text(value) for key, value in decode_vars(block).items()}
    # JSON can hold neither bytes that are not text nor duplicate keys.
    if None in variables or None in variables.values() or encode_vars(decode_vars(block).items()) != block:
        line["variables_base64"] = _base64(block)
    else:
        line["variables"] = variables
    if task["body"]:
        body = _text(task["body"])
        line |= {"body_base64": _base64(task["body"])} if body is None else {"body": body}
    return json.dumps(line)


def read_line(text: str | bytes, now: float) -> Task:
    """Parse the task in a line.

    :param now: the time, in unix seconds.
    :raises SpoolError: if the line is invalid; the text says why.
    """
    try:
        return _read(json.loads(text), now)
    except UwsgiError as error:
        raise SpoolError(error.text) from error
    except (ValueError, RecursionError) as error:
        raise SpoolError(f"it is not JSON: {error}") from error


def _read(line: object, now: float) -> Task:
    if not isinstance(line, dict) or not line.keys() & {"variables", "variables_base64"}:
        raise SpoolError('it is not an object with "variables", as in {"variables": {"to": "ann@example.com"}}')
    unknown = line.keys() - _INFORMATION - _SETTINGS.keys() - _CONTENT
    if unknown:
        raise SpoolError(f"it has unknown names: {', '.join(sorted(unknown))}")
    coded = line.get("variables_base64")
    block = TaskMessage(line.get("variables", {})).block() if coded is None else _bytes(coded)
    coded = line.get("body_base64")
    body = to_bytes(line.get("body", "")) if coded is None else _bytes(coded)
    return _apply_settings(new_task(block, now, body), line, now)


def _apply_settings(task: Task, line: Mapping[str, Any], now: float) -> Task:
    """Return *task* with its line's time, priority, queue and idempotency key."""
    given = {name: line[name] for name in _SETTINGS if name in line}
    if not given:
        return task
    variables = decode_vars(task.variables)
    settings = {key: variables[key] for key in _SETTINGS.values() if key in variables}
    for name, value in given.items():
        settings[_SETTINGS[name]] = b"" if value is None else str(value).encode()
    return replace(new_task(encode_vars(settings.items()), now), variables=task.variables, body=task.body)


def _text(data: bytes) -> str | None:
    """Decode *data*; return None if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _bytes(value: object) -> bytes:
    if not isinstance(value, str):
        raise SpoolError("a value in base64 must be text")
    try:
        return b64decode(value, validate=True)
    except ValueError as error:
        raise SpoolError(f"its base64 is broken: {error}") from error
