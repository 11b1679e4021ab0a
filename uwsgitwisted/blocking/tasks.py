"""Calls for tasks: enqueue them, wait for them, cancel them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from uwsgitwisted.address import AddressLike
from uwsgitwisted.blocking.calls import send_message
from uwsgitwisted.timeouts import check_timeout
from uwsgitwisted.wire.packet import MARSHAL, SPOOL
from uwsgitwisted.wire.tasks import (
    LEAST_TIMEOUT,
    SPOOL_WITH_ID,
    TaskLike,
    TaskMessage,
    TaskStatus,
    Variables,
    batch_items,
    encode_batch,
    lacks_result,
    read_accepted,
    read_changed,
    read_ids,
    read_single,
    read_status,
)


def enqueue(address: AddressLike, task: Variables, body: bytes = b"", timeout: float = 30) -> int | None:
    """Hand *task* to a spooler and return its id.

    :param address: ``(host, port)``, ``"host:port"``, a unix socket's path, or a Twisted endpoint description.
    :param task: the variables that the spooler function gets. Of them ``at``, ``priority``, ``spooler`` and
        ``idempotency_key`` also tell the spooler when and how to run it.
    :param body: what the function gets besides; it may be as large as the spooler takes messages.
    :param timeout: seconds for all of it.
    :return: the id, when the task is safely stored; None if that is so, but the spooler gives no ids, as a real
        uWSGI.
    :raises SpoolRefused: if the spooler did not take it.
    :raises UwsgiError: as :func:`uwsgitwisted.blocking.send_message` does. After a timeout or a broken
        connection the task may have been taken nevertheless; with an ``idempotency_key`` it can be sent again.
    """
    answer = send_message(address, SPOOL, SPOOL_WITH_ID, TaskMessage(task, body), timeout)
    return read_accepted(answer, address, body)


def enqueue_many(address: AddressLike, tasks: Iterable[TaskLike], timeout: float = 30) -> list[int]:
    """Hand several tasks to a spooler, all of them or none, and return their ids in the same order.

    :param tasks: up to 10,000: the variables of each, or a pair of these and a body.
    :raises UwsgiError: as :func:`enqueue` does.
    """
    return read_ids(send_message(address, MARSHAL, 0, encode_batch(batch_items(tasks)), timeout), address)


def status(address: AddressLike, identifier: int, timeout: float = 30) -> TaskStatus:
    """Return what a spooler knows of a task.

    :param identifier: the task's id.
    :raises NoSuchTask: if there is no such task, or not any more.
    """
    return read_single(manage(address, "status", {"ids": [identifier]}, timeout), identifier, address)


def wait(address: AddressLike, identifier: int, timeout: float = 30) -> TaskStatus:
    """Wait until a task is over, and return what the spooler knows of it then.

    :param identifier: the task's id.
    :param timeout: seconds to wait.
    :raises NoSuchTask: if there is no such task, or not any more.
    :raises RequestTimeout: if it is not over in time; the task goes on.
    """
    end = time.monotonic() + check_timeout(timeout)
    answer = manage(address, "wait", {"id": identifier}, timeout)
    if lacks_result(answer):
        return status(address, identifier, max(end - time.monotonic(), LEAST_TIMEOUT))
    return read_status(answer, address)


def cancel(address: AddressLike, identifiers: Sequence[int], timeout: float = 30) -> list[int]:
    """Take tasks back, and return the ids of those for which that was possible.

    Those that wait won't run; of those that run, the outcome is dropped.

    :param identifiers: up to 1,000 ids.
    :raises NotAllowed: if the spooler doesn't let this machine manage its queue.
    """
    return read_changed(manage(address, "cancel", {"ids": list(identifiers)}, timeout), address)


def manage(
    address: AddressLike, operation: str, arguments: Mapping[str, object], timeout: float = 30
) -> object:
    """Ask a spooler something about its queue, or to change it, as the command ``uwsgitwisted queue`` does.

    :param operation: one of :data:`uwsgitwisted.spool.management.OPERATIONS`, or ``wait``.
    :param arguments: what it takes.
    :return: what it returns.
    :raises UwsgiError: as :func:`uwsgitwisted.blocking.send_message` does.
    """
    return send_message(address, MARSHAL, 0, (operation, dict(arguments)), timeout)
