"""Looks up the nodes that names stand for, without Twisted: hosts by the system, SRV records by dnspython."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from functools import partial
from threading import Lock

from uwsgitwisted.address import Address
from uwsgitwisted.blocking.sockets import Deadline, Steps, describe, in_thread, run
from uwsgitwisted.errors import ConnectionFailed, MisuseError, UwsgiError
from uwsgitwisted.sources.names import HostName, Name, ServiceName, ServiceRecord, best_records, one_family
from uwsgitwisted.sources.sources import LOOK_UP_TIMEOUT, Nodes, Sources

#: Seconds that a call waits for a look-up of what is known already.
_REFRESH_TIMEOUT = 0.5


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


class Watch:
    """The nodes of a list, while files and names change. Several threads may use it.

    :param nodes: as for :class:`~uwsgitwisted.sources.sources.Sources`.
    :param warn: called with a text when a file or a name fails, or is well again.
    :raises MisuseError: if a node is invalid, or a file is broken.
    """

    def __init__(self, nodes: Nodes, warn: Callable[[str], None]) -> None:
        self._sources = Sources(nodes, warn, time.monotonic())
        self._lock = Lock()

    @property
    def addresses(self) -> list[Address]:
        """The addresses of all nodes: the same list until they change."""
        with self._lock:
            return self._sources.addresses

    @property
    def failures(self) -> dict[str, str]:
        """The files and names that fail now, with the reasons."""
        with self._lock:
            return self._sources.failures

    @property
    def next_check(self) -> float:
        """When :meth:`check` has something to do next, by the monotonic clock; infinite if never."""
        with self._lock:
            due = self._sources.next_check
        return math.inf if due is None else due

    def check(self, timeout: float = LOOK_UP_TIMEOUT) -> list[Steps[None]]:
        """Read the files that have changed, and return look-ups that are due, for a loop to drive.

        :param timeout: seconds for each look-up.
        """
        with self._lock:
            names = self._sources.check(time.monotonic())
        return [self._look_up(name, Deadline.after(timeout)) for name in names]

    def refresh(self) -> None:
        """Do what :meth:`check` says now. What is known already waits only a moment for news."""
        with self._lock:
            settled = self._sources.settled
        run(self.check(_REFRESH_TIMEOUT if settled else LOOK_UP_TIMEOUT))

    def _look_up(self, name: Name, deadline: Deadline) -> Steps[None]:
        outcome: list[Address] | UwsgiError | None = None
        try:
            outcome = yield from look_up(name, deadline)
        except UwsgiError as error:
            outcome = error
        finally:
            with self._lock:
                self._end(name, outcome)
        return None

    def _end(self, name: Name, outcome: list[Address] | UwsgiError | None) -> None:
        now = time.monotonic()
        if outcome is None:
            self._sources.abandoned(name)
        elif isinstance(outcome, UwsgiError):
            self._sources.failed(name, outcome, now)
        else:
            self._sources.found(name, outcome, now)


def find_addresses(nodes: Nodes) -> list[Address]:
    """Return the addresses of all nodes in a list, as they are now.

    :param nodes: as for :class:`~uwsgitwisted.sources.sources.Sources`.
    :raises MisuseError: if a node is invalid, or a file is broken.
    :raises ConnectionFailed: if a name can't be looked up.
    """
    watch = Watch(nodes, lambda text: None)
    watch.refresh()
    for what, reason in watch.failures.items():
        raise ConnectionFailed(f"{what}: {reason}")
    return list(watch.addresses)
