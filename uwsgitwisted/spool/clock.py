"""Detects steps of the wall clock."""

from __future__ import annotations

from collections.abc import Callable

#: The wall clock has stepped if it moved by more seconds than this against the monotonic clock. A slewed clock
#: stays below.
TOLERANCE = 1.0


class WallClockMonitor:
    """Compares the wall clock with a monotonic clock.

    :param now: the wall clock, in unix seconds.
    :param monotonic: the monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        #: The wall clock, in unix seconds.
        self.now = now
        self._monotonic = monotonic
        self._offset: float | None = None
        #: The sum of the steps that nobody has acted on, in seconds. Whoever acts on them sets it to 0.
        self.pending = 0.0

    def check(self) -> None:
        """Add a step since the last check to :attr:`pending`."""
        before, self._offset = self._offset, self.now() - self._monotonic()
        step = 0.0 if before is None else self._offset - before
        if abs(step) > TOLERANCE:
            self.pending += step
