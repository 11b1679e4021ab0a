"""The streams on the pipe to one worker: bodies on their way to it, and answers on their way back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from uwsgitwisted.stream import Stream
from uwsgitwisted.wire.frame import NEXT_PIECE
from uwsgitwisted.wire.session import Session

#: How many bytes of an answer the front accepts before they have gone to the caller.
WINDOW = 256 * 1024
#: A window is granted again in parts of this size.
_GRANT = WINDOW // 4


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
        self._answers: dict[int, Stream] = {}
        #: How many bytes of each answer were taken, and not granted again.
        self._taken: dict[int, int] = {}

    @property
    def uploading(self) -> int:
        """How many bodies are still arriving from their peers."""
        return sum(not body.ended for body in self._bodies.values())

    @property
    def waits_for_peer(self) -> bool:
        """Whether a worker may be waiting for a peer: to send more of a body, or to read more of an answer."""
        bodies = self._bodies
        return any(not bodies[request].size and not bodies[request].ended for request in self._begun) or any(
            answer.size for answer in self._answers.values()
        )

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

    def begin_answer(self, request: int) -> Stream:
        """Return the stream of an answer that has begun."""
        self._taken[request] = 0
        answer = Stream(partial(self._on_taken, request), partial(self.cancel, request))
        self._answers[request] = answer
        return answer

    def _on_taken(self, request: int, size: int) -> None:
        taken = self._taken.get(request)
        if taken is None:  # it has ended
            return
        taken += size
        if taken >= _GRANT:
            self._session.streams.grant(request, taken)
            taken = 0
            self._flush()
        self._taken[request] = taken

    def cancel(self, request: int) -> None:
        """Tell the worker that nobody waits for an answer that has begun. It confirms that with an error."""
        self._session.send_cancel(request)
        self._flush()

    def receive(self, request: int, data: bytes) -> None:
        """Pass on bytes of an answer."""
        answer = self._answers.get(request)
        if answer is not None:
            answer.write(data)

    def end(self, request: int, error: Exception | None = None) -> None:
        """End the streams of a request that is answered.

        :param error: why its answer isn't complete, if it isn't.
        """
        body = self._bodies.pop(request, None)
        if body is not None:
            self._begun.discard(request)
            body.cancel()
        self._session.streams.forget(request)
        self._taken.pop(request, None)
        answer = self._answers.pop(request, None)
        if answer is not None:
            answer.end(error)

    def end_all(self, error: Exception) -> None:
        """End all streams with *error*: the worker has died."""
        for request in {*self._bodies, *self._answers}:
            self.end(request, error)
