"""Spoolers and workers are killed at random and at the worst moments; every acknowledged task is accounted for.

By hand, for longer: ``CRASH_SECONDS=300 sh tests/run.sh tests/integration/test_spool_crashes.py -s``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections import defaultdict
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.killing_twistd import POINTS
from tests.integration.services import Launcher, Service, is_alive, kill_if_alive, until
from uwsgitwisted import blocking
from uwsgitwisted.errors import UwsgiError

pytestmark = pytest.mark.integration

#: Notes when a run begins and when it ends, each in one write.
HANDLER = """
import json, os, time, uwsgi

def note(**what):
    line = json.dumps({"pid": os.getpid(), "front": uwsgi.masterpid(), "at": time.monotonic(), **what})
    descriptor = os.open("runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, line.encode() + b"\\n")
    os.close(descriptor)

def run(task):
    key = task[b"key"].decode()
    note(key=key, begins=True)
    time.sleep(float(task.get(b"sleep", b"0")))
    while b"until" in task and not os.path.exists(task[b"until"]):
        time.sleep(0.01)
    note(key=key, ends=True)
    return uwsgi.SPOOL_OK

uwsgi.spooler = run
"""
OPTIONS = (
    *("uwsgi-spooler", "--engine", "processes:2", "--spool", "sqlite:spool.db"),
    *("--first-delay", "0.05", "--max-delay", "0.2", "--max-attempts", "1000", "--max-crashes", "1000"),
)
#: How long tasks are killed at random, in seconds.
CRASH_SECONDS = float(os.environ.get("CRASH_SECONDS", "6"))
#: Nothing is enqueued while more than this wait: kills shall meet tasks that run, not a backlog.
MOST_WAITING = 2000
#: Seconds after a task's end within which that must have been written down, on a machine that is busy.
WRITTEN = 5.0


class Sender(threading.Thread):
    """Enqueues tasks one after another until it is told to stop, and remembers those that were acknowledged."""

    def __init__(self, address: Any, name: str) -> None:
        super().__init__(daemon=True)
        self.accepted: list[str] = []
        self.stopping = False
        #: Whether it waits, since there is enough to do.
        self.holding = False
        self._address = address
        self._name = name

    def run(self) -> None:
        """Send."""
        number = 0
        while not self.stopping:
            if self.holding:
                time.sleep(0.01)
                continue
            number += 1
            key = f"{self._name}.{number}"
            try:
                blocking.spool(self._address, {"key": key, "sleep": "0.002" if number % 10 else "0.05"}, 5)
            except UwsgiError:
                time.sleep(0.01)  # it is being started again
            else:
                self.accepted.append(key)


def _unfinished(directory: Path) -> int:
    with closing(sqlite3.connect(directory / "spool.db", timeout=20)) as database:
        return int(database.execute("SELECT count(*) FROM tasks WHERE state < 3").fetchone()[0])


def _runs(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what the handler noted of each task, in order."""
    noted: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with suppress(FileNotFoundError):
        for line in (directory / "runs").read_text().splitlines():
            note = json.loads(line)
            noted[note["key"]].append(note)
    return noted


def reconcile(directory: Path, accepted: list[str], killed: dict[int, float]) -> int:
    """See that every accepted task ran to its end, and again only if its spooler or worker was killed in it.

    :param killed: when each process that was killed had ended, by the monotonic clock.
    :return: how many ran more than once.
    """
    noted = _runs(directory)
    lost = [key for key in accepted if not any(note.get("ends") for note in noted[key])]
    assert not lost, f"{len(lost)} of {len(accepted)} lost: {lost[:10]}"
    doubled = 0
    for key, notes in noted.items():
        begun = [note for note in notes if note.get("begins")]
        doubled += len(begun) > 1
        for run, following in pairwise(begun):
            ends = [
                note["at"] for note in notes if note.get("ends") and run["at"] <= note["at"] <= following["at"]
            ]
            deaths = [killed.get(run[role], 0.0) for role in ("front", "pid") if run[role] != following[role]]
            excused = any(run["at"] <= death <= min(ends, default=death) + WRITTEN for death in deaths)
            assert excused, f"{key} ran again, though nothing of it was killed: {notes}, {killed}"
    return doubled


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(launch: Launcher, point: str) -> None:
    """A spooler that is killed at this point has lost nothing of what it acknowledged."""
    script = str(Path(__file__).with_name("killing_twistd.py"))
    killing = [sys.executable, script, point, "5"]
    spooler = launch.start(*OPTIONS, handler=HANDLER, twistd=killing)
    workers = spooler.workers()
    sender = Sender(spooler.address, "task")
    sender.start()
    assert spooler.process.wait(20) == -signal.SIGKILL, spooler.log
    until(lambda: not any(map(is_alive, workers)), "the end of the workers")
    killed = {spooler.pid: time.monotonic()}
    sender.stopping = True
    sender.join()
    again = launch.start(*OPTIONS, handler=HANDLER, directory=spooler.directory)
    until(lambda: _unfinished(again.directory) == 0, "the end of every task")
    reconcile(again.directory, sender.accepted, killed)


def test_killed_at_random(launch: Launcher) -> None:
    """Spoolers and workers that are killed at random moments lose nothing of what was acknowledged."""
    chance = random.Random(CRASH_SECONDS)
    spooler = launch.start(*OPTIONS, handler=HANDLER)
    senders = [Sender(spooler.address, name) for name in "abcd"]
    for sender in senders:
        sender.start()
    killed: dict[int, float] = {}
    end = time.monotonic() + CRASH_SECONDS
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.01, 0.4))  # the moments of the kills, which are what is tried
        enough = _unfinished(spooler.directory) > MOST_WAITING
        for sender in senders:
            sender.holding = enough
        if chance.random() < 0.6:
            victim = _kill_a_worker(spooler, chance)
        else:
            victim = spooler.pid
            spooler.kill()
        if victim is not None:
            killed[victim] = time.monotonic()
        if victim == spooler.pid:
            spooler = launch.start(*OPTIONS, handler=HANDLER, directory=spooler.directory)
    for sender in senders:
        sender.stopping = True
    for sender in senders:
        sender.join()
    until(lambda: _unfinished(spooler.directory) == 0, "the end of every task", 60)
    accepted = [key for sender in senders for key in sender.accepted]
    doubled = reconcile(spooler.directory, accepted, killed)
    print(f"\n{len(accepted)} acknowledged, {len(killed)} killed, 0 lost, {doubled} ran more than once")
    assert len(accepted) > 20


