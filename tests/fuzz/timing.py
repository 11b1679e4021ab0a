"""How the fuzzer finds what takes more than linear time."""

from __future__ import annotations

import time
from collections.abc import Callable

#: How often a measurement is repeated before it counts. Anything may make one long, but not all.
_TRIES = 3


def assert_linear(work: Callable[[], object], limit: float, what: str) -> None:
    """Assert that *work* takes at most *limit* seconds of processor time, at the best of a few tries.

    :param what: what takes the time, for the error's text.
    """
    taken: list[float] = []
    while len(taken) < _TRIES:
        began = time.thread_time()
        work()
        taken.append(time.thread_time() - began)
        if taken[-1] <= limit:
            return
    raise AssertionError(f"{what} takes {min(taken):.4f} s; {limit:.4f} s is the most")
