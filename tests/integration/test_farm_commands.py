"""The commands that ask nodes, against running nodes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.integration.services import Launcher, Service, free_port, run_to_end

pytestmark = pytest.mark.integration

HANDLER = """
import uwsgi

def work(item, modifier2):
    if item == "fail":
        raise ValueError("on purpose")
    return [item, modifier2]

uwsgi.message_manager_marshal = work
uwsgi.register_rpc("hello", lambda name: b"hello " + name)
"""


@pytest.fixture(scope="module")
def nodes(shared: Launcher) -> list[Service]:
    """Two nodes on TCP ports."""
    return [shared.start("uwsgi-node", "--engine", "processes:1", handler=HANDLER, tcp=True) for _ in range(2)]


def addresses(nodes: list[Service]) -> list[str]:
    return [f"127.0.0.1:{node.address[1]}" for node in nodes]


def command(*arguments: str, status: int = 0) -> str:
    """Run the command; return its output."""
    ended = run_to_end([sys.executable, "-m", "uwsgitwisted", *arguments], Path.cwd(), seconds=60)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def test_asking_nodes(nodes: list[Service]) -> None:
    """Nodes answer pings, echoes, objects and calls of functions; the exit status says if one doesn't."""
    there = addresses(nodes)
    nobody = f"127.0.0.1:{free_port()}"
    assert command("ping", *there).count(" ok\n") == 2
    assert command("echo", *there).count(" ok\n") == 2
    rows = [json.loads(line) for line in command("ping", *there, nobody, "--json", status=1).splitlines()]
    assert [(row["address"], row["ok"]) for row in rows] == [
        (there[0], True),
        (there[1], True),
        (nobody, False),
    ]
    told = command("call", *there, "--message", '{"n": 1}', "--modifier2", "17", "--json")
    assert [json.loads(line)["result"] for line in told.splitlines()] == [[{"n": 1}, 17]] * 2
    assert '"hello ann"' in command("call", there[0], "--rpc", "hello", "--arg", "ann")
    assert "FAILED RemoteError: ValueError: on purpose" in command(
        "call", there[0], "--message", '"fail"', status=1
    )
