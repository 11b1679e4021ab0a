"""Answers modifier1 33 of a spooler, by which people and programs manage its queue.

The message is ``(operation, arguments)``: an operation of :mod:`uwsgitwisted.spool.management.operations`, or
``wait``. Or it is bytes: a batch of tasks as :mod:`uwsgitwisted.wire.tasks` encodes it, answered with their
ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from uwsgitwisted.access import Network, parse_network
from uwsgitwisted.errors import MessageTooLarge, NotAllowed, RequestTimeout, SpoolError
from uwsgitwisted.interfaces import IResponder, Request
from uwsgitwisted.spool.management.arguments import read_arguments
from uwsgitwisted.spool.management.operations import WAIT, Command, parse_batch, parse_command
from uwsgitwisted.spool.slices import Steps
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.spool.stores.interface import ISpoolStore
from uwsgitwisted.wire.objects import dumps, loads_plain
from uwsgitwisted.wire.packet import MARSHAL, Packet

#: The networks that may manage a queue by default: peers on the same machine.
LOOPBACK = (parse_network("127.0.0.0/8"), parse_network("::1"))

#: The largest command to unmarshal, in bytes. A batch may be larger: it is only split into its tasks.
MAX_COMMAND = 32_768
#: The default timeout of a wait for a task, in seconds: less than the minute after which many proxies close a
#: silent connection.
MAX_WAIT = 55.0
#: The operations that are open to every peer.
_OPEN = frozenset({"status", "wait"})

#: The first bytes of marshalled values, in all versions of marshal. Since version 3, a type code may have this
#: bit set.
_FLAG = 0x80
_BYTES = frozenset({ord("s"), ord("s") | _FLAG})
_PAIRS = tuple(
    bytes((code | flag,)) + count
    for code, count in ((ord("("), b"\x02\0\0\0"), (ord("["), b"\x02\0\0\0"), (ord(")"), b"\x02"))
    for flag in (0, _FLAG)
)
#: The type codes of text, and the number of bytes of its length field.
_TEXTS = {
    code | flag: size for size, codes in ((1, b"zZ"), (4, b"utaA")) for code in codes for flag in (0, _FLAG)
}
#: The bytes after the type code of an empty batch: a length of 0.
_EMPTY = bytes(4)


@implementer(IResponder)
class ManageResponder:
    """Executes the commands of peers that have the permission for them.

    Every peer may enqueue tasks, query tasks whose ids it knows, and wait for them.

    :param reactor: times out the waits.
    :param managers: the networks whose peers may do everything else. So may peers on a UNIX socket: the file's
        permissions decide who connects to it.
    :param now: the wall clock, in unix seconds.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        spooler: Spooler,
        *,
        managers: Iterable[Network] = LOOPBACK,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._spooler = spooler
        self._managers = tuple(managers)
        self._now = now

    def respond(self, request: Request) -> Deferred[Packet]:
        """Execute a command, and return a Deferred of the answer.

        Cancelling it ends a wait, and drops a command that has not started.

        :raises NotAllowed: if the peer has no permission for this command.
        :raises SpoolError: if the operation or its arguments are invalid.
        :raises ProtocolError: if the message can't be decoded.
        """
        payload = request.packet.payload
        if not payload or payload[0] not in _BYTES:
            answer = self._answer_operation(request)
        elif payload[1:] == _EMPTY:
            answer = succeed(dumps([]))
        else:
            answer = self._execute(request, parse_batch(payload, self._now()))
        return answer.addCallback(lambda data: Packet(MARSHAL, request.packet.modifier2, data))

    def _answer_operation(self, request: Request) -> Deferred[bytes]:
        operation = _peek_operation(request.packet.payload)
        # Check the permission before unmarshalling anything.
        if operation not in _OPEN and not request.peer.is_allowed(self._managers):
            raise NotAllowed(
                f"{request.peer} may not manage this queue; the spooler's own machine may, and the networks in "
                "its option --manage"
            )
        arguments = _load_arguments(request.packet.payload)
        if operation == "wait":
            return self._wait(request, read_arguments("wait", WAIT, arguments)["id"])
        return self._execute(request, parse_command(operation, arguments, self._now()))

    def _wait(self, request: Request, identifier: int) -> Deferred[bytes]:
        seconds = MAX_WAIT if request.seconds is None else request.seconds
        finished = self._spooler.wait(identifier, request.peer.group)
        finished.addTimeout(seconds, self._reactor, onTimeoutCancel=_time_out)
        return finished.addCallback(dumps)

    def _execute(self, request: Request, command: Command) -> Deferred[bytes]:
        """Execute a command in the store's thread, and marshal its answer there, since it may be large."""
        finished = command.finished

        def job(store: ISpoolStore) -> Steps[tuple[Any, bytes]]:
            answer = yield from command.job(store)
            return answer, dumps(answer)

        def note_change(answer: tuple[Any, bytes]) -> None:
            if finished is not None:
                self._spooler.note_change(finished(answer[0]))

        answering = self._spooler.jobs.submit(
            request.peer.group, job, weight=command.weight, size=len(request.packet.payload), then=note_change
        )
        return answering.addCallback(lambda answer: answer[1])


def _peek_operation(payload: bytes) -> str:
    """Read the operation's name at the start of a command, without unmarshalling anything."""
    size = len(payload)
    if size > MAX_COMMAND:
        raise MessageTooLarge(
            f"the command has {size} bytes; {MAX_COMMAND} is the most, apart from a batch of tasks",
            size=size,
            limit=MAX_COMMAND,
        )
    start = next((len(pair) for pair in _PAIRS if payload.startswith(pair)), size)
    width = _TEXTS.get(payload[start]) if start < size else None
    if width is None:
        raise SpoolError("a spooler takes (operation, arguments), or bytes: a batch of tasks")
    begin = start + 1 + width
    return payload[begin : begin + int.from_bytes(payload[start + 1 : begin], "little")].decode(
        errors="replace"
    )


def _load_arguments(payload: bytes) -> object:
    """Unmarshal a command that begins with an operation's name, and return its arguments."""
    message = loads_plain(payload)
    assert isinstance(message, (tuple, list)), "its type code said so"
    return message[1]


def _time_out(_result: object, seconds: float) -> NoReturn:
    raise RequestTimeout(f"the task is not finished after {seconds:g} s", seconds=seconds)
