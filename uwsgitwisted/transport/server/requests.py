"""The requests of one session: those that run, and those that are held until there is room to start them."""

from __future__ import annotations

from collections import OrderedDict

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from uwsgitwisted.interfaces import Answer
from uwsgitwisted.wire.events import RequestReceived
from uwsgitwisted.wire.outgoing import OVERHEAD


def cost(event: RequestReceived) -> int:
    """Return roughly how many bytes of memory a request takes."""
    return len(event.packet.payload) + OVERHEAD


class Requests:
    """The requests that a session has accepted and not answered, by their ids.

    :param clock: keeps the time.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        #: Those that run, each with its size in bytes.
        self.running: dict[int, tuple[Deferred[Answer], int]] = {}
        # Those whose answers have begun.
        self._begun: set[int] = set()
        #: How many bytes those take whose answers have begun.
        self.begun_size = 0
        #: Those that are held, each with its time of arrival.
        self.held: OrderedDict[int, tuple[RequestReceived, float]] = OrderedDict()
        #: How many bytes the held requests take, and how many all of them.
        self.held_size = self.size = 0

    def __bool__(self) -> bool:
        return bool(self.running or self.held)

    def hold(self, event: RequestReceived) -> None:
        """Hold a request until there is room to start it."""
        size = cost(event)
        self.held[event.id] = (event, self._clock.seconds())
        self.held_size += size
        self.size += size

    def release(self) -> RequestReceived:
        """Remove and return the first held request, with the time left until its deadline."""
        event, arrived = self.held.popitem(last=False)[1]
        self._forget_held(event)
        if event.seconds is None:
            return event
        return event._replace(seconds=event.seconds - (self._clock.seconds() - arrived))

    def _forget_held(self, event: RequestReceived) -> None:
        size = cost(event)
        self.held_size -= size
        self.size -= size

    def begin(self, event: RequestReceived, answer: Deferred[Answer]) -> None:
        """Add a running request."""
        size = cost(event)
        self.running[event.id] = answer, size
        self.size += size

    def begin_answer(self, request: int) -> None:
        """Note that the answer of a running request has begun."""
        self._begun.add(request)
        self.begun_size += self.running[request][1]

    def _remove(self, request: int) -> Deferred[Answer]:
        running, size = self.running.pop(request)
        self.size -= size
        if request in self._begun:
            self._begun.discard(request)
            self.begun_size -= size
        return running

    def end(self, request: int, answer: Deferred[Answer]) -> bool:
        """Remove an answered request; return whether its *answer* is still wanted.

        The Deferred of a cancelled request may fire after all, when another request already has its id.
        """
        running = self.running.get(request)
        if running is None or running[0] is not answer:
            return False
        self._remove(request)
        return True

    def cancel(self, request: int) -> None:
        """Remove a cancelled request, and cancel its answer."""
        if request in self.running:
            self._remove(request).cancel()
        elif request in self.held:
            self._forget_held(self.held.pop(request)[0])

    def cancel_all(self) -> None:
        """Remove and cancel all requests."""
        self.held.clear()
        self.size -= self.held_size
        self.held_size = 0
        for request in list(self.running):
            self.cancel(request)
