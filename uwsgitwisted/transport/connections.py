"""The open connections of one service: how many there may be, of all peers and of each, and who has to go.

Where a limit is reached, connections that wait for nothing make room: the longest idle one first. A peer over
its own limit makes room with its own.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from uwsgitwisted.access import Peer

#: One look for idle connections costs time for each that is open, so one look closes up to this part of them.
_EVICTED_AT_ONCE = 16
#: If it finds none, seconds until the next.
_PAUSE = 1.0
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

    :param clock: keeps the time.
    :param limit: how many may be open.
    :param peer_limit: how many of them may belong to one peer.
    """

    def __init__(self, clock: IReactorTime, limit: int, peer_limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._peer_limit = peer_limit
        self._open: set[Connection] = set()
        #: Those that were evicted and are not closed yet, in that order.
        self._leaving: dict[Connection, None] = {}
        self._by_group: Counter[str] = Counter()
        #: Until when nothing idle is looked for: for a peer, or for all of them (None).
        self._not_before: dict[str | None, float] = {}
        self._emptied: Deferred[None] | None = None

    def __iter__(self) -> Iterator[Connection]:
        return iter([*self._open, *self._leaving])

    def refusal(self, peer: Peer) -> str | None:
        """Return why *peer* can't have one more, or None if it can. Idle ones are closed for it if need be."""
        if self._by_group[peer.group] >= self._peer_limit and not self._evict(peer.group):
            return f"{self._peer_limit} connections of its address are open already"
        if len(self._open) >= self._limit and not self._evict(None):
            return f"{self._limit} connections are open already"
        return None

    def add(self, connection: Connection) -> None:
        """Add one that was opened."""
        self._open.add(connection)
        self._by_group[connection.peer.group] += 1

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
        self._by_group[group] -= 1
        if not self._by_group[group]:
            del self._by_group[group]

    def _evict(self, group: str | None) -> bool:
        """Close the longest idle connections, and say whether there were any.

        :param group: whose; None for everybody's.
        """
        now = self._clock.seconds()
        if now < self._not_before.get(group, now):
            return False
        idle = [
            (since, id(connection), connection)
            for connection in self._open
            if group is None or connection.peer.group == group
            if (since := connection.idle_since) is not None
        ]
        if not idle:
            self._remember(group, now)
            return False
        for _, _, connection in heapq.nsmallest(max(1, len(idle) // _EVICTED_AT_ONCE), idle):
            self._discard(connection)
            self._leaving[connection] = None
            connection.evict()
        for connection in list(self._leaving)[:-_MAX_LEAVING]:
            connection.abort()
        return True

    def _remember(self, group: str | None, now: float) -> None:
        """Look for nothing idle for a while: there was nothing."""
        self._not_before = {known: until for known, until in self._not_before.items() if until > now}
        self._not_before[group] = now + _PAUSE
