"""The streamed answers that a session passes on: as far as its client grants, in turns, and not for ever."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from uwsgitwisted.errors import MessageTooLarge, RequestTimeout
from uwsgitwisted.interfaces import StreamedAnswer
from uwsgitwisted.stream import Stream
from uwsgitwisted.transport.batch import BATCH
from uwsgitwisted.transport.timer import Deadlines
from uwsgitwisted.wire.frame import NEXT_PIECE
from uwsgitwisted.wire.session import Session
from uwsgitwisted.wire.terms import STREAM_WINDOW

#: What a streamed answer may hold, in bytes: what a worker sends ahead, and a piece that is queued.
ANSWER_MEMORY = STREAM_WINDOW + NEXT_PIECE


@dataclass(slots=True)
class _Flow:
    """An answer on its way.

    :param stream: what has arrived of it.
    :param done: see :meth:`StreamedAnswers.send`.
    :param stalled: whether its client has to grant more.
    """

    stream: Stream
    done: Deferred[None]
    stalled: bool = False


class StreamedAnswers:
    """Sends answers as they arrive, as fast as their client takes them.

    The answers of one client take turns, a piece each. One that its client doesn't read costs the others
    nothing: its worker waits, and after a time limit it is cancelled.

    :param session: the session.
    :param clock: for the time limit.
    :param stall_timeout: for how many seconds the client may grant nothing of an answer while bytes of it wait.
        A client that reads slowly may take any number of seconds.
    :param on_progress: called when there is something to send.
    :param on_stalled: called when the time limit of an answer has passed.
    """

    def __init__(
        self,
        session: Session,
        clock: IReactorTime,
        stall_timeout: float,
        on_progress: Callable[[], None],
        on_stalled: Callable[[], None],
    ) -> None:
        self._session = session
        self._stall_timeout = stall_timeout
        self._on_progress = on_progress
        self._on_stalled = on_stalled
        self._flows: dict[int, _Flow] = {}
        #: How many there are. A session looks at it for every request, so it is kept.
        self.number = 0
        # Those with bytes that may be sent.
        self._turns: OrderedDict[int, None] = OrderedDict()
        self._stalled: Deadlines[int] = Deadlines(clock, stall_timeout, self._end_stalled)

    @property
    def ready(self) -> bool:
        """Whether there are bytes that may be sent."""
        return bool(self._turns)

    def send(self, request: int, answer: StreamedAnswer) -> Deferred[None]:
        """Begin to send an answer.

        :return: fires when all of it is queued; fails with the error that has ended it early, which the caller
            has to send. Cancelling it cancels the answer.
        """
        try:
            self._session.send_streamed_answer(request, answer.packet)
        except MessageTooLarge as error:
            answer.stream.cancel()
            return fail(error)
        done: Deferred[None] = Deferred(lambda _: self._remove(request).stream.cancel())
        self._flows[request] = _Flow(answer.stream, done)
        self.number += 1
        answer.stream.on_ready(lambda: self._go_on(request))
        return done

    def granted(self, request: int) -> None:
        """Go on with an answer of which its client accepts more."""
        flow = self._flows.get(request)
        if flow is not None:
            self._set_stalled(request, flow, stalled=False)
            self._look(request, flow)

    def add_piece(self) -> None:
        """Queue a piece of the answer whose turn it is."""
        if not self._turns:
            return
        request, _ = self._turns.popitem(last=False)
        flow, streams = self._flows[request], self._session.streams
        streams.send(request, flow.stream.take(min(NEXT_PIECE, streams.credit(request))))
        if self._flows.get(request) is flow:
            self._look(request, flow)

    def _go_on(self, request: int) -> None:
        """Handle further bytes of an answer, or its end."""
        self._look(request, self._flows[request])
        BATCH.at_end(self._on_progress)

    def _look(self, request: int, flow: _Flow) -> None:
        """Give an answer its turn if it can go on, or end it."""
        if flow.stream.finished:
            self._end(request, flow.stream.error)
        elif flow.stream.size and self._session.streams.credit(request):
            self._turns[request] = None
        elif flow.stream.size:
            self._set_stalled(request, flow, stalled=True)

    def _set_stalled(self, request: int, flow: _Flow, *, stalled: bool) -> None:
        """Start the time limit of an answer, or stop it."""
        if stalled and not flow.stalled:
            self._stalled.add(request)
        elif not stalled:
            self._stalled.discard(request)
        flow.stalled = stalled

    def _end_stalled(self, request: int) -> None:
        self._on_stalled()
        self._flows[request].stream.cancel()
        limit = f"within {self._stall_timeout:g} s"
        error = RequestTimeout(f"the caller took no more of the answer {limit}", seconds=self._stall_timeout)
        self._end(request, error)

    def _end(self, request: int, error: Exception | None) -> None:
        flow = self._remove(request)
        if error is None:
            self._session.streams.send_end(request, flow.stream.took)
            flow.done.callback(None)
        else:
            flow.done.errback(error)

    def _remove(self, request: int) -> _Flow:
        flow = self._flows.pop(request)
        self.number -= 1
        self._turns.pop(request, None)
        self._stalled.discard(request)
        self._stalled.rest()  # nothing of a session stays when it has ended
        return flow
