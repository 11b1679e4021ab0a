"""The spooler's promise: an accepted task is on the disk and runs, whatever is killed in between."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.integration.handlers import TASKS
from tests.integration.services import (
    TERMINATED,
    TWISTD,
    Launcher,
    RawSession,
    Service,
    eventually,
    is_alive,
    run_to_end,
    script,
    until,
)
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import SpoolRefused, UwsgiError
from uwsgitwisted.wire.events import ShutdownReceived
from uwsgitwisted.wire.packet import SPOOL, Packet, encode_packet

pytestmark = pytest.mark.integration

ACCEPTED, REFUSED = b"\xff\x00\x00\x01", b"\xff\x00\x00\x00"
#: Retries come at once, so that the tests don't wait for them.
QUICK = ("--first-delay", "0.05", "--max-delay", "0.2")
FAR_AHEAD = 4_000_000_000


def _start(launch: Launcher, *options: str, **keywords: Any) -> Service:
    return launch.start(
        *("uwsgi-spooler", "--engine", "processes:2", "--spool", "sqlite:spool.db", *QUICK, *options),
        handler=TASKS,
        **keywords,
    )


@pytest.fixture
def spooler(launch: Launcher) -> Service:
    """A spooler of its own for each test."""
    return _start(launch)


@pytest.fixture(scope="module")
def shared_spooler(shared: Launcher) -> Service:
    """A spooler for tests that leave no task behind."""
    return _start(shared, "--max-attempts", "2", tcp=True)


@pytest.fixture
def refusing(shared_spooler: Service) -> Iterator[Service]:
    """The shared spooler, which after the test still takes tasks and has written nothing but its own files."""
    yield shared_spooler
    assert shared_spooler.exchange(encode_packet(Packet(SPOOL, 0, b""))) == ACCEPTED
    root = shared_spooler.directory.parent
    assert {path.name for path in root.iterdir() if path.is_dir()} == {shared_spooler.directory.name}
    allowed = ("my_handler.py", "service.log", "socket", "runs", "__pycache__")
    names = {path.name for path in shared_spooler.directory.iterdir()}
    assert {name for name in names if not name.startswith("spool.db")} <= set(allowed)


def _runs(service: Service) -> list[dict[str, Any]]:
    """Return what the handler noted, in order."""
    try:
        lines = (service.directory / "runs").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _ran(service: Service, key: str) -> list[dict[str, Any]]:
    """Return the runs of the task whose variable ``key`` is *key*."""
    return [run for run in _runs(service) if run.get("task", {}).get("key") == key]


def _read(service: Service, query: str) -> list[tuple[Any, ...]]:
    """Read the spool's file as an operator would, while the spooler may be running."""
    with closing(sqlite3.connect(service.directory / "spool.db", timeout=20)) as database:
        return database.execute(query).fetchall()


def _waiting(service: Service) -> int:
    return int(_read(service, "SELECT count(*) FROM tasks WHERE state < 3")[0][0])


def _letters(service: Service) -> list[tuple[Any, ...]]:
    return _read(service, "SELECT attempts, crashes, error FROM tasks WHERE state = 4")


# The scenario.


def test_a_task(shared_spooler: Service) -> None:
    """The original call returns True, and the function gets the dict in a worker process of the spooler."""
    host, port = shared_spooler.address
    task = {"key": "scenario", "key2": "value2"}
    assert script(blocking.send_uwsgi_message, host, port, 17, 0, task, 30) is True
    until(lambda: _ran(shared_spooler, "scenario"), "the task's run")
    (run,) = _ran(shared_spooler, "scenario")
    assert run["task"] == task
    assert run["pid"] != shared_spooler.pid
    assert run["front"] == shared_spooler.pid
    until(lambda: _waiting(shared_spooler) == 0, "the end of the task")


