"""The requests of one session: those that run, and those that are held until there is room for them."""

from __future__ import annotations

from collections import OrderedDict

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from uwsgitwisted.interfaces import Answer
from uwsgitwisted.wire.outgoing import OVERHEAD
from uwsgitwisted.wire.session import RequestReceived


def cost(event: RequestReceived) -> int:
    """Return about how many bytes of memory a request takes."""
    return len(event.packet.payload) + OVERHEAD


class Requests:
    """What a session has taken and not answered, by the ids of the requests.

    :param clock: keeps the time.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        # With the bytes that each takes.
        self._running: dict[int, tuple[Deferred[Answer], int]] = {}
        self._running_size = 0
        # With the times at which they came.
        self._held: OrderedDict[int, tuple[RequestReceived, float]] = OrderedDict()
        #: How many bytes those that are held take.
        self.held_size = 0

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    @property
    def held(self) -> int:
        """How many are held."""
        return len(self._held)

    @property
    def size(self) -> int:
        """How many bytes all of them take."""
        return self._running_size + self.held_size

    def __contains__(self, request: int) -> bool:
        return request in self._running or request in self._held

    def __bool__(self) -> bool:
        return bool(self._running or self._held)

    def hold(self, event: RequestReceived) -> None:
        """Keep a request until there is room for it."""
        self._held[event.id] = (event, self._clock.seconds())
        self.held_size += cost(event)

    def release(self) -> RequestReceived:
        """Return the first of those that are held, with the time that its caller still waits."""
        event, arrived = self._held.popitem(last=False)[1]
        self.held_size -= cost(event)
        if event.seconds is None:
            return event
        return event._replace(seconds=event.seconds - (self._clock.seconds() - arrived))

    def begin(self, event: RequestReceived, answer: Deferred[Answer]) -> None:
        """Add one that runs."""
        size = cost(event)
        self._running[event.id] = answer, size
        self._running_size += size

    def end(self, request: int, answer: Deferred[Answer]) -> bool:
        """Remove one whose answer is there; return whether that is waited for.

        One that was cancelled may fire all the same, when its request's id is that of another.
        """
        running, size = self._running.get(request, (None, 0))
        if running is not answer:
            return False
        del self._running[request]
        self._running_size -= size
        return True

    def cancel(self, request: int) -> None:
        """Remove one that nobody waits for any more."""
        if request in self._running:
            running, size = self._running.pop(request)
            self._running_size -= size
            running.cancel()
        elif request in self._held:
            self.held_size -= cost(self._held.pop(request)[0])

    def cancel_all(self) -> None:
        """Remove all of them."""
        self._held.clear()
        self.held_size = 0
        for request in list(self._running):
            self.cancel(request)
