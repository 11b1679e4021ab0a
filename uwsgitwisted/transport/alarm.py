"""A timer for the time limits of connections."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Alarm:
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
