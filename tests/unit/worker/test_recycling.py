"""When a worker is recycled because of its memory or its age."""

from __future__ import annotations

import os

import pytest

from tests.unit.worker.test_worker_main import Front
from uwsgitwisted.wire.events import ShutdownReceived
from uwsgitwisted.worker import recycling
from uwsgitwisted.worker.recycling import recycling_due
from uwsgitwisted.worker.spec import Loader, WorkerSpec


def spec(**limits: float) -> WorkerSpec:
    return WorkerSpec((Loader("nothing:load"),), **limits)  # type: ignore[arg-type]


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident memory over the limit makes recycling due, with /proc and without."""
    assert recycling_due(spec(reload_on_rss=1 << 20))()
    assert not recycling_due(spec(reload_on_rss=1 << 40))()
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(FileNotFoundError))
    assert recycling_due(spec(reload_on_rss=1 << 20))()
    assert not recycling_due(spec(reload_on_rss=1 << 40))()


def test_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recycling is due when the lifetime is over, and not before; without limits, never."""
    now = [0.0]
    monkeypatch.setattr(recycling, "monotonic", lambda: now[0])
    is_due, never = recycling_due(spec(max_lifetime=60.0)), recycling_due(spec())
    assert not is_due()
    now[0] = 61.0
    assert is_due()
    assert not never()


def test_a_worker_due_for_recycling() -> None:
    """After its request it announces its shutdown once, and goes on until the front closes the pipe."""
    front = Front(reload_on_rss=1 << 20)
    front.negotiate()
    front.put(3)
    front.ask(b"1", b"2", b"3")
    events = front.events(4)
    front.close()
    assert [type(event) for event in events].count(ShutdownReceived) == 1
    assert front.ran == [b"1", b"2", b"3"]
