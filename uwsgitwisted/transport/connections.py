"""The open connections of one service: how many there may be, of all peers and of each, and who has to go.

Where a limit is reached, connections that wait for nothing make room: the longest idle one first. A peer over
its own limit makes room with its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from typing import Protocol

from twisted.internet.defer import Deferred, succeed

from uwsgitwisted.access import Peer

#: One look for idle connections costs time for each that is open, so that it closes up to this part of them. If
#: it finds none, as many new ones are refused before the next look.
_PART = 16
#: How many evicted connections may still be open, to take requests that were on their way; beyond it, the
#: earliest are cut off.
_MAX_LEAVING = 64


class Connection(Protocol):
    """One of them."""

    peer: Peer

    @property
    def idle_since(self) -> float | None:
        """Since when it has waited for nothing, in the reactor's time; None if it is in use."""

    def evict(self) -> None:
        """Close it, in a way that its peer understands."""

    def finish(self) -> None:
        """Finish what is in flight, then close it."""

    def abort(self) -> None:
        """Close it now."""


class Connections:
    """Knows them.

    :param limit: how many may be open.
    :param peer_limit: how many of them may belong to one peer.
    """

    def __init__(self, limit: int, peer_limit: int) -> None:
        self._limit = limit
        self._peer_limit = peer_limit
        self._open: set[Connection] = set()
        #: Those that were evicted and are not closed yet, in that order.
        self._leaving: dict[Connection, None] = {}
        self._by_group: dict[str, set[Connection]] = {}
        #: How many more are refused before another look for idle ones: of a peer, or of all (None).
        self._refusals: dict[str | None, int] = {}
        self._emptied: Deferred[None] | None = None

    def __iter__(self) -> Iterator[Connection]:
        return iter([*self._open, *self._leaving])

    def refusal(self, peer: Peer) -> str | None:
        """Return why *peer* can't have one more, or None if it can. Idle ones are closed for it if need be."""
        own = self._by_group.get(peer.group, set())
        if len(own) >= self._peer_limit and not self._evict(own, peer.group):
            return f"{self._peer_limit} connections of its address are open already"
        if len(self._open) >= self._limit and not self._evict(self._open, None):
            return f"{self._limit} connections are open already"
        return None

    def add(self, connection: Connection) -> None:
        """Add one that was opened."""
        self._open.add(connection)
        self._by_group.setdefault(connection.peer.group, set()).add(connection)

    def remove(self, connection: Connection) -> None:
        """Remove one that is closed."""
        if connection in self._open:
            self._discard(connection)
        else:
            self._leaving.pop(connection, None)
        if self._emptied is not None and not self._open and not self._leaving:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    def emptied(self) -> Deferred[None]:
        """Return a Deferred that fires when all are closed."""
        if not self._open and not self._leaving:
            return succeed(None)
        self._emptied = Deferred()
        return self._emptied

    def _discard(self, connection: Connection) -> None:
        self._open.discard(connection)
        group = connection.peer.group
        self._by_group[group].discard(connection)
        if not self._by_group[group]:
            del self._by_group[group]
            self._refusals.pop(group, None)

    def _evict(self, connections: Collection[Connection], group: str | None) -> bool:
        """Close the longest idle ones of *connections*, and say whether there were any.

        :param group: whose they are; None for everybody's.
        """
        if refusals := self._refusals.get(group, 0):
            self._refusals[group] = refusals - 1
            return False
        idle = [
            (since, id(connection), connection)
            for connection in connections
            if (since := connection.idle_since) is not None
        ]
        if not idle:
            self._refusals[group] = len(connections) // _PART
            return False
        for _, _, connection in heapq.nsmallest(max(1, len(idle) // _PART), idle):
            self._discard(connection)
            self._leaving[connection] = None
            connection.evict()
        for connection in list(self._leaving)[:-_MAX_LEAVING]:
            connection.abort()
        return True
