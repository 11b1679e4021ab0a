"""Steps of the wall clock while a spooler works; libfaketime gives the processes another clock."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.handlers import TASKS
from tests.integration.services import TWISTD, Launcher, Service, script, until
from uwsgitwisted import blocking

pytestmark = [pytest.mark.integration, pytest.mark.needs("faketime")]

DAY = 86_400.0


class SetClock:
    """The time of day of the processes that run with it.

    :param path: the file in which libfaketime finds by how much it differs, in seconds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset = 0.0
        self.set(0.0)

    def set(self, offset: float) -> None:
        """Set the clock that many seconds ahead of the real one."""
        self.offset = offset
        new = self._path.with_suffix(".new")
        new.write_text(f"{offset:+.3f}")
        new.rename(self._path)

    @property
    def now(self) -> float:
        """The processes' time of day."""
        return time.time() + self.offset

    def command(self) -> tuple[str, ...]:
        """Return the command that runs ``twistd`` with it; the monotonic clock stays the real one."""
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
        variables = (
            f"LD_PRELOAD={library}",
            f"FAKETIME_TIMESTAMP_FILE={self._path}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        )
        return ("env", *variables, *TWISTD)


def _runs(service: Service, key: str) -> list[dict[str, Any]]:
    path = service.directory / "runs"
    notes = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [note for note in notes if note.get("task", {}).get("key") == key]


def test_clock_is_set(launch: Launcher, tmp_path: Path) -> None:
    """When the wall clock steps, no task runs early, twice or never, and nothing is delayed."""
    clock = SetClock(tmp_path / "offset")
    spooler = launch.start(
        *("uwsgi-spooler", "--engine", "processes:2", "--spool", "sqlite:spool.db"),
        *("--first-delay", "10", "--max-delay", "10", "--timeout", "100"),
        handler=TASKS,
        twistd=clock.command(),
    )

    def spool(key: str, **more: object) -> None:
        assert script(blocking.spool, spooler.address, {"key": key, **more}, 10) is True

    spool("retried", do="retry")
    spool("in an hour", at=clock.now + 3_600)
    spool("in two days", at=clock.now + 2 * DAY)
    until(lambda: _runs(spooler, "retried"), "the first run")
    # An hour forward: the task scheduled for then runs soon; the other's delay has not passed yet.
    clock.set(3_600.0)
    until(lambda: _runs(spooler, "in an hour"), "the run of what has become due")
    # A day back: everything still works.
    clock.set(-DAY)
    spool("now")
    until(lambda: _runs(spooler, "now"), "the run of a new task")
    assert script(blocking.ping, spooler.address) < 5
    # Back to the real time, and once more into the past: the delay ends when it should.
    clock.set(0.0)
    clock.set(-2 * DAY)
    until(lambda: len(_runs(spooler, "retried")) == 2, "the second run", 60)
    first, second = (run["time"] for run in _runs(spooler, "retried"))
    assert second < first  # by their own clock
    assert [len(_runs(spooler, key)) for key in ("in an hour", "now", "in two days")] == [1, 1, 0]
