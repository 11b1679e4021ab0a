"""The task queue as a service: queues, ids, results, periodic tasks, and the spool of a real uWSGI."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.integration.services import Launcher, Service, eventually, script, until
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import NoSuchTask, RequestTimeout
from uwsgitwisted.spool.task import new_task
from uwsgitwisted.spool.uwsgi.directory import SpoolDirectory
from uwsgitwisted.wire.vars import encode_vars
from uwsgitwisted.worker.compat import uwsgi

pytestmark = pytest.mark.integration

#: Notes what it gets, and returns what the task's ``returns`` says.
HANDLER = """
import json, os, time, uwsgi
from uwsgidecorators import postfork, timer

ready = []

@postfork
def prepare():
    ready.append(os.getpid())

def note(**what):
    descriptor = os.open("runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, json.dumps({"time": time.time(), **what}).encode() + b"\\n")
    os.close(descriptor)

@timer(1)
def tick(signum):
    note(key="tick", ready=ready == [os.getpid()])

def run(task):
    key = task[b"key"].decode()
    note(key=key, body=len(task.get("body", b"")))
    while b"wait" in task and not os.path.exists(task[b"wait"]):
        time.sleep(0.01)
    return {"key": key, "numbers": [1, 2.5, b"three"]} if b"result" in task else uwsgi.SPOOL_OK

uwsgi.spooler = run
"""


def _start(launch: Launcher, *options: str) -> Service:
    return launch.start("uwsgi-spooler", "--spool", "sqlite:spool.db", *options, handler=HANDLER)


def _runs(service: Service, key: str) -> list[dict[str, Any]]:
    with suppress(FileNotFoundError):
        notes = map(json.loads, (service.directory / "runs").read_text().splitlines())
        return [note for note in notes if note["key"] == key]
    return []


def test_queues(launch: Launcher) -> None:
    """A queue with workers of its own doesn't wait for others, nor do they wait for it."""
    spooler = _start(launch, "--workers", "1", "--queue", "mail=2")
    go = str(spooler.directory / "go")
    for key, name in (("slow mail", "mail"), ("slow", "other"), ("behind", "")):
        script(blocking.spool, spooler.address, {"key": key, "spooler": name, "wait": go})
    until(lambda: _runs(spooler, "slow mail") and _runs(spooler, "slow"), "both slow tasks")
    script(blocking.spool, spooler.address, {"key": "mail", "spooler": "mail"})
    until(lambda: _runs(spooler, "mail"), "the run beside the slow mail")
    assert not _runs(spooler, "behind")
    assert len(spooler.workers()) == 3
    Path(go).touch()
    until(lambda: _runs(spooler, "behind"), "the run behind the slow task")


def test_ids_and_results(launch: Launcher) -> None:
    """A task has an id, a state that can be queried and waited for, and a result."""
    spooler = _start(launch)
    go = str(spooler.directory / "go")

    task = script(blocking.enqueue, spooler.address, {"key": "one", "result": "", "wait": go}, b"x" * 300_000)
    assert isinstance(task, int)  # not always 1: the timer may have taken ids before
    until(lambda: script(blocking.status, spooler.address, task).state == "running", "the run")
    with pytest.raises(RequestTimeout):
        script(blocking.wait, spooler.address, task, 0.2)
    Path(go).touch()
    over = script(blocking.wait, spooler.address, task, 10)
    assert over.done
    assert over.result == {"key": "one", "numbers": [1, 2.5, b"three"]}
    assert over.attempts == 1
    with pytest.raises(NoSuchTask):
        script(blocking.status, spooler.address, 99)
    assert [run["body"] for run in _runs(spooler, "one")] == [300_000]


def test_a_body_of_old_code(launch: Launcher) -> None:
    """What old code has under the key body is the task's body, of any size."""
    spooler = _start(launch)
    task = {"key": "bodied", "spooler": spooler.address, "body": b"x" * 100_000}
    assert script(uwsgi.spool, task) is True
    until(lambda: _runs(spooler, "bodied"), "the run")
    assert _runs(spooler, "bodied")[0]["body"] == 100_000


@pytest_twisted.ensureDeferred
async def test_the_same_with_deferreds(launch: Launcher, client: Client) -> None:
    """The client for Twisted has the same calls."""
    spooler = _start(launch)
    task = await client.enqueue(spooler.address, {"key": "one", "result": ""}, body=b"body")
    assert task is not None
    over = await client.wait(spooler.address, task)
    assert over.result["key"] == "one"  # type: ignore[index]
    many = await client.enqueue_many(spooler.address, [{"key": f"many {number}"} for number in range(500)])
    assert many == list(range(many[0], many[0] + 500))  # the timer may have taken an id before
    await eventually(lambda: _runs(spooler, "many 499"), "the last run")


def test_idempotency(launch: Launcher) -> None:
    """The same idempotency key is one task, also from many callers at once, and after a restart."""
    spooler = _start(launch)
    ids: list[int | None] = []

    def enqueue() -> None:
        ids.append(blocking.enqueue(spooler.address, {"key": "once", "idempotency_key": "k"}))

    threads = [threading.Thread(target=enqueue) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (task,) = set(ids)
    assert script(blocking.wait, spooler.address, task, 20).done  # one that still runs would run again
    spooler.kill()
    again = launch.start(
        "uwsgi-spooler", "--spool", "sqlite:spool.db", handler=HANDLER, directory=spooler.directory
    )
    script(enqueue)
    assert set(ids) == {task}
    script(blocking.spool, again.address, {"key": "last"})
    until(lambda: _runs(again, "last"), "a later task's run")
    assert len(_runs(again, "once")) == 1


def test_periodic_tasks(launch: Launcher) -> None:
    """A cron expression and a decorated timer bring tasks, in workers that are prepared."""
    spooler = _start(launch, "--cron", "* * * * * * key=every-second")
    until(lambda: len(_runs(spooler, "every-second")) >= 2, "two occurrences")
    until(lambda: len(_runs(spooler, "tick")) >= 2, "two ticks")
    assert all(run["ready"] for run in _runs(spooler, "tick"))


def test_drain(launch: Launcher, tmp_path: Path) -> None:
    """What is in a uWSGI's spool directory, and what comes there, is moved into the queue and run."""
    directory = SpoolDirectory(str(tmp_path))

    def write(key: str) -> None:
        directory.write(new_task(encode_vars({"key": key}), time.time(), b"body"))

    write("before")
    spooler = _start(launch, "--drain", f"dir:{tmp_path}")
    until(lambda: _runs(spooler, "before"), "the run of what was there")
    write("after")
    until(lambda: _runs(spooler, "after"), "the run of what came")
    assert [run["body"] for run in _runs(spooler, "after")] == [4]
    until(lambda: not list(tmp_path.glob("uwsgi_spoolfile*")), "an empty directory")
