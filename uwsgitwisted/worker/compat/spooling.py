"""What the ``uwsgi`` module says about spoolers: where they are, and which tasks wait there.

Where uWSGI has a directory, there is an address here, and where it has a file's name, a task's id.
"""

from __future__ import annotations

from typing import Any

from uwsgitwisted.blocking.tasks import manage
from uwsgitwisted.errors import NoSuchTask, UwsgiError
from uwsgitwisted.wire.vars import decode_vars
from uwsgitwisted.worker.compat.calls import DEFAULT_TIMEOUT, find_spooler, log_failure, masterpid, process

#: The states of unfinished tasks, in the order in which a task has them: one that moves on meanwhile is found.
_UNFINISHED = ("scheduled", "ready", "running")
#: The most tasks that ``spooler_jobs`` returns.
_MOST_JOBS = 1_000


def spooler_dir() -> bytes | None:
    """Return the address of the spooler that gets the tasks; None if none is known."""
    return find_spooler().encode() or None


def spooler_jobs() -> list[bytes]:
    """Return the ids of up to 1,000 tasks that are to run, or run; none if the spooler can't be asked."""
    identifiers: set[int] = set()
    for state in _UNFINISHED:
        tasks: Any = _ask("spooler_jobs", "list", {"state": state, "limit": _MOST_JOBS})
        if tasks is None:
            return []
        identifiers.update(task["id"] for task in tasks)
    return [b"%d" % identifier for identifier in sorted(identifiers)[:_MOST_JOBS]]


def spooler_get_task(task: str | bytes) -> dict[str | bytes, bytes] | None:
    """Return the variables of a task; None if the spooler doesn't have it, or can't be asked.

    :param task: its id, as :func:`spooler_jobs` returns it.
    """
    text = task.decode(errors="replace") if isinstance(task, bytes) else task
    if not text.isdecimal() or len(text) > _MAX_DIGITS:
        return None
    found: Any = _ask("spooler_get_task", "export", {"after": int(text) - 1, "limit": 1})
    if not found or found[0]["id"] != int(text):
        return None
    variables: dict[str | bytes, bytes] = {}
    variables.update(decode_vars(found[0]["variables"]).items())
    variables["spooler_task_name"] = text.encode()
    return variables


#: A number of so many digits fits into the 63 bits of an id.
_MAX_DIGITS = 18


def _ask(function: str, operation: str, arguments: dict[str, object]) -> object:
    """Ask the spooler; log an error and return None if that fails."""
    address = find_spooler()
    if not address:
        return None
    try:
        return manage(address, operation, arguments, DEFAULT_TIMEOUT)
    except NoSuchTask:
        return None
    except UwsgiError as error:
        log_failure(function, error)
        return None


def set_spooler_frequency(frequency: int) -> bool:
    """Return True. A spooler doesn't look for tasks from time to time: it starts each one when it is due."""
    return True


def i_am_the_spooler() -> bool | None:
    """Return True in a spooler, and None elsewhere."""
    return process.is_spooler or None


def spooler_pid() -> int:
    """Return the process id of the spooler that this is a worker of; 0 elsewhere."""
    return masterpid() if process.is_spooler else 0


def spooler_pids() -> list[int]:
    """Return the same as a list."""
    return [pid] if (pid := spooler_pid()) else []
