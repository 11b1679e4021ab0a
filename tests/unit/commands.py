"""The command ``uwsgitwisted`` within a test: what it says, and spools that it can work on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from uwsgitwisted.cli import main
from uwsgitwisted.spool.retry import Action, Decision
from uwsgitwisted.spool.stores.interface import Settlement, Want
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.spool.task import Task, new_task
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.vars import decode_vars, encode_vars

TRACEBACK = 'Traceback (most recent call last):\n  File "tasks.py", line 1, in run\nKeyError: b"to"\n'
#: What must not get to a terminal as it is: an escape sequence, a bell, a line of one's own, rich's markup.
EVIL = "\x1b[31m\x07\n[red]markup[/red]"


@dataclass
class Said:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[Any]:
        """Its lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Spool:
    """A spool, and the command on it."""

    path: Path
    run: Callable[..., Said]

    def __str__(self) -> str:
        return f"sqlite:{self.path}"

    def __call__(self, command: str, *arguments: str) -> Said:
        return self.run("queue", command, str(self), *arguments)

    def open(self) -> SqliteStore:
        store = SqliteStore(str(self.path), keep=1e9)
        store.open(lambda: None)
        return store

    def add(self, body: bytes = b"", **variables: Any) -> int:
        store = self.open()
        try:
            return store.add([new_task(encode_vars(variables), time.time(), body)])[0]
        finally:
            store.close()

    def states(self) -> dict[int, str]:
        store = self.open()
        try:
            return {record.task.id: record.state.name.lower() for record in store.records(1000)}
        finally:
            store.close()

    def tasks(self) -> list[Task]:
        """Return its tasks with their bodies, but without what is another's elsewhere."""
        store = self.open()
        try:
            return [
                replace(
                    record.task,
                    id=0,
                    created=0.0,
                    at=round(record.task.at, 3),
                    body=store.body(record.task.id),
                )
                for record in store.records(1000)
            ]
        finally:
            store.close()


@pytest.fixture(name="run")
def run_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run the command as a process would."""

    def run(*arguments: str) -> Said:
        try:
            status: Any = main(arguments)
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run


@pytest.fixture(name="spool")
def full_spool(tmp_path: Path, run: Callable[..., Said]) -> Spool:
    """A spool with a task in each state: 1 is done, 2 dead, 3 cancelled, 4 running, 5 ready, 6 scheduled."""
    made = Spool(tmp_path / "spool.sqlite", run)
    store = made.open()
    now = time.time()
    endings = {
        "done": (Decision(Action.FINISH, 1, 0), dumps({"sent": 3})),
        "dead": (Decision(Action.DEAD_LETTER, 10, 1, error=TRACEBACK), b""),
        "cancelled": (Decision(Action.CANCEL, 0, 0), b""),
    }
    for name, (decision, result) in endings.items():
        (identifier,) = store.add([new_task(encode_vars({"name": name}), now - 100)])
        store.advance([], {None: Want(1)}, now - 90)
        store.advance([Settlement(identifier, decision, result)], {None: Want(0)}, now - 80)
    store.add([new_task(encode_vars({"name": "running"}), now - 100)])
    store.advance([], {None: Want(1)}, now - 90)
    mail = {"spooler": "mail", "priority": 3}
    store.add([new_task(encode_vars({"name": "ready", **mail}), now - 100, b"12345")])
    store.add([new_task(encode_vars({"name": "later", "at": now + 7_300, "spooler": "mail"}), now)])
    store.close()
    return made


@pytest.fixture(name="empty")
def empty_spool(tmp_path: Path, run: Callable[..., Said]) -> Spool:
    made = Spool(tmp_path / "empty.sqlite", run)
    made.open().close()
    return made


def name_of(task: Task) -> str:
    return decode_vars(task.variables)[b"name"].decode()


def words(text: str) -> list[str]:
    """Return a table's lines, each with a space between its words."""
    return [" ".join(line.split()) for line in text.splitlines()]


def feed(monkeypatch: pytest.MonkeyPatch, *rows: str | bytes) -> None:
    """Give lines on the standard input."""
    data = b"".join((row.encode() if isinstance(row, str) else row) + b"\n" for row in rows)
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(data)))
