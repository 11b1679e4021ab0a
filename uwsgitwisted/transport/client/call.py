"""A client's request and the Deferred of its answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from uwsgitwisted.errors import ProtocolError, RequestCancelled, RequestTimeout, UwsgiError
from uwsgitwisted.wire.packet import Packet


def identity(packet: Packet) -> object:
    """Return the packet."""
    return packet


class Call:
    """A request, and the Deferred that fires with its decoded answer.

    A client makes one for every request, so a call decodes its answer itself: further callbacks would cost
    more.

    :param packet: the request.
    :param deadline: when the call times out, in the reactor's time.
    :param allowed: the timeout in seconds that ``RequestTimeout`` names.
    :param address: the address that errors name.
    :param idempotent: whether the request may run again if its worker dies.
    :param decode: turns the answer into the result of the Deferred; it may raise ``ProtocolError``.
    """

    __slots__ = (
        "_decode",
        "_on_cancel",
        "address",
        "allowed",
        "answer",
        "deadline",
        "id",
        "idempotent",
        "packet",
        "took",
    )

    #: Whether it takes its answer as a stream.
    streams = False

    def __init__(
        self,
        packet: Packet,
        deadline: float = math.inf,
        allowed: float = 0.0,
        *,
        address: object = None,
        idempotent: bool = False,
        decode: Callable[[Packet], object] = identity,
    ) -> None:
        self.packet = packet
        self.deadline = deadline
        self.allowed = allowed
        self.address = address
        self.idempotent = idempotent
        self._decode = decode
        #: How long the handler ran, in seconds; 0 before the answer, and if the node doesn't say.
        self.took = 0.0
        #: The request's id in its session.
        self.id = 0
        self._on_cancel: Callable[[Call], None] | None = None
        #: Fires once. Cancelling it cancels the request.
        self.answer: Deferred[Any] = Deferred(self._cancel)

    def attach(self, request: int, on_cancel: Callable[[Call], None]) -> None:
        """Attach the call to the session that sends it.

        :param request: the request's id there.
        :param on_cancel: called with this call when it is cancelled.
        """
        self.id = request
        self._on_cancel = on_cancel

    def succeed(self, packet: Packet) -> None:
        """Fire with the decoded *packet*, or fail if it can't be decoded."""
        try:
            value = self._decode(packet)
        except ProtocolError as error:
            self.fail(error)
        else:
            self.answer.callback(value)

    def fail(self, error: Exception) -> None:
        """Fail with *error*, and add the address to it if it has none."""
        if isinstance(error, UwsgiError) and error.address is None:
            error.address = self.address
        self.answer.errback(error)

    def time_out(self) -> None:
        """Fail with ``RequestTimeout``."""
        self.fail(RequestTimeout(f"no answer within {self.allowed:g} s", seconds=self.allowed))

    def _cancel(self, answer: Deferred[Any]) -> None:
        if self._on_cancel is not None:
            self._on_cancel(self)
        if not answer.called:
            self.fail(RequestCancelled("the request was cancelled"))
