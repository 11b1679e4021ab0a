"""Tasks as lines of JSON: what ``queue export`` writes and ``queue import`` reads.

Bytes that are text stand there as text; others in base64, under a name that ends with ``_base64``.
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

#: What tells the spooler something, by its name in a line, and the variable that says it otherwise.
_SETTINGS = {"at": b"at", "priority": b"priority", "queue": b"spooler", "idempotency_key": b"idempotency_key"}
#: What a line has for its reader, and import ignores.
_INFORMATION = {"id", "state", "created", "started", "finished", "attempts", "crashes", "error"}
_CONTENT = {"variables", "variables_base64", "body", "body_base64"}


def write_line(task: Mapping[str, Any]) -> str:
    """Return the line of a task.

    :param task: as the operation ``export`` gives it.
    """
    line = {name: value for name, value in task.items() if name in _INFORMATION or name in _SETTINGS}
    block: bytes = task["variables"]
    variables = {_text(key): _text(value) for key, value in decode_vars(block).items()}
    # What JSON can't have as it is: bytes that are no text, or a key that stands there twice.
    if None in variables or None in variables.values() or encode_vars(decode_vars(block).items()) != block:
        line["variables_base64"] = _base64(block)
    else:
        line["variables"] = variables
    if task["body"]:
        body = _text(task["body"])
        line |= {"body_base64": _base64(task["body"])} if body is None else {"body": body}
    return json.dumps(line)


def read_line(text: str | bytes, now: float) -> Task:
    """Return the task in a line.

    :param now: the time, in unix seconds.
    :raises SpoolError: if there is none; the text says why.
    """
    try:
        return _read(json.loads(text), now)
    except UwsgiError as error:
        raise SpoolError(error.text) from error
    except (ValueError, RecursionError) as error:
        raise SpoolError(f"it is no JSON: {error}") from error


def _read(line: object, now: float) -> Task:
    if not isinstance(line, dict) or not line.keys() & {"variables", "variables_base64"}:
        raise SpoolError('it is no object with "variables", as in {"variables": {"to": "ann@example.com"}}')
    unknown = line.keys() - _INFORMATION - _SETTINGS.keys() - _CONTENT
    if unknown:
        raise SpoolError(f"it has {', '.join(sorted(unknown))}, which means nothing here")
    coded = line.get("variables_base64")
    block = TaskMessage(line.get("variables", {})).block() if coded is None else _bytes(coded)
    coded = line.get("body_base64")
    body = to_bytes(line.get("body", "")) if coded is None else _bytes(coded)
    return _settle(new_task(block, now, body), line, now)


def _settle(task: Task, line: Mapping[str, Any], now: float) -> Task:
    """Return *task* with what its line says of its time, its priority, its queue and its key."""
    told = {name: line[name] for name in _SETTINGS if name in line}
    if not told:
        return task
    variables = decode_vars(task.variables)
    settings = {key: variables[key] for key in _SETTINGS.values() if key in variables}
    for name, value in told.items():
        settings[_SETTINGS[name]] = b"" if value is None else str(value).encode()
    return replace(new_task(encode_vars(settings.items()), now), variables=task.variables, body=task.body)


def _text(data: bytes) -> str | None:
    """Return *data* as text; None if it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _bytes(value: object) -> bytes:
    if not isinstance(value, str):
        raise SpoolError("what is in base64 is text")
    try:
        return b64decode(value, validate=True)
    except ValueError as error:
        raise SpoolError(f"its base64 is broken: {error}") from error
