"""What the ``uwsgi`` module tells handlers about their service, in each engine and while they are checked."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.services import Launcher, Service

pytestmark = pytest.mark.integration

#: Notes what a module sees while it is imported, by process, and answers with what a handler sees.
HANDLER = """
import json, multiprocessing, os, threading, uwsgi
from concurrent.futures import ProcessPoolExecutor

def known():
    opt = {name: repr(value) for name, value in uwsgi.opt.items()}
    return {"master": uwsgi.masterpid(), "worker": uwsgi.worker_id(), "numproc": uwsgi.numproc, "opt": opt}

with open("imports", "a") as notes:
    notes.write(json.dumps(known()) + "\\n")

both = threading.Barrier(2)

def handle(message, modifier2):
    if message == "both":
        both.wait(20)
    return [known(), os.getpid()]

uwsgi.message_manager_marshal = handle

def make():
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
"""
EXECUTOR = "executor:my_handler:make"


def start(launch: Launcher, engine: str) -> tuple[Service, dict[str, str]]:
    """Start a node with some options; return it, and what they are to handlers."""
    node = launch.start(
        *("uwsgi-node", "--engine", engine, "--allow", "127.0.0.0/8", "--allow", "::1", "-t", "30"),
        "--no-tracebacks",
        handler=HANDLER,
    )
    given: dict[str, Any] = {
        "listen": node.address.encode(),
        "node": b"here",
        "engine": engine.encode(),
        "allow": [b"127.0.0.0/8", b"::1"],
        "timeout": b"30",
        "no-tracebacks": True,
        "handler": b"my_handler",
    }
    return node, {name: repr(value) for name, value in given.items()}


@pytest.mark.parametrize(
    ("engine", "workers", "numproc"),
    [("processes:2", {1, 2}, 2), ("threads:2", {1, 2}, 2), ("reactor", {1}, 1), (EXECUTOR, {0}, 1)],
)
def test_what_handlers_know(launch: Launcher, engine: str, workers: set[int], numproc: int) -> None:
    """They know the service's process and options, how many workers there are, and which one theirs is."""
    node, options = start(launch, engine)
    known, _ = node.ask("who")
    assert known.pop("worker") in workers
    assert known == {"master": node.pid, "numproc": numproc, "opt": options}


@pytest.mark.parametrize("engine", ["processes:2", "threads:2", "reactor", EXECUTOR])
def test_what_the_check_knows(launch: Launcher, engine: str) -> None:
    """While handlers are checked at the start, a module finds the same; it is no worker then."""
    node, options = start(launch, engine)
    checked = json.loads((node.directory / "imports").read_text().splitlines()[0])
    numproc = 2 if engine.endswith(":2") else 1
    assert checked == {"master": node.pid, "worker": 0, "numproc": numproc, "opt": options}


def test_each_thread_has_its_number(launch: Launcher) -> None:
    """Of two threads that run at the same time, one is the first worker, and the other the second."""
    node, _ = start(launch, "threads:2")
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(node.ask, "both") for _ in range(2)]
        assert sorted(answer.result()[0]["worker"] for answer in answers) == [1, 2]
