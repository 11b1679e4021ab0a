"""A request in flight in an engine."""

from __future__ import annotations

import math
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from uwsgitwisted.errors import RequestCancelled
from uwsgitwisted.interfaces import Request, StreamedAnswer, TimedAnswer


class Job:
    """A request and the Deferred of its answer.

    :param request: the request.
    :param now: the reactor's time, in seconds.
    :param on_cancel: called with this job when its Deferred is cancelled.
    :param worker_id: the only worker that may run it; 0 for any.
    """

    __slots__ = (
        "_answer",
        "_on_cancel",
        "body",
        "completed",
        "crashes",
        "deadline",
        "error",
        "group",
        "idempotent",
        "packet",
        "worker_id",
    )

    def __init__(
        self, request: Request, now: float, on_cancel: Callable[[Job], None], worker_id: int = 0
    ) -> None:
        packet, peer, seconds, idempotent, _, body = request
        self.packet = packet
        self.idempotent = idempotent
        #: The only worker that may run it; 0 for any.
        self.worker_id = worker_id
        #: The bytes that follow the packet, if they come as a stream.
        self.body = body
        #: The peer that it belongs to; see :attr:`uwsgitwisted.access.Peer.group`.
        self.group = peer.group
        #: Whether it was answered or cancelled.
        self.completed = False
        #: How many workers have died while running it.
        self.crashes = 0
        #: When it times out, in the reactor's time.
        self.deadline = math.inf if seconds is None else now + seconds
        #: Why its worker is being killed, if it is.
        self.error: Exception | None = None
        self._on_cancel = on_cancel
        self._answer: Deferred[TimedAnswer | StreamedAnswer] | None = Deferred(self._cancel)

    @property
    def answer(self) -> Deferred[TimedAnswer | StreamedAnswer]:
        """Fires when the job is completed. Cancelling it cancels the job."""
        assert self._answer is not None
        return self._answer

    @property
    def arriving(self) -> bool:
        """Whether it has a body that is still arriving."""
        return self.body is not None and not self.body.ended

    def complete(self, result: TimedAnswer | StreamedAnswer | Exception | Failure) -> None:
        """Fire the answer with *result*, unless it has fired."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        self.completed = True
        if isinstance(result, tuple):  # as both kinds of answers are
            answer.callback(result)
        else:
            answer.errback(result)

    def _cancel(self, _: Deferred[TimedAnswer | StreamedAnswer]) -> None:
        self._on_cancel(self)
        # It is never run again, and its caller no longer counts the memory that a worker's request would keep.
        self.packet = self.packet._replace(payload=b"")
        self.complete(RequestCancelled("the request was cancelled"))