@pytest_twisted.ensureDeferred
async def test_a_task_with_deferreds(shared_spooler: Service, client: Client) -> None:
    """The client does the same, by its general call and by its own."""
    address = shared_spooler.address
    assert await client.send_message(address, 17, 0, {"key": "deferred"}) is True
    assert await client.spool(address, {"key": "deferred"}) is True
    await eventually(lambda: len(_ran(shared_spooler, "deferred")) == 2, "both runs")


def test_old_code_spools(launch: Launcher, shared_spooler: Service) -> None:
    """A handler module enqueues a task with uwsgi.send_uwsgi_message."""
    host, port = shared_spooler.address
    handler = f"""
import uwsgi
uwsgi.message_manager_marshal = lambda key, id: uwsgi.send_uwsgi_message(
    {host!r}, {port}, 17, 0, {{"key": key}}, 30)
"""
    node = launch.start("uwsgi-node", "--engine", "processes:1", handler=handler)
    assert node.ask("from a node") is True
    until(lambda: _ran(shared_spooler, "from a node"), "the task's run")


def test_the_modifier2_and_bytes_behind(shared_spooler: Service) -> None:
    """modifier2 and bytes after the packet are ignored, as uWSGI does; the answer is a packet of four bytes."""
    data = encode_packet(Packet(SPOOL, 99, b"\x03\x00key\x05\x00bytes")) + b"a body"
    assert shared_spooler.exchange(data) == ACCEPTED
    until(lambda: _ran(shared_spooler, "bytes"), "the task's run")


def test_on_the_disk_when_accepted(spooler: Service) -> None:
    """When the answer comes, the task can be read from the file."""
    assert script(blocking.spool, spooler.address, {"key": "later", "at": str(FAR_AHEAD)}) is True
    ((variables, at),) = _read(spooler, "SELECT variables, at FROM tasks")
    assert b"\x03\x00key\x05\x00later" in bytes(variables)
    assert at == FAR_AHEAD


def test_at(spooler: Service) -> None:
    """A task with a time runs then, not before, and no other one waits for it."""
    at = time.time() + 1
    script(blocking.spool, spooler.address, {"key": "far", "at": str(FAR_AHEAD)})
    script(blocking.spool, spooler.address, {"key": "timed", "at": f"{at:.3f}"})
    script(blocking.spool, spooler.address, {"key": "now"})
    until(lambda: _ran(spooler, "now") and _ran(spooler, "timed"), "the tasks' runs")
    assert _ran(spooler, "timed")[0]["time"] >= at - 0.01
    assert _ran(spooler, "far") == []


# Whatever is killed in between.


def test_sigkill_between_acceptance_and_execution(launch: Launcher, spooler: Service) -> None:
    """A spooler that is killed before a task's time runs it after its next start."""
    assert script(blocking.spool, spooler.address, {"key": "survivor", "at": str(FAR_AHEAD)}) is True
    spooler.kill()
    assert _runs(spooler) == []
    assert _waiting(spooler) == 1
    with closing(sqlite3.connect(spooler.directory / "spool.db")) as database:  # its time comes
        database.execute("UPDATE tasks SET at = 1")
        database.commit()
    again = _start(launch, directory=spooler.directory)
    until(lambda: _ran(again, "survivor"), "the task's run")
    (run,) = _ran(again, "survivor")
    assert run["front"] == again.pid
    until(lambda: _waiting(again) == 0, "the end of the task")


def test_sigkill_right_after_the_answer(launch: Launcher) -> None:
    """Of tasks that are accepted up to the moment of a SIGKILL, none is lost."""
    spooler = _start(launch)
    accepted: list[str] = []

    def spool() -> None:
        for number in range(1_000):
            try:
                blocking.spool(spooler.address, {"key": f"task {number}", "at": "1"}, 5)
            except UwsgiError:
                return
            accepted.append(f"task {number}")

    thread = threading.Thread(target=spool)
    thread.start()
    until(lambda: len(accepted) >= 30, "some accepted tasks")
    spooler.kill()
    thread.join()
    again = _start(launch, directory=spooler.directory)
    until(lambda: _waiting(again) == 0, "the end of every task")
    ran = {run["task"]["key"] for run in _runs(again)}
    assert set(accepted) <= ran
    assert not _letters(again)


