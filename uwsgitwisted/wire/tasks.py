"""Tasks on the wire: between who enqueues them and the spooler, and between the spooler and a worker.

The Deferred client, the blocking calls, the spooler and the worker share this; sending is theirs.
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

#: What a handler gets of a task, besides its body: a dict whose keys are text or bytes. A type checker that was
#: told so could not tell which of the two a dict with values of several types is to be.
Variables = Mapping[Any, VarsValue]
#: One of several tasks: its variables, or these and its body.
TaskLike = Variables | tuple[Variables, bytes]

#: How many tasks one request may bring: they are stored in one transaction, which holds up everybody else's.
MAX_BATCH = 10_000
#: How many seconds there are at least to ask for a large result when the task is over.
LEAST_TIMEOUT = 1.0

#: The modifier2 of a task whose answer brings its id, and that a body may follow.
SPOOL_WITH_ID = 2

# What a handler says about a task when it returns: the modifier2 of the answer ``Packet(ANSWER, code)``.
#: Not mine: leave it (uWSGI's ``SPOOL_IGNORE``).
IGNORE = 0
#: Done: forget it (``SPOOL_OK``).
DONE = 1
#: Run it again later (``SPOOL_RETRY``).
RETRY = 2
#: It is to run for ever: run it again after the usual pause, and count this run for nothing.
AGAIN = 3

#: What the numbers mean that a spooler function returns; every other value means done. Of uWSGI 2.0, where
#: anything unknown, None included, runs again for ever, only the three numbers are kept.
RETURN_CODES: dict[str, Mapping[int, int]] = {
    "2.0": {-2: DONE, -1: RETRY, 0: IGNORE},
    "0.9": {17: RETRY},
}

#: What stands before a task's vars block on its way to a worker: its id, and the size of the block.
_RUN_HEAD = struct.Struct("<QH")
#: What stands before each task of a batch: the sizes of its parts.
_SIZES = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class TaskMessage:
    """A task and its body: what modifier1 17 takes, besides a dict, with the modifier2 :data:`SPOOL_WITH_ID`.

    :param variables: what says what is to be done, under keys of text or bytes.
    :param body: what its handler gets besides.
    """

    variables: Mapping[Any, VarsValue]
    body: bytes = b""

    def block(self) -> bytes:
        """Return the vars block.

        :raises UnencodableMessage: if the variables can't travel.
        :raises MessageTooLarge: if they are over 65535 bytes.
        """
        if not isinstance(self.variables, Mapping) or not isinstance(self.body, bytes):
            raise UnencodableMessage(
                f"a task is a dict, and its body bytes, not {type(self.variables).__name__} and "
                f"{type(self.body).__name__}"
            )
        return _check_size(encode_vars(self.variables.items()))

    def encode(self) -> bytes:
        """Return the vars block, and behind it the body, whose size the block's first key says.

        :raises UnencodableMessage: if the variables say a size themselves, or can't travel.
        :raises MessageTooLarge: if the variables are over 65535 bytes; the body may be longer.
        """
        block = self.block()
        if CONTENT_LENGTH in map(to_bytes, self.variables):
            raise UnencodableMessage("a task's key CONTENT_LENGTH says the size of its body; leave it out")
        if not self.body:
            return block
        return _check_size(encode_vars([(CONTENT_LENGTH, len(self.body))]) + block) + self.body


def _check_size(block: bytes) -> bytes:
    """Return a task's vars *block*, which is to fit one packet."""
    if len(block) > MAX_PAYLOAD:
        raise MessageTooLarge(
            f"a task's variables are {len(block)} bytes; at most {MAX_PAYLOAD} are taken. The body takes "
            "what is large",
            size=len(block),
            limit=MAX_PAYLOAD,
        )
    return block


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """What a spooler knows of a task. All times are in unix seconds.

    :param state: ``scheduled`` if it waits for its time, ``ready``, ``running``, ``done``, ``dead`` if it was
        given up, or ``cancelled``.
    :param queue: the name of its queue; empty if it has none.
    :param attempts: how often it was run to an end that counts.
    :param crashes: how often it took its worker with it.
    :param created: when it was accepted.
    :param at: when it may run.
    :param started: when it last began to run; None if it never did.
    :param finished: when it was done, given up or cancelled; None before that.
    :param error: the last line of its last error; empty if there was none.
    :param result: what its handler returned, besides a return code; None for nothing. If that isn't safe to
        load, it is a text that says so.
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
        """Whether it ran to its end."""
        return self.state == "done"

    @property
    def failed(self) -> bool:
        """Whether it was given up: it is a dead letter."""
        return self.state == "dead"

    @property
    def over(self) -> bool:
        """Whether it won't run any more unless somebody asks for it."""
        return self.state in ("done", "dead", "cancelled")


