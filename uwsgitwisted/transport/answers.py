"""Streamed answers, for those who have asked: as they arrive in a session, or collected."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from twisted.internet.defer import Deferred

from uwsgitwisted.errors import Busy, MessageTooLarge, UwsgiError
from uwsgitwisted.interfaces import StreamedAnswer
from uwsgitwisted.stream import Stream
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.session import Session

_T = TypeVar("_T")

#: How many bytes are taken at once.
_PIECE = 256 * 1024


class AnswerStreams:
    """The streamed answers that arrive in a session, by the ids of their requests.

    :param session: the session; this side is its client.
    :param flush: writes the session's frames.
    :param on_cancel: called with the id of an answer that nobody wants any more.
    """

    def __init__(self, session: Session, flush: Callable[[], None], on_cancel: Callable[[int], None]) -> None:
        self._session = session
        self._flush = flush
        self._on_cancel = on_cancel
        #: Those that have begun, and not ended.
        self.open: dict[int, Stream] = {}

    @property
    def waiting(self) -> bool:
        """Whether bytes have arrived that nobody has taken yet."""
        return any(answer.size for answer in self.open.values())

    def begin(self, request: int) -> Stream:
        """Return the stream of an answer that has begun. The peer may send more when some of it is taken."""
        answer = Stream(partial(self._on_taken, request), partial(self._on_cancel, request))
        self.open[request] = answer
        return answer

    def _on_taken(self, request: int, size: int) -> None:
        if self._session.streams.use(request, size):
            self._flush()

    def receive(self, request: int, data: bytes) -> None:
        """Pass on bytes of an answer."""
        answer = self.open.get(request)
        if answer is not None:
            answer.write(data)

    def end(self, request: int, error: Exception | None = None, took: float = 0.0) -> bool:
        """End an answer; return whether it was one of these.

        :param error: why it isn't complete, if it isn't.
        :param took: how long the handler ran, in seconds.
        """
        answer = self.open.pop(request, None)
        if answer is None:
            return False
        self._session.streams.forget(request)
        answer.end(error, took)
        return True

    def end_all(self, error: Exception) -> None:
        """End all answers with *error*."""
        for request in list(self.open):
            self.end(request, error)


def collect(
    answer: StreamedAnswer, limit: int, hold: Callable[[int], bool] = lambda _: True
) -> Deferred[Packet]:
    """Collect a streamed answer, for a peer that takes only whole messages.

    :param limit: the most bytes that it may have.
    :param hold: called with how many bytes have arrived; returns whether there is room for them. At the end, it
        is called with the negative of them all.
    :return: fires with the whole answer; fails with ``MessageTooLarge``, with ``Busy``, or with the error that
        ended it early. Cancelling it cancels the answer.
    """
    packet, stream = answer
    chunks = [packet.payload]
    held = 0
    collected: Deferred[Packet] = Deferred(lambda _: stream.cancel())

    def release(result: _T) -> _T:
        hold(-held)
        return result

    def refusal(size: int) -> UwsgiError | None:
        """Return why *size* more bytes are too many, or None if they aren't."""
        total = len(packet.payload) + held + size
        if total > limit:
            text = f"an answer of at least {total} bytes; the peer accepts {limit}"
            return MessageTooLarge(text, size=total, limit=limit)
        if not hold(size):
            return Busy(f"no room for an answer of at least {total} bytes now; try again later")
        return None

    def go_on() -> None:
        nonlocal held
        while data := stream.take(_PIECE):
            refused = refusal(len(data))
            if refused is not None:
                stream.cancel()
                collected.errback(refused)
                return
            held += len(data)
            chunks.append(data)
        if not stream.finished:
            return
        if stream.error is not None:
            collected.errback(stream.error)
        else:
            collected.callback(packet._replace(payload=b"".join(chunks)))

    collected.addBoth(release)
    stream.on_ready(go_on)
    return collected
