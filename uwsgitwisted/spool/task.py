"""A task: what one is, how one is made of a request, and what a handler can say about one.

A worker process imports this module too, so it knows neither Twisted nor a database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from uwsgitwisted.errors import SpoolError
from uwsgitwisted.wire.vars import decode_vars

# What a handler says about a task when it returns: the modifier2 of the answer ``Packet(ANSWER, code)``.
#: Not mine: leave it (uWSGI's ``SPOOL_IGNORE``).
IGNORE = 0
#: Done: forget it (``SPOOL_OK``).
DONE = 1
#: Run it again later (``SPOOL_RETRY``).
RETRY = 2

#: The priorities that a request may ask for, in either direction: what a database's 32-bit integer holds.
PRIORITY_LIMIT = 2**31 - 1
#: The priority of a task that names none. uWSGI sorts the numbered directories of its spool before the files
#: beside them (``versionsort`` in core/spooler.c), so that such a task comes after every numbered one.
UNPRIORITIZED = PRIORITY_LIMIT + 1
#: The end of the year 9999, in unix seconds: later than that is a mistake, not a date.
LATEST = 253_402_300_799.0
#: The longest queue name, in bytes.
QUEUE_LIMIT = 255

_TIME = re.compile(rb"[0-9]{1,12}(?:\.[0-9]{0,32})?")
_INTEGER = re.compile(rb"-?[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class Task:
    """One task, as it waits, runs or lies with the dead letters.

    :param variables: the vars block as it was received. Every key is kept, also those that say how to spool
        it, since uWSGI hands all of them to the handler.
    :param at: when it may run, in unix seconds.
    :param created: when it was accepted, in unix seconds.
    :param priority: lower runs first.
    :param queue: the name that the request gave under ``spooler``; empty if it gave none.
    :param attempts: how often it was run to an end that counts, crashes included.
    :param crashes: how often it took its worker with it.
    :param id: its number in the store, never given twice; 0 until it is stored.
    """

    variables: bytes
    at: float
    created: float
    priority: int = UNPRIORITIZED
    queue: str = ""
    attempts: int = 0
    crashes: int = 0
    id: int = 0


def new_task(variables: bytes, now: float) -> Task:
    """Return the task that the vars block *variables* asks for.

    The keys ``at``, ``priority`` and ``spooler`` are read; an empty one is taken as absent, as uWSGI does.

    :param now: the time, in unix seconds.
    :raises MalformedPacket: if *variables* is not a vars block.
    :raises SpoolError: if one of those keys holds something that it can't mean.
    """
    keys = decode_vars(variables)
    return Task(
        variables=variables,
        at=_time(keys.get(b"at", b""), now),
        created=now,
        priority=_priority(keys.get(b"priority", b"")),
        queue=_queue(keys.get(b"spooler", b"")),
    )


def _time(text: bytes, now: float) -> float:
    """Return the time that ``at`` names; *now* if it is empty or 0, as uWSGI has it."""
    if not text:
        return now
    if not _TIME.fullmatch(text) or (at := float(text)) > LATEST:
        raise SpoolError(
            f"at={_shown(text)} is no time; it takes unix seconds, such as 1767225600 or 1767225600.5"
        )
    return at or now


def _priority(text: bytes) -> int:
    if not text:
        return UNPRIORITIZED
    if not _INTEGER.fullmatch(text) or abs(priority := int(text)) > PRIORITY_LIMIT:
        raise SpoolError(
            f"priority={_shown(text)} is no priority; it takes an integer of up to {PRIORITY_LIMIT}, lower "
            "runs first"
        )
    return priority


def _queue(name: bytes) -> str:
    if len(name) > QUEUE_LIMIT:
        raise SpoolError(f"spooler={_shown(name)} is too long for a queue's name: at most {QUEUE_LIMIT} bytes")
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise SpoolError(f"spooler={_shown(name)} is no queue's name: it takes UTF-8") from error


def _shown(text: bytes) -> str:
    """Return *text* as a log can show it: short, on one line."""
    return repr(text[:40])[1:] + ("..." if len(text) > 40 else "")
