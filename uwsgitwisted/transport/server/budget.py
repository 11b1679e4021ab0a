"""The memory that a service holds for its peers: one budget of bytes, whatever they wait for.

Unfinished messages, requests that wait or run, and answers that a peer has not taken yet all count. A message
is admitted or refused when its size is known, which is before its bytes arrive, so that what was admitted can
always be finished: nobody has to give anything back.

One peer may hold as many bytes as are free: alone half of the budget, beside a second a third. So there is
always room for another one. (Switches share their packet memory among ports like this: *dynamic thresholds*.)
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from uwsgitwisted.wire.packet import MAX_PAYLOAD

#: The smallest default, in bytes: four messages of the largest size.
MIN_DEFAULT = 256 * 1024 * 1024
#: Where cgroups of version 2 say how much memory this process may have.
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def default_limit() -> int:
    """Return the budget of a service that isn't given one: a quarter of the memory, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        memory = min(memory, int(_CGROUP_LIMIT.read_text()))
    return max(memory // 4, MIN_DEFAULT)


class _Share:
    """What the connections of one peer hold together."""

    __slots__ = ("accounts", "used")

    def __init__(self) -> None:
        self.accounts = 0
        self.used = 0


class Budget:
    """The bytes that one service may hold.

    :param limit: how many, besides one small message for each connection.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: How many are held now.
        self.used = 0
        self._shares: dict[str, _Share] = {}

    def account(self, group: str) -> Account:
        """Return the account of a new connection.

        :param group: whose it is; see :attr:`uwsgitwisted.access.Peer.group`.
        """
        share = self._shares.setdefault(group, _Share())
        share.accounts += 1
        return Account(self, group, share)

    def forget(self, group: str) -> None:
        """Forget a peer without connections."""
        del self._shares[group]


class Account:
    """What one connection holds; made by :meth:`Budget.account`."""

    __slots__ = ("_budget", "_group", "_share", "held")

    def __init__(self, budget: Budget, group: str, share: _Share) -> None:
        self._budget = budget
        self._group = group
        self._share = share
        #: How many bytes it holds.
        self.held = 0

    def admits(self, size: int) -> bool:
        """Whether it may hold *size* bytes more.

        A connection that holds nothing may always hold one small message, so that who asks for little is served
        beside a peer of the same address that asks for too much.
        """
        if not self.held and size <= MAX_PAYLOAD:
            return True
        budget = self._budget
        return self._share.used + size <= budget.limit - budget.used

    @property
    def crowded(self) -> bool:
        """Whether its peer holds half of what it may: no more should be read while something is in flight."""
        budget = self._budget
        return 2 * self._share.used > budget.limit - budget.used

    def set(self, held: int) -> None:
        """Hold *held* bytes, instead of as many as before."""
        change = held - self.held
        if change:
            self.held = held
            self._share.used += change
            self._budget.used += change

    def close(self) -> None:
        """Hold nothing any more: the connection is gone."""
        self.set(0)
        self._share.accounts -= 1
        if not self._share.accounts:
            self._budget.forget(self._group)
