"""The command ``uwsgitwisted``, and the calls for tasks, against running spoolers."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.integration.services import PATIENCE, Launcher, Service, eventually, run_to_end, script, until
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import NoSuchTask, RequestTimeout, UwsgiError
from uwsgitwisted.spool.task import Task
from uwsgitwisted.spool.uwsgi.directory import SpoolDirectory
from uwsgitwisted.wire.vars import encode_vars

pytestmark = pytest.mark.integration

#: It does what a task says; the rest of the task is its result.
HANDLER = """
import os, time, uwsgi

def wait(task):
    while not os.path.exists(task[b"path"]):
        time.sleep(0.01)

def fail(task):
    raise ValueError("on purpose")

def size(task):
    return [len(task.get("body", b""))]

ACTIONS = {b"wait": wait, b"fail": fail, b"size": size, b"": lambda task: None}

def run(task):
    return ACTIONS[task.get(b"do", b"")](task)

uwsgi.spooler = run
"""


def start(launch: Launcher, *options: str) -> Service:
    spool = ("--engine", "processes:2", "--spool", "sqlite:spool.db", "--max-attempts", "1")
    return launch.start("uwsgi-spooler", *spool, *options, handler=HANDLER)


@pytest.fixture
def spooler(launch: Launcher) -> Service:
    """A spooler of its own for each test."""
    return start(launch)


@pytest.fixture(scope="module")
def shared_spooler(shared: Launcher) -> Service:
    """A spooler for tests that don't mind each other's tasks."""
    return start(shared)


def command(*arguments: str, status: int = 0, directory: Path | None = None) -> str:
    """Run the command; return its output, or its error."""
    line = [sys.executable, "-m", "uwsgitwisted", *arguments]
    ended = run_to_end(line, directory or Path.cwd(), seconds=60)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr if status else ended.stdout


def rows(*arguments: str) -> list[Any]:
    """Return the lines of JSON that a command writes."""
    return [json.loads(line) for line in command(*arguments).splitlines()]


def test_spool(shared_spooler: Service) -> None:
    """A shell enqueues a task, gets its id, waits for it and gets its result."""
    assert int(command("spool", shared_spooler.address, "a=b")) > 0
    identifier, result = command("spool", shared_spooler.address, "do=size", "--wait").split()
    assert (int(identifier) > 0, result) == (True, "[0]")
    said = command("spool", shared_spooler.address, "do=fail", "--wait", status=1)
    assert "is dead: ValueError: on purpose" in said


def test_spool_a_body(shared_spooler: Service, tmp_path: Path) -> None:
    """A body may be larger than a packet."""
    (tmp_path / "body").write_bytes(bytes(1_000_000))
    told = command("spool", shared_spooler.address, "do=size", "--body", str(tmp_path / "body"), "--wait")
    assert told.split()[1] == "[1000000]"


def test_looking_after_a_queue(spooler: Service) -> None:
    """Dead letters are found, read and retried; tasks are cancelled; a queue is paused and resumed."""
    where = spooler.address
    dead = json.loads(command("spool", where, "do=fail", "--json"))["id"]
    until(lambda: rows("queue", "dead", where, "--json"), "the dead letter")
    assert "ValueError: on purpose" in command("queue", "dead", where)
    shown = command("queue", "show", where, str(dead))
    assert "Traceback (most recent call last):" in shown
    assert "my_handler.py" in shown
    assert command("queue", "retry", where, str(dead)) == "1 task will run again\n"
    until(lambda: rows("queue", "dead", where, "--json"), "the dead letter again")
    assert command("queue", "drop", where, "--all", "--state", "dead", "--yes") == "1 task deleted\n"
    assert rows("queue", "dead", where, "--json") == []

    command("queue", "pause", where, "mail")
    waiting = command("spool", where, "spooler=mail").strip()
    other = command("spool", where, "spooler=mail").strip()
    (mail,) = rows("queue", "stats", where, "--json")
    assert (mail["queue"], mail["paused"], mail["ready"]) == ("mail", True, 2)
    assert command("queue", "cancel", where, other) == "1 task cancelled\n"
    command("queue", "resume", where, "mail")
    assert script(blocking.wait, where, int(waiting), PATIENCE).done
    assert script(blocking.status, where, int(other)).state == "cancelled"
    said = command("queue", "cancel", where, waiting, status=1)
    assert f"not changed: task {waiting}, which is done" in said


def test_the_spool_of_a_stopped_spooler(launch: Launcher, spooler: Service) -> None:
    """A running spooler owns its file; after it has stopped, the command works on the file."""
    identifier = command("spool", spooler.address, "a=b", "at=4000000000").strip()
    file = f"sqlite:{spooler.directory}/spool.db"
    said = command("queue", "list", file, status=1)
    assert "in use by a running spooler; name its address instead" in said
    spooler.terminate()
    (task,) = rows("queue", "list", file, "--json")
    assert (str(task["id"]), task["state"]) == (identifier, "scheduled")
    assert command("queue", "cancel", file, identifier) == "1 task cancelled\n"
    assert command("queue", "retry", file, identifier) == "1 task will run again\n"
    again = start(launch, "--spool", file)
    assert script(blocking.wait, again.address, int(identifier), PATIENCE).done


def test_moving_tasks(spooler: Service, tmp_path: Path) -> None:
    """Thousands of tasks are imported from a file and exported again, each with its body."""
    command("queue", "pause", spooler.address, "later")
    told = [{"variables": {"n": n, "spooler": "later"}, "body": "x" * n} for n in range(2_500)]
    (tmp_path / "in").write_text("".join(json.dumps(line) + "\n" for line in told))
    command("queue", "import", spooler.address, str(tmp_path / "in"))
    command("queue", "export", spooler.address, str(tmp_path / "out"))
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [int(line["variables"]["n"]) for line in lines] == list(range(2_500))
    assert all(len(line.get("body", "")) == n for n, line in enumerate(lines))
    assert command("queue", "cancel", spooler.address, "--all", "--yes") == "2,500 tasks cancelled\n"


def test_draining_a_directory(shared_spooler: Service, tmp_path: Path) -> None:
    """The tasks in a uWSGI's spool directory are moved into a spooler."""
    directory = SpoolDirectory(str(tmp_path))
    for n in range(3):
        directory.write(Task(encode_vars({"n": n, "do": "size"}), 0.0, 0.0, priority=n, body=bytes(n)))
    command("queue", "import", shared_spooler.address, f"dir:{tmp_path}")
    assert not list(tmp_path.glob("**/uwsgi_*"))
    tasks = [
        task for task in rows("queue", "list", shared_spooler.address, "--json") if "n=" in task["summary"]
    ]
    assert [task["priority"] for task in tasks] == [0, 1, 2]
    results = [script(blocking.wait, shared_spooler.address, task["id"], PATIENCE).result for task in tasks]
    assert results == [[0], [1], [2]]


