"""Answers modifier1 33 of a spooler: what people and programs ask of its queue.

The message is ``(operation, arguments)``: one of :mod:`uwsgitwisted.spool.management`, or ``wait``. Or it is
bytes, a batch of tasks as :mod:`uwsgitwisted.tasks` makes it; its answer is their ids.
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
from uwsgitwisted.spool.management import WAIT, Question, batch, question, read_arguments
from uwsgitwisted.spool.slices import Steps
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.spool.stores.interface import ISpoolStore
from uwsgitwisted.wire.objects import dumps, loads_plain
from uwsgitwisted.wire.packet import MARSHAL, Packet

#: Who may manage a queue unless its owner names others: whoever is on the same machine.
LOOPBACK = (parse_network("127.0.0.0/8"), parse_network("::1"))

#: The largest message that is unmarshalled here, in bytes. A batch is only cut.
MAX_QUESTION = 32_768
#: For how long a peer that doesn't say so waits for a task, in seconds: less than the minute after which many
#: proxies close a silent connection.
MAX_WAIT = 55.0
#: What everybody may ask.
_OPEN = frozenset({"status", "wait"})

#: What marshalled bytes begin with, in all versions. From version 3 on, this bit may be set in a type code.
_FLAG = 0x80
_BYTES = frozenset({ord("s"), ord("s") | _FLAG})
_PAIRS = tuple(
    bytes((code | flag,)) + count
    for code, count in ((ord("("), b"\x02\0\0\0"), (ord("["), b"\x02\0\0\0"), (ord(")"), b"\x02"))
    for flag in (0, _FLAG)
)
#: The type codes of text, and how many bytes its length has.
_TEXTS = {
    code | flag: size for size, codes in ((1, b"zZ"), (4, b"utaA")) for code in codes for flag in (0, _FLAG)
}
#: What follows the type code of bytes that are none: an empty batch.
_EMPTY = bytes(4)


@implementer(IResponder)
class ManageResponder:
    """Does what peers ask of a spooler's queue, as far as they may.

    Everybody may enqueue tasks, and ask and wait for those whose ids they know.

    :param reactor: keeps the time of those who wait.
    :param managers: the networks whose peers may do everything else. Those on a UNIX socket may too: they are
        ruled by that file's permissions.
    :param now: the time of day, in unix seconds.
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
        """Do what is asked, and return a Deferred of the answer.

        Cancelling it ends a wait, and takes out what the store was not asked yet.

        :raises NotAllowed: if the peer may not ask for it.
        :raises SpoolError: if it is no operation with its arguments.
        :raises ProtocolError: if the message is none.
        """
        payload = request.packet.payload
        if not payload or payload[0] not in _BYTES:
            answer = self._answer(request)
        elif payload[1:] == _EMPTY:
            answer = succeed(dumps([]))
        else:
            answer = self._ask(request, batch(payload, self._now()))
        return answer.addCallback(lambda data: Packet(MARSHAL, request.packet.modifier2, data))

    def _answer(self, request: Request) -> Deferred[bytes]:
        operation = _operation(request.packet.payload)
        # Before anything is loaded.
        if operation not in _OPEN and not request.peer.is_allowed(self._managers):
            raise NotAllowed(
                f"{request.peer} may not manage this queue; the spooler's own machine may, and the networks in "
                "its option --manage"
            )
        arguments = _arguments(request.packet.payload)
        if operation == "wait":
            return self._wait(request, read_arguments("wait", WAIT, arguments)["id"])
        return self._ask(request, question(operation, arguments, self._now()))

    def _wait(self, request: Request, identifier: int) -> Deferred[bytes]:
        seconds = MAX_WAIT if request.seconds is None else request.seconds
        over = self._spooler.wait(identifier, request.peer.group)
        over.addTimeout(seconds, self._reactor, onTimeoutCancel=_not_over)
        return over.addCallback(dumps)

    def _ask(self, request: Request, asked: Question) -> Deferred[bytes]:
        """Ask the store, in whose thread the answer is marshalled too: it may be large."""
        ended = asked.ended

        def job(store: ISpoolStore) -> Steps[tuple[Any, bytes]]:
            answer = yield from asked.job(store)
            return answer, dumps(answer)

        def changed(answer: tuple[Any, bytes]) -> None:
            if ended is not None:
                self._spooler.note_change(ended(answer[0]))

        answering = self._spooler.jobs.submit(
            request.peer.group, job, weight=asked.weight, size=len(request.packet.payload), then=changed
        )
        return answering.addCallback(lambda answer: answer[1])


def _operation(payload: bytes) -> str:
    """Return the name of the operation that a question begins with, without loading anything."""
    size = len(payload)
    if size > MAX_QUESTION:
        raise MessageTooLarge(
            f"{size} bytes are asked; {MAX_QUESTION} is the most, apart from a batch of tasks",
            size=size,
            limit=MAX_QUESTION,
        )
    start = next((len(pair) for pair in _PAIRS if payload.startswith(pair)), size)
    width = _TEXTS.get(payload[start]) if start < size else None
    if width is None:
        raise SpoolError("what is asked of a spooler is (operation, arguments), or bytes: a batch of tasks")
    begin = start + 1 + width
    return payload[begin : begin + int.from_bytes(payload[start + 1 : begin], "little")].decode(
        errors="replace"
    )


def _arguments(payload: bytes) -> object:
    """Return the arguments in a question that begins with an operation's name."""
    message = loads_plain(payload)
    assert isinstance(message, (tuple, list)), "its type code said so"
    return message[1]


def _not_over(_result: object, seconds: float) -> NoReturn:
    raise RequestTimeout(f"the task is not over after {seconds:g} s", seconds=seconds)
