"""Gives access to a queue, in a running spooler or in the store of a stopped one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from uwsgitwisted.address import AddressLike, parse_address
from uwsgitwisted.blocking import send_message
from uwsgitwisted.errors import InvalidAddress, MisuseError, SpoolError, SpoolInUse, StartupError
from uwsgitwisted.spool.management.changes import CHANGES
from uwsgitwisted.spool.management.operations import run_operation
from uwsgitwisted.spool.stores.factory import is_store, make_store
from uwsgitwisted.spool.stores.interface import ISpoolStore
from uwsgitwisted.spool.task import UNPRIORITIZED, Task
from uwsgitwisted.wire.packet import MARSHAL
from uwsgitwisted.wire.tasks import BatchItem, encode_batch, not_a_spooler, read_ids
from uwsgitwisted.wire.vars import VarsValue, encode_vars

#: The forms of a place's name.
FORMS = (
    "the address of a running spooler, such as 127.0.0.1:3034 or /run/spooler.sock, or the spool of a stopped "
    "one, such as sqlite:spool.sqlite, or postgresql://user:password@host/database, running or not"
)

#: The types of the answers to operations whose answers are not lists.
_ANSWERS: dict[str, type] = {**dict.fromkeys(CHANGES, dict), "pause": type(None), "resume": type(None)}


class Place(Protocol):
    """A queue that can be managed."""

    def call(self, operation: str, **arguments: object) -> Any:
        """Run an operation of :mod:`uwsgitwisted.spool.management.operations`, and return its result.

        :param arguments: the operation's arguments; those that are None are omitted.
        """

    def add(self, tasks: Sequence[Task]) -> list[int]:
        """Enqueue tasks, all or none, and return their ids."""


class RunningSpooler:
    """The queue of a running spooler.

    :param timeout: seconds for each call.
    """

    def __init__(self, address: AddressLike, timeout: float) -> None:
        self._address = address
        self._timeout = timeout

    def call(self, operation: str, **arguments: object) -> Any:
        """Run an operation in the spooler."""
        answer = send_message(self._address, MARSHAL, 0, (operation, _given(arguments)), self._timeout)
        if not isinstance(answer, _ANSWERS.get(operation, list)):
            raise not_a_spooler(self._address)
        return answer

    def add(self, tasks: Sequence[Task]) -> Any:
        """Send the tasks to the spooler."""
        batch = encode_batch(map(batch_item, tasks))
        return read_ids(send_message(self._address, MARSHAL, 0, batch, self._timeout), self._address)


class OpenStore:
    """The store of a stopped spooler."""

    def __init__(self, store: ISpoolStore) -> None:
        self._store = store

    def call(self, operation: str, **arguments: object) -> Any:
        """Run an operation in this process."""
        return run_operation(self._store, operation, _given(arguments), time.time())

    def add(self, tasks: Sequence[Task]) -> Any:
        """Store the tasks."""
        return self.call("enqueue", tasks=list(map(batch_item, tasks)))


def _given(arguments: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in arguments.items() if value is not None}


@contextmanager
def opened(where: str, timeout: float, *, create: bool = False) -> Iterator[Place]:
    """Open the queue at *where*, and close it at the end.

    :param timeout: seconds for each call to a running spooler.
    :param create: whether to create a store that doesn't exist.
    :raises MisuseError: if *where* is neither an address nor a store.
    :raises SpoolError: if the store can't be opened; the text says what to do.
    """
    if not is_store(where):
        try:
            parse_address(where)
        except InvalidAddress as error:
            raise MisuseError(f"{where!r} is not {FORMS}") from error
        yield RunningSpooler(where, timeout)
        return
    store = _open(where, create)
    try:
        yield OpenStore(store)
    finally:
        store.close()


def _open(where: str, create: bool) -> ISpoolStore:
    try:
        store = make_store(where)
    except StartupError as error:
        raise MisuseError(error.text) from error
    kind, _, path = where.partition(":")
    if kind == "sqlite" and not create and not os.path.exists(path):
        raise SpoolError(f"there is no spool {path}")
    try:
        store.open(lambda: None)
    except SpoolInUse as error:
        raise SpoolError(
            f"{where} is in use by a running spooler; name its address instead, such as 127.0.0.1:3034"
        ) from error
    return store


def batch_item(task: Task) -> BatchItem:
    """Convert *task* to an item of a batch, with all settings for its spooler."""
    settings: dict[str, VarsValue] = {
        "at": f"{task.at:.6f}",
        "spooler": task.queue,
        "idempotency_key": task.key,
    }
    if task.priority != UNPRIORITIZED:
        settings["priority"] = task.priority
    return BatchItem(task.variables, task.body, encode_vars(settings))
