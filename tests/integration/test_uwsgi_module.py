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
    in_time()
    assert uwsgi.call("hello", b"ann") == b"hello ann"
    follow_up.spool(number=1)

@spool
def follow_up(task):
    note(follow_up=task["number"])

@spoolforever
def forever(task):
    note(forever=True)

@timer(1, target="worker")
def ticking(number):
    locked()
    note(tick=number)

@cron(0, 0, 1, 1, -1)
def yearly(number):
    note(yearly=number)

@filemon({decorators!r})
def changed(number):
    note(changed=number)

@lock
def locked():
    raise AssertionError("uwsgidecorators never calls it in a spooler")

@mulefunc
def in_a_mule():
    pass

@rpc("hello")
def hello(name):
    return b"hello " + name

@harakiri(30)
def in_time():
    note(in_time=True)

@thread
def in_a_thread():
    in_time()

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
        *(
            "uwsgi-spooler",
            "--engine",
            "processes:1",
            "--spool",
            "sqlite:spool.db",
            "--first-delay",
            "0.05",
            "--max-attempts",
            "3",
        ),
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
    assert _noted(spooler, "in_time") == [True]
    assert len(_noted(spooler, "jobs")[0]) == 1
    until(lambda: _noted(spooler, "tick"), "the timer")
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


def test_a_limit_for_what_runs_for_ever(spooler: Service) -> None:
    """PyPI's @spoolforever returns SPOOL_RETRY, which counts as an attempt."""
    task = script(blocking.enqueue, spooler.address, {"ud_spool_func": "forever", "ud_spool_ret": "-1"})
    assert script(blocking.wait, spooler.address, task).state == "dead"
    assert len(_noted(spooler, "forever")) == 3


#: A module of a node, as it was written for Python 2, and a web application beside it.
_NODE = """
import uwsgi

def answer(message, modifier2):
    if message == "reload":
        return uwsgi.reload()
    return [uwsgi.masterpid(), "Dear " + message["name"], uwsgi.request_id(), uwsgi.opt["python2"]]

uwsgi.message_manager_marshal = answer
uwsgi.post_fork_hook = lambda: print("hook of", uwsgi.worker_id(), flush=True)

def application(environ, start_response):
    uwsgi.set_logvar("user", "ann")
    uwsgi.add_var("REMOTE_USER", "bob")
    start_response("200 OK", [])
    return uwsgi.sendfile(__file__, 0, 1, 6)
"""


def test_a_node(launch: Launcher) -> None:
    """A node has the hook, the web functions, the text of Python 2 callers, and reloads if it asks."""
    service = launch.start(
        *("uwsgi-node", "--engine", "processes:1", "--python2", "utf-8", "--wsgi", "my_handler"),
        *("--access-log", "access.log"),
        handler=_NODE,
    )
    service.wait_for("hook of 1")
    pid, text, _, option = service.ask({b"name": b"Ann"})
    assert (pid, text, option) == (service.pid, "Dear Ann", b"utf-8")
    variables = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SERVER_PROTOCOL": "HTTP/1.0"}
    page = script(blocking.send_message, service.address, 0, 0, variables)
    assert page == b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nimport"
    log = service.directory / "access.log"
    until(lambda: log.exists() and ' user="ann"\n' in log.read_text(), "the variable in the log")
    assert " bob [" in log.read_text()
    assert service.ask(b"reload") is True
    service.wait_for("every worker was replaced")
