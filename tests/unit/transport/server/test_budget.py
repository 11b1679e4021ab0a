"""The bytes that a service holds for its peers: what one may have, beside others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.transport.server import budget
from uwsgitwisted.transport.server.budget import MIN_DEFAULT, Account, Budget, default_limit
from uwsgitwisted.wire.packet import MAX_PAYLOAD

MIB = 1024 * 1024


def fill(account: Account, step: int = MIB) -> int:
    """Hold as much as *account* admits, and return how much that is."""
    while account.admits(step):
        account.set(account.held + step)
    return account.held


def test_shares() -> None:
    """A peer gets half of what the others leave, so that there is always room for one more."""
    pool = Budget(120 * MIB)
    assert fill(pool.account("a")) == 60 * MIB
    assert fill(pool.account("b")) == 30 * MIB
    assert fill(pool.account("c")) == 15 * MIB
    assert pool.used == 105 * MIB


def test_connections_of_one_peer() -> None:
    """A peer gets no more with more connections."""
    pool = Budget(100 * MIB)
    accounts = [pool.account("a") for _ in range(10)]
    assert sum(fill(account) for account in accounts) == 50 * MIB


def test_small_messages() -> None:
    """A connection that holds nothing may hold one small message, however full it is."""
    pool = Budget(4 * MIB)
    fill(pool.account("a"))
    fill(pool.account("a"), 1)
    another = pool.account("a")
    assert another.admits(MAX_PAYLOAD)
    assert not another.admits(MAX_PAYLOAD + 1)
    another.set(1)
    assert not another.admits(1)


def test_crowded() -> None:
    """From half of its part on, no more should be read from a peer."""
    pool = Budget(90)
    account = pool.account("a")
    account.set(30)
    assert not account.crowded
    account.set(31)
    assert account.crowded


def test_closing() -> None:
    """What a closed connection held is free again, and a peer without connections is forgotten."""
    pool = Budget(100)
    first, second = pool.account("a"), pool.account("a")
    first.set(10)
    second.set(20)
    first.close()
    assert pool.used == 20
    second.close()
    assert pool.used == 0
    assert pool._shares == {}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.integers(0, 100)), max_size=200))
def test_never_more(steps: list[tuple[int, str, int]]) -> None:
    """Whatever peers ask for, the budget is kept, apart from one small message a connection."""
    pool = Budget(1_000)
    accounts: dict[tuple[int, str], Account] = {}
    for number, group, size in steps:
        account = accounts.get((number, group)) or pool.account(group)
        accounts[number, group] = account
        if account.held and account.admits(size):
            account.set(account.held + size)
            assert pool.used <= pool.limit
        elif not account.held:
            account.set(1)
        elif size % 3 == 0:
            account.set(0)
    for account in accounts.values():
        account.close()
    assert pool.used == 0


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [(str(8 * MIB * 1024), 2 * MIB * 1024), ("max", None), (str(MIB), MIN_DEFAULT), (None, None)],
)
def test_default(
    cgroup: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default is a quarter of the memory that this process may have, but not too little."""
    path = tmp_path / "memory.max"
    if cgroup is not None:
        path.write_text(cgroup + "\n")
    monkeypatch.setattr(budget, "_CGROUP_LIMIT", path)
    monkeypatch.setattr(budget.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 24}.__getitem__)
    assert default_limit() == (expected or (1 << 36) // 4)
