"""The requests of an engine that somebody else runs: a bounded number, each within its time."""

from __future__ import annotations

from collections import Counter

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from uwsgitwisted.access import Peer
from uwsgitwisted.engines.fair import refusal
from uwsgitwisted.errors import Interrupted, RequestCancelled, RequestTimeout, Unavailable, UwsgiError
from uwsgitwisted.interfaces import Request
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.wire.packet import Packet


class Waiting:
    """Requests that are under way.

    :param clock: keeps the time.
    :param timeout: seconds that each may take.
    :param limit: how many there may be at once.
    """

    def __init__(self, clock: IReactorTime, *, timeout: float, limit: int) -> None:
        self._clock = clock
        self._timeout = timeout
        self._limit = limit
        self._running: set[Deferred[Packet]] = set()
        self._by_peer: Counter[str] = Counter()
        self._stopping = False
        self._drained: Deferred[None] = Deferred()
        self._stop_timer = Timer(clock, self._give_up)

    def refusal(self, peer: Peer) -> UwsgiError | None:
        """Return why there can't be one more of *peer*, or None if there can."""
        if self._stopping:
            return Unavailable("the node is stopping")
        return refusal(peer, self._by_peer[peer.group], len(self._running), self._limit)

    def add(self, request: Request, answer: Deferred[Packet]) -> Deferred[Packet]:
        """Wait for *answer*.

        :param answer: it is cancelled when its time is over, or nobody waits any more.
        :return: fires with the answer; fails with one of our errors.
        """
        limit = self._timeout if request.seconds is None else min(self._timeout, request.seconds)
        answer.addTimeout(limit, self._clock)
        answer.addErrback(self._explain, limit)
        self._running.add(answer)
        self._by_peer[request.peer.group] += 1
        return answer.addBoth(self._done, answer, request.peer.group)

    def stop(self, seconds: float) -> Deferred[None]:
        """Take nothing more. It may be called again with less time.

        :param seconds: after that, what is still under way is cancelled.
        :return: fires when nothing is under way any more.
        """
        self._stopping = True
        self._stop_timer.set(seconds)
        self._check_drained()
        return self._drained

    def _give_up(self) -> None:
        for running in list(self._running):
            running.cancel()

    def _done(self, result: Packet | Failure, answer: Deferred[Packet], group: str) -> Packet | Failure:
        self._running.discard(answer)
        self._by_peer[group] -= 1
        if not self._by_peer[group]:
            del self._by_peer[group]
        self._check_drained()
        return result

    def _check_drained(self) -> None:
        if self._stopping and not self._running:
            self._stop_timer.clear()
            if not self._drained.called:
                self._drained.callback(None)

    def _explain(self, failure: Failure, limit: float) -> Failure:
        error = failure.value
        if isinstance(error, DeferredTimeout):
            return Failure(RequestTimeout(f"the request took longer than {limit:g} s", seconds=limit))
        if isinstance(error, CancelledError):
            if self._stopping:
                return Failure(Interrupted("the node was stopped while it ran the request"))
            return Failure(RequestCancelled("the request was cancelled"))
        return failure
