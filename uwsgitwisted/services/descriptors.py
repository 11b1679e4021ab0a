"""File descriptors: raises this process's limit, and computes how many connections fit."""

from __future__ import annotations

import resource
from typing import NamedTuple

from uwsgitwisted.transport.server.connections import EVICTED_PART

#: Descriptors for the reactor, ports, logs and a store, and temporarily for starting a process.
_RESERVE = 48
#: Descriptors of this process for each worker process: a socket, the pipes of its output and its tokens, and
#: shared memory; as many again for its successor while the worker is replaced.
_EACH_WORKER = 12
#: The minimum number of connections of a service.
_FEWEST = 8
#: The part of scarce descriptors that shared state may take, and the minimum for each process.
_SHARED_PART, _FEWEST_SHARED = 4, 4


def soft_limit() -> int:
    """Return the number of descriptors that this process, and each process that it starts, may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Shares(NamedTuple):
    """How many descriptors of this process are for what.

    :param connections: how many connections of peers fit.
    :param shared: how many connections for shared state each worker process and each mule may have.
    """

    connections: int
    shared: int


def share_descriptors(wanted: int, processes: int, shared: int = 0) -> Shares:
    """Raise this process's limit as far as needed and possible, and share the descriptors out.

    :param wanted: the number of connections of peers that should fit.
    :param processes: the number of worker processes and mules.
    :param shared: how many connections for shared state each of these should have; 0 where there is none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserve = _RESERVE + processes * _EACH_WORKER
    sharing = processes + 1  # they are replaced one by one, and a successor has connections too
    needed = wanted + wanted // EVICTED_PART + reserve + sharing * shared
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    left = max(0, soft - reserve)
    each = min(shared, max(_FEWEST_SHARED, left // _SHARED_PART // sharing))
    fitting = (left - sharing * each) * EVICTED_PART // (EVICTED_PART + 1)
    return Shares(max(_FEWEST, min(wanted, fitting)), each)
