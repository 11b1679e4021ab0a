"""The command ``uwsgitwisted``: what it shows, what it changes, and its exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from tests.unit.commands import (
    EVIL,
    TRACEBACK,
    Said,
    Spool,
    empty_spool,  # noqa: F401 - a fixture
    feed,
    full_spool,  # noqa: F401 - a fixture
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
)
from uwsgitwisted.cli import display, parser, places, queues
from uwsgitwisted.errors import SpoolError
from uwsgitwisted.spool.management import changes
from uwsgitwisted.spool.retry import Action, Decision
from uwsgitwisted.spool.stores.interface import Settlement, Want
from uwsgitwisted.spool.task import new_task
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.vars import encode_vars

# Listing.


def test_list(spool: Spool) -> None:
    """Each task has a line with its summary and time; its error is below."""
    said = spool("list")
    assert (said.status, said.err) == (0, "")
    head, _, *rows = words(said.out)
    assert head == "ID STATE WHEN QUEUE PRIO TRIES TASK"
    rows = [re.sub(r"\b(\d+)\d s\b", r"\g<1>0 s", row) for row in rows]  # the test itself takes some time
    assert rows == [
        "1 done 80 s ago 1 name=done",
        "2 dead 80 s ago 10 (1 crash) name=dead",
        'KeyError: b"to"',
        "3 cancelled 80 s ago name=cancelled",
        "4 running for 90 s name=running",
        "5 ready for 100 s mail 3 name=ready",
        "6 scheduled in 2 h mail name=later",
    ]


def test_columns_without_a_word(empty: Spool) -> None:
    """Empty columns are omitted."""
    empty.add(a="b")
    assert words(empty("list").out)[0] == "ID STATE WHEN TASK"


def test_list_as_json(spool: Spool) -> None:
    """Programs get the same in lines of JSON."""
    rows = spool("list", "--json", "--queue", "mail").rows
    assert [(row["id"], row["state"], row["summary"]) for row in rows] == [
        (5, "ready", "name=ready"),
        (6, "scheduled", "name=later"),
    ]


@pytest.mark.parametrize(
    ("arguments", "ids", "more"),
    [
        (["--limit", "2"], [1, 2], True),
        (["--limit", "6"], [1, 2, 3, 4, 5, 6], False),
        (["--after", "4"], [5, 6], False),
        (["--state", "dead"], [2], False),
        (["--queue", ""], [1, 2, 3, 4], False),
        (["--queue", "", "--limit", "3"], [1, 2, 3], True),
    ],
)
def test_which_are_listed(spool: Spool, arguments: list[str], ids: list[int], more: bool) -> None:
    """A list may be filtered; if there are more tasks, a note says how to continue."""
    said = spool("list", "--json", *arguments)
    assert [row["id"] for row in said.rows] == ids
    assert (f"there are more: --after {ids[-1]}" in said.err) is more


def test_a_long_list(empty: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list may be longer than one page."""
    monkeypatch.setattr(queues, "MAX_LIST", 2)
    ids = [empty.add() for _ in range(5)]
    assert [row["id"] for row in empty("list", "--json", "--limit", "4").rows] == ids[:4]
    assert [row["id"] for row in empty("list", "--json").rows] == ids


def test_dead(spool: Spool) -> None:
    """Dead letters are listed with their errors, without a column for the state."""
    assert words(spool("dead").out)[0] == "ID WHEN TRIES TASK"
    assert [row["error"] for row in spool("dead", "--json").rows] == ['KeyError: b"to"']


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (-7_300, "2 h"), (180_000, "2 d"), (2e9, "63 y")],
)
def test_spans(seconds: float, text: str) -> None:
    """A longer time span has a coarser unit."""
    assert display.span(seconds) == text


def test_nothing(empty: Spool) -> None:
    """An empty list is reported."""
    for command in ("list", "dead", "stats"):
        said = empty(command)
        assert (said.status, said.out, said.err) == (0, "", "no tasks\n")
        assert empty(command, "--json").out == ""


def test_stats(spool: Spool) -> None:
    """Each queue has its counts, and the sum is below."""
    spool("pause", "mail")
    head, _, *rows = words(spool("stats").out)
    assert head == "QUEUE SCHEDULED READY RUNNING DONE DEAD CANCELLED"
    assert rows == ["(no name) - - 1 1 1 1", "mail 1 1 - - - - paused", "", "all 1 1 1 1 1 1"]
    assert [(row["queue"], row["paused"], row["ready"]) for row in spool("stats", "--json").rows] == [
        ("", False, 0),
        ("mail", True, 1),
    ]


