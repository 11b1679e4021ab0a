"""Attacks on the queue on disk: what fills it, takes its turns or opens it twice, and what others notice."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.integration.services import TWISTD, Launcher, Service, run_to_end, script, until
from uwsgitwisted import blocking
from uwsgitwisted.wire.packet import SPOOL

pytestmark = pytest.mark.integration

#: Runs a task that does nothing; one with the key ``wait`` when the file of that name is there.
HANDLER = """
import os, time, uwsgi

def run(task):
    name = task.get(b"wait", b"").decode()
    while name and not os.path.exists(name):
        time.sleep(0.01)
    return uwsgi.SPOOL_OK

uwsgi.spooler = run
"""
FAR_AHEAD = 4_000_000_000


def start(launch: Launcher, *options: str, engine: str = "processes:1", **keywords: Any) -> Service:
    """Start a spooler with its queue in the file ``spool.db``."""
    return launch.start(
        *("uwsgi-spooler", "--engine", engine, "--spool", "sqlite:spool.db", *options),
        handler=HANDLER,
        **keywords,
    )


def enqueue(service: Service, **task: object) -> bool:
    """Enqueue a task as every uwsgi client does, and return whether it was taken."""
    variables = {key: str(value) for key, value in task.items()}
    return script(blocking.send_message, service.address, SPOOL, 0, variables) is True


def read(service: Service, query: str) -> list[tuple[Any, ...]]:
    """Read the queue's file as an operator would."""
    with closing(sqlite3.connect(service.directory / "spool.db", timeout=20)) as database:
        return database.execute(query).fetchall()


def count(service: Service, where: str = "true") -> int:
    """Return how many tasks the file holds."""
    return int(read(service, f"SELECT count(*) FROM tasks WHERE {where}")[0][0])


def test_results_of_an_idle_spooler(launch: Launcher) -> None:
    """A result is gone when its time is over, though nothing else happens."""
    service = start(launch, "--keep-results", "1")
    assert enqueue(service, key="value")
    until(lambda: count(service, "state = 3"), "the end of the task")
    until(lambda: not count(service), "the end of its result")


@pytest.mark.parametrize("how", ["hard link", "lock removed", "moved"])
def test_a_second_spooler_on_the_file(launch: Launcher, how: str) -> None:
    """A second spooler on the same file doesn't start, however it comes to it, and the first goes on."""
    service = start(launch)
    path = service.directory / "spool.db"
    assert enqueue(service, key="before", at=FAR_AHEAD)
    if how == "hard link":
        path.with_name("other.db").hardlink_to(path)
    elif how == "moved":
        path = path.rename(path.with_name("other.db"))
    else:
        path.with_name("spool.db.lock").unlink()
    name = "spool.db" if how == "lock removed" else "other.db"
    line = [*TWISTD, "-n", "--pidfile=", "uwsgi-spooler", "--listen", f"unix:{service.directory}/second"]
    second = run_to_end([*line, "--spool", f"sqlite:{name}", "--handler", "my_handler"], service.directory)
    assert second.returncode == 1
    assert ("has 2 names" if how == "hard link" else "is in use by another spooler") in second.stderr
    assert enqueue(service, key="after", at=FAR_AHEAD)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
