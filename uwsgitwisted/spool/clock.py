"""Notices that the time of day was set."""

from __future__ import annotations

from collections.abc import Callable

#: By how much two clocks part in seconds before it counts as having been set. A slewed clock stays below.
TOLERANCE = 1.0


class ClockWatch:
    """Compares the time of day with a clock that is never set.

    :param now: the time of day, in unix seconds.
    :param steady: a clock that only goes forward, in seconds.
    """

    def __init__(self, now: Callable[[], float], steady: Callable[[], float]) -> None:
        self._now = now
        self._steady = steady
        self._offset: float | None = None

    def jump(self) -> float:
        """Return by how many seconds the time of day was set since the last call; 0.0 if it was not."""
        before, self._offset = self._offset, self._now() - self._steady()
        jump = 0.0 if before is None else self._offset - before
        return jump if abs(jump) > TOLERANCE else 0.0
