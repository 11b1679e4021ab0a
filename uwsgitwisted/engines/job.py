"""A request in an engine's hands."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from uwsgitwisted.errors import RequestCancelled
from uwsgitwisted.interfaces import Request, TimedAnswer


class Job:
    """A request and who waits for its answer.

    :param request: what is asked.
    :param now: the reactor's time, in seconds.
    :param withdraw: called with this job when its Deferred is cancelled.
    """

    __slots__ = ("_answer", "crashes", "deadline", "error", "group", "idempotent", "packet")

    def __init__(self, request: Request, now: float, withdraw: Callable[[Job], None]) -> None:
        self.packet = request.packet
        self.idempotent = request.idempotent
        #: Whose it is; see :attr:`uwsgitwisted.access.Peer.group`.
        self.group = request.peer.group
        #: How many workers have ended while they ran it.
        self.crashes = 0
        #: Until when its caller waits, in the reactor's time.
        self.deadline = math.inf if request.seconds is None else now + request.seconds
        #: Why its worker is being killed, if it is.
        self.error: Exception | None = None
        self._answer: Deferred[TimedAnswer] | None = Deferred(partial(self._cancel, withdraw))

    @property
    def answer(self) -> Deferred[TimedAnswer]:
        """Fires when the job is settled."""
        assert self._answer is not None
        return self._answer

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._answer is None

    def settle(self, result: TimedAnswer | Exception | Failure) -> None:
        """Answer, unless nobody waits any more."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if isinstance(result, TimedAnswer):
            answer.callback(result)
        else:
            answer.errback(result)

    def _cancel(self, withdraw: Callable[[Job], None], _: Deferred[TimedAnswer]) -> None:
        withdraw(self)
        self.settle(RequestCancelled("the request was cancelled"))
