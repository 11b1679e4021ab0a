"""Attacks on the queue on disk: what fills it, takes its turns or opens it twice, and what others notice."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.integration.services import Launcher, Service, script, until
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
    return int(read(service, f"SELECT count(*) FROM tasks WHERE {where}")[0][0])  # noqa: S608 - of this module


def test_results_of_an_idle_spooler(launch: Launcher) -> None:
    """A result is gone when its time is over, though nothing else happens."""
    service = start(launch, "--keep-results", "1")
    assert enqueue(service, key="value")
    until(lambda: count(service, "state = 3"), "the end of the task")
    until(lambda: not count(service), "the end of its result")
