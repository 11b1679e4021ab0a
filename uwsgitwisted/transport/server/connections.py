"""The open connections of one service: limits their number, for all peers and for each, by eviction.

At a limit, idle connections make room, the longest idle one first. A peer at its own limit loses one of its
own. A peer with few connections takes the place of one that has more. If none of those is idle, the oldest
connection of the peer with the most is closed, provided that it has far more.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Protocol

from twisted.internet.defer import Deferred, succeed

from uwsgitwisted.access import Peer

#: A search for idle connections takes time in proportion to the open ones, so it evicts up to one in this many.
#: If it finds none, as many new connections are refused before the next search.
_PART = 16
#: A peer with so few connections never loses one that is in use.
_FEW = 4
#: One in this many connections may be evicted and still open, to accept requests that were already on the way.
#: Half of these places are for peers with few connections.
EVICTED_PART = 8


class Connection(Protocol):
    """An open connection."""

    peer: Peer

    @property
    def idle_since(self) -> float | None:
        """Since when it has been idle, in the reactor's time; None if it is in use."""

    def evict(self) -> None:
        """Close it gracefully, with a shutdown notice if it is a session."""

    def finish(self) -> None:
        """Finish its requests in flight, then close it."""

    def abort(self) -> None:
        """Close it now."""


class Connections:
    """The set of open connections.

    :param limit: how many may be open.
    :param peer_limit: how many of them one peer may have.
    """

    def __init__(self, limit: int, peer_limit: int) -> None:
        self._limit = limit
        self._max_evicted = max(2, limit // EVICTED_PART)
        self._peer_limit = peer_limit
        self._open: set[Connection] = set()
        #: The evicted connections that are not closed yet, the oldest eviction first.
        self._evicted: dict[Connection, None] = {}
        #: The open connections by peer, the oldest first.
        self._by_group: dict[str, dict[Connection, None]] = {}
        #: How many more connections to refuse before the next search for idle ones: of a peer, or of all
        #: (None).
        self._refusals: dict[str | None, int] = {}
        self._emptied: Deferred[None] | None = None

    def __iter__(self) -> Iterator[Connection]:
        return iter([*self._open, *self._evicted])

    @property
    def any(self) -> bool:
        """Whether a connection is open."""
        return bool(self._open or self._evicted)

    def refusal(self, peer: Peer) -> str | None:
        """Return why *peer* can't open a connection, or None if it can; evict others for it if necessary."""
        own = self._by_group.get(peer.group, {})
        over_own = len(own) >= self._peer_limit
        if not over_own and len(self._open) < self._limit:
            return None
        room = self._max_evicted if len(own) <= _FEW else self._max_evicted // 2
        if len(self._evicted) < room and self._make_room(peer.group, own, over_own):
            return None
        return (
            f"{self._peer_limit} connections from its address are already open"
            if over_own
            else f"{self._limit} connections are already open"
        )

    def _make_room(self, group: str, own: Mapping[Connection, None], over_own: bool) -> bool:
        if over_own:
            return self._evict_idle([own], group)
        richer = [others for others in self._by_group.values() if others is own or len(others) > len(own)]
        return self._evict_idle(richer, None) or self._evict_oldest(len(own))

    def add(self, connection: Connection) -> None:
        """Add a new connection."""
        self._open.add(connection)
        self._by_group.setdefault(connection.peer.group, {})[connection] = None

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection."""
        if connection in self._open:
            self._discard(connection)
        else:
            self._evicted.pop(connection, None)
        if self._emptied is not None and not self.any:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    def emptied(self) -> Deferred[None]:
        """Return a Deferred that fires when all connections are closed."""
        if not self.any:
            return succeed(None)
        self._emptied = Deferred()
        return self._emptied

    def _discard(self, connection: Connection) -> None:
        self._open.discard(connection)
        group = connection.peer.group
        del self._by_group[group][connection]
        if not self._by_group[group]:
            del self._by_group[group]
            self._refusals.pop(group, None)

    def _evict_idle(self, groups: Collection[Iterable[Connection]], name: str | None) -> bool:
        """Evict the longest idle connections of *groups*; return whether there were any.

        :param name: the peer that they belong to; None for several peers.
        """
        if refusals := self._refusals.get(name, 0):
            self._refusals[name] = refusals - 1
            return False
        connections = list(chain.from_iterable(groups))
        idle = [
            (since, id(connection), connection)
            for connection in connections
            if (since := connection.idle_since) is not None
        ]
        if not idle:
            self._refusals[name] = len(connections) // _PART
            return False
        room = self._max_evicted - len(self._evicted)
        for _, _, connection in heapq.nsmallest(max(1, min(len(idle) // _PART, room // 2)), idle):
            self._evict(connection)
        return True

    def _evict_oldest(self, own: int) -> bool:
        """Close the oldest connection of the peer with the most, if it has far more than *own*.

        A peer with a small share of all connections keeps them, however many others come.
        """
        largest = max(self._by_group.values(), key=len)
        if len(largest) <= max(2 * own, self._limit // _PART, _FEW):
            return False
        connection = next(iter(largest))
        self._evict(connection)
        connection.abort()
        return True

    def _evict(self, connection: Connection) -> None:
        self._discard(connection)
        self._evicted[connection] = None
        connection.evict()
        for overdue in list(self._evicted)[: -(self._max_evicted // 2)]:
            overdue.abort()
