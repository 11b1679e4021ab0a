"""Looks up the nodes that names stand for, without Twisted: hosts by the system, SRV records by dnspython."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial

from uwsgitwisted.address import Address
from uwsgitwisted.blocking.sockets import Deadline, Steps, describe, in_thread, run
from uwsgitwisted.errors import ConnectionFailed, MisuseError, UwsgiError
from uwsgitwisted.sources.names import HostName, Name, ServiceName, ServiceRecord, best_records, one_family
from uwsgitwisted.sources.sources import Nodes, Sources

#: Seconds for a look-up.
LOOK_UP_TIMEOUT = 5.0


def look_up(name: Name, deadline: Deadline) -> Steps[list[Address]]:
    """Return the nodes that *name* stands for.

    :raises UwsgiError: if the look-up fails.
    """
    find: Callable[[], list[Address]]
    if isinstance(name, HostName):
        find = partial(_find_hosts, name)
    else:
        find = partial(_find_service, name, deadline.seconds)
    try:
        return (yield from in_thread(find, str(name), deadline))
    except OSError as error:
        if isinstance(error, UwsgiError):
            raise
        raise ConnectionFailed(describe(error)) from error


def _find_hosts(name: HostName) -> list[Address]:
    try:
        found = socket.getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise MisuseError(f"{name.host!r} can't be a host's name: {error}") from error
    hosts = one_family([(family, str(sockaddr[0])) for family, _, _, _, sockaddr in found])
    return [Address("tcp", host, name.port) for host in hosts]


def _find_service(name: ServiceName, seconds: float) -> list[Address]:
    try:
        from dns.exception import DNSException
        from dns.resolver import resolve
    except ImportError as error:
        raise MisuseError("SRV records need dnspython: pip install 'uwsgitwisted[srv]'") from error
    try:
        answer = resolve(name.name, "SRV", search=False, lifetime=seconds)
    except DNSException as error:
        raise ConnectionFailed(str(error)) from error
    return best_records(ServiceRecord(each.priority, each.target.to_text(), each.port) for each in answer)


def find_addresses(nodes: Nodes, timeout: float = LOOK_UP_TIMEOUT) -> list[Address]:
    """Return the addresses of all nodes in a list, as they are now.

    :param nodes: as for :class:`~uwsgitwisted.sources.sources.Sources`.
    :param timeout: seconds for the look-ups, which run in parallel.
    :raises MisuseError: if a node is invalid, or a file is broken.
    :raises ConnectionFailed: if a name can't be looked up.
    """
    now = time.monotonic()
    sources = Sources(nodes, lambda text: None, now)
    names = sources.check(now)
    deadline = Deadline.after(timeout)
    for name, outcome in zip(names, run([look_up(name, deadline) for name in names]), strict=True):
        if isinstance(outcome, UwsgiError):
            sources.failed(name, outcome, now)
        else:
            sources.found(name, outcome, now)
    for what, reason in sources.failures.items():
        raise ConnectionFailed(f"{what}: {reason}")
    return sources.addresses
