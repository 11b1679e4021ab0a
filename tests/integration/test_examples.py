"""The examples, and the README's own code, as a user runs them: real processes, real sockets."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.documents import ROOT, blocks
from tests.integration.conftest import NEEDS
from tests.integration.services import is_alive, until

EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

from demo_support import HOST, Service, Services  # noqa: E402

pytestmark = pytest.mark.integration

#: Seconds that a script may take; the demo needs ten where nothing else runs.
PATIENCE = 240
_PROCESS = re.compile(r"127\.0\.0\.1:\d+ +(\d+)$", re.MULTILINE)
_IN_BRACKETS = re.compile(r"\(process (\d+)\)")


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Start services that end with the test."""
    with Services(tmp_path) as made:
        yield made


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """Give a directory with the README's files, as far as they have a name there."""
    directory = tmp_path / "readme"
    directory.mkdir()
    for block in blocks("python"):
        if block.document == "README" and block.file:
            (directory / block.file).write_text(block.code)
    return directory


def start(services: Services) -> None:
    """Start all added services, and wait until they are ready.

    It is done in a thread, since blocking calls refuse where the reactor runs, which is here.
    """
    with ThreadPoolExecutor(1) as pool:
        pool.submit(list, services.start_all()).result()


def run(script: Path, *arguments: str, **environment: str) -> str:
    """Run a script, which has to succeed, and return what it printed."""
    ended = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=with_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def with_environment(more: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with some variables more."""
    return {**os.environ, **more}


def ask(script: Path, service: Service) -> str:
    """Run a script of the README against *service* instead of the port that is written there."""
    moved = script.with_name(f"moved_{script.name}")
    moved.write_text(re.sub(r"\b303[34]\b", str(service.port), script.read_text()))
    return run(moved)


def test_demo() -> None:
    """The demo ends with status 0, shows the page, the times and both tasks, and leaves no process behind."""
    output = run(EXAMPLES / "demo.py")
    if NEEDS["nginx"][0]:
        assert "12 pages, all the same" in output
    else:
        assert "apt install nginx-light" in output
    assert "F(11) = 89" in output
    assert "six pages, all the same" in output
    assert re.search(r"equal parts: waited for \d", output)
    assert re.search(r"cluster\.map: waited for \d", output)
    assert len(re.findall(r"127\.0\.0\.1:\d+ +[#.]+ \d+$", output, re.MULTILINE)) == 10
    assert "key1=value1 key2=value2" in output
    assert re.search(r"at=\S+ key1=survivor", output)
    processes = _PROCESS.findall(output)
    assert len(processes) == 11
    processes += _IN_BRACKETS.findall(output)
    assert not [process for process in processes if is_alive(int(process))]


def test_demo_interrupted() -> None:
    """A demo that is interrupted says so, ends with status 130, and leaves no process behind."""
    # Unmeasured: coverage waits for ever for its own lock if a signal comes while it saves what it has.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    demo = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "demo.py")],
        env=environment,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert demo.stdout is not None
    seen = ""
    for line in demo.stdout:
        seen += line
        if "five nodes compute" in line:
            break
    demo.send_signal(signal.SIGINT)
    try:
        rest, _ = demo.communicate(timeout=PATIENCE)
    finally:
        demo.kill()
        demo.stdout.close()
    assert demo.wait(PATIENCE) == 130
    assert "interrupted" in rest
    processes = [int(process) for process in _PROCESS.findall(seen)]
    assert len(processes) == 11
    assert not [process for process in processes if is_alive(process)]


def test_demo_that_fails(tmp_path: Path) -> None:
    """A demo in which a service doesn't start ends with status 1, the service's name and the reason."""
    examples = tmp_path / "examples"
    shutil.copytree(EXAMPLES, examples, ignore=shutil.ignore_patterns("__pycache__"))
    with (examples / "cpu_fanout" / "my_cpu.py").open("a") as module:
        module.write("\nraise RuntimeError('out of order')\n")
    ended = subprocess.run(
        [sys.executable, str(examples / "demo.py")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 1
    assert re.search(r"FAILED +the computing node \d did not start", ended.stdout)
    assert "RuntimeError: out of order" in ended.stdout


def test_mako_cluster_by_hand(services: Services) -> None:
    """The page that front.py prints is the same from the hand-written node and from the renderer."""
    mako = EXAMPLES / "mako_cluster"
    node = services.add("node", "uwsgi-node", "--handler", "my_server", directory=mako)
    renderer = services.add("renderer", "uwsgi-renderer", "--templates", "templates", directory=mako)
    start(services)
    pages = [
        run(mako / "front.py", "n=5&time=1.5", RENDERERS=f"{HOST}:{service.port}")
        for service in (node, renderer)
    ]
    assert pages[0] == pages[1]
    assert "5 numbers, 7 in all." in pages[0]


def test_cpu_fanout_by_hand(services: Services) -> None:
    """fan_out.py shows a line for each node that it is told."""
    cpu = EXAMPLES / "cpu_fanout"
    nodes = [services.add(f"node {n}", "uwsgi-node", "--handler", "my_cpu", directory=cpu) for n in range(2)]
    start(services)
    output = run(cpu / "fan_out.py", *(f"{HOST}:{node.port}" for node in nodes))
    for node in nodes:
        assert re.search(rf"127\.0\.0\.1:{node.port} +\d+\.\d+ s  #", output)
    assert "times as fast as one core" in output
    output = run(cpu / "compare.py", *(f"{HOST}:{node.port}" for node in nodes))
    for node in nodes:
        assert len(re.findall(rf"^127\.0\.0\.1:{node.port} +[#.]+ \d+$", output, re.MULTILINE)) == 2


def test_central_spooler_by_hand(services: Services, tmp_path: Path) -> None:
    """enqueue.py prints True, and the task is logged."""
    log = tmp_path / "tasks.log"
    log.touch()
    spooler = services.add(
        "spooler",
        *("uwsgi-spooler", "--spool", f"sqlite:{tmp_path / 'spool.sqlite'}", "--handler", "my_tasks"),
        directory=EXAMPLES / "central_spooler",
        environment={"TASKS_LOG": str(log)},
    )
    start(services)
    script = EXAMPLES / "central_spooler" / "enqueue.py"
    assert run(script, "key1=a b", "key2=c", SPOOLER=f"{HOST}:{spooler.port}") == "True\n"
    until(lambda: log.read_text() == "key1=a b key2=c\n", "the task has run")


def test_readme_node(services: Services, readme: Path) -> None:
    """The README's node answers the README's script, and its client with Deferreds."""
    node = services.add("node", "uwsgi-node", "--handler", "my_server", directory=readme)
    start(services)
    assert ask(readme / "ask.py", node) == "6\n"
    lines = ask(readme / "client.py", node).splitlines()
    assert lines[:2] == ["6", "9"]
    assert "TypeError" in lines[2]
    assert lines[3].startswith("alive: 0.")


def test_readme_renderer(services: Services, readme: Path) -> None:
    """The README's script gets its page, with both ways to name a variable."""
    (readme / "templates").mkdir()
    (readme / "templates" / "hello.txt").write_text("${attributes['name']} and ${name}")
    renderer = services.add("renderer", "uwsgi-renderer", "--templates", "templates", directory=readme)
    start(services)
    assert ask(readme / "render.py", renderer) == "Ann and Ann\n"


def test_readme_spooler(services: Services, readme: Path) -> None:
    """The README's spooler accepts both tasks and runs the one that is due."""
    spooler = services.add(
        *("spooler", "uwsgi-spooler", "--spool", "sqlite:spool.sqlite", "--handler", "my_tasks", "--text"),
        directory=readme,
    )
    start(services)
    assert ask(readme / "enqueue.py", spooler) == "True\nTrue\n"
    until(lambda: "mail to ann@example.com" in spooler.log.read_text(), "the task has run")
    assert "bob" not in spooler.log.read_text()
