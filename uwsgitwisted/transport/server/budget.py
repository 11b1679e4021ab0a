"""The memory that a service holds for its peers: one budget of bytes for all purposes.

Unfinished messages, waiting and running requests, and answers that a peer has not read yet all count. A message
is admitted or refused as soon as its size is known, before its bytes arrive. So every admitted message can be
finished, and nobody has to give memory back.

One peer may hold as many bytes as are free: half of the budget if it is alone, a third beside a second peer. So
there is always room for another one. (Switches share their packet memory among ports in the same way, with
*dynamic thresholds*.)
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from uwsgitwisted.wire.packet import MAX_PAYLOAD

#: The smallest default, in bytes: four messages of the largest size.
MIN_DEFAULT = 256 * 1024 * 1024
#: Where cgroups v2 say how much memory this process may use.
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def default_limit() -> int:
    """Return the default budget of a service: a quarter of the memory, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        memory = min(memory, int(_CGROUP_LIMIT.read_text()))
    return max(memory // 4, MIN_DEFAULT)


class _Share:
    """The bytes that the connections of one peer hold together."""

    __slots__ = ("accounts", "used")

    def __init__(self) -> None:
        self.accounts = 0
        self.used = 0


class Budget:
    """The bytes that one service may hold.

    :param limit: how many, in addition to one small message for each connection.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: How many bytes are held now.
        self.used = 0
        self._shares: dict[str, _Share] = {}

    def account(self, group: str) -> Account:
        """Return the account of a new connection.

        :param group: the peer that it belongs to; see :attr:`uwsgitwisted.access.Peer.group`.
        """
        share = self._shares.setdefault(group, _Share())
        share.accounts += 1
        return Account(self, group, share)

    def forget(self, group: str) -> None:
        """Remove a peer that has no more connections."""
        del self._shares[group]


class Account:
    """The bytes that one connection holds; made by :meth:`Budget.account`."""

    __slots__ = ("_budget", "_group", "_share", "held")

    def __init__(self, budget: Budget, group: str, share: _Share) -> None:
        self._budget = budget
        self._group = group
        self._share = share
        #: How many bytes it holds.
        self.held = 0

    def admits(self, size: int) -> bool:
        """Whether the connection may hold *size* more bytes.

        A connection that holds nothing may always hold one small message. So a modest client is served even if
        another one at the same address takes too much.
        """
        if not self.held and size <= MAX_PAYLOAD:
            return True
        budget = self._budget
        return self._share.used + size <= budget.limit - budget.used

    @property
    def crowded(self) -> bool:
        """Whether its peer holds half of its limit: read nothing more while something is in flight."""
        budget = self._budget
        return 2 * self._share.used > budget.limit - budget.used

    def set(self, held: int) -> None:
        """Hold *held* bytes from now on."""
        change = held - self.held
        if change:
            self.held = held
            self._share.used += change
            self._budget.used += change

    def close(self) -> None:
        """Hold nothing from now on: the connection is closed."""
        self.set(0)
        self._share.accounts -= 1
        if not self._share.accounts:
            self._budget.forget(self._group)
