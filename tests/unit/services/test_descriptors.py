"""How many connections fit the limit of file descriptors."""

from __future__ import annotations

import resource

import pytest

from uwsgitwisted.services import descriptors
from uwsgitwisted.services.descriptors import Shares, share_descriptors

INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "workers", "raised", "allowed"),
    [
        (1_024, 1_048_576, 10_000, 2, 11_322, 10_000),
        (1_024, INFINITY, 10_000, 2, 11_322, 10_000),
        (1_024, 4_096, 10_000, 2, 4_096, 3_576),
        (128, 128, 10_000, 2, 128, 49),
        (20_000, 20_000, 10_000, 2, None, 10_000),
        (64, 64, 10_000, 10, 64, 8),
    ],
)
def test_limits(
    monkeypatch: pytest.MonkeyPatch,
    soft: int,
    hard: int,
    wanted: int,
    workers: int,
    raised: int | None,
    allowed: int,
) -> None:
    """The soft limit is raised as far as is needed and possible; connections leave a reserve for the rest."""
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda _, limits: set_to.append(limits))
    assert share_descriptors(wanted, workers) == (allowed, 0)
    assert set_to == ([] if raised is None else [(raised, hard)])


@pytest.mark.parametrize(
    ("soft", "hard", "processes", "raised", "shares"),
    [
        (1_024, 1_048_576, 2, 11_322 + 3 * 65, Shares(10_000, 65)),
        (1_024, 4_096, 2, 4_096, Shares(3_403, 65)),
        (1_024, 1_024, 16, 1_024, Shares(530, 11)),
        (128, 128, 2, 128, Shares(39, 4)),
        (64, 64, 10, 64, Shares(8, 4)),
    ],
)
def test_shared_state(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, processes: int, raised: int, shares: Shares
) -> None:
    """Connections for shared state have a reserve too; of scarce descriptors it is at most a quarter."""
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda _, limits: set_to.append(limits))
    assert share_descriptors(10_000, processes, 65) == shares
    assert set_to == [(raised, hard)]