def test_a_spooler_that_dies(spooler: Service) -> None:
    """A wait for a task whose spooler is killed fails with one line."""
    line = [sys.executable, "-m", "uwsgitwisted", "spool", spooler.address, "do=wait", "path=x", "--wait"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert int(waiting.stdout.readline()) > 0
        until(lambda: rows("queue", "list", spooler.address, "--json", "--state", "running"), "its run")
        spooler.kill()
        _, said = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 1
    assert len(said.splitlines()) == 1
    assert said.startswith("uwsgitwisted: ")


class Terminal:
    """A command at a terminal of 100 columns."""

    def __init__(self, line: Sequence[str]) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(line, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Read until it shows *text*."""
        while text not in self.shown:
            self._read()

    def _read(self) -> None:
        data = os.read(self._master, 65_536)
        self.shown += data.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Read what is left and return the status."""
        try:
            while True:
                self._read()
        except OSError:  # how Linux says that nobody writes there any more
            os.close(self._master)
        return self.process.wait(PATIENCE)


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("y", 0)])
def test_a_terminal(spooler: Service, answer: str, left: int) -> None:
    """At a terminal, the command asks before it cancels all tasks, and its tables fit."""
    identifier = command("spool", spooler.address, "at=4000000000", f"a={'long' * 100}").strip()
    line = [sys.executable, "-m", "uwsgitwisted", "queue"]
    asked = Terminal([*line, "cancel", spooler.address, "--all"])
    asked.wait_for("(1 scheduled)? [y/N] ")
    asked.type(f"{answer}\n")
    assert asked.end() == (1 if answer == "n" else 0), asked.shown
    assert len(rows("queue", "list", spooler.address, "--json", "--state", "scheduled")) == left
    table = Terminal([*line, "list", spooler.address])
    assert table.end() == 0, table.shown
    assert "\x1b[" in table.shown  # in colour
    assert identifier in table.shown
    plain = command("queue", "list", spooler.address)
    assert "\x1b[" not in plain


