"""Spool directories that a real uWSGI writes, and runs."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.real_uwsgi import real_application, real_spooler
from tests.integration.services import until
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.spool.task import UNPRIORITIZED, Task, new_task
from uwsgitwisted.spool.uwsgi.broken import BROKEN
from uwsgitwisted.spool.uwsgi.directory import SpoolDirectory
from uwsgitwisted.spool.uwsgi.files import PREFIX
from uwsgitwisted.spool.uwsgi.taking import GRACE
from uwsgitwisted.wire.vars import decode_vars, encode_vars

pytestmark = [pytest.mark.integration, pytest.mark.needs("uwsgi")]

#: A spooler function that notes each task, and waits in one with ``wait`` until that file is there.
NOTE = """
def run(task):
    note(task={str(key): value.decode() if isinstance(value, bytes) else value for key, value in task.items()})
    while b"wait" in task and not os.path.exists(task[b"wait"]):
        time.sleep(0.01)
    return uwsgi.SPOOL_OK

uwsgi.spooler = run
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    spool = tmp_path / "spool"
    spool.mkdir()
    return spool


def task(now: float = 1.0, body: bytes = b"", **variables: object) -> Task:
    return new_task(encode_vars({key: str(value) for key, value in variables.items()}), now, body)


def drain(spool: SpoolDirectory, **options: int) -> list[Task]:
    """Take all tasks and delete their files."""
    tasks: list[Task] = []
    for batch in spool.batches(**options):
        assert (batch.set_aside, batch.left) == ([], [])
        tasks += batch.tasks
        batch.remove()
    return tasks


def key_of(task: Task) -> str:
    return decode_vars(task.variables)[b"key"].decode()


def test_uwsgi_runs_what_we_write(tmp_path: Path, path: Path) -> None:
    """Its function gets our variables and body, and the file is deleted."""
    name = SpoolDirectory(str(path)).write(task(body=b"the body", to="ann"))
    with real_spooler(tmp_path, path, NOTE) as uwsgi:
        (run,) = uwsgi.wait_for_runs(1)
        assert run["task"] == {"spooler_task_name": name, "b'to'": "ann", "body": "the body"}
        until(lambda: not list(path.iterdir()), "the end of the task")


def test_uwsgi_keeps_our_order(tmp_path: Path, path: Path) -> None:
    """Priorities are its own: lower numbers first, then what has none."""
    spool = SpoolDirectory(str(path))
    for priority in ("", "10", "9", "-4"):
        spool.write(task(key=priority, priority=priority))
    with real_spooler(tmp_path, path, NOTE) as uwsgi:
        runs = uwsgi.wait_for_runs(4)
    assert [run["task"]["b'key'"] for run in runs] == ["-4", "9", "10", ""]


def test_uwsgi_waits_for_our_times(tmp_path: Path, path: Path) -> None:
    """A task with a time waits for it, and stays if that is far away."""
    spool = SpoolDirectory(str(path))
    soon = math.floor(time.time()) + 2.75
    far = spool.write(task(key="far", at=4_000_000_000))
    spool.write(task(key="soon", at=soon))
    spool.write(task(key="now"))
    with real_spooler(tmp_path, path, NOTE) as uwsgi:
        runs = uwsgi.wait_for_runs(2)
        until(lambda: [file.name for file in path.iterdir()] == [far], "the end of the tasks")
    times = {run["task"]["b'key'"]: run["time"] for run in runs}
    assert times.keys() == {"now", "soon"}
    assert times["soon"] >= soon


def test_uwsgi_leaves_the_rest_alone(tmp_path: Path, path: Path) -> None:
    """It runs neither what was set aside nor what is being written."""
    spool = SpoolDirectory(str(path), now=lambda: time.time() + 2 * GRACE)
    (path / f"{PREFIX}bad").write_bytes(b"\x21\x00\x00\x00")
    for batch in spool.batches():
        assert len(batch.set_aside) == 1
    name = spool.write(task(key="hidden"))
    (path / name).rename(path / f".{name}")
    spool.write(task(key="shown"))
    before = {str(file) for file in path.rglob("*")}
    with real_spooler(tmp_path, path, NOTE) as uwsgi:
        until(lambda: len(list(path.iterdir())) == 2, "the end of the task")
        assert [run["task"]["b'key'"] for run in uwsgi.runs()] == ["shown"]
    assert len(before - {str(file) for file in path.rglob("*")}) == 1
    assert (path / BROKEN / f"{PREFIX}bad").read_bytes() == b"\x21\x00\x00\x00"


