"""Follows files of nodes, and names in the DNS, with Deferreds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IResolutionReceiver
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.address import Address, AddressLike
from uwsgitwisted.errors import ConnectionFailed, RequestTimeout, UwsgiError
from uwsgitwisted.sources.names import (
    HostName,
    Name,
    ServiceName,
    ServiceRecord,
    best_records,
    one_family,
    parse_node,
)
from uwsgitwisted.sources.sources import FILE_MARK, LOOK_UP_TIMEOUT, Nodes, Sources
from uwsgitwisted.transport.timer import Timer

_DNS_PORT = 53

LookUp = Callable[[Name], Deferred[list[Address]]]


def may_change(nodes: Nodes) -> bool:
    """Whether there is something to follow: a file, or a name.

    :raises MisuseError: if a node is invalid.
    """
    each = [nodes] if isinstance(nodes, str) else nodes
    return any(_is_file(node) or not isinstance(parse_node(node), Address) for node in each)


def _is_file(node: AddressLike) -> bool:
    return isinstance(node, str) and node.startswith(FILE_MARK)


class SourceWatcher:
    """Follows the nodes that a list stands for.

    :param reactor: runs the timer, and looks names up.
    :param nodes: as for :class:`~uwsgitwisted.sources.sources.Sources`.
    :param changed: called with the addresses of all nodes, at first and when they have changed.
    :param look_up: looks a name up; None for the reactor's resolver, and Twisted Names for SRV records.
    :raises MisuseError: if a node is invalid, or a file can't be read.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        nodes: Nodes,
        changed: Callable[[list[Address]], None],
        look_up: LookUp | None = None,
    ) -> None:
        self._reactor = reactor
        self._changed = changed
        self._find = look_up or _Resolver(reactor).look_up
        self._sources = Sources(nodes, self._warn, reactor.seconds())
        self._timer = Timer(reactor, self._check)
        self._running: dict[Name, Deferred[list[Address]]] = {}
        self._addresses: list[Address] | None = None
        self._waiting: list[Deferred[None]] = []

    def start(self) -> None:
        """Begin; files are read at once."""
        self._check()

    def stop(self) -> None:
        """End all look-ups."""
        self._timer.clear()
        running, self._running = self._running, {}
        for found in running.values():
            found.cancel()
        self._wake()

    def when_settled(self) -> Deferred[None]:
        """Return a Deferred that fires when every name has been looked up once, or has failed."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if self._sources.settled or not self._running:
            self._wake()
        return waiting

    def _warn(self, text: str) -> None:
        self._log.warn("nodes of a cluster: {text}", text=text)

    def _check(self) -> None:
        for name in self._sources.check(self._reactor.seconds()):
            found = self._find(name)
            self._running[name] = found
            found.addTimeout(LOOK_UP_TIMEOUT, self._reactor, _on_timeout)
            found.addCallbacks(
                self._on_found, self._on_failed, callbackArgs=(name, found), errbackArgs=(name, found)
            )
        self._update()

    def _on_found(self, addresses: list[Address], name: Name, found: object) -> None:
        if self._ended(name, found):
            self._sources.found(name, addresses, self._reactor.seconds())
            self._update()

    def _on_failed(self, failure: Failure, name: Name, found: object) -> None:
        if self._ended(name, found):
            error = failure.value
            ours = error if isinstance(error, UwsgiError) else ConnectionFailed(str(error))
            self._sources.failed(name, ours, self._reactor.seconds())
            self._update()

    def _ended(self, name: Name, found: object) -> bool:
        """Forget a look-up; return whether it still counts, since this was not stopped."""
        # A look-up that ends at once does so before it was noted.
        return self._running.pop(name, None) is found

    def _update(self) -> None:
        addresses = self._sources.addresses
        if addresses != self._addresses:
            self._addresses = addresses
            self._changed(addresses)
        due = self._sources.next_check
        if due is not None:
            self._timer.set(max(0.0, due - self._reactor.seconds()))
        if self._sources.settled:
            self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)


def _on_timeout(result: object, seconds: float) -> object:
    raise RequestTimeout(f"the name was not resolved within {seconds:g} seconds", seconds=seconds)


class _Resolver:
    """Looks names up: hosts as the reactor does for connections, and SRV records with Twisted Names."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def look_up(self, name: Name) -> Deferred[list[Address]]:
        """Return a Deferred of the nodes that *name* stands for."""
        return self._find_hosts(name) if isinstance(name, HostName) else self._find_service(name)

    def _find_hosts(self, name: HostName) -> Deferred[list[Address]]:
        receiver = _Receiver(name)
        self._reactor.nameResolver.resolveHostName(receiver, name.host, name.port, transportSemantics="TCP")
        return receiver.found

    def _find_service(self, name: ServiceName) -> Deferred[list[Address]]:
        from twisted.names import client  # imported late, since few need it

        # A resolver that reads the system's file by itself would keep a timer for good.
        resolver = client.Resolver(servers=read_servers(), reactor=self._reactor)
        found: Deferred[Any] = resolver.lookupService(name.name)
        return found.addCallback(lambda answer: read_records(answer[0]))


def read_servers(path: str = "/etc/resolv.conf") -> list[tuple[str, int]]:
    """Return the addresses and ports of the system's name servers."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        lines = []
    servers = [(words[1], _DNS_PORT) for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return servers or [("127.0.0.1", _DNS_PORT)]


def read_records(answers: Iterable[Any]) -> list[Address]:
    """Return the nodes in the answers of Twisted Names."""
    from twisted.names import dns

    records = [answer.payload for answer in answers if answer.type == dns.SRV]
    return best_records(
        ServiceRecord(each.priority, each.target.name.decode("ascii", "replace"), each.port) for each in records
    )


@implementer(IResolutionReceiver)
class _Receiver:
    """Collects the addresses of a host."""

    def __init__(self, name: HostName) -> None:
        self._name = name
        self._hosts: list[tuple[int, str]] = []
        self.found: Deferred[list[Address]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: object) -> None:  # noqa: N802, N803 - Twisted's names
        """Do nothing."""

    def addressResolved(self, address: object) -> None:  # noqa: N802 - Twisted's name
        """Keep an address."""
        if isinstance(address, (IPv4Address, IPv6Address)):
            self._hosts.append((4 if isinstance(address, IPv4Address) else 6, address.host))

    def resolutionComplete(self) -> None:  # noqa: N802 - Twisted's name
        """Hand the addresses over."""
        if not self.found.called:  # it has timed out
            self.found.callback([Address("tcp", host, self._name.port) for host in one_family(self._hosts)])
