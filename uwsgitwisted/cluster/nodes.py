"""The nodes of a cluster: their connections, and what they say about themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from twisted.internet.defer import Deferred, DeferredList

from uwsgitwisted.address import Address, parse_address
from uwsgitwisted.transport.client.node import Node
from uwsgitwisted.wire.terms import Terms

#: An address as the caller wrote it.
NodeAddress = Address | str | tuple[str, int | str]


class Watcher(Protocol):
    """Who is told of changes."""

    def add_node(self, address: NodeAddress, terms: Terms | None) -> None:
        """Use a node, whose terms are known if it has granted a session."""

    def remove_node(self, address: NodeAddress) -> None:
        """Use a node no longer."""

    def set_terms(self, address: NodeAddress, terms: Terms) -> None:
        """Learn the terms of a node, which has granted a session."""


class Nodes:
    """The nodes, by their addresses as the caller wrote them.

    :param connect: makes the connection to an address; the second argument is called with the node's terms.
    """

    def __init__(self, connect: Callable[[Address, Callable[[Terms], None]], Node]) -> None:
        self._connect = connect
        self._connections: dict[NodeAddress, Node] = {}
        self._terms: dict[NodeAddress, Terms | None] = {}
        self._watchers: dict[Watcher, None] = {}

    def __iter__(self) -> Iterator[NodeAddress]:
        return iter(self._terms)

    def connection(self, address: NodeAddress) -> Node:
        """Return the connection to a node."""
        return self._connections[address]

    def watch(self, watcher: Watcher) -> list[tuple[NodeAddress, Terms | None]]:
        """Tell *watcher* of changes from now on; return the nodes, and their terms."""
        self._watchers[watcher] = None
        return list(self._terms.items())

    def unwatch(self, watcher: Watcher) -> None:
        """Tell *watcher* of no further changes."""
        self._watchers.pop(watcher, None)

    def add(self, address: NodeAddress) -> None:
        """Add a node.

        :raises InvalidAddress: if *address* is none.
        """
        if address in self._terms:
            return
        learn = partial(self._set_terms, address)
        self._connections[address] = self._connect(parse_address(address), learn)
        self._terms[address] = None
        for watcher in list(self._watchers):
            watcher.add_node(address, None)

    def remove(self, address: NodeAddress) -> None:
        """Remove a node; what it still does is waited for."""
        if address in self._terms:
            del self._terms[address]
            self._connections.pop(address).retire()
            for watcher in list(self._watchers):
                watcher.remove_node(address)

    def close(self) -> Deferred[None]:
        """Close every connection; requests in flight fail.

        :return: fires when all are closed.
        """
        closed = [connection.close() for connection in self._connections.values()]
        return DeferredList(closed).addCallback(lambda _: None)

    def _set_terms(self, address: NodeAddress, terms: Terms) -> None:
        if address in self._terms:
            self._terms[address] = terms
            for watcher in list(self._watchers):
                watcher.set_terms(address, terms)
