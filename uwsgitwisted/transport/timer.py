"""Timers for the time limits of connections."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Timer:
    """A timer that can be set again: one at most is running.

    :param clock: provides ``callLater``.
    :param ring: called when the time is over.
    """

    __slots__ = ("_call", "_clock", "_ring")

    def __init__(self, clock: IReactorTime, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._call: IDelayedCall | None = None

    @property
    def running(self) -> bool:
        """Whether it will ring."""
        return self._call is not None

    def set(self, seconds: float) -> None:
        """Ring in *seconds*, instead of when it was to ring before."""
        if self._call is not None:
            self._call.reset(seconds)
        else:
            self._call = self._clock.callLater(seconds, self._fire)

    def clear(self) -> None:
        """Don't ring."""
        if self._call is not None:
            call, self._call = self._call, None
            call.cancel()

    def _fire(self) -> None:
        self._call = None
        self._ring()


K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """One time limit for many things, with one timer: they are due in the order in which they were added.

    :param clock: provides ``callLater`` and ``seconds``.
    :param seconds: the limit.
    :param ring: called with each thing that is not discarded within it.
    """

    __slots__ = ("_clock", "_due", "_ring", "_seconds", "_timer")

    def __init__(self, clock: IReactorTime, seconds: float, ring: Callable[[K], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._ring = ring
        self._due: dict[K, float] = {}
        self._timer = Timer(clock, self._ring_due)

    def add(self, thing: K) -> None:
        """Begin its time."""
        self._due[thing] = self._clock.seconds() + self._seconds
        if not self._timer.running:
            self._timer.set(self._seconds)

    def discard(self, thing: K) -> None:
        """End its time, if it has any."""
        if self._due.pop(thing, None) is not None and not self._due:
            self._timer.clear()

    def _ring_due(self) -> None:
        now = self._clock.seconds()
        while self._due:
            thing, due = next(iter(self._due.items()))
            if due > now:
                self._timer.set(due - now)
                break
            del self._due[thing]
            self._ring(thing)
