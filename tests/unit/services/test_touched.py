"""Files that are touched to have a service reloaded."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.task import Clock

from uwsgitwisted.services.touched import INTERVAL, TouchedFiles


def test_touched(tmp_path: Path) -> None:
    """A file that is touched, replaced or new calls the function once; one that goes does not."""
    clock, calls = Clock(), []
    first, second = tmp_path / "first", tmp_path / "second"
    first.touch()
    touched = TouchedFiles(clock, [str(first), str(second)], lambda: calls.append(clock.seconds()))
    touched.start()
    clock.advance(INTERVAL)
    assert calls == []
    os.utime(first, (1, 1))
    second.touch()
    clock.advance(INTERVAL)
    assert calls == [2 * INTERVAL]
    first.unlink()
    clock.advance(INTERVAL)
    assert len(calls) == 1
    first.touch()
    clock.advance(INTERVAL)
    assert len(calls) == 2
    touched.stop()
    assert clock.getDelayedCalls() == []
    touched.stop()


def test_no_files() -> None:
    """Without files, there is no timer."""
    clock = Clock()
    touched = TouchedFiles(clock, [], lambda: None)
    touched.start()
    assert clock.getDelayedCalls() == []