def test_show(spool: Spool) -> None:
    """The details of tasks: their variables, results and tracebacks."""
    said = spool("show", "1", "2", "5")
    assert said.status == 0
    done, dead, ready = said.out.split("\n\n")[:3]
    assert done.startswith("task 1 done\n  queue     (no name)\n")
    assert 'result\n  {"sent": 3}' in done
    assert "last error\n  " + TRACEBACK.strip().replace("\n", "\n  ") in dead
    assert "attempts  10 (1 crash)" in dead
    assert "variables\n  name      ready\n  spooler   mail\n  priority  3" in ready
    assert "body      5 bytes" in ready


def test_show_as_json(empty: Spool) -> None:
    """Variables that are not text are in base64."""
    empty.add(a="b", c=b"\xff")
    (row,) = empty("show", "1", "--json").rows
    assert (row["variables"], row["variables_base64"]) == ({"a": "b"}, {"c": "/w=="})


def test_show_what_is_not_there(spool: Spool) -> None:
    """A missing task is reported; the others are shown."""
    said = spool("show", "99", "1", "--json")
    assert (said.status, said.err) == (1, "there is no task 99, or not any more\n")
    assert [row["id"] for row in said.rows] == [1]


@pytest.mark.parametrize(
    "result",
    [{"a": EVIL}, EVIL, {1: b"bytes"}, "x" * 10_000, list(range(1_000)), 10**5_000],
    ids=["dict", "text", "no JSON", "long", "list", "large"],
)
def test_results(empty: Spool, result: object) -> None:
    """Whatever a handler returned can be shown, and as JSON."""
    identifier = empty.add()
    store = empty.open()
    store.advance([], {None: Want(1)}, time.time())
    store.advance([Settlement(identifier, Decision(Action.FINISH, 1, 0), dumps(result))], {None: Want(0)}, 0.0)
    store.close()
    shown = empty("show", "1").out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    (row,) = empty("show", "1", "--json").rows
    assert row["result"] is not None or row["result_repr"]


def test_what_tasks_say_is_harmless(empty: Spool) -> None:
    """Control characters from strangers don't reach the terminal."""
    identifier = empty.add(**{EVIL: EVIL, "spooler": EVIL, "idempotency_key": EVIL})
    store = empty.open()
    store.advance([], {None: Want(1)}, time.time())
    error = f"{EVIL}: \x1b]0;title\x07"
    decision = Decision(Action.DEAD_LETTER, 1, 0, error=error)
    store.advance([Settlement(identifier, decision)], {None: Want(0)}, time.time())
    store.close()
    for command in (["list"], ["dead"], ["stats"], ["show", "1"], ["pause", EVIL], ["drop", "--all"]):
        said = empty(*command)
        shown = said.out + said.err
        assert not set(shown) & {"\x1b", "\x07"}, command
        if command[0] not in ("pause", "drop"):
            assert "[red]markup[/red]" in shown


