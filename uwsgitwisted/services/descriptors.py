"""File descriptors: raises this process's limit, and computes how many connections fit."""

from __future__ import annotations

import resource

from uwsgitwisted.transport.server.connections import EVICTED_PART

#: Descriptors for the reactor, ports, logs and a store, and temporarily for starting a process.
_RESERVE = 48
#: Descriptors of this process for each worker process: a socket, the pipes of its output and its tokens, and
#: shared memory; as many again for its successor while the worker is replaced.
_EACH_WORKER = 12
#: The minimum number of connections of a service.
_FEWEST = 8


def soft_limit() -> int:
    """Return the number of descriptors that this process, and each process that it starts, may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allowed_connections(wanted: int, workers: int) -> int:
    """Raise this process's limit as far as needed and possible, and return how many connections fit.

    :param wanted: the number of connections that should fit.
    :param workers: the number of worker processes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserve = _RESERVE + workers * _EACH_WORKER
    needed = wanted + wanted // EVICTED_PART + reserve
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(_FEWEST, min(wanted, (soft - reserve) * EVICTED_PART // (EVICTED_PART + 1)))
