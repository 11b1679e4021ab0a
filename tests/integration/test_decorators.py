"""Unmodified code with ``uwsgidecorators``: in our spooler, in a real uWSGI, and from one to the other."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.real_uwsgi import PREAMBLE, real_application, real_spooler
from tests.integration.services import Launcher, Service, run_to_end, script, until
from uwsgitwisted import blocking
from uwsgitwisted.worker.compat.calls import SPOOLER_VARIABLE

pytestmark = pytest.mark.integration

#: Code as it is written for uWSGI.
DECORATED = """
import uwsgi
from uwsgidecorators import *

@spool
def plain(task):
    note(plain=task["to"], body=task.get("body"))

@spool(pass_arguments=True)
def add(a, b=0):
    note(sum=a + b)

@spoolraw
def again(task):
    note(again=True)
    flag = os.path.join(os.path.dirname(__file__), "once")
    if os.path.exists(flag):
        return uwsgi.SPOOL_OK
    open(flag, "w").close()
    return uwsgi.SPOOL_RETRY

@spoolforever
def forever(task):
    note(forever=True)

@timer(60)
def often(signum):
    note(often=signum)

@cron(0, -2, -1, -1, -1)
def seldom(signum):
    note(seldom=signum)
"""
ENQUEUE = """
plain({"to": "ann", "body": "the body"})
add(1, b=2)
again.spool()
forever()
"""


def _start(launch: Launcher, *options: str) -> Service:
    return launch.start(
        *("uwsgi-spooler", "--engine", "processes:1", "--spool", "sqlite:spool.db"),
        *("--first-delay", "0.05", "--max-delay", "0.1", *options),
        handler=PREAMBLE + DECORATED,
    )


def _runs(service: Service) -> list[dict[str, Any]]:
    try:
        lines = (service.directory / "runs").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _noted(runs: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [run[name] for run in runs if name in run]


def _dead_letters(service: Service) -> list[str]:
    with closing(sqlite3.connect(service.directory / "spool.db", timeout=20)) as database:
        return [error for (error,) in database.execute("SELECT error FROM tasks WHERE state = 4 ORDER BY id")]


def _enqueue(service: Service, calls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make *calls* in a script that imports the handler module."""
    monkeypatch.setenv(SPOOLER_VARIABLE, str(service.address))
    code = (
        f"from uwsgitwisted.worker.compat.install import install\ninstall()\nfrom my_handler import *\n{calls}"
    )
    ended = run_to_end([sys.executable, "-c", code], service.directory)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_in_our_spooler(launch: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's calls run in the spooler's worker; one that repeats for ever is no dead letter."""
    service = _start(launch, "--max-attempts", "2")
    _enqueue(service, ENQUEUE, monkeypatch)
    until(lambda: len(_noted(_runs(service), "forever")) >= 4, "four runs of what runs for ever")
    until(lambda: len(_noted(_runs(service), "again")) == 2, "the second run")
    runs = _runs(service)
    assert (_noted(runs, "plain"), _noted(runs, "body")) == (["ann"], ["the body"])
    assert _noted(runs, "sum") == [3]
    assert {run["pid"] for run in runs} == set(service.workers())
    assert _dead_letters(service) == []


@pytest.mark.needs("uwsgi")
def test_in_a_real_uwsgi(tmp_path: Path) -> None:
    """The same module does the same in a real uWSGI, with that one's own decorators."""
    spool = tmp_path / "spool"
    spool.mkdir()
    with real_spooler(tmp_path, spool, DECORATED + ENQUEUE) as uwsgi:
        until(lambda: len(_noted(uwsgi.runs(), "forever")) >= 2, "two runs of what runs for ever")
        until(lambda: len(_noted(uwsgi.runs(), "again")) == 2, "the second run")
        runs = uwsgi.runs()
    assert (_noted(runs, "plain"), _noted(runs, "body")) == (["ann"], ["the body"])
    assert _noted(runs, "sum") == [3]


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)


