"""Timers for the time limits of connections."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Timer:
    """A timer that can be set again; it has at most one delayed call.

    :param clock: provides ``callLater``.
    :param on_timeout: called when the time is up.
    """

    __slots__ = ("_call", "_clock", "_on_timeout")

    def __init__(self, clock: IReactorTime, on_timeout: Callable[[], None]) -> None:
        self._clock = clock
        self._on_timeout = on_timeout
        self._call: IDelayedCall | None = None

    @property
    def running(self) -> bool:
        """Whether the timer is set."""
        return self._call is not None

    def set(self, seconds: float) -> None:
        """Call ``on_timeout`` in *seconds*; this replaces an earlier setting."""
        if self._call is not None:
            self._call.reset(seconds)
        else:
            self._call = self._clock.callLater(seconds, self._on_time_up)

    def clear(self) -> None:
        """Stop the timer."""
        if self._call is not None:
            call, self._call = self._call, None
            call.cancel()

    def _on_time_up(self) -> None:
        self._call = None
        self._on_timeout()


K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """One time limit for many things. They expire in the order of their addition, so one timer is enough.

    :param clock: provides ``callLater`` and ``seconds``.
    :param seconds: the limit.
    :param on_timeout: called with each thing that is not discarded in time.
    """

    __slots__ = ("_clock", "_due", "_on_timeout", "_seconds", "_timer")

    def __init__(self, clock: IReactorTime, seconds: float, on_timeout: Callable[[K], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._on_timeout = on_timeout
        self._due: dict[K, float] = {}
        self._timer = Timer(clock, self._expire_due)

    def add(self, thing: K) -> None:
        """Start the time of *thing*."""
        self._due[thing] = self._clock.seconds() + self._seconds
        if not self._timer.running:
            self._timer.set(self._seconds)

    def discard(self, thing: K) -> None:
        """Stop the time of *thing*, if it runs.

        The timer goes on, even if nothing is left: to stop and set it for each of many short-lived things would
        cost more than that it expires for nothing once in a while.
        """
        self._due.pop(thing, None)

    def rest(self) -> None:
        """Stop the timer if no time runs."""
        if not self._due:
            self._timer.clear()

    def _expire_due(self) -> None:
        now = self._clock.seconds()
        while self._due:
            thing, due = next(iter(self._due.items()))
            if due > now:
                self._timer.set(due - now)
                break
            del self._due[thing]
            self._on_timeout(thing)
