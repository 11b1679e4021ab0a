"""Statistics and pings, as programs for uWSGI see them: uwsgitop, ``uwsgi --ping`` and HAProxy's checks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.real_uwsgi import UWSGI, real_web_server
from tests.integration.services import (
    PATIENCE,
    Launcher,
    Service,
    free_port,
    read_stats,
    read_to_end,
    run_to_end,
    script,
    until,
)
from uwsgitwisted import blocking
from uwsgitwisted.errors import RemoteError, WorkerDied
from uwsgitwisted.wire.packet import PING, WSGI, Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

pytestmark = pytest.mark.integration

HANDLER = """
import os, time, uwsgi
from uwsgidecorators import mulefunc

uwsgi.register_rpc("work", lambda: b"done")
uwsgi.register_rpc("fail", lambda: 1 / 0)
uwsgi.register_rpc("warn", lambda text=b"": str(uwsgi.set_warning_message(text.decode())))
uwsgi.register_rpc("pid", lambda: str(os.getpid()))
uwsgi.register_rpc("end", lambda: os._exit(1))

@mulefunc
def in_a_mule(text):
    uwsgi.set_warning_message(text)

uwsgi.register_rpc("warn_in_a_mule", lambda text: str(in_a_mule(text.decode())))

def wait(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return b"waited"

uwsgi.register_rpc("wait", wait)
"""
APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"x" * 1000]
"""
WEB = encode_vars({"REQUEST_METHOD": "GET", "PATH_INFO": "/"})


class Stats:
    """The statistics of a server.

    :param address: where they are.
    """

    def __init__(self, address: Any) -> None:
        self._address = address

    def read(self) -> dict[str, Any]:
        """Return them."""
        return read_stats(self._address)

    def until(self, condition: Any, what: str) -> dict[str, Any]:
        """Wait until they satisfy a condition, and return them."""
        found: dict[str, Any] = {}

        def holds() -> bool:
            found.clear()
            found.update(self.read())
            return bool(condition(found))

        until(holds, what)
        return found


class Node(Stats):
    """A node with statistics."""

    def __init__(self, launch: Launcher, *options: str, **arguments: Any) -> None:
        self.stats_port = free_port()
        self.service: Service = launch.start(
            "uwsgi-node", "--stats", f"tcp:{self.stats_port}", *options, tcp=True, **arguments
        )
        super().__init__(("127.0.0.1", self.stats_port))

    def call(self, name: str, *arguments: str) -> Any:
        """Call a function there."""
        return script(blocking.rpc, self.service.address, name, *arguments)


@pytest.fixture(scope="module")
def node(shared: Launcher) -> Node:
    """A node with functions, one worker, and one mule."""
    return Node(shared, "--engine", "processes:1", "--mules", "1", handler=HANDLER)


def keys(found: Any) -> Any:
    """Return the keys of JSON, at all levels, and the types of the values."""
    if isinstance(found, dict):
        return {key: keys(value) for key, value in found.items()}
    if isinstance(found, list):
        return [keys(value) for value in found[:1]]
    return type(found).__name__


def has_five(stats: Any) -> bool:
    """Whether five requests were counted, which may be after their answers."""
    return bool(sum(worker["requests"] for worker in stats["workers"]) == 5)


@pytest.mark.needs("uwsgi")
def test_the_keys_of_uwsgi(launch: Launcher, tmp_path: Path) -> None:
    """A node gives everything that a real uWSGI gives, and the same figures for the same requests."""
    (tmp_path / "app.py").write_text(APPLICATION)
    with real_web_server(tmp_path, "app:application", "--stats", f"{tmp_path}/stats"):
        for _ in range(5):
            script(blocking.send_message, f"{tmp_path}/socket", 0, 0, WEB)
        theirs = Stats(f"{tmp_path}/stats").until(has_five, "5 requests")
    directory = launch.new_directory()
    (directory / "app.py").write_text(APPLICATION)
    node = Node(launch, "--engine", "processes:2", "--wsgi", "app:application", directory=directory)
    for _ in range(5):  # on connections that the workers accept themselves
        assert node.service.exchange(encode_packet(Packet(WSGI, 0, WEB))).endswith(b"x" * 1000)
    ours = node.until(has_five, "5 requests")
    for found in (theirs, ours):
        for worker in found["workers"]:
            worker["apps"] = []  # ours has no numbers for each
            for core in worker["cores"]:
                core["vars"], core["req_info"] = [], {}
    theirs["locks"] = []
    theirs.pop("caches", None)
    assert keys(ours) == keys(theirs)
    for name in ("requests", "exceptions", "respawn_count", "harakiri_count"):
        figures = [sum(worker[name] for worker in found["workers"]) for found in (ours, theirs)]
        assert figures[0] == figures[1], name
    assert sum(worker["tx"] for worker in ours["workers"]) > 5_000


def test_figures(node: Node) -> None:
    """Requests, failures, processes and memory are counted, across the processes of a worker."""
    before = node.read()["workers"][0]
    pid = int(node.call("pid"))
    with pytest.raises(RemoteError):
        node.call("fail")
    found = node.until(lambda found: found["workers"][0]["requests"] == before["requests"] + 2, "2 requests")
    worker = found["workers"][0]
    assert found["pid"] == node.service.pid
    spawned = before["respawn_count"]
    assert (worker["pid"], worker["status"], worker["respawn_count"]) == (pid, "idle", spawned)
    assert worker["exceptions"] == before["exceptions"] + 1
    assert worker["running_time"] > before["running_time"]
    assert 1 << 20 < worker["rss"] < worker["vsz"] < 1 << 31
    with pytest.raises(WorkerDied):
        node.call("end")
    assert int(node.call("pid")) != pid
    worker = node.until(lambda found: found["workers"][0]["delta_requests"] == 1, "a new process")["workers"][0]
    assert worker["respawn_count"] == spawned + 1
    assert worker["requests"] == before["requests"] + 3


def test_queue(node: Node, tmp_path: Path) -> None:
    """The listen queue has the requests that wait for a worker, and the connections that nobody accepts."""
    callers = [node.service.connect() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for caller in callers:
            stack.enter_context(caller)
            items = [b"wait", f"{tmp_path}/go".encode()]
            caller.sendall(
                encode_packet(Packet(173, 0, b"".join(struct.pack("<H", len(i)) + i for i in items)))
            )
        found = node.until(lambda found: found["listen_queue"] == 2, "two waiting requests")
        assert found["workers"][0]["status"] == "busy"
        (tmp_path / "go").touch()
        for caller in callers:
            assert read_to_end(caller).endswith(b"waited")
    node.until(lambda found: found["listen_queue"] == 0 and found["workers"][0]["status"] == "idle", "rest")
    assert node.read()["sockets"][0]["max_queue"] == 1024


_ESCAPE = re.compile(rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>])")


@contextlib.contextmanager
def terminal(*command: str) -> Iterator[int]:
    """Run a program in a terminal of 200 columns, and give the terminal's descriptor; the key q ends it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "LANG": "C.UTF-8"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        yield ours
        os.write(ours, b"q")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_uwsgitop(node: Node) -> None:
    """PyPI's uwsgitop shows a node and its workers."""
    before = node.read()["workers"][0]["requests"]
    node.call("work")
    (worker,) = node.until(lambda found: found["workers"][0]["requests"] > before, "the request")["workers"]
    shown = b""
    with terminal(
        sys.executable, str(Path(sys.executable).with_name("uwsgitop")), f"127.0.0.1:{node.stats_port}"
    ) as screen:
        deadline = time.monotonic() + PATIENCE
        while b"idle" not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([screen], [], [], 1)[0]:
                shown += os.read(screen, 65_536)
    text = _ESCAPE.sub(b" ", shown).decode(errors="replace")
    assert "lq: 0" in text
    assert f"masterpid: {node.service.pid}" in text
    row = text[text.index("LastSpwn") :].split()
    assert row[1:5] == ["1", "100.0", str(worker["pid"]), str(worker["requests"])]
    assert row[7:9] == ["0", "idle"]


def ping(node: Node) -> bytes:
    """Send what HAProxy's tcp-check sends, and return the answer."""
    return node.service.exchange(bytes.fromhex("64000000"))


@pytest.mark.needs("uwsgi")
def test_warning(node: Node) -> None:
    """A warning of a handler reaches the pings of uWSGI and HAProxy, and outlives its worker."""
    command = (str(UWSGI), "--ping", f"127.0.0.1:{node.service.address[1]}")
    assert ping(node) == bytes.fromhex("64000001")
    assert run_to_end(command, node.service.directory).returncode == 0
    assert node.call("warn", "the disk is full") == b"True"
    assert ping(node) == encode_packet(Packet(PING, 1, b"the disk is full"))
    ended = run_to_end(command, node.service.directory)
    assert ended.returncode == 2
    assert "message: the disk is full" in ended.stderr
    with pytest.raises(WorkerDied):
        node.call("end")
    assert node.call("work") == b"done"
    assert ping(node).endswith(b"the disk is full")
    assert node.call("warn", "x" * 200) == b"True"
    assert ping(node) == encode_packet(Packet(PING, 1, b"x" * 80))
    node.call("warn_in_a_mule", "from a mule")
    until(lambda: ping(node).endswith(b"from a mule"), "the mule's warning")
    assert node.call("warn") == b"True"
    assert ping(node) == bytes.fromhex("64000001")


def test_other_services(launch: Launcher, tmp_path: Path) -> None:
    """A spooler tells its queue's place, and a service without worker processes counts itself."""
    source = "import uwsgi\ndef spooler(task):\n    return uwsgi.SPOOL_OK\nuwsgi.spooler = spooler\n"
    options = ("--spool", f"sqlite:{tmp_path}/q.sqlite", "--stats", f"unix:{tmp_path}/stats")
    spooler = launch.start("uwsgi-spooler", "--engine", "processes:1", *options, handler=source)
    assert script(blocking.spool, spooler.address, {"a": "b"})

    def has_run(stats: Any) -> bool:
        return bool(stats["spoolers"][0]["tasks"] == 1 and not stats["spoolers"][0]["running"])

    (found,) = Stats(f"{tmp_path}/stats").until(has_run, "the task")["spoolers"]
    assert (found["dir"], found["pid"]) == (f"sqlite:{tmp_path}/q.sqlite", spooler.pid)

    node = Node(launch, "--engine", "threads:2", handler=HANDLER)
    assert node.call("warn", "in a thread") == b"True"
    assert ping(node).endswith(b"in a thread")
    found = node.until(lambda found: found["workers"][0]["requests"] == 1, "the request")
    assert found["workers"][0]["pid"] == node.service.pid
