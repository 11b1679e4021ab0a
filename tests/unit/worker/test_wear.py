"""When a worker is replaced because of its memory or its age."""

from __future__ import annotations

import os

import pytest

from tests.unit.worker.test_worker_main import Front
from uwsgitwisted.wire.events import ShutdownReceived
from uwsgitwisted.worker import wear as module
from uwsgitwisted.worker.spec import Loader, WorkerSpec
from uwsgitwisted.worker.wear import wear


def spec(**limits: float) -> WorkerSpec:
    return WorkerSpec((Loader("nothing:load"),), **limits)  # type: ignore[arg-type]


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident memory over the limit wears a worker out, with /proc and without."""
    assert wear(spec(reload_on_rss=1 << 20))()
    assert not wear(spec(reload_on_rss=1 << 40))()
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(FileNotFoundError))
    assert wear(spec(reload_on_rss=1 << 20))()
    assert not wear(spec(reload_on_rss=1 << 40))()


def test_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is worn out when its time is over, and not before; without limits, never."""
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    is_worn, never = wear(spec(max_lifetime=60.0)), wear(spec())
    assert not is_worn()
    now[0] = 61.0
    assert is_worn()
    assert not never()


def test_a_worn_worker_is_replaced() -> None:
    """After its request it announces its shutdown once, and goes on until the front closes the pipe."""
    front = Front(reload_on_rss=1 << 20)
    front.negotiate()
    front.put(3)
    front.ask(b"1", b"2", b"3")
    events = front.events(4)
    front.close()
    assert [type(event) for event in events].count(ShutdownReceived) == 1
    assert front.ran == [b"1", b"2", b"3"]
