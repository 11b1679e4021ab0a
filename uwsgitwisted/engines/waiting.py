"""The requests in flight of an engine whose handlers run elsewhere: limits their number and their time."""

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
    """The requests in flight.

    :param clock: keeps the time.
    :param timeout: seconds that each may take.
    :param limit: how many may be in flight at once.
    """

    def __init__(self, clock: IReactorTime, *, timeout: float, limit: int) -> None:
        self._clock = clock
        self._timeout = timeout
        self._limit = limit
        self._running: set[Deferred[Packet]] = set()
        self._by_peer: Counter[str] = Counter()
        self._stopping = False
        self._drained: Deferred[None] = Deferred()
        self._stop_timer = Timer(clock, self._cancel_all)

    def refusal(self, peer: Peer) -> UwsgiError | None:
        """Return why *peer* may not add a request, or None if it may."""
        if self._stopping:
            return Unavailable("the node is stopping")
        return refusal(peer, self._by_peer[peer.group], len(self._running), self._limit)

    def add(self, request: Request, answer: Deferred[Packet]) -> Deferred[Packet]:
        """Add a request whose *answer* is awaited.

        :param answer: cancelled when the request times out.
        :return: fires with the answer; fails with one of our errors. Cancelling it cancels *answer*.
        """
        limit = self._timeout if request.seconds is None else min(self._timeout, request.seconds)
        answer.addTimeout(limit, self._clock)
        answer.addErrback(self._translate_error, limit)
        self._running.add(answer)
        self._by_peer[request.peer.group] += 1
        return answer.addBoth(self._remove, answer, request.peer.group)

    def stop(self, seconds: float) -> Deferred[None]:
        """Accept nothing more. It may be called again with less time.

        :param seconds: after this time, requests still in flight are cancelled.
        :return: fires when nothing is in flight.
        """
        self._stopping = True
        self._stop_timer.set(seconds)
        self._check_drained()
        return self._drained

    def _cancel_all(self) -> None:
        for running in list(self._running):
            running.cancel()

    def _remove(self, result: Packet | Failure, answer: Deferred[Packet], group: str) -> Packet | Failure:
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

    def _translate_error(self, failure: Failure, limit: float) -> Failure:
        error = failure.value
        if isinstance(error, DeferredTimeout):
            return Failure(RequestTimeout(f"the request took longer than {limit:g} s", seconds=limit))
        if isinstance(error, CancelledError):
            if self._stopping:
                return Failure(Interrupted("the node was stopped while running the request"))
            return Failure(RequestCancelled("the request was cancelled"))
        return failure
