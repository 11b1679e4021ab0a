"""A request that waits for its answer in a session."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from uwsgitwisted.errors import ProtocolError, RequestCancelled, RequestTimeout, UwsgiError
from uwsgitwisted.wire.packet import Packet


def as_it_is(packet: Packet) -> object:
    """Return the packet."""
    return packet


class Call:
    """A request, and the Deferred that fires with what its answer means.

    One is made for every request of a client, so it does itself what would cost more in callbacks.

    :param packet: what is asked.
    :param deadline: until when its answer is waited for, in the reactor's time.
    :param allowed: the seconds that ``RequestTimeout`` names.
    :param address: the address that errors name.
    :param idempotent: whether it may be run again if the worker that runs it dies.
    :param decode: makes of the answer what the Deferred fires with; it may raise ``ProtocolError``.
    """

    __slots__ = (
        "_decode",
        "_withdraw",
        "address",
        "allowed",
        "answer",
        "deadline",
        "id",
        "idempotent",
        "packet",
        "took",
    )

    def __init__(
        self,
        packet: Packet,
        deadline: float = math.inf,
        allowed: float = 0.0,
        *,
        address: object = None,
        idempotent: bool = False,
        decode: Callable[[Packet], object] = as_it_is,
    ) -> None:
        self.packet = packet
        self.deadline = deadline
        self.allowed = allowed
        self.address = address
        self.idempotent = idempotent
        self._decode = decode
        #: How long its handler ran, in seconds, once it is answered; 0 where the node doesn't tell.
        self.took = 0.0
        #: Its number in the session.
        self.id = 0
        self._withdraw: Callable[[Call], None] | None = None
        #: Fires once. Cancelling it withdraws the request.
        self.answer: Deferred[Any] = Deferred(self._cancel)

    def enter(self, request: int, withdraw: Callable[[Call], None]) -> None:
        """Note that it is in a session now.

        :param request: its number there.
        :param withdraw: called with it when it is cancelled.
        """
        self.id = request
        self._withdraw = withdraw

    def succeed(self, packet: Packet) -> None:
        """Fire with what *packet* means."""
        try:
            value = self._decode(packet)
        except ProtocolError as error:
            self.fail(error)
        else:
            self.answer.callback(value)

    def fail(self, error: Exception) -> None:
        """Fail."""
        if isinstance(error, UwsgiError) and error.address is None:
            error.address = self.address
        self.answer.errback(error)

    def expire(self) -> None:
        """Fail since the time is over."""
        self.fail(RequestTimeout(f"no answer within {self.allowed:g} s", seconds=self.allowed))

    def _cancel(self, answer: Deferred[Any]) -> None:
        if self._withdraw is not None:
            self._withdraw(self)
        if not answer.called:
            self.fail(RequestCancelled("the request was cancelled"))