def test_sigkill_while_a_task_runs(launch: Launcher, spooler: Service) -> None:
    """A task that ran when the spooler was killed runs again, and its worker did not go on alone."""
    go = spooler.directory / "go"
    script(blocking.spool, spooler.address, {"key": "twice", "do": "wait", "path": str(go)})
    until(lambda: _ran(spooler, "twice"), "the first run")
    worker = _ran(spooler, "twice")[0]["pid"]
    spooler.kill()
    assert not is_alive(worker)
    go.touch()
    again = _start(launch, directory=spooler.directory)
    until(lambda: _waiting(again) == 0, "the end of the task")
    assert len(_ran(again, "twice")) == 2
    assert len([run for run in _runs(again) if run.get("finished")]) == 1


def test_sigterm_loses_nothing(launch: Launcher, spooler: Service) -> None:
    """At SIGTERM the running task is finished and not run again; those that wait run after the next start."""
    go = spooler.directory / "go"
    for number in range(2):
        script(blocking.spool, spooler.address, {"key": f"running {number}", "do": "wait", "path": str(go)})
    until(lambda: len(_runs(spooler)) == 2, "both tasks' runs")
    for number in range(3):
        script(blocking.spool, spooler.address, {"key": f"waiting {number}"})
    with closing(RawSession(spooler)) as session:
        spooler.process.send_signal(signal.SIGTERM)
        # Its notice comes when the spooler begins no further tasks.
        assert any(isinstance(event, ShutdownReceived) for event in session.events())
        go.touch()
    assert spooler.process.wait(20) == TERMINATED
    assert _waiting(spooler) == 3
    again = _start(launch, directory=spooler.directory)
    until(lambda: _waiting(again) == 0, "the end of every task")
    ran = sorted(run["task"]["key"] for run in _runs(again) if "task" in run)
    assert ran == ["running 0", "running 1", "waiting 0", "waiting 1", "waiting 2"]


# Tasks that fail.


def test_retries_and_the_dead_letter(launch: Launcher) -> None:
    """A failing task is retried after growing delays, then kept with its variables and its traceback."""
    spooler = _start(launch, "--first-delay", "0.2", "--max-delay", "10", "--max-attempts", "4")
    script(blocking.spool, spooler.address, {"key": "failing", "do": "fail"})
    until(lambda: _letters(spooler), "the dead letter")
    times = [run["time"] for run in _ran(spooler, "failing")]
    assert len(times) == 4
    delays = [later - earlier for earlier, later in pairwise(times)]
    # 0.2, 0.4 and 0.8 s, less a quarter at most.
    for delay, full in zip(delays, (0.2, 0.4, 0.8), strict=True):
        assert delay >= full * 0.74
    ((attempts, crashes, error),) = _letters(spooler)
    assert (attempts, crashes) == (4, 0)
    assert "ValueError: this task fails" in error
    assert "my_handler.py" in error
    ((variables,),) = _read(spooler, "SELECT variables FROM tasks WHERE state = 4")
    assert b"\x03\x00key\x07\x00failing" in bytes(variables)
    assert _waiting(spooler) == 0
    assert "moves to the dead letters" in spooler.log


@pytest.mark.parametrize("do", ["retry", "ignore", "exit", "unknown"])
def test_other_ways_to_fail(shared_spooler: Service, do: str) -> None:
    """A task whose function returns SPOOL_RETRY, or exits, runs up to --max-attempts times."""
    before = len(_letters(shared_spooler))
    script(blocking.spool, shared_spooler.address, {"key": do, "do": do})
    until(lambda: len(_letters(shared_spooler)) == before + 1, "the dead letter")
    assert len(_ran(shared_spooler, do)) == 2


