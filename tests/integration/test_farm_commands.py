"""The commands and calls that spread work over nodes, against running nodes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.services import PATIENCE, Launcher, Service, free_port, run_to_end, script, until
from uwsgitwisted import blocking
from uwsgitwisted.errors import RemoteError

pytestmark = pytest.mark.integration

HANDLER = """
import time, uwsgi

def work(item, modifier2):
    if item == "fail":
        raise ValueError("on purpose")
    if item == "wait":
        open("started", "w").close()
        time.sleep(60)
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


def spread(nodes: list[Service]) -> None:
    cluster = blocking.Cluster(addresses(nodes))
    assert list(cluster.map(33, 17, range(500))) == [[n, 17] for n in range(500)]
    results = list(cluster.as_completed(33, 17, range(100), chunked=True, chunk=30))
    assert sorted(result.value[0] for result in results) == [[0, 30], [30, 60], [60, 90], [90, 100]]
    with blocking.ClusterExecutor(cluster, 33, 17, in_flight=4) as executor:
        assert executor.submit("item").result(PATIENCE) == ["item", 17]
        assert list(executor.map(str, range(50))) == [[n, 17] for n in range(50)]
        failing = executor.submit("fail")
        assert isinstance(failing.exception(PATIENCE), RemoteError)


def test_blocking_cluster(nodes: list[Service]) -> None:
    """A script spreads items over both nodes, by a map and by an executor."""
    script(spread, nodes)


def test_map(nodes: list[Service], tmp_path: Path) -> None:
    """A file of lines is answered by both nodes; what failed is tried again on request."""
    items, answers = tmp_path / "items.jsonl", tmp_path / "answers.jsonl"
    items.write_text("".join(f"{n}\n" for n in range(300)) + '"fail"\n')
    (tmp_path / "nodes.txt").write_text("\n".join(["# both", *addresses(nodes)]))
    line = [sys.executable, "-m", "uwsgitwisted", "map", "--nodes", f"@{tmp_path}/nodes.txt", "33", "17"]
    with items.open() as lines, answers.open("w") as output:
        ended = subprocess.run(line, stdin=lines, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 1
    assert "300 answered, 1 failed" in ended.stderr
    rows = [json.loads(row) for row in answers.read_text().splitlines()]
    got = {row["line"]: row["result"] for row in rows if "result" in row}
    assert got == {n + 1: [n, 17] for n in range(300)}
    assert [(row["line"], row["error"]) for row in rows if "error" in row] == [(301, "RemoteError")]
    assert {row["node"] for row in rows} == set(addresses(nodes))
    items.write_text(items.read_text().replace("fail", "good"))
    line += ["--resume", str(answers)]
    with items.open() as lines:
        ended = subprocess.run(line, stdin=lines, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "1 answered, in" in ended.stderr
    assert json.loads(answers.read_text().splitlines()[-1])["result"] == ["good", 17]


def test_interrupted_map(shared: Launcher) -> None:
    """Ctrl-C withdraws what is in flight, and the command says what was done."""
    node = shared.start(
        "uwsgi-node", "--engine", "processes:1", "--drain-timeout", "1", handler=HANDLER, tcp=True
    )
    # A shell that runs the tests in the background has them ignore SIGINT, and all that they start.
    line = ["env", "--default-signal=INT", sys.executable, "-m", "uwsgitwisted"]
    line += ["map", "--nodes", *addresses([node]), "33", "17"]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as mapping:
        assert mapping.stdin is not None
        mapping.stdin.write('1\n"wait"\n2\n')
        mapping.stdin.close()
        assert mapping.stdout is not None
        assert mapping.stderr is not None
        assert json.loads(mapping.stdout.readline())["result"] == [1, 17]
        until((node.directory / "started").exists, "the item that waits")
        mapping.send_signal(signal.SIGINT)
        assert mapping.wait(PATIENCE) == 1
        shown = mapping.stderr.read()
    assert "1 answered, in" in shown
    assert shown.endswith("uwsgitwisted: interrupted\n")
    assert "Traceback" not in shown
