"""The commands ``uwsgitwisted ping``, ``echo`` and ``call``: what they print, and their exit statuses."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.commands import (
    EVIL,
    Said,
    run_command,  # noqa: F401 - a fixture
    words,
)
from tests.unit.servers import (
    ScriptedServer,
    answering,
    closed_port,
    frame,
    outside_the_reactor,  # noqa: F401 - a fixture
    plain_peers,  # noqa: F401 - a fixture
    silent,
)
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.vars import encode_item

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("outside_the_reactor", "plain_peers")]

Run = Callable[..., Said]
PONG = frame(100, 1)


def at(server: ScriptedServer) -> str:
    return f"127.0.0.1:{server.port}"


def lines(said: Said) -> list[str]:
    """Return the printed lines with a T for each time."""
    return [re.sub(r"\d+\.\d ms", "T", line) for line in words(said.out)]


def test_ping(run: Run) -> None:
    """Each node that is alive has a line, and the status is 0."""
    with ScriptedServer(answering(PONG)) as server:
        said = run("ping", at(server), f"localhost:{server.port}")
        (row,) = run("ping", at(server), "--json").rows
    assert (said.status, said.err) == (0, "")
    assert lines(said) == [f"{at(server)} T ok", f"localhost:{server.port} T ok"]
    assert (row["address"], row["ok"], 0 < row["seconds"] < 5) == (at(server), True, True)


def test_ping_with_a_dead_node(run: Run) -> None:
    """A node that is not alive is named with the reason, and the status is 1."""
    nobody = f"127.0.0.1:{closed_port()}"
    with ScriptedServer(answering(PONG)) as server:
        said = run("ping", nobody, at(server))
        rows = run("ping", nobody, at(server), "--json").rows
    assert said.status == 1
    assert lines(said) == [f"{nobody} T FAILED ConnectionFailed: Connection refused", f"{at(server)} T ok"]
    assert [(row["ok"], row.get("error"), row.get("text")) for row in rows] == [
        (False, "ConnectionFailed", "Connection refused"),
        (True, None, None),
    ]


def test_ping_of_nodes_that_hang(run: Run) -> None:
    """A node that hangs fails when the time is up."""
    with ScriptedServer(silent) as server:
        (row,) = run("ping", at(server), "--timeout", "0.1", "--json").rows
    assert (row["error"], row["seconds"] >= 0.1) == ("RequestTimeout", True)


def test_all_at_once(run: Run) -> None:
    """All nodes are asked in parallel."""
    both = threading.Barrier(2, timeout=10)

    def answer_when_both_ask(server: ScriptedServer, connection: socket.socket) -> None:
        server.read_request(connection)
        both.wait()
        connection.sendall(PONG)

    with ScriptedServer(answer_when_both_ask) as server:
        assert run("ping", at(server), f"localhost:{server.port}").status == 0


def test_ping_of_another_kind(run: Run) -> None:
    """A server that isn't a uwsgi server is not alive."""
    with ScriptedServer(answering(frame(33, 0, dumps(1)))) as server:
        said = run("ping", at(server))
    assert said.status == 1
    assert "FAILED ProtocolError: the server at this address is not a uwsgi server" in said.out


def test_echo(run: Run) -> None:
    """A node must send back what it got."""
    with ScriptedServer(answering(b"hello")) as server:
        assert run("echo", at(server), "--text", "hello").status == 0
        said = run("echo", at(server), "--text", "hallo")
    assert server.requests == [frame(101, 0, b"hello"), frame(101, 0, b"hallo")]
    assert said.status == 1
    assert lines(said) == [
        f"{at(server)} T FAILED ProtocolError: the server at this address sent back something else"
    ]
    assert run("echo", f"127.0.0.1:{closed_port()}").status == 1


@pytest.mark.parametrize(
    ("answer", "shown", "row"),
    [
        ({"a": [1, None]}, '{"a": [1, null]}', {"result": {"a": [1, None]}}),
        (None, "null", {"result": None}),
        (b"text", '"text"', {"result": "text"}),
        (b"\xff", r"b'\xff'", {"result": None, "result_repr": r"b'\xff'"}),
        (EVIL, r'"\u001b[31m\u0007\n[red]markup[/red]"', {"result": EVIL}),
    ],
)
def test_call(run: Run, answer: object, shown: str, row: dict[str, Any]) -> None:
    """A call prints the answer as JSON, or as Python writes it."""
    with ScriptedServer(answering(frame(33, 17, dumps(answer)))) as server:
        said = run("call", at(server), "--message", '{"n": 1}', "--modifier2", "17")
        (got,) = run("call", at(server), "--json").rows
    assert (said.status, lines(said)) == (0, [f"{at(server)} T {shown}"])
    assert server.requests == [frame(33, 17, dumps({"n": 1})), frame(33, 0, dumps(None))]
    assert {name: got[name] for name in got.keys() & {"result", "result_repr"}} == row


def test_rpc(run: Run) -> None:
    """A function is called with its arguments, and a failure fails the command."""
    with ScriptedServer(answering(frame(173, 0, b"hi ann"))) as server:
        said = run("call", at(server), "--rpc", "hello", "--arg", "ann", "--arg", "bob")
    assert (said.status, lines(said)) == (0, [f'{at(server)} T "hi ann"'])
    assert server.requests == [frame(173, 0, encode_item(b"hello") + encode_item(b"ann") + encode_item(b"bob"))]
    with ScriptedServer(answering()) as server:
        said = run("call", at(server), "--rpc", "hello")
    assert (said.status, "FAILED NoAnswer" in said.out) == (1, True)


def test_rpc_to_another_kind(run: Run) -> None:
    """An answer that is none to a call of a function is a failure."""
    with ScriptedServer(answering(frame(255, 1))) as server:
        said = run("call", at(server), "--rpc", "hello")
    assert (said.status, "FAILED ProtocolError" in said.out) == (1, True)


def test_nodes_in_a_file(run: Run, tmp_path: Path) -> None:
    """Nodes may be in a file, or names of several nodes; a file that is not there is a mistake."""
    with ScriptedServer(answering(PONG)) as server:
        (tmp_path / "nodes.txt").write_text(f"# ours\n{at(server)}\n")
        said = run("ping", f"@{tmp_path}/nodes.txt", f"dns:127.0.0.1:{server.port}")
    assert (said.status, lines(said)) == (0, [f"{at(server)} T ok"])
    assert run("ping", f"@{tmp_path}/none.txt").status == 2
