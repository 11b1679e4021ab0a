"""The progress of a map, in numbers."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import NamedTuple

#: Seconds between two reports of the progress.
REPORT_INTERVAL = 0.1
#: The rate is that of about so many seconds.
_MEMORY = 5.0


class NodeProgress(NamedTuple):
    """What a node has done for a map.

    :param node: the node, as the caller wrote it.
    :param done: how many items it has answered.
    :param speed: how many items it does in a second, all its workers together; 0 before its first answer.
    :param in_flight: how many requests it has.
    :param failures: how many requests have failed there, errors of handlers apart.
    :param left_out: whether it is left out now because it failed.
    """

    node: Hashable
    done: int
    speed: float
    in_flight: int
    failures: int
    left_out: bool


class Progress(NamedTuple):
    """How far a map is.

    :param done: how many items have been answered.
    :param failed: how many items have failed for good, besides.
    :param total: how many there are; None if that is not known yet.
    :param rate: how many items are done in a second at present.
    :param remaining: seconds until the end at that rate; None if that is not known.
    :param elapsed: seconds since the beginning.
    :param nodes: each node's numbers.
    """

    done: int
    failed: int
    total: int | None
    rate: float
    remaining: float | None
    elapsed: float
    nodes: tuple[NodeProgress, ...]


class Rate:
    """How many items are done in a second at present.

    :param now: when the work begins.
    """

    def __init__(self, now: float) -> None:
        self._began = self._at = now
        self._done = 0
        self._rate = 0.0

    def update(self, done: int, now: float) -> float:
        """Return the rate.

        :param done: how many items are done by now.
        """
        passed = now - self._at
        if passed <= 0:
            return self._rate
        # The weight of what is new; the first numbers are an average since the beginning.
        weight = max(1 - math.exp(-passed / _MEMORY), passed / (now - self._began))
        self._rate += weight * ((done - self._done) / passed - self._rate)
        self._at, self._done = now, done
        return self._rate
