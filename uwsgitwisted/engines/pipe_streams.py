"""The streams on the pipe to one worker: bodies on their way to it, and answers on their way back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from uwsgitwisted.stream import Stream
from uwsgitwisted.transport.answers import AnswerStreams
from uwsgitwisted.wire.frame import NEXT_PIECE
from uwsgitwisted.wire.session import Session


class PipeStreams:
    """The streams of the requests in flight in one worker, by their ids.

    :param session: the session with the worker.
    :param flush: writes the session's frames.
    :param on_body_sent: called when all of a body has gone to the worker.
    """

    def __init__(self, session: Session, flush: Callable[[], None], on_body_sent: Callable[[], None]) -> None:
        self._session = session
        self._flush = flush
        self._on_body_sent = on_body_sent
        self._bodies: dict[int, Stream] = {}
        #: The requests with bodies that the worker has begun.
        self._begun: set[int] = set()
        #: The answers that have begun.
        self.answers = AnswerStreams(session, flush, self.cancel)

    @property
    def uploading(self) -> int:
        """How many bodies are still arriving from their peers."""
        return sum(not body.ended for body in self._bodies.values())

    @property
    def waits_for_peer(self) -> bool:
        """Whether a worker may be waiting for a peer: to send more of a body, or to read more of an answer."""
        bodies = self._bodies
        starved = any(not bodies[request].size and not bodies[request].ended for request in self._begun)
        return starved or self.answers.waiting

    def add_body(self, request: int, body: Stream) -> None:
        """Send a body to the worker when that has begun the request, which it shows by a first grant."""
        self._bodies[request] = body

    def withdraw(self, request: int) -> None:
        """Forget the body of a request that was recalled; nothing of it was sent."""
        if self._bodies.pop(request, None) is not None:
            self._begun.discard(request)

    def grant(self, request: int) -> None:
        """Handle a grant of the worker: go on with a body."""
        body = self._bodies.get(request)
        if body is None:
            return
        if request in self._begun:
            self._go_on(request)
        else:
            self._begun.add(request)
            body.on_ready(partial(self._go_on, request))

    def _go_on(self, request: int) -> None:
        """Send what there is of a body, as far as the worker has granted it."""
        body = self._bodies.get(request)
        if body is None:
            return
        streams = self._session.streams
        while data := body.take(min(NEXT_PIECE, streams.credit(request))):
            streams.send(request, data)
        if body.finished:
            self.withdraw(request)
            streams.send_end(request)
            self._on_body_sent()
        self._flush()

    def cancel(self, request: int) -> None:
        """Tell the worker that nobody waits for an answer that has begun. It confirms that with an error."""
        self._session.send_cancel(request)
        self._flush()

    def end(self, request: int, error: Exception | None = None, took: float = 0.0) -> None:
        """End the streams of a request that is answered.

        :param error: why its answer isn't complete, if it isn't.
        :param took: how long the handler ran, in seconds.
        """
        body = self._bodies.pop(request, None)
        if body is not None:
            self._begun.discard(request)
            body.cancel()
            self._session.streams.forget(request)
        self.answers.end(request, error, took)

    def end_all(self, error: Exception) -> None:
        """End all streams with *error*: the worker has died."""
        for request in list(self._bodies):
            self.end(request, error)
        self.answers.end_all(error)