def test_we_take_what_uwsgi_writes(tmp_path: Path, path: Path) -> None:
    """Variables, body, priority and time come from an application's ``uwsgi.spool``."""
    spooling = """
at = int(time.time()) + 1000
note(name=uwsgi.spool({b"key": b"plain", b"body": b"\\x00\\xff" * 100_000}), at=at)
note(name=uwsgi.spool({b"key": b"prior", b"priority": b"7"}))
note(name=uwsgi.spool({b"key": b"late", b"at": str(at + 0.5).encode()}))
"""
    with real_application(tmp_path, path, spooling) as uwsgi:
        notes = uwsgi.wait_for_runs(3)
        tasks = drain(SpoolDirectory(str(path)))
    found = {key_of(one): one for one in tasks}
    assert key_of(tasks[0]) == "prior"
    assert (found["prior"].priority, found["plain"].priority) == (7, UNPRIORITIZED)
    assert found["plain"].body == b"\x00\xff" * 100_000
    assert found["late"].at == notes[0]["at"]
    assert abs(found["plain"].at - time.time()) < 60
    assert len({one.key for one in tasks}) == 3
    assert [file.name for file in path.iterdir()] == ["7"]


def test_what_uwsgi_runs_is_not_taken(tmp_path: Path, path: Path) -> None:
    """A task that its spooler runs is left to it; what waits behind it is taken."""
    spool = SpoolDirectory(str(path))
    running = spool.write(task(key="running", priority=1, wait=tmp_path / "go"))
    with real_spooler(tmp_path, path, NOTE) as uwsgi:
        uwsgi.wait_for_runs(1)
        spool.write(task(key="waiting", priority=2))
        assert [key_of(one) for one in drain(spool)] == ["waiting"]
        assert (path / running).exists()
        (tmp_path / "go").touch()
        until(lambda: not (path / running).exists(), "the end of the task")
        assert len(uwsgi.runs()) == 1


def test_what_we_take_uwsgi_does_not_run(tmp_path: Path, path: Path) -> None:
    """Its spooler leaves alone the tasks that we hold, and runs them when they are returned."""
    spool = SpoolDirectory(str(path))
    spool.write(task(key="ours", priority=1))
    with closing(spool.batches()) as batches:
        assert len(next(batches)) == 1
        with real_spooler(tmp_path, path, NOTE) as uwsgi:
            spool.write(task(key="theirs", priority=2))
            uwsgi.wait_for_runs(1)
            batches.close()
            runs = uwsgi.wait_for_runs(2)
    assert [run["task"]["b'key'"] for run in runs] == ["theirs", "ours"]


def test_side_by_side(tmp_path: Path, path: Path) -> None:
    """While its spooler and we empty a directory together, each task goes to one of us."""
    spool = SpoolDirectory(str(path))
    keys = [str(number) for number in range(300)]
    for key in keys:
        spool.write(task(key=key, wait=tmp_path / "go"))
    taken: list[Task] = []

    def empty() -> bool:
        taken.extend(drain(spool, limit=1))
        return not list(path.iterdir())

    with real_spooler(tmp_path, path, NOTE) as uwsgi:
        uwsgi.wait_for_runs(1)
        for batch in spool.batches(limit=1):
            taken.extend(batch.tasks)
            batch.remove()
            (tmp_path / "go").touch()  # its spooler goes on when we have begun
        until(empty, "an empty directory")
        run = [run["task"]["b'key'"] for run in uwsgi.runs()]
    assert sorted(run + [key_of(one) for one in taken]) == sorted(keys)
    assert run
    assert taken


_DIE_BEFORE_DELETING = """
import os, signal, sys
from uwsgitwisted.spool.uwsgi.directory import SpoolDirectory
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
store = SqliteStore(sys.argv[2])
store.open(lambda: None)
for batch in SpoolDirectory(sys.argv[1]).batches():
    store.add(batch.tasks)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_before_deleting(tmp_path: Path, path: Path) -> None:
    """A process that is killed between storing and deleting leaves tasks that are stored once in the end."""
    spool = SpoolDirectory(str(path))
    for number in range(10):
        spool.write(task(key=number))
    database = str(tmp_path / "spool.sqlite")
    command = [sys.executable, "-c", _DIE_BEFORE_DELETING, str(path), database]
    assert subprocess.run(command, timeout=20).returncode == -signal.SIGKILL
    assert len(list(path.iterdir())) == 10
    store = SqliteStore(database)
    store.open(lambda: None)
    with closing(store):
        for batch in spool.batches():
            assert store.add(batch.tasks) == list(range(1, 11))
            batch.remove()
        assert len(store.records(100)) == 10
    assert list(path.iterdir()) == []
