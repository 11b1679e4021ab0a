"""A task: what one is, and how a request becomes one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from uwsgitwisted.errors import MessageTooLarge, SpoolError
from uwsgitwisted.wire.packet import MAX_PAYLOAD
from uwsgitwisted.wire.vars import decode_vars

#: The priorities that a request may ask for, in either direction: what a database's 32-bit integer holds.
PRIORITY_LIMIT = 2**31 - 1
#: The priority of a task that names none. uWSGI sorts the numbered directories of its spool before the files
#: beside them (``versionsort`` in core/spooler.c), so that such a task comes after every numbered one.
UNPRIORITIZED = PRIORITY_LIMIT + 1
#: The end of the year 9999, in unix seconds: later than that is a mistake, not a date.
LATEST = 253_402_300_799.0
#: The longest queue name and the longest idempotency key, in bytes.
QUEUE_LIMIT, KEY_LIMIT = 255, 255

_TIME = re.compile(rb"[0-9]{1,12}(?:\.[0-9]{0,32})?")
_INTEGER = re.compile(rb"-?[0-9]{1,10}")


class State(IntEnum):
    """Where a task is in its life. A store keeps the number."""

    #: It waits for its time.
    SCHEDULED = 0
    #: It waits for a worker.
    READY = 1
    #: It has been given to a spooler, which runs it, or is about to.
    RUNNING = 2
    #: It ran to its end.
    DONE = 3
    #: It was given up: it is a dead letter.
    DEAD = 4
    #: It was cancelled before it ran to its end.
    CANCELLED = 5

    @property
    def final(self) -> bool:
        """Whether it won't run any more unless somebody asks for it."""
        return self >= State.DONE


@dataclass(frozen=True, slots=True)
class Task:
    """A task, as it waits, runs or is a dead letter.

    :param variables: the vars block as it was received. Every key is kept, also those that are meant
        for the spooler, since uWSGI hands all of them to the handler.
    :param at: when it may run, in unix seconds.
    :param created: when it was accepted, in unix seconds.
    :param priority: lower runs first.
    :param queue: the name that the request gave under ``spooler``; empty if it gave none.
    :param attempts: how often it was run to an end that counts, crashes included.
    :param crashes: how often it crashed its worker.
    :param id: its number in the store, never given twice; 0 until it is stored.
    :param key: the idempotency key; of two tasks of a queue with the same one, only the first is stored. Empty
        for none.
    :param body: bytes that came behind the variables.
    :param prefetched: whether it was claimed while all workers were busy, so that it may not have begun.
    """

    variables: bytes
    at: float
    created: float
    priority: int = UNPRIORITIZED
    queue: str = ""
    attempts: int = 0
    crashes: int = 0
    id: int = 0
    key: str = ""
    body: bytes = b""
    prefetched: bool = False

    @property
    def size(self) -> int:
        """How many bytes its variables and its body have."""
        return len(self.variables) + len(self.body)


def new_task(variables: bytes, now: float, body: bytes = b"") -> Task:
    """Return the task that the vars block *variables* asks for.

    The keys ``at``, ``priority``, ``spooler`` and ``idempotency_key`` are read; an empty one is taken as
    absent, as uWSGI does.

    :param now: the time, in unix seconds.
    :param body: what came behind the block.
    :raises MalformedPacket: if *variables* is not a vars block.
    :raises MessageTooLarge: if it is larger than a spool file can have it, which is 65535 bytes.
    :raises SpoolError: if one of those keys has a value that makes no sense.
    """
    size = len(variables)
    if size > MAX_PAYLOAD:
        raise MessageTooLarge(
            f"the variables are {size} bytes; {MAX_PAYLOAD} is the most. Put what is large in the body",
            size=size,
            limit=MAX_PAYLOAD,
        )
    keys = decode_vars(variables)
    return Task(
        variables=variables,
        at=_read_time(keys.get(b"at", b""), now),
        created=now,
        priority=_read_priority(keys.get(b"priority", b"")),
        queue=_read_name(keys.get(b"spooler", b""), "spooler", QUEUE_LIMIT),
        key=_read_name(keys.get(b"idempotency_key", b""), "idempotency_key", KEY_LIMIT),
        body=body,
    )


def _read_time(text: bytes, now: float) -> float:
    """Return the time that ``at`` names; *now* if it is empty or 0, as uWSGI has it."""
    if not text:
        return now
    if not _TIME.fullmatch(text) or (at := float(text)) > LATEST:
        raise SpoolError(
            f"at={_show_text(text)} is no time; it takes unix seconds, such as 1767225600 or 1767225600.5"
        )
    return at or now


def _read_priority(text: bytes) -> int:
    if not text:
        return UNPRIORITIZED
    if not _INTEGER.fullmatch(text) or abs(priority := int(text)) > PRIORITY_LIMIT:
        raise SpoolError(
            f"priority={_show_text(text)} is no priority; it takes an integer of up to {PRIORITY_LIMIT}, lower "
            "runs first"
        )
    return priority


def _read_name(text: bytes, variable: str, limit: int) -> str:
    if len(text) > limit:
        raise SpoolError(f"{variable}={_show_text(text)} is too long: at most {limit} bytes")
    try:
        name = text.decode()
    except UnicodeDecodeError as error:
        raise SpoolError(f"{variable}={_show_text(text)} is no name: it takes UTF-8") from error
    if "\0" in name:  # no text to a database
        raise SpoolError(f"{variable}={_show_text(text)} is no name: it has a zero byte in it")
    return name


def _show_text(text: bytes) -> str:
    """Return *text* as a log can show it: short, on one line."""
    return repr(text[:40])[1:] + ("..." if len(text) > 40 else "")
