"""Several spoolers that share a queue in PostgreSQL: killed, and with the server stopped underneath."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.postgresql.postgres import PostgresServer, postgres_server
from tests.integration.services import Launcher, Service, script, until
from tests.integration.test_spool_crashes import HANDLER, reconcile
from uwsgitwisted import blocking
from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.spool.stores.postgres.lease import HEARTBEAT, LEASE

pytestmark = [pytest.mark.integration, pytest.mark.needs("postgresql")]

#: Seconds after which the tasks of a dead spooler must have been taken over.
TAKEN_OVER = LEASE + 2 * HEARTBEAT + 10


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of its own for each test."""
    with postgres_server() as running:
        yield running


class Cluster:
    """Spoolers in one directory each, whose handlers note what they run in one file.

    :param url: the database that they share.
    """

    def __init__(self, launch: Launcher, directory: Path, url: str) -> None:
        self._launch = launch
        self._url = url
        self.directory = directory
        self.handler = HANDLER.replace('"runs"', repr(str(directory / "runs")))

    def start(self) -> Service:
        """Start one more spooler."""
        return self._launch.start(
            *("uwsgi-spooler", "--engine", "processes:2", "--spool", self._url),
            *("--first-delay", "0.1", "--max-delay", "0.5", "--max-attempts", "100"),
            handler=self.handler,
        )

    def notes(self) -> list[dict[str, Any]]:
        """Return what the handlers noted, in order."""
        with suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.directory / "runs").read_text().splitlines()]
        return []

    def ended(self) -> set[str]:
        """Return the keys of the tasks that ran to their end."""
        return {note["key"] for note in self.notes() if note.get("ends")}


@pytest.fixture
def cluster(server: PostgresServer, launch: Launcher, tmp_path: Path) -> Cluster:
    """Spoolers on the server, none of which runs yet."""
    return Cluster(launch, tmp_path, server.url())


def _enqueue(spooler: Service, key: str, **more: str) -> bool:
    try:
        # With an idempotency key, since one that was refused may have been stored by a spooler that was killed.
        return blocking.spool(spooler.address, {"key": key, "idempotency_key": key, **more}, 10)
    except UwsgiError:
        return False


def test_two_spoolers_share(cluster: Cluster) -> None:
    """What one takes in, both run, each task once."""
    first, second = cluster.start(), cluster.start()
    for number in range(40):
        assert script(_enqueue, first, f"task {number}")
    until(lambda: len(cluster.ended()) == 40, "the end of every task")
    assert set(Counter(note["key"] for note in cluster.notes() if note.get("begins")).values()) == {1}
    slow = {f"slow {number}" for number in range(4)}  # as many as there are workers
    go = cluster.directory / "go"
    for key in slow:
        script(lambda key=key: _enqueue(first, key, until=str(go)))
    until(lambda: slow <= {note["key"] for note in cluster.notes()}, "the beginning of the slow tasks")
    fronts = {note["front"] for note in cluster.notes() if note["key"] in slow}
    assert fronts == {first.pid, second.pid}
    go.touch()
    until(lambda: slow <= cluster.ended(), "the end of the slow tasks")


def test_a_dead_spooler(cluster: Cluster) -> None:
    """A killed spooler's tasks are taken over within seconds; another spooler's long task is not."""
    dying, living = cluster.start(), cluster.start()
    keys = [f"task {number}" for number in range(4)]
    for key in keys:
        script(lambda key=key: _enqueue(dying, key, sleep=str(LEASE + 6)))
    until(lambda: len(cluster.notes()) == 4, "every task's beginning")
    dying.kill()
    assert script(_enqueue, living, "afterwards")
    until(lambda: {*keys, "afterwards"} <= cluster.ended(), "the end of every task", 2 * TAKEN_OVER + LEASE)
    runs = Counter(note["key"] for note in cluster.notes() if note.get("begins"))
    killed = {note["key"] for note in cluster.notes() if note["front"] == dying.pid}
    assert killed
    assert {key for key, number in runs.items() if number > 1} == killed


def test_the_server_goes_and_comes(cluster: Cluster, server: PostgresServer) -> None:
    """While the server is away, tasks are refused; when it is back, all tasks run, and none twice."""
    first, second = cluster.start(), cluster.start()
    assert script(lambda: _enqueue(first, "running", sleep="3"))
    assert script(lambda: _enqueue(first, "later", at=str(time.time() + 4)))
    until(cluster.notes, "the beginning of the first task")
    server.stop()
    assert not script(_enqueue, first, "refused")
    assert script(blocking.ping, first.address) < 5
    until(lambda: "running" in cluster.ended(), "the end of what runs")
    server.start()
    until(lambda: script(_enqueue, second, "accepted"), "an accepted task")
    until(lambda: {"later", "accepted"} <= cluster.ended(), "the end of every task", 40)
    assert set(Counter(note["key"] for note in cluster.notes() if note.get("begins")).values()) == {1}
    assert "refused" not in {note["key"] for note in cluster.notes()}


def test_killed_at_random(cluster: Cluster) -> None:
    """Of what a cluster acknowledges while its spoolers are killed, nothing is lost."""
    spoolers = [cluster.start(), cluster.start()]
    accepted: list[str] = []
    stopping = threading.Event()

    def send() -> None:
        for number in range(100_000):
            key = f"task {number}"
            if stopping.is_set():
                return
            if any(_enqueue(spooler, key) for spooler in list(spoolers)):
                accepted.append(key)

    sender = threading.Thread(target=send)
    sender.start()
    killed: dict[int, float] = {}
    for _ in range(3):
        before = len(accepted)
        until(lambda before=before: len(accepted) > before + 20, "some accepted tasks")  # type: ignore[misc]
        victim = spoolers.pop(0)
        victim.kill()
        killed[victim.pid] = time.monotonic()
        spoolers.append(cluster.start())
    stopping.set()
    sender.join()
    until(lambda: set(accepted) <= cluster.ended(), "the end of every task", 2 * TAKEN_OVER)
    assert len(accepted) > 60
    reconcile(cluster.directory, accepted, killed)