def test_a_pickle_bomb(launch: Launcher, tmp_path: Path) -> None:
    """A pickle that somebody sends runs nothing in the worker, and becomes a dead letter that says why."""
    service = _start(launch, "--max-attempts", "1")
    bomb = pickle.dumps((Bomb(tmp_path / "exploded"),))
    for name in ("add", "plain", "nothing"):
        task = {"ud_spool_func": name, "to": "bob", "args": bomb, "kwargs": pickle.dumps({})}
        assert script(blocking.spool, service.address, task) is True
    until(lambda: len(_dead_letters(service)) == 2, "two dead letters")
    refused, unknown = _dead_letters(service)
    assert "UnsafeObject: the task's 'args' are no marshalled objects" in refused
    assert (
        "the handler module decorates no function of that name; there are: plain, add, again, forever"
        in unknown
    )
    until(lambda: _noted(_runs(service), "plain"), "the run of what takes no arguments")
    assert not (tmp_path / "exploded").exists()
    assert len(service.workers()) == 1


@pytest.mark.needs("uwsgi")
def test_what_a_real_uwsgi_has_spooled(launch: Launcher, tmp_path: Path) -> None:
    """Tasks that a real application has left run in our worker, and those with pickled arguments in its own."""
    spool = tmp_path / "spool"
    spool.mkdir()
    # Its decorators don't know that an application may have no spooler of its own.
    with real_application(tmp_path, spool, f"uwsgi.opt['spooler'] = b''\n{DECORATED}{ENQUEUE}"):
        until(lambda: len(list(spool.iterdir())) == 4, "four tasks")
    service = _start(launch, "--max-attempts", "2", "--drain", f"dir:{spool}")
    until(lambda: len(_noted(_runs(service), "forever")) >= 3, "three runs of what runs for ever")
    until(lambda: len(_noted(_runs(service), "again")) == 2, "the second run")
    service.wait_for("its arguments are pickled, so only the uWSGI that wrote it can run it")
    runs = _runs(service)
    assert (_noted(runs, "plain"), _noted(runs, "body")) == (["ann"], ["the body"])
    assert (_noted(runs, "sum"), _dead_letters(service)) == ([], [])
    assert len(list(spool.iterdir())) == 1
    service.terminate()
    with real_spooler(tmp_path, spool, DECORATED) as uwsgi:
        until(lambda: _noted(uwsgi.runs(), "sum") == [3], "the run of the task that was left")


_LIST = """
import json, sys
from uwsgitwisted.worker.handlers.spool import load, periodic
load("my_handler")
print(json.dumps(periodic()))
"""


def test_what_comes_again(launch: Launcher) -> None:
    """A front learns the periodic tasks from another process, and their tasks run in the worker."""
    service = _start(launch)
    ended = run_to_end([sys.executable, "-c", _LIST], service.directory)
    assert ended.stderr == ""
    tasks = json.loads(ended.stdout)
    assert tasks == [
        {"name": "my_handler.often", "seconds": 60.0},
        {"name": "my_handler.seldom", "cron": "0 0,2,4,6,8,10,12,14,16,18,20,22 * * *"},
    ]
    for task in tasks:
        assert script(blocking.spool, service.address, {"ud_spool_func": task["name"]}) is True
    until(lambda: _noted(_runs(service), "seldom"), "the run of the second")
    assert (_noted(_runs(service), "often"), _noted(_runs(service), "seldom")) == ([0], [1])


def test_fresh_code_comes_again(launch: Launcher) -> None:
    """After SIGHUP the periodic tasks are those of the new code; if that is broken, the old ones stay."""
    service = _start(launch)
    module = service.directory / "my_handler.py"
    before = module.read_text()
    module.write_text("import no_such_module")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("the old ones stay; fix the handler")
    module.write_text(before.replace("@timer(60)", "@timer(1)"))
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("the periodic tasks are those of the new code")
    until(lambda: len(_noted(_runs(service), "often")) >= 2, "two runs of what came once a minute before")
