"""Answers modifier1 33 of a spooler: what people and programs ask of its queue.

The message is ``(operation, arguments)``: one of :mod:`uwsgitwisted.spool.management`, or ``wait``. Or it is
bytes, a batch of tasks as :mod:`uwsgitwisted.tasks` makes it; its answer is their ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from uwsgitwisted.access import Network, parse_network
from uwsgitwisted.errors import Busy, MessageTooLarge, NotAllowed, RequestTimeout, SpoolError
from uwsgitwisted.interfaces import IResponder, Request
from uwsgitwisted.spool.management import OPERATIONS, WAIT, manage, read_arguments
from uwsgitwisted.spool.records import describe_record
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.tasks import decode_batch
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import MARSHAL, Packet

#: Who may manage a queue unless its owner names others: whoever is on the same machine.
LOOPBACK = (parse_network("127.0.0.0/8"), parse_network("::1"))

#: The largest message that is unmarshalled here, in bytes: one can be made to take time quadratic in its size,
#: for this a tenth of a second. A batch is only cut.
MAX_QUESTION = 32_768
#: How many requests, and how many bytes of them, may wait for the store.
MAX_PENDING, MAX_PENDING_BYTES = 1_000, 256 * 1024 * 1024

#: The type codes of marshalled bytes.
_BYTES = (b"s", b"\xf3")


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
        self._pending = 0
        self._pending_bytes = 0
        self._open: dict[object, Callable[[object, float | None], Deferred[Any]]] = {
            "status": self._status,
            "wait": self._wait,
        }

    def respond(self, request: Request) -> Deferred[Packet]:
        """Do what is asked, and return a Deferred of the answer.

        Cancelling it ends a wait. What was asked of the store is done nevertheless.

        :raises NotAllowed: if the peer may not ask for it.
        :raises SpoolError: if it is no operation with its arguments.
        :raises ProtocolError: if the message is none.
        :raises Busy: if too much waits for the store.
        """
        payload = request.packet.payload
        if payload[:1] in _BYTES:
            asked = self._in_store("enqueue", lambda: {"tasks": decode_batch(_bytes(payload))}, len(payload))
        else:
            asked = self._ask(request)
        return asked.addCallback(lambda value: Packet(MARSHAL, request.packet.modifier2, dumps(value)))

    def _ask(self, request: Request) -> Deferred[Any]:
        operation, arguments = _question(request.packet.payload)
        ask = self._open.get(operation)
        if ask is not None:
            return ask(arguments, request.seconds)
        if not request.peer.is_allowed(self._managers):
            raise NotAllowed(
                f"{request.peer} may not manage this queue; the spooler's own machine may, and the networks in "
                "its option --manage"
            )
        return self._in_store(operation, lambda: arguments, len(request.packet.payload))

    # What everybody may ask.

    def _status(self, arguments: object, seconds: float | None) -> Deferred[Any]:
        ids = read_arguments("status", OPERATIONS["status"].takes, arguments)["ids"]
        found = self._spooler.find(ids)
        return found.addCallback(lambda records: list(map(describe_record, records)))

    def _wait(self, arguments: object, seconds: float | None) -> Deferred[Any]:
        over = self._spooler.wait(read_arguments("wait", WAIT, arguments)["id"])
        if seconds is not None:
            over.addTimeout(seconds, self._reactor, onTimeoutCancel=_not_over)
        return over.addCallback(describe_record)

    # What the store is asked.

    def _in_store(self, operation: object, arguments: Callable[[], object], size: int) -> Deferred[Any]:
        """Have the store's thread do something.

        :param arguments: makes them, in that thread.
        :param size: how many bytes are held until then.
        """
        if self._pending >= MAX_PENDING or self._pending_bytes + size > MAX_PENDING_BYTES:
            raise Busy("too much waits for the spool already; try again later")
        self._pending += 1
        self._pending_bytes += size
        now = self._now()
        doing = self._spooler.manage(lambda store: manage(store, operation, arguments(), now))
        # Whoever withdraws the request doesn't end the call, which is to count until it has been made.
        answer: Deferred[Any] = Deferred()
        doing.addBoth(self._done, size).chainDeferred(answer)
        return answer

    def _done(self, result: Any, size: int) -> Any:
        self._pending -= 1
        self._pending_bytes -= size
        return result


def _question(payload: bytes) -> tuple[object, object]:
    size = len(payload)
    if size > MAX_QUESTION:
        raise MessageTooLarge(
            f"{size} bytes are asked; {MAX_QUESTION} is the most, apart from a batch of tasks",
            size=size,
            limit=MAX_QUESTION,
        )
    message = loads(payload)
    if not isinstance(message, (tuple, list)) or len(message) != 2 or not isinstance(message[0], str):
        raise SpoolError("what is asked of a spooler is (operation, arguments), or bytes: a batch of tasks")
    return message[0], message[1]


def _bytes(payload: bytes) -> bytes:
    message = loads(payload)
    assert isinstance(message, bytes), "the type code said so"
    return message


def _not_over(_result: object, seconds: float) -> NoReturn:
    raise RequestTimeout(f"the task is not over after {seconds:g} s", seconds=seconds)