#: The types that a field may have. An int stands for a float where the store gives one.
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

    :param address: who answered, for the error.
    :raises ProtocolError: if it is none.
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
    """Return what a handler returned, of which a spooler passes on the marshalled bytes.

    :param result: those; empty for nothing, None if they were left out.
    """
    if not result:
        return None
    try:
        return loads(result)
    except UnsafeObject as error:  # keys that collide, or a store that was changed behind the spooler's back
        return f"(the result can't be read: {error})"


def lacks_result(answer: object) -> bool:
    """Whether the result was too large for the answer to a wait, and is to be asked for with ``status``."""
    return isinstance(answer, dict) and answer.get("result", b"") is None


def read_single(answer: object, identifier: int, address: object = None) -> TaskStatus:
    """Return the status in an answer to a question about one task.

    :raises NoSuchTask: if it is empty.
    :raises ProtocolError: if it is no such answer.
    """
    if not isinstance(answer, list):
        raise not_a_spooler(address)
    if not answer:
        raise NoSuchTask(f"there is no task {identifier}, or not any more", address=address)
    return read_status(answer[0], address)


def read_ids(answer: object, address: object = None) -> list[int]:
    """Return the ids in an answer.

    :raises ProtocolError: if it has something else.
    """
    if not isinstance(answer, list) or not all(type(item) is int for item in answer):
        raise not_a_spooler(address)
    return answer


def read_changed(answer: object, address: object = None) -> list[int]:
    """Return the ids of the tasks that a change has changed.

    :raises ProtocolError: if the answer is to something else.
    """
    return read_ids(answer.get("changed") if isinstance(answer, dict) else None, address)


def read_taken(answer: object, address: object = None) -> bool:
    """Return True: a task was accepted.

    :raises SpoolRefused: if it was not.
    :raises ProtocolError: if what answers is no spooler.
    """
    if answer is False:
        raise SpoolRefused("the spooler did not take the task; its log says why", address=address)
    if answer is not True:
        raise ProtocolError("what answers there is no spooler", address=address)
    return True


def read_accepted(answer: object, address: object = None, body: bytes = b"") -> int | None:
    """Return the id of a task that was accepted; None if the spooler gives none.

    :param body: the task's body.
    :raises SpoolRefused: if it was not accepted.
    :raises ProtocolError: if what answers is no spooler, or none that knows of bodies.
    """
    if type(answer) is int:
        return answer
    if read_taken(answer, address) and body:
        raise ProtocolError(
            "what answers there is another kind of spooler, which knows of no body; the task that it took is "
            "not whole",
            address=address,
        )
    return None


def not_a_spooler(address: object) -> ProtocolError:
    """Return the error that says that an answer isn't that of a spooler of ours."""
    return ProtocolError("what answers there is no spooler of this kind", address=address)


class BatchItem(NamedTuple):
    """One of several tasks that travel together.

    :param variables: its vars block.
    :param body: what its handler gets besides.
    :param settings: a vars block whose keys ``at``, ``priority``, ``spooler`` and ``idempotency_key`` tell the
        spooler what to do with it, instead of those in *variables*; empty for these.
    """

    variables: bytes
    body: bytes = b""
    settings: bytes = b""


def batch_items(tasks: Iterable[TaskLike]) -> list[BatchItem]:
    """Return several tasks in the form in which they travel.

    :raises MisuseError: if there are too many, or one can't travel; the text says which, counted from 0.
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
    """Return the bytes of several tasks: one after the other, each behind the sizes of its three parts.

    They travel as bytes, so that whoever receives them has nothing to unmarshal, however large they are.
    """
    return b"".join(part for item in items for part in (_SIZES.pack(*map(len, item)), *item))


def decode_batch(batch: bytes) -> list[BatchItem]:
    """Return the tasks of a batch.

    :raises MalformedPacket: if the bytes are none, or bring more than MAX_BATCH.
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
    """Return the request that has a worker run a task.

    :param identifier: the task's id.
    :param variables: its vars block.
    """
    return Packet(SPOOL, 0, _RUN_HEAD.pack(identifier, len(variables)) + variables + body)


def decode_run(packet: Packet) -> tuple[int, bytes, bytes]:
    """Return the id, the vars block and the body of a task that a worker gets.

    :raises MalformedPacket: if it is none.
    """
    payload = packet.payload
    if len(payload) < _RUN_HEAD.size:
        raise MalformedPacket("a run ends within its head")
    identifier, size = _RUN_HEAD.unpack_from(payload)
    body_at = _RUN_HEAD.size + size
    if len(payload) < body_at:
        raise MalformedPacket("a run ends within its variables")
    return identifier, payload[_RUN_HEAD.size : body_at], payload[body_at:]
