"""Tasks on the wire: from clients to the spooler, and from the spooler to a worker.

The Deferred client, the blocking calls, the spooler and the worker share this, and do the sending themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from uwsgitwisted.errors import (
    MalformedPacket,
    MessageTooLarge,
    MisuseError,
    NoSuchTask,
    ProtocolError,
    SpoolRefused,
    UnencodableMessage,
    UnsafeObject,
)
from uwsgitwisted.wire.objects import loads
from uwsgitwisted.wire.packet import MAX_PAYLOAD, SPOOL, Packet
from uwsgitwisted.wire.vars import CONTENT_LENGTH, VarsValue, encode_vars, to_bytes

#: The variables of a task: a dict whose keys are text or bytes. With exact key types, a type checker could not
#: decide between the two for a dict with values of several types.
Variables = Mapping[Any, VarsValue]
#: One of several tasks: its variables, or its variables and its body.
TaskLike = Variables | tuple[Variables, bytes]

#: The most tasks in one request: they are stored in one transaction, for which all others have to wait.
MAX_BATCH = 10_000
#: The least timeout, in seconds, of the request for a large result when the task has finished.
LEAST_TIMEOUT = 1.0

#: The modifier2 of a task that may have a body, and whose answer has its id.
SPOOL_WITH_ID = 2

# A handler's decision about a task: the modifier2 of its answer ``Packet(ANSWER, code)``.
#: The task is not for this handler: leave it alone (uWSGI's ``SPOOL_IGNORE``).
IGNORE = 0
#: The task is done: delete it (``SPOOL_OK``).
DONE = 1
#: Run the task again later (``SPOOL_RETRY``).
RETRY = 2
#: The task runs for ever: run it again after the usual pause, and don't count this run.
AGAIN = 3

#: The meaning of the numbers that a spooler function returns; any other value means done. uWSGI 2.0 reruns a
#: task for ever on any other value, None included; we only keep its three numbers.
RETURN_CODES: dict[str, Mapping[int, int]] = {
    "2.0": {-2: DONE, -1: RETRY, 0: IGNORE},
    "0.9": {17: RETRY},
}

#: The head of a task that is sent to a worker: its id, and the size of its vars block.
_RUN_HEAD = struct.Struct("<QH")
#: The head of each task of a batch: the sizes of its parts.
_SIZES = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class TaskMessage:
    """A task with a body, for modifier1 17 with the modifier2 :data:`SPOOL_WITH_ID`.

    :param variables: say what to do, under keys of text or bytes.
    :param body: further data for the handler.
    """

    variables: Mapping[Any, VarsValue]
    body: bytes = b""

    def block(self) -> bytes:
        """Return the vars block.

        :raises UnencodableMessage: if the variables can't be encoded.
        :raises MessageTooLarge: if they are over 65535 bytes.
        """
        if not isinstance(self.variables, Mapping) or not isinstance(self.body, bytes):
            raise UnencodableMessage(
                f"a task is a dict, and its body bytes, not {type(self.variables).__name__} and "
                f"{type(self.body).__name__}"
            )
        return _check_size(encode_vars(self.variables.items()))

    def encode(self) -> bytes:
        """Return the vars block and the body. The block's first key is the size of the body.

        :raises UnencodableMessage: if the variables have a CONTENT_LENGTH themselves, or can't be encoded.
        :raises MessageTooLarge: if the variables are over 65535 bytes; the body may be longer.
        """
        block = self.block()
        if CONTENT_LENGTH in map(to_bytes, self.variables):
            raise UnencodableMessage(
                "the key CONTENT_LENGTH is reserved for the size of the body; leave it out"
            )
        if not self.body:
            return block
        return _check_size(encode_vars([(CONTENT_LENGTH, len(self.body))]) + block) + self.body


def _check_size(block: bytes) -> bytes:
    """Return a task's vars *block* if it fits one packet.

    :raises MessageTooLarge: if it doesn't.
    """
    if len(block) > MAX_PAYLOAD:
        raise MessageTooLarge(
            f"a task's variables have {len(block)} bytes, over {MAX_PAYLOAD}. Put large data in the body",
            size=len(block),
            limit=MAX_PAYLOAD,
        )
    return block


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """The status of a task in a spooler. All times are Unix timestamps in seconds.

    :param state: ``scheduled`` if it waits for its time, ``ready``, ``running``, ``done``, ``dead`` if it is a
        dead letter, or ``cancelled``.
    :param queue: the name of its queue; empty if it has none.
    :param attempts: how many of its runs count as attempts.
    :param crashes: how often it crashed its worker.
    :param created: when it was accepted.
    :param at: when it may run.
    :param started: when it last started to run; None if it never did.
    :param finished: when it was done, dead-lettered or cancelled; None before that.
    :param error: the last line of its last error; empty if there was none.
    :param result: the return value of its handler, apart from return codes; None if there is none. If it isn't
        safe to load, a text that says so.
    """

    id: int
    state: str
    queue: str
    attempts: int
    crashes: int
    created: float
    at: float
    started: float | None
    finished: float | None
    error: str
    result: object

    @property
    def done(self) -> bool:
        """Whether it ran successfully."""
        return self.state == "done"

    @property
    def failed(self) -> bool:
        """Whether it is a dead letter."""
        return self.state == "dead"

    @property
    def over(self) -> bool:
        """Whether it has finished, so that it only runs again if somebody asks for it."""
        return self.state in ("done", "dead", "cancelled")


#: The types of the fields. Some stores give an int for a float.
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (int,),
    "state": (str,),
    "queue": (str,),
    "attempts": (int,),
    "crashes": (int,),
    "created": (float, int),
    "at": (float, int),
    "started": (float, int, type(None)),
    "finished": (float, int, type(None)),
    "error": (str,),
    "result": (bytes, type(None)),
}


def read_status(answer: object, address: object = None) -> TaskStatus:
    """Return the status in an answer.

    :param address: the spooler's address, for the error.
    :raises ProtocolError: if the answer is not a status.
    """
    if not isinstance(answer, dict):
        raise not_a_spooler(address)
    try:
        fields = {name: answer[name] for name in _TYPES}
    except KeyError as error:
        raise not_a_spooler(address) from error
    if not all(isinstance(fields[name], types) for name, types in _TYPES.items()):
        raise not_a_spooler(address)
    return TaskStatus(**{**fields, "result": load_result(fields["result"])})


def load_result(result: bytes | None) -> object:
    """Return the return value of a handler, from the marshalled bytes that the spooler passes on.

    :param result: these bytes; empty if there is no value, None if the spooler left it out.
    """
    if not result:
        return None
    try:
        return loads(result)
    except UnsafeObject as error:  # colliding keys, or somebody else has changed the store
        return f"(the result can't be read: {error})"


def lacks_result(answer: object) -> bool:
    """Whether the result was too large for the answer to a wait; request it with ``status``."""
    return isinstance(answer, dict) and answer.get("result", b"") is None


def read_single(answer: object, identifier: int, address: object = None) -> TaskStatus:
    """Return the status in an answer to a question about one task.

    :raises NoSuchTask: if the answer is empty.
    :raises ProtocolError: if it is not such an answer.
    """
    if not isinstance(answer, list):
        raise not_a_spooler(address)
    if not answer:
        raise NoSuchTask(f"there is no task {identifier}, or not any more", address=address)
    return read_status(answer[0], address)


def read_ids(answer: object, address: object = None) -> list[int]:
    """Return the ids in an answer.

    :raises ProtocolError: if the answer has anything else.
    """
    if not isinstance(answer, list) or not all(type(item) is int for item in answer):
        raise not_a_spooler(address)
    return answer


def read_changed(answer: object, address: object = None) -> list[int]:
    """Return the ids of the changed tasks.

    :raises ProtocolError: if it is not the answer to a change.
    """
    return read_ids(answer.get("changed") if isinstance(answer, dict) else None, address)


def read_taken(answer: object, address: object = None) -> bool:
    """Return True if a task was accepted.

    :raises SpoolRefused: if it was not.
    :raises ProtocolError: if the answer is not that of a spooler.
    """
    if answer is False:
        raise SpoolRefused("the spooler refused the task; its log says why", address=address)
    if answer is not True:
        raise ProtocolError("the server at this address is not a spooler", address=address)
    return True


def read_accepted(answer: object, address: object = None, body: bytes = b"") -> int | None:
    """Return the id of a task that was accepted; None if the spooler gives none.

    :param body: the task's body.
    :raises SpoolRefused: if it was not accepted.
    :raises ProtocolError: if the answer is not that of a spooler, or the spooler doesn't support bodies.
    """
    if type(answer) is int:
        return answer
    if read_taken(answer, address) and body:
        raise ProtocolError(
            "the server at this address is another kind of spooler, which doesn't support bodies; it has "
            "accepted the task without its body",
            address=address,
        )
    return None


def not_a_spooler(address: object) -> ProtocolError:
    """Return the error for an answer that is not that of a uwsgitwisted spooler."""
    return ProtocolError("the server at this address is not a uwsgitwisted spooler", address=address)


class BatchItem(NamedTuple):
    """One of several tasks that travel together.

    :param variables: its vars block.
    :param body: further data for the handler.
    :param settings: a vars block whose keys ``at``, ``priority``, ``spooler`` and ``idempotency_key`` replace
        those in *variables*; empty to use the latter.
    """

    variables: bytes
    body: bytes = b""
    settings: bytes = b""


def batch_items(tasks: Iterable[TaskLike]) -> list[BatchItem]:
    """Return the items of a batch.

    :raises MisuseError: if there are too many tasks, or one can't be encoded; the text has its index from 0.
    """
    items: list[BatchItem] = []
    for place, task in enumerate(tasks):
        if place >= MAX_BATCH:
            raise MisuseError(f"more than {MAX_BATCH} tasks; enqueue them in parts")
        variables, body = task if isinstance(task, tuple) and len(task) == 2 else (task, b"")
        try:
            items.append(BatchItem(TaskMessage(variables, body).block(), body))
        except MisuseError as error:
            raise MisuseError(f"task {place}: {error.text}") from error
    return items


def encode_batch(items: Iterable[BatchItem]) -> bytes:
    """Return the bytes of several tasks, one after the other, each with the sizes of its three parts in front.

    They are sent as plain bytes, so that the receiver has nothing to unmarshal, however large they are.
    """
    return b"".join(part for item in items for part in (_SIZES.pack(*map(len, item)), *item))


def decode_batch(batch: bytes) -> list[BatchItem]:
    """Return the tasks of a batch.

    :raises MalformedPacket: if the bytes are not a batch, or have more than MAX_BATCH tasks.
    """
    items: list[BatchItem] = []
    position = 0
    while position < len(batch):
        if len(items) == MAX_BATCH:
            raise MalformedPacket(f"a batch of more than {MAX_BATCH} tasks")
        if len(batch) - position < _SIZES.size:
            raise MalformedPacket("a batch of tasks ends within the sizes of one")
        ends = list(accumulate(_SIZES.unpack_from(batch, position), initial=position + _SIZES.size))
        position = ends[-1]
        if position > len(batch):
            raise MalformedPacket("a batch of tasks ends within one")
        items.append(BatchItem(*(batch[start:end] for start, end in pairwise(ends))))
    return items


def encode_run(identifier: int, variables: bytes, body: bytes) -> Packet:
    """Return the request to a worker to run a task.

    :param identifier: the task's id.
    :param variables: its vars block.
    """
    return Packet(SPOOL, 0, _RUN_HEAD.pack(identifier, len(variables)) + variables + body)


def decode_run(packet: Packet) -> tuple[int, bytes, bytes]:
    """Return the id, the vars block and the body of a task that a worker gets.

    :raises MalformedPacket: if the packet is not such a request.
    """
    payload = packet.payload
    if len(payload) < _RUN_HEAD.size:
        raise MalformedPacket("a run ends within its head")
    identifier, size = _RUN_HEAD.unpack_from(payload)
    body_at = _RUN_HEAD.size + size
    if len(payload) < body_at:
        raise MalformedPacket("a run ends within its variables")
    return identifier, payload[_RUN_HEAD.size : body_at], payload[body_at:]
