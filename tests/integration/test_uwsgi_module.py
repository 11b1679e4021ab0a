"""Code for uWSGI in our processes: its modules in a spooler, in a node, and in programs of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.real_uwsgi import PREAMBLE
from tests.integration.services import Launcher, Service, run_to_end, script, until
from tests.uwsgi_names import distribution_file
from uwsgitwisted import blocking

pytestmark = pytest.mark.integration

#: A module for uWSGI, which has PyPI's uwsgidecorators under their own name, uwsgi-tasks, and a function that
#: asks the spooler.
_HANDLER = """
import importlib.util, sys
import uwsgi

assert uwsgi.masterpid() and "spooler" in uwsgi.opt  # also while the module is checked
spec = importlib.util.spec_from_file_location("uwsgidecorators", {decorators!r})
sys.modules["uwsgidecorators"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from uwsgidecorators import *
import uwsgidecorators
assert uwsgidecorators.__file__ == {decorators!r}

@spool
def first(task):
    note(first=task["to"], jobs=[job.decode() for job in uwsgi.spooler_jobs()])
    found = uwsgi.spooler_get_task(task["spooler_task_name"])
    note(task=found[b"to"].decode(), pids=[uwsgi.spooler_pid(), *uwsgi.spooler_pids(), uwsgi.masterpid()])
    follow_up.spool(number=1)

@spool
def follow_up(task):
    note(follow_up=task["number"])

@spool(pass_arguments=True)
def add(a, b=0):
    note(sum=a + b)

@postfork
def started():
    note(started=uwsgi.worker_id())

decorated = uwsgi.spooler
import uwsgi_tasks
from uwsgi_tasks import TaskExecutor, task

@task(executor=TaskExecutor.SPOOLER)
def background(a, b):
    note(background=a + b)

tasks = uwsgi.spooler

def both(request):
    name = b"function_name" if b"function_name" in request else b"ud_spool_func"
    return (tasks if b"function_name" in request else decorated)(request)

uwsgi.spooler = both
"""


@pytest.fixture(scope="module")
def spooler(shared: Launcher) -> Service:
    source = _HANDLER.format(decorators=str(distribution_file("uwsgidecorators", "uwsgidecorators.py")))
    return shared.start(
        *("uwsgi-spooler", "--engine", "processes:1", "--spool", "sqlite:spool.db", "--first-delay", "0.05"),
        handler=PREAMBLE + source,
        tcp=True,
    )


def _noted(service: Service, name: str) -> list[Any]:
    path = service.directory / "runs"
    lines = path.read_text().splitlines() if path.exists() else []
    return [run[name] for line in lines if name in (run := json.loads(line))]


def test_uwsgidecorators_of_pypi(spooler: Service) -> None:
    """They load and work, and a task that a task enqueues runs in the same spooler."""
    script(blocking.spool, spooler.address, {"ud_spool_func": "first", "ud_spool_ret": "-2", "to": "ann"})
    until(lambda: _noted(spooler, "follow_up"), "the follow-up task")
    assert (_noted(spooler, "first"), _noted(spooler, "follow_up"), _noted(spooler, "task")) == (
        ["ann"],
        ["1"],
        ["ann"],
    )
    assert _noted(spooler, "started") == [1]
    assert len(_noted(spooler, "jobs")[0]) == 1
    assert _noted(spooler, "pids") == [[spooler.pid] * 3]


#: A web application's own script, for which nothing was changed.
_SCRIPT = """
import sys
import my_handler
my_handler.background(3, 4)
print(sys.argv[1:], __name__)
"""


def test_a_program_unchanged(spooler: Service) -> None:
    """``python -m uwsgitwisted.compat`` runs a script that calls functions of a module for uWSGI."""
    path = spooler.directory / "unchanged.py"
    path.write_text(_SCRIPT)
    host, port = spooler.address
    command = ["-m", "uwsgitwisted.compat", "--spooler", f"{host}:{port}", str(path), "a", "--b"]
    ended = run_to_end([sys.executable, *command], spooler.directory)
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "['a', '--b'] __main__\n")
    until(lambda: _noted(spooler, "background") == [7], "the task of uwsgi-tasks")


def test_a_program_that_installs(spooler: Service, tmp_path: Path) -> None:
    """``uwsgitwisted.compat.install`` does the same from within a program, with our decorators."""
    host, port = spooler.address
    (tmp_path / "tasks.py").write_text("from uwsgidecorators import spool\n@spool\ndef follow_up(task): pass\n")
    code = (
        f"import uwsgitwisted.compat\nuwsgitwisted.compat.install(spooler='{host}:{port}')\n"
        "import tasks\nassert tasks.follow_up.spool(number='2') is True"
    )
    ended = run_to_end([sys.executable, "-c", code], tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    until(lambda: "2" in _noted(spooler, "follow_up"), "the task of the program")