@pytest.mark.parametrize("command", [["list"], ["dead"], ["stats"], ["show", "1"]])
def test_without_rich(spool: Spool, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rich, tables fail with what to install, and everything else works."""
    monkeypatch.delitem(sys.modules, "uwsgitwisted.cli.display", raising=False)
    monkeypatch.setattr("uwsgitwisted.cli.display", None, raising=False)
    monkeypatch.delattr("uwsgitwisted.cli.display")
    monkeypatch.setitem(sys.modules, "rich", None)
    said = spool(*command)
    assert (said.status, said.out) == (1, "")
    assert "pip install 'uwsgitwisted[cli]'; --json works without" in said.err
    assert spool(*command, "--json").status == 0
    assert spool("drop", "2").status == 0


# Changing.


@pytest.mark.parametrize(
    ("arguments", "said", "states"),
    [
        (["cancel", "5", "6"], "2 tasks cancelled\n", {5: "cancelled", 6: "cancelled"}),
        (["retry", "2"], "1 task will run again\n", {2: "ready"}),
        (["drop", "1", "2", "3"], "3 tasks deleted\n", {1: None, 2: None, 3: None}),
        (["retry", "--all"], "1 task will run again\n", {2: "ready"}),
        (["retry", "--all", "--state", "cancelled"], "1 task will run again\n", {3: "ready"}),
        (["drop", "--all", "--yes"], "3 tasks deleted\n", {1: None, 2: None, 3: None}),
        (["drop", "--all", "--yes", "--state", "dead"], "1 task deleted\n", {2: None}),
        (["cancel", "--all", "--yes", "--state", "ready"], "1 task cancelled\n", {5: "cancelled"}),
        (["drop", "--all", "--yes", "--queue", "mail"], "0 tasks deleted\n", {}),
        (["cancel", "--all", "--yes", "--queue", "nobody"], "0 tasks cancelled\n", {}),
    ],
)
def test_changes(spool: Spool, arguments: list[str], said: str, states: dict[int, str | None]) -> None:
    """Tasks are changed by their ids, or all of a state and a queue."""
    before = spool.states()
    done = spool(*arguments)
    assert (done.status, done.out, done.err) == (0, said, "")
    expected = {identifier: state for identifier, state in {**before, **states}.items() if state}
    assert spool.states() == expected


def test_changes_as_json(spool: Spool) -> None:
    """Programs get the number of changed tasks."""
    assert spool("drop", "--all", "--yes", "--json").rows == [{"changed": 3}]
    assert spool("pause", "mail", "--json").rows == [{"queue": "mail", "paused": True}]


def test_what_was_not_changed(spool: Spool) -> None:
    """The command says why a task was not changed, and exits with status 1."""
    said = spool("retry", "2", "5", "99")
    assert (said.status, said.out) == (1, "1 task will run again\n")
    assert said.err.splitlines() == [
        "not changed: task 5, which is ready",
        "not changed: task 99, which is unknown",
    ]
    assert spool("drop", *map(str, range(100, 120))).err.splitlines()[-1] == "not changed: 10 more"


def test_many_ids(empty: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be more ids than one call takes."""
    monkeypatch.setattr(queues, "MAX_IDS", 2)
    monkeypatch.setattr(queues, "MAX_DETAILS", 2)
    ids = [str(empty.add()) for _ in range(5)]
    assert empty("cancel", *ids).out == "5 tasks cancelled\n"
    assert [str(row["id"]) for row in empty("show", "--json", *ids).rows] == ids


def test_all_in_batches(empty: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All means all, however many are changed at once."""
    monkeypatch.setattr(changes, "CHANGE_BATCH", 2)
    for _ in range(5):
        empty.add()
    assert empty("cancel", "--all", "--yes").out == "5 tasks cancelled\n"


class Terminal(StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "goes_on"), [("y\n", True), ("YES\n", True), ("\n", False), ("n\n", False), ("", False)]
)
@pytest.mark.parametrize("command", ["drop", "cancel"])
def test_asking(
    spool: Spool, command: str, answer: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a command changes all tasks, it shows their number and asks for confirmation."""
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    before = spool.states()
    said = spool(command, "--all")
    what = {"drop": "1 done, 1 dead, 1 cancelled", "cancel": "1 scheduled, 1 ready, 1 running"}[command]
    assert f"{command} all tasks of {spool} ({what})? [y/N] " in said.err
    assert said.status == (0 if goes_on else 1)
    assert (spool.states() != before) is goes_on
    assert ("nothing was changed" in said.err) is not goes_on


def test_nobody_to_ask(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, --all needs --yes."""
    monkeypatch.setattr(sys, "stdin", StringIO("y\n"))
    before = spool.states()
    said = spool("drop", "--all")
    assert (said.status, said.out) == (2, "")
    assert "add --yes" in said.err
    assert spool.states() == before


def test_nothing_to_ask_about(empty: Spool) -> None:
    """Nobody is asked whether to do nothing."""
    assert empty("drop", "--all").status == 0


def test_pause(spool: Spool) -> None:
    """A queue is paused and resumed; a name that no task has may be a mistake."""
    said = spool("pause", "mail")
    assert (said.status, said.err) == (0, "")
    assert said.out == "the queue 'mail' is paused: its tasks wait; running tasks finish\n"
    assert spool("resume", "mail").out == "the queue 'mail' is resumed\n"
    assert spool("pause", "mial").err == "the queue has no tasks\n"


def test_progress(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal a progress bar is shown, which is not part of the output."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert spool("cancel", "5", "6").out == "2 tasks cancelled\n"
    assert "cancel" in terminal.getvalue()


# Where.


@pytest.mark.parametrize(
    ("where", "status", "text"),
    [
        ("nope", 2, "'nope' is not the address of a running spooler, such as"),
        ("nope:x", 2, "is not the address"),
        ("sqlite:", 2, "doesn't say where it is"),
        ("sqlite::memory:", 2, "names no file"),
        ("sqlite:/nowhere/spool.sqlite", 1, "there is no spool /nowhere/spool.sqlite"),
        ("sqlite:/etc/passwd", 1, "/etc/passwd"),
    ],
)
def test_where(run: Callable[..., Said], where: str, status: int, text: str) -> None:
    """An invalid place is a usage error; a place without a queue is a failure."""
    said = run("queue", "stats", where)
    assert (said.status, said.out) == (status, "")
    assert text in said.err
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("uwsgitwisted: ")


def test_a_spool_in_use(spool: Spool) -> None:
    """For a spool in use, the error asks for the running spooler's address."""
    store = spool.open()
    said = spool("stats")
    store.close()
    assert said.status == 1
    assert "in use by a running spooler; name its address instead" in said.err


@pytest.mark.integration
@pytest.mark.usefixtures("outside_the_reactor", "plain_peers")
class TestAddress:
    def ask(self, run: Callable[..., Said], answer: object, *command: str) -> tuple[Said, list[bytes]]:
        with ScriptedServer(answering(frame(33, 0, dumps(answer)))) as server:
            return run("queue", command[0], f"127.0.0.1:{server.port}", *command[1:]), server.requests

    def test_question(self, run: Callable[..., Said]) -> None:
        """The same commands work with a running spooler."""
        said, requests = self.ask(run, [], "list", "--json", "--state", "dead", "--limit", "5")
        assert (said.status, said.out) == (0, "")
        assert [loads(request[4:]) for request in requests] == [
            ("list", {"state": "dead", "after": 0, "limit": 6})
        ]

    def test_import(self, run: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
        """New tasks go there as a batch."""
        feed(monkeypatch, '{"variables": {"a": "b"}, "body": "c"}')
        said, ((*_,),) = self.ask(run, [1], "import")
        assert (said.status, said.err) == (0, "1 task imported\n")

    @pytest.mark.parametrize(
        ("answer", "command"),
        [(None, ["list"]), (5, ["stats"]), ([], ["drop", "1"]), ({}, ["pause", "x"]), ("x", ["import"])],
    )
    def test_no_spooler(
        self, run: Callable[..., Said], answer: object, command: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server with other answers is reported as no spooler."""
        feed(monkeypatch, '{"variables": {}}')
        said, _ = self.ask(run, answer, *command)
        assert said.status == 1
        assert "the server at this address is not a uwsgitwisted spooler" in said.err

    def test_nobody_there(self, run: Callable[..., Said]) -> None:
        """Where nobody listens, one line says so."""
        said = run("queue", "stats", f"127.0.0.1:{closed_port()}")
        assert (said.status, len(said.err.splitlines())) == (1, 1)
        assert "Connection refused" in said.err

    def test_spool(self, run: Callable[..., Said]) -> None:
        """A task is enqueued, and its id printed."""
        with ScriptedServer(answering(frame(255, 1, b"17"))) as server:
            said = run("spool", f"127.0.0.1:{server.port}", "to=ann=x", "n=1")
            assert (said.status, said.out, said.err) == (0, "17\n", "")
            assert run("spool", f"127.0.0.1:{server.port}", "a=b", "--json").rows == [{"id": 17}]
        assert server.requests[0] == frame(17, 2, encode_vars({"to": "ann=x", "n": "1"}))

    def test_spool_a_body(
        self, run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its body comes from a file, or from the standard input."""
        (tmp_path / "body").write_bytes(b"\xff\n")
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"\xff\n")))
        taken: list[tuple[object, ...]] = []

        def enqueue(*arguments: object) -> int:
            taken.append(arguments)
            return 1

        monkeypatch.setattr("uwsgitwisted.cli.spool.enqueue", enqueue)
        for source in (str(tmp_path / "body"), "-"):
            assert run("spool", "127.0.0.1:1", "a=b", "--body", source).out == "1\n"
        assert taken == [("127.0.0.1:1", {"a": "b"}, b"\xff\n", 30.0)] * 2
        said = run("spool", "127.0.0.1:1", "a=b", "--body", str(tmp_path / "none"))
        assert (said.status, said.err) == (1, f"uwsgitwisted: {tmp_path}/none: No such file or directory\n")

    def test_spool_to_another_kind(self, run: Callable[..., Said]) -> None:
        """Without an id, --wait fails."""
        with ScriptedServer(answering(frame(255, 1))) as server:
            said = run("spool", f"127.0.0.1:{server.port}", "a=b")
            assert (said.status, said.out, said.err) == (0, "", "enqueued; this spooler assigns no ids\n")
            assert run("spool", f"127.0.0.1:{server.port}", "a=b", "--wait").status == 1

    @pytest.mark.parametrize(
        ("told", "status", "out", "err"),
        [
            ({"state": "done", "result": {"sent": 3}}, 0, '17\n{"sent": 3}\n', ""),
            ({"state": "done", "result": None}, 0, "17\n", ""),
            ({"state": "done", "result": b"x"}, 0, "17\nb'x'\n", ""),
            ({"state": "dead", "error": "KeyError: 'x'"}, 1, "17\n", "task 17 is dead: KeyError: 'x'\n"),
            ({"state": "cancelled"}, 1, "17\n", "task 17 is cancelled\n"),
        ],
    )
    def test_spool_and_wait(
        self, run: Callable[..., Said], told: dict[str, object], status: int, out: str, err: str
    ) -> None:
        """--wait prints the result, or the reason why there is none."""
        known = {"id": 17, "queue": "", "attempts": 1, "crashes": 0, "created": 1.0, "at": 1.0, "started": 1.0}
        record = {**known, "finished": 2.0, "error": "", **told, "result": dumps(told.get("result"))}

        def answer(server: ScriptedServer, connection: Any) -> None:
            asked = server.read_request(connection)[0]
            connection.sendall(frame(255, 1, b"17") if asked == 17 else frame(33, 0, dumps(record)))

        with ScriptedServer(answer) as server:
            said = run("spool", f"127.0.0.1:{server.port}", "a=b", "--wait")
            assert (said.status, said.out, said.err) == (status, out, err)
            said = run("spool", f"127.0.0.1:{server.port}", "a=b", "--wait", "--json")
            assert (said.status, said.rows[0]["state"]) == (status, told["state"])

    def test_spool_and_wait_too_long(self, run: Callable[..., Said]) -> None:
        """A task that doesn't finish in time is not cancelled, and the error says so."""

        def answer(server: ScriptedServer, connection: Any) -> None:
            if server.read_request(connection)[0] == 17:
                connection.sendall(frame(255, 1, b"17"))
            else:
                connection.recv(1)

        with ScriptedServer(answer) as server:
            said = run("spool", f"127.0.0.1:{server.port}", "a=b", "--wait", "--timeout", "0.3")
        assert (said.status, said.out) == (1, "17\n")
        assert said.err == "uwsgitwisted: task 17 has not finished after 0.3 s; it is not cancelled\n"


# The command line.


COMMANDS = [
    [],
    ["ping"],
    ["echo"],
    ["call"],
    ["map"],
    ["spool"],
    ["queue"],
    *(["queue", name] for name in parser._COMMANDS),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(run: Callable[..., Said], command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command has help, which fits a narrow terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    said = run(*command, "--help")
    assert (said.status, said.err) == (0, "")
    assert max(map(len, said.out.splitlines())) <= 80
    assert ("examples:" in said.out) is (len(command) < 2)


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["queue"],
        ["queue", "list"],
        ["queue", "nothing", "sqlite:x"],
        ["queue", "show", "sqlite:x"],
        ["queue", "show", "sqlite:x", "0"],
        ["queue", "show", "sqlite:x", "1", "--jso"],
        ["queue", "show", "sqlite:x", "²"],
        ["queue", "list", "sqlite:x", "--limit", "0"],
        ["queue", "list", "sqlite:x", "--state", "late"],
        ["queue", "retry", "sqlite:x", "--all", "--state", "ready"],
        ["queue", "stats", "sqlite:x", "--timeout", "0"],
        ["queue", "stats", "sqlite:x", "--timeout", "inf"],
        ["queue", "stats", "sqlite:x", "--timeout", "soon"],
        ["queue", "stats", "sqlite:x", "more"],
        ["queue", "pause", "sqlite:x"],
        ["spool", "127.0.0.1:1"],
        ["map", "33", "17"],
        ["map", "--nodes", "127.0.0.1:1", "33"],
        ["map", "--nodes", "127.0.0.1:1", "33", "300"],
        ["map", "--nodes", "nowhere", "33", "17"],
        ["map", "--nodes", "@/nowhere", "33", "17"],
        ["ping"],
        ["ping", "nowhere"],
        ["echo", "127.0.0.1:1", "--timeout", "0"],
        ["call", "127.0.0.1:1", "--modifier2", "256"],
        ["call", "127.0.0.1:1", "--message", "{"],
        ["call", "127.0.0.1:1", "--message", "1", "--rpc", "f"],
        ["call", "127.0.0.1:1", "--arg", "x"],
        ["call", "127.0.0.1:1", "--rpc", ""],
    ],
    ids=" ".join,
)
def test_usage(run: Callable[..., Said], line: list[str]) -> None:
    """An invalid command line exits with status 2."""
    assert run(*line).status == 2


def test_usage_of_timeouts(run: Callable[..., Said]) -> None:
    """An invalid time limit is refused with the same text as everywhere else."""
    said = run("queue", "stats", "sqlite:x", "--timeout", "soon")
    assert "argument --timeout: 'soon' is not a number of seconds above 0" in said.err


@pytest.mark.parametrize(
    "line",
    [
        ["cancel"],
        ["cancel", "1", "--all"],
        ["cancel", "1", "--queue", "mail"],
        ["drop", "1", "--state", "dead"],
    ],
)
def test_usage_of_changes(spool: Spool, line: list[str]) -> None:
    """So does a change whose tasks are ambiguous."""
    before = spool.states()
    assert spool(*line).status == 2
    assert spool.states() == before


@pytest.mark.parametrize("pair", ["novalue", "=value", ""])
def test_usage_of_spool(run: Callable[..., Said], pair: str) -> None:
    """So does a variable without a name."""
    said = run("spool", "127.0.0.1:1", pair)
    assert (said.status, said.err) == (2, f"uwsgitwisted: {pair!r} is not key=value\n")


def test_options_may_stand_anywhere(spool: Spool, tmp_path: Path) -> None:
    """Options may stand between the other arguments."""
    assert spool("cancel", "--json", "5", "--timeout", "3", "6").rows == [{"changed": 2}]
    assert spool("export", "--state", "dead", str(tmp_path / "out")).status == 0
    assert spool.run("queue", "list", "--json", str(spool)).status == 0


def test_interrupted(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted command prints no traceback."""

    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(places.OpenStore, "call", interrupt)
    said = spool("stats")
    assert (said.status, said.err) == (1, "uwsgitwisted: interrupted\n")


def test_errors_are_one_line(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is one line, whatever is in its text."""

    def fail(*arguments: object, **more: object) -> None:
        raise SpoolError("one\ntwo\x1b[31m")

    monkeypatch.setattr(places.OpenStore, "call", fail)
    said = spool("stats")
    assert (said.status, said.err) == (1, "uwsgitwisted: one\\ntwo\\x1b[31m\n")


_SUBPROCESS = """
import sys
from uwsgitwisted.cli import main
status = main(sys.argv[1:])
slow = [name for name in ("twisted", "rich", "asyncio", "mako") if name in sys.modules]
print(status, slow, file=sys.stderr)
"""


def test_imports(spool: Spool) -> None:
    """The command imports neither Twisted nor what it doesn't use."""
    ended = subprocess.run(
        [sys.executable, "-c", _SUBPROCESS, "queue", "list", str(spool), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == "0 []\n"
    assert len(ended.stdout.splitlines()) == 6


def test_module(spool: Spool) -> None:
    """It is also there as ``python -m uwsgitwisted``."""
    command = [sys.executable, "-m", "uwsgitwisted", "queue", "show", str(spool), "99"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch("there is no task 99, .*\n", ended.stderr)


def test_reader_that_has_seen_enough(empty: Spool) -> None:
    """When its output is closed, the command ends silently."""
    store = empty.open()
    store.add([new_task(encode_vars({"n": "x" * 150}), 0.0) for _ in range(2_000)])
    store.close()
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "uwsgitwisted", "queue", "list", str(empty), "--json", "--limit", "2000"]
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.read(reading, 10)
    os.close(reading)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, b"")