@pytest.mark.parametrize("do", ["kill", "loop"])
def test_a_task_that_ends_its_worker(launch: Launcher, do: str) -> None:
    """A task that crashes its worker, or runs over --timeout, is a dead letter after --max-crashes of them."""
    spooler = _start(launch, "--max-crashes", "2", "--timeout", "1.5")
    script(blocking.spool, spooler.address, {"key": "deadly", "do": do})
    script(blocking.spool, spooler.address, {"key": "harmless"})
    until(lambda: _letters(spooler), "the dead letter")
    ((attempts, crashes, error),) = _letters(spooler)
    assert (attempts, crashes) == (2, 2)
    assert {"kill": "SIGKILL", "loop": "1.5 s"}[do] in error
    workers = {run["pid"] for run in _ran(spooler, "deadly")}
    assert len(workers) == 2
    until(lambda: not any(map(is_alive, workers)), "the end of the dead workers")
    until(lambda: len(spooler.workers()) == 2, "as many workers as before")
    until(lambda: _ran(spooler, "harmless"), "the other task's run")
    assert len(_ran(spooler, "harmless")) == 1


# Invalid tasks.


@pytest.mark.parametrize(
    "payload",
    [
        b"\x03\x00key\xff\xffvalue",
        b"\xff\xffkey\x05\x00value",
        b"\x03\x00key",
        b"\x03",
        b"\x00\x00\x05\x00value",
        b"\x03\x00key\x05\x00val",
        b"junk" * 1_000,
        b"\xff" * 65_535,
    ],
)
def test_malformed_vars(refusing: Service, payload: bytes) -> None:
    """A vars block that lies about its lengths is answered {255, 0, 0}."""
    assert refusing.exchange(encode_packet(Packet(SPOOL, 0, payload))) == REFUSED


@pytest.mark.parametrize(
    "task",
    [
        {"priority": "../escaped"},
        {"priority": "/tmp/escaped"},
        {"priority": "1.5"},
        {"at": "tomorrow"},
        {"at": "-1"},
        {"at": "nan"},
        {"at": "9" * 40},
        {"spooler": b"\xff\xfe"},
    ],
)
def test_keys_that_mean_nothing(refusing: Service, task: dict[str, str | bytes]) -> None:
    """An invalid priority, such as a path, and an invalid time are refused; nothing is created."""
    with pytest.raises(SpoolRefused):
        script(blocking.spool, refusing.address, task)
    assert not (refusing.directory.parent / "escaped").exists()


@pytest_twisted.ensureDeferred
async def test_a_refusal_with_deferreds(refusing: Service, client: Client) -> None:
    """The client's call fails with SpoolRefused, its general one gives False."""
    with pytest.raises(SpoolRefused):
        await client.spool(refusing.address, {"priority": "../escaped"})
    assert await client.send_message(refusing.address, 17, 0, {"priority": "../escaped"}) is False


def test_the_largest_task(shared_spooler: Service) -> None:
    """A task of 65535 bytes, the most that a packet takes, is stored and run whole."""
    key = "k" * (65_535 - 2 - 3 - 2)
    script(blocking.spool, shared_spooler.address, {"key": key})
    until(lambda: _ran(shared_spooler, key), "the task's run")


def test_a_key_that_is_a_path(refusing: Service) -> None:
    """The name of a queue is a name, whatever it looks like: it creates nothing either."""
    script(blocking.spool, refusing.address, {"key": "queue", "spooler": "../escaped"})
    until(lambda: _ran(refusing, "queue"), "the task's run")
    assert not (refusing.directory.parent / "escaped").exists()


# The file.


