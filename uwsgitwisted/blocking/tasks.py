"""Blocking calls that enqueue tasks, wait for them and cancel them."""

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
    """Enqueue *task* and return its id, when the spooler has safely stored it.

    :param address: ``(host, port)``, ``"host:port"``, a unix socket's path, or a Twisted endpoint description.
    :param task: the variables that the spooler function gets. The keys ``at``, ``priority``, ``spooler`` and
        ``idempotency_key`` also tell the spooler when and how to run the task.
    :param body: bytes that the function gets besides; the spooler's limit for messages applies.
    :param timeout: seconds for the whole call.
    :return: the id; None if the spooler assigns no ids, like a real uWSGI.
    :raises SpoolRefused: if the spooler refused the task.
    :raises UwsgiError: as :func:`uwsgitwisted.blocking.send_message` does. After a timeout or a broken
        connection, the task may have been stored nevertheless; with an ``idempotency_key`` it is safe to send
        it again.
    """
    answer = send_message(address, SPOOL, SPOOL_WITH_ID, TaskMessage(task, body), timeout)
    return read_accepted(answer, address, body)


def enqueue_many(address: AddressLike, tasks: Iterable[TaskLike], timeout: float = 30) -> list[int]:
    """Enqueue several tasks, all or none, and return their ids in the same order.

    :param tasks: up to 10,000: the variables of each, or a pair of variables and a body.
    :raises UwsgiError: as :func:`enqueue` does.
    """
    return read_ids(send_message(address, MARSHAL, 0, encode_batch(batch_items(tasks)), timeout), address)


def status(address: AddressLike, identifier: int, timeout: float = 30) -> TaskStatus:
    """Return the status of a task.

    :param identifier: the task's id.
    :raises NoSuchTask: if the spooler doesn't know the task, or no longer does.
    """
    return read_single(manage(address, "status", {"ids": [identifier]}, timeout), identifier, address)


def wait(address: AddressLike, identifier: int, timeout: float = 30) -> TaskStatus:
    """Wait until a task has finished, and return its final status.

    :param identifier: the task's id.
    :param timeout: seconds to wait.
    :raises NoSuchTask: if the spooler doesn't know the task, or no longer does.
    :raises RequestTimeout: if the task doesn't finish in time; it is not cancelled.
    """
    end = time.monotonic() + check_timeout(timeout)
    answer = manage(address, "wait", {"id": identifier}, timeout)
    if lacks_result(answer):
        return status(address, identifier, max(end - time.monotonic(), LEAST_TIMEOUT))
    return read_status(answer, address)


def cancel(address: AddressLike, identifiers: Sequence[int], timeout: float = 30) -> list[int]:
    """Cancel tasks; return the ids of those that were still cancellable.

    Waiting tasks won't run; the spooler drops the outcomes of running tasks.

    :param identifiers: up to 1,000 ids.
    :raises NotAllowed: if the spooler doesn't let this machine manage its queue.
    """
    return read_changed(manage(address, "cancel", {"ids": list(identifiers)}, timeout), address)


def manage(
    address: AddressLike, operation: str, arguments: Mapping[str, object], timeout: float = 30
) -> object:
    """Query or change a spooler's queue, as the command ``uwsgitwisted queue`` does.

    :param operation: an operation of :mod:`uwsgitwisted.spool.management.operations`, or ``wait``.
    :param arguments: the operation's arguments, by name.
    :return: the operation's result.
    :raises UwsgiError: as :func:`uwsgitwisted.blocking.send_message` does.
    """
    return send_message(address, MARSHAL, 0, (operation, dict(arguments)), timeout)
