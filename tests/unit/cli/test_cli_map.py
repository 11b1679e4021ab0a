"""The command ``uwsgitwisted map``: answers, failures, and going on where it was interrupted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from tests.unit.commands import (
    Said,
    feed,
    run_command,  # noqa: F401 - a fixture
    words,
)
from tests.unit.servers import outside_the_reactor  # noqa: F401 - a fixture
from tests.unit.speaking import Speaker, SpeakingServer
from uwsgitwisted.cli.map import CountedItems, make_items
from uwsgitwisted.errors import RemoteError
from uwsgitwisted.wire.objects import loads

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("outside_the_reactor")]

Run = Callable[..., Said]


def work(speaker: Speaker) -> None:
    """Answer with the item, fail at the item "fail"."""
    while True:
        request = speaker.next()
        item = loads(request.packet.payload)
        if item == "fail":
            speaker.fail(request, RemoteError(type="ValueError", message="on purpose"))
        else:
            speaker.answer(request, b"\xff" if item == "bytes" else item)


def answers(rows: list[dict[str, Any]]) -> dict[int, Any]:
    """Return each line's result or error."""
    return {row["line"]: row.get("error") or row.get("result_repr") or row["result"] for row in rows}


def test_map(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is answered, and a table shows what each node has done."""
    feed(monkeypatch, "1", '"bytes"', "", '{"a": null}')
    with SpeakingServer(work) as server:
        address = f"127.0.0.1:{server.port}"
        said = run("map", "--nodes", address, "33", "17")
    assert said.status == 0
    assert answers(said.rows) == {1: 1, 2: r"b'\xff'", 4: {"a": None}}
    assert {row["node"] for row in said.rows} == {address}
    head, node, total = words(said.err)
    assert head == "NODE DONE PER SECOND FAILURES"
    assert node.startswith(f"{address} 3 ")
    assert total.startswith("3 answered, in 0.")


def test_failures(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that fails has an error instead of a result, the others are answered, and the status is 1."""
    feed(monkeypatch, "1", '"fail"', "2")
    with SpeakingServer(work) as server:
        said = run("map", "--nodes", f"127.0.0.1:{server.port}", "33", "17", "--quiet")
    assert (said.status, said.err) == (1, "")
    assert answers(said.rows) == {1: 1, 2: "RemoteError", 3: 2}
    assert [row["text"] for row in said.rows if "error" in row] == ["ValueError: on purpose"]


def test_lines_that_are_not_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is not JSON ends the command with its number."""
    feed(monkeypatch, "1", "{")
    with SpeakingServer(work) as server:
        said = run("map", "--nodes", f"127.0.0.1:{server.port}", "33", "17", "--quiet")
    assert (said.status, answers(said.rows)) == (1, {1: 1})
    assert said.err.startswith("uwsgitwisted: line 2 is not JSON: ")


def test_resume(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lines that are answered already are not sent again; failures and a broken last line are."""
    path = tmp_path / "answers.jsonl"
    with SpeakingServer(work) as server:
        command = ("map", "--nodes", f"127.0.0.1:{server.port}", "33", "17", "--quiet", "--resume", str(path))
        feed(monkeypatch, '"a"', '"fail"')
        assert run(*command).status == 1
        with path.open("a") as file:
            file.write('{"line": 3, "resu')
        feed(monkeypatch, '"a"', '"b"', '"c"', '"d"')
        said = run(*command)
    assert (said.status, said.out) == (0, "")
    assert sorted(item for session in server.sessions[1:] for item in session) == ["b", "c", "d"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert answers(rows) == {1: "a", 2: "b", 3: "c", 4: "d"}
    assert len(rows) == 5


@pytest.mark.parametrize("line", ["x", "[]", "{}", '{"line": null}'])
def test_resume_of_another_file(run: Run, tmp_path: Path, line: str) -> None:
    """A file that has something else is refused, and stays as it is."""
    path = tmp_path / "items.jsonl"
    path.write_text(f"{line}\nmore")
    said = run("map", "--nodes", "127.0.0.1:1", "33", "17", "--resume", str(path))
    assert (said.status, path.read_text()) == (2, f"{line}\nmore")
    assert "line 1 is no answer of this command" in said.err


def test_number_of_items(tmp_path: Path) -> None:
    """The number of items in a file is known from the start; that in a pipe is not."""
    path = tmp_path / "items"
    path.write_bytes(b"1\n\n2\n3")
    with path.open("rb") as file:
        items = make_items(file, {1})
        assert isinstance(items, CountedItems)
        assert (len(items), list(items)) == (2, [2, 3])
        assert [items.line_of(0), items.line_of(1)] == [3, 4]
    assert not isinstance(make_items(BytesIO(b"1"), set()), CountedItems)


def test_bar(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal there is a bar, which is not part of the output."""

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"1\n2\n")))
    monkeypatch.setenv("TERM", "xterm")
    with SpeakingServer(work) as server:
        said = run("map", "--nodes", f"127.0.0.1:{server.port}", "33", "17")
    assert answers(said.rows) == {1: 1, 2: 2}
    assert "2 done" in terminal.getvalue()
