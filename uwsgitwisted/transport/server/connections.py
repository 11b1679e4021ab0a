"""The open connections of one service: how many there may be, of all peers and of each, and who has to go.

Where a limit is reached, connections that wait for nothing make room: the longest idle one first. A peer over
its own limit makes room with its own. A peer with few connections gets room from those who have more, and if
none of theirs is idle, the oldest one of whoever has most is closed, if that is far more.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Protocol

from twisted.internet.defer import Deferred, succeed

from uwsgitwisted.access import Peer

#: One look for idle connections costs time for each that is open, so that it closes up to this part of them. If
#: it finds none, as many new ones are refused before the next look.
_PART = 16
#: Nobody who has so few connections loses one that is in use.
_FEW = 4
#: How many evicted connections may still be open, to take requests that were on their way: this part of all.
#: Half of that is for peers with few connections.
LEAVING_PART = 8


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
        self._max_leaving = max(2, limit // LEAVING_PART)
        self._peer_limit = peer_limit
        self._open: set[Connection] = set()
        #: Those that were evicted and are not closed yet, in that order.
        self._leaving: dict[Connection, None] = {}
        #: By peer, in the order in which they were opened.
        self._by_group: dict[str, dict[Connection, None]] = {}
        #: How many more are refused before another look for idle ones: of a peer, or of all (None).
        self._refusals: dict[str | None, int] = {}
        self._emptied: Deferred[None] | None = None

    def __iter__(self) -> Iterator[Connection]:
        return iter([*self._open, *self._leaving])

    def refusal(self, peer: Peer) -> str | None:
        """Return why *peer* can't have one more, or None if it can. Others are closed for it if need be."""
        own = self._by_group.get(peer.group, {})
        over_own = len(own) >= self._peer_limit
        if not over_own and len(self._open) < self._limit:
            return None
        room = self._max_leaving if len(own) <= _FEW else self._max_leaving // 2
        if len(self._leaving) < room and self._make_room(peer.group, own, over_own):
            return None
        return (
            f"{self._peer_limit} connections of its address are open already"
            if over_own
            else f"{self._limit} connections are open already"
        )

    def _make_room(self, group: str, own: Mapping[Connection, None], over_own: bool) -> bool:
        if over_own:
            return self._evict_idle([own], group)
        richer = [others for others in self._by_group.values() if others is own or len(others) > len(own)]
        return self._evict_idle(richer, None) or self._evict_oldest(len(own))

    def add(self, connection: Connection) -> None:
        """Add one that was opened."""
        self._open.add(connection)
        self._by_group.setdefault(connection.peer.group, {})[connection] = None

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
        del self._by_group[group][connection]
        if not self._by_group[group]:
            del self._by_group[group]
            self._refusals.pop(group, None)

    def _evict_idle(self, groups: Collection[Iterable[Connection]], name: str | None) -> bool:
        """Close the longest idle connections of *groups*, and say whether there were any.

        :param name: whose these are; None for several peers'.
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
        room = self._max_leaving - len(self._leaving)
        for _, _, connection in heapq.nsmallest(max(1, min(len(idle) // _PART, room // 2)), idle):
            self._evict(connection)
        return True

    def _evict_oldest(self, own: int) -> bool:
        """Close the oldest connection of whoever has most, if that is far more than *own*.

        A peer with a small part of all keeps what it has, however many others come.
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
        self._leaving[connection] = None
        connection.evict()
        for overdue in list(self._leaving)[: -(self._max_leaving // 2)]:
            overdue.abort()
