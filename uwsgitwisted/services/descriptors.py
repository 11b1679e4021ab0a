"""File descriptors: how many this process may have, and how many of them are left to connections."""

from __future__ import annotations

import resource

from uwsgitwisted.transport.server.connections import EVICTED_PART

#: What the reactor, ports, logs and a store need, and what starting a process takes for a moment.
_RESERVE = 48
#: What each worker process needs here: a socket, the pipes of its output and its tokens; and its successor's,
#: while it is replaced.
_EACH_WORKER = 10
#: The fewest connections that a service is started for.
_FEWEST = 8


def soft_limit() -> int:
    """Return how many descriptors this process may have, and so may what it starts."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allowed_connections(wanted: int, workers: int) -> int:
    """Raise this process's limit as far as that is needed and possible, and return how many connections fit.

    :param wanted: how many are to fit.
    :param workers: how many worker processes there are.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserve = _RESERVE + workers * _EACH_WORKER
    needed = wanted + wanted // EVICTED_PART + reserve
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(_FEWEST, min(wanted, (soft - reserve) * EVICTED_PART // (EVICTED_PART + 1)))
