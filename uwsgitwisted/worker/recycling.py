"""Decides whether a worker is recycled because of its memory or its age."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from time import monotonic

from uwsgitwisted.worker.spec import WorkerSpec


def recycling_due(spec: WorkerSpec) -> Callable[[], bool]:
    """Return a function that says after a request whether this worker uses too much memory, or is too old.

    :param spec: has the limits.
    """
    conditions: list[Callable[[], bool]] = []
    if spec.max_lifetime is not None:
        end = monotonic() + spec.max_lifetime
        conditions.append(lambda: monotonic() > end)
    if spec.reload_on_rss is not None:
        limit, resident = spec.reload_on_rss, _resident()
        conditions.append(lambda: resident() > limit)
    if not conditions:
        return lambda: False
    return lambda: any(condition() for condition in conditions)


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
