"""Decides whether a worker is recycled because of its memory or its age, or because it ran out of memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uwsgitwisted.worker.spec import WorkerSpec


class _Memory:
    """What is known of this process's memory."""

    def __init__(self) -> None:
        #: Whether a request ran out of it. What holds the memory goes with the process.
        self.exhausted = False


_memory = _Memory()


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether *error*, with which a request has failed, comes from a lack of memory; remember it if so."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            _memory.exhausted = True
            return True
        cause = cause.__cause__
    return False


def recycling_due(spec: WorkerSpec) -> Callable[[], bool]:
    """Return a function that says after a request whether this worker has too much memory, or is too old.

    :param spec: has the limits.
    """
    _memory.exhausted = False
    conditions: list[Callable[[], bool]] = []
    if spec.max_lifetime is not None:
        end = monotonic() + spec.max_lifetime
        conditions.append(lambda: monotonic() > end)
    if spec.reload_on_rss is not None:
        limit, resident = spec.reload_on_rss, _resident()
        conditions.append(lambda: resident() > limit)
    if not conditions:
        return lambda: _memory.exhausted
    return lambda: _memory.exhausted or any(condition() for condition in conditions)


def _resident() -> Callable[[], int]:
    """Return a function that tells this process's resident memory, in bytes.

    Where there is no ``/proc``, it is the most that the process has had.
    """
    try:
        statistics = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    page = resource.getpagesize()
    return lambda: int(os.pread(statistics, 128, 0).split()[1]) * page