# The calls.


def test_blocking_calls(spooler: Service) -> None:
    """A script enqueues, queries, waits and cancels."""

    def work() -> None:
        at = spooler.address
        first = blocking.enqueue(at, {"do": "size"}, bytes(300_000))
        assert first is not None
        assert blocking.wait(at, first, PATIENCE).result == [300_000]
        ids = blocking.enqueue_many(at, [{"do": "size"}, ({"do": "size"}, b"123"), {"at": 4_000_000_000}])
        assert [blocking.wait(at, identifier, PATIENCE).result for identifier in ids[:2]] == [[0], [3]]
        assert blocking.status(at, ids[2]).state == "scheduled"
        with pytest.raises(RequestTimeout):
            blocking.wait(at, ids[2], 0.2)
        assert blocking.cancel(at, ids) == ids[2:]
        with pytest.raises(NoSuchTask):
            blocking.status(at, 10**9)
        with pytest.raises(UwsgiError, match="is no priority"):
            blocking.enqueue_many(at, [{}, {"priority": "../x"}])
        with pytest.raises(UwsgiError, match="is no priority"):
            blocking.enqueue(at, {"priority": "../x"})
        blocking.close()

    script(work)


@pytest_twisted.ensureDeferred
async def test_deferred_calls(spooler: Service, client: Client) -> None:
    """So does a program with Deferreds; many waits may be in flight."""
    at = spooler.address
    path = spooler.directory / "go"
    blocked = await client.enqueue(at, {"do": "wait", "path": str(path)})
    assert blocked is not None
    waiting = client.wait(at, blocked, PATIENCE)
    ids = await client.enqueue_many(at, [({"do": "size"}, bytes(n)) for n in range(50)])
    over = [client.wait(at, identifier, PATIENCE) for identifier in ids]
    assert [(await each).result for each in over] == [[n] for n in range(50)]
    assert not waiting.called
    path.touch()
    assert (await waiting).done
    later = await client.enqueue(at, {"at": 4_000_000_000}, b"body")
    assert later is not None
    assert (await client.status(at, later)).state == "scheduled"
    assert await client.cancel(at, [later]) == [later]
    with pytest.raises(NoSuchTask):
        await client.status(at, 10**9)


@pytest_twisted.ensureDeferred
async def test_a_wait_that_is_given_up(spooler: Service, client: Client) -> None:
    """A wait that times out leaves the task alone."""
    path = spooler.directory / "go"
    identifier = await client.enqueue(spooler.address, {"do": "wait", "path": str(path)})
    assert identifier is not None
    waiting = client.wait(spooler.address, identifier)
    waiting.addErrback(lambda failure: failure.type.__name__)
    waiting.cancel()
    assert await waiting == "RequestCancelled"
    path.touch()
    assert (await client.wait(spooler.address, identifier, PATIENCE)).done


@pytest_twisted.ensureDeferred
async def test_a_spooler_that_ends_while_somebody_waits(spooler: Service, client: Client) -> None:
    """A stopping spooler doesn't wait for peers that wait for its tasks."""
    identifier = await client.enqueue(spooler.address, {"at": 4_000_000_000})
    assert identifier is not None
    failed: list[object] = []
    client.wait(spooler.address, identifier, 600).addErrback(failed.append)
    await client.ping(spooler.address)
    spooler.process.send_signal(signal.SIGTERM)
    await eventually(lambda: spooler.process.poll() is not None, "the spooler's end")
    await eventually(lambda: failed, "the end of the wait")
