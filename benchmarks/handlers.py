"""The handler of the benchmarks' nodes."""

from __future__ import annotations

import time

import uwsgi

from benchmarks.messages import COMPUTE, COST, MAKE, PRETEND


def pretend(bounds: list[int], cost: float) -> int:
    """Take *cost* seconds for each item, without a processor: five nodes have room on two cores then.

    :param bounds: the first item, and the one after the last.
    :return: how many items there were.
    """
    start, stop = bounds
    time.sleep((stop - start) * cost)
    return stop - start


def handle(message: object, modifier2: int) -> object:
    """Return *message*, compute for that many seconds, or return that many bytes."""
    if modifier2 == COMPUTE:
        assert isinstance(message, float)
        end = time.monotonic() + message
        while time.monotonic() < end:
            pass
        return None
    if modifier2 == PRETEND:
        return pretend(message, COST)  # type: ignore[arg-type]
    if modifier2 == MAKE:
        assert isinstance(message, int)
        return bytes(message)
    return message


uwsgi.message_manager_marshal = handle