def _kill_a_worker(spooler: Service, chance: random.Random) -> int | None:
    """Kill one of a spooler's workers, and return which."""
    workers = spooler.workers()
    if not workers:
        return None
    worker = chance.choice(workers)
    kill_if_alive(worker)
    until(lambda: not is_alive(worker), "its end")
    return worker


def test_poison(launch: Launcher) -> None:
    """Beside a task that kills its worker whenever it runs, a thousand good ones are done."""
    handler = HANDLER.replace(
        "    time.sleep(float", "    if key == 'poison':\n        os.kill(os.getpid(), 9)\n    time.sleep(float"
    )
    spooler = launch.start(*OPTIONS, "--max-crashes", "3", handler=handler)
    keys = [*(f"good {n}" for n in range(500)), "poison", *(f"good {n}" for n in range(500, 1000))]

    def enqueue() -> None:
        for key in keys:
            blocking.spool(spooler.address, {"key": key})

    thread = threading.Thread(target=enqueue)
    thread.start()
    thread.join()
    until(lambda: _unfinished(spooler.directory) == 0, "the end of every task", 60)
    noted = _runs(spooler.directory)
    assert {key for key in keys if any(note.get("ends") for note in noted[key])} == set(keys) - {"poison"}
    assert len(noted["poison"]) == 3