def _refusal(directory: Path, *options: str, before: Sequence[str] = ()) -> str:
    """Return the error of a spooler that doesn't start.

    :param before: what runs it.
    """
    (directory / "my_handler.py").write_text(TASKS)
    command = [*before, *TWISTD, "-n", "--pidfile=", "uwsgi-spooler", "--listen", f"unix:{directory}/second"]
    ended = run_to_end([*command, "--handler", "my_handler", *options], directory)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_second_spooler(spooler: Service) -> None:
    """A second spooler on the same file doesn't start and names the first, which keeps running."""
    told = _refusal(spooler.directory, "--spool", "sqlite:spool.db")
    assert f"in use by another spooler (process {spooler.pid} " in told
    assert script(blocking.spool, spooler.address, {"key": "value"}) is True


@pytest.mark.parametrize("content", [b"this is no database\n" * 100, b"x", bytes(4_096)])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    """A file of something else keeps the spooler from starting and stays as it is, byte for byte."""
    (tmp_path / "notes.txt").write_bytes(content)
    assert "notes.txt" in _refusal(tmp_path, "--spool", "sqlite:notes.txt")
    assert (tmp_path / "notes.txt").read_bytes() == content


def test_a_database_of_something_else(tmp_path: Path) -> None:
    """Somebody else's database stays as it is, too."""
    with closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("CREATE TABLE tasks (name TEXT)")
        database.commit()
    content = (tmp_path / "other.db").read_bytes()
    assert "other.db" in _refusal(tmp_path, "--spool", "sqlite:other.db")
    assert (tmp_path / "other.db").read_bytes() == content


@pytest.mark.parametrize(
    ("spool", "told"),
    [
        ("sqlite:absent/spool.db", "absent/spool.db"),
        ("sqlite:.", "is not a file"),
        ("sqlite:/dev/full", "is not a file"),
        ("sqlite:", "doesn't say where it is"),
        ("sqlite::memory:", "names no file"),
        ("mysql:x", "'mysql:x' is of no known kind"),
        ("spool.db", "'spool.db' is of no known kind"),
    ],
)
def test_a_spool_that_cannot_be(tmp_path: Path, spool: str, told: str) -> None:
    """A spool that can't be opened, or is of no known kind, is named."""
    assert told in _refusal(tmp_path, "--spool", spool)


def test_a_full_disk(launch: Launcher) -> None:
    """When the file can't grow the answer is no, nothing is half written, and the service stays up.

    Once there is room again, tasks are accepted.
    """
    spooler = _start(launch)
    large = {"key": "x" * 60_000, "at": str(FAR_AHEAD)}
    script(blocking.spool, spooler.address, large)
    resource.prlimit(spooler.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    answers = [script(blocking.send_message, spooler.address, SPOOL, 0, large) for _ in range(30)]
    accepted = 1 + answers.count(True)
    assert answers[-1] is False
    assert spooler.process.poll() is None, spooler.log
    assert script(blocking.ping, spooler.address) < 5
    assert _waiting(spooler) == accepted
    assert _read(spooler, "PRAGMA integrity_check") == [("ok",)]
    resource.prlimit(spooler.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert script(blocking.spool, spooler.address, {"key": "room again"}) is True
    until(lambda: _ran(spooler, "room again"), "the task's run")
    until(lambda: _waiting(spooler) == accepted, "the end of that task alone")


def test_a_disk_full_from_the_start(tmp_path: Path) -> None:
    """A spooler that can't even make its file says so and doesn't start."""
    # Coverage, if it measures this, would fail to write its own file.
    full = ("sh", "-c", 'unset COVERAGE_PROCESS_START COVERAGE_PROCESS_CONFIG; ulimit -f 0; exec "$@"', "sh")
    assert "spool.db" in _refusal(tmp_path, "--spool", "sqlite:spool.db", before=full)


def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    """A directory in the place of the lock, or no right to write, is named."""
    os.mkdir(tmp_path / "spool.db.lock")
    assert "spool.db.lock" in _refusal(tmp_path, "--spool", "sqlite:spool.db")
