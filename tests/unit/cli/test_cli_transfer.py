"""The commands ``uwsgitwisted queue import`` and ``export``: lines of JSON, and uWSGI's spool directories."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.commands import (
    Said,
    Spool,
    empty_spool,  # noqa: F401 - a fixture
    feed,
    full_spool,  # noqa: F401 - a fixture
    name_of,
    run_command,  # noqa: F401 - a fixture
)
from uwsgitwisted.cli import lines, places, transfer
from uwsgitwisted.errors import ConnectionFailed, StoreUnavailable
from uwsgitwisted.spool.stores.interface import Want
from uwsgitwisted.spool.task import PRIORITY_LIMIT, UNPRIORITIZED, Task, new_task
from uwsgitwisted.wire.vars import encode_vars


def test_export_and_import(spool: Spool, empty: Spool, tmp_path: Path) -> None:
    """Tasks exported from one spool and imported into another are the same; the first keeps its own."""
    target = tmp_path / "tasks.jsonl"
    before = spool.states()
    said = spool("export", str(target))
    assert (said.status, said.err) == (0, "3 tasks exported; they stay in the queue\n")
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == [6, 5, 4]
    assert empty("import", str(target)).err == "3 tasks imported\n"
    moved = [task for task in spool.tasks() if name_of(task) in ("running", "ready", "later")]
    assert sorted(empty.tasks(), key=name_of) == sorted(moved, key=name_of)
    assert spool.states() == before


def test_which_are_exported(spool: Spool) -> None:
    """Only unfinished tasks are exported, unless --state names others."""
    assert [row["id"] for row in spool("export", "--state", "dead", "--state", "done").rows] == [2, 1]
    assert [row["id"] for row in spool("export", "-", "--queue", "mail", "--state", "ready").rows] == [5]


def test_export_in_pages(empty: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be more tasks than one page."""
    monkeypatch.setattr(transfer, "PAGE", 2)
    ids = [empty.add() for _ in range(5)]
    assert [row["id"] for row in empty("export").rows] == ids


def test_export_of_what_moves_on(empty: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that becomes ready meanwhile is exported once."""
    identifier = empty.add(at=time.time() + 1_000)
    store = empty.open()
    place = places.OpenStore(store)
    states: Iterator[str] = iter(["scheduled", "ready"])

    def next_states() -> Iterator[str]:
        yield next(states)
        store.advance([], {None: Want(0)}, time.time() + 2_000)
        yield next(states)

    exported = list(transfer._exported(place, next_states(), None))  # type: ignore[arg-type]
    assert [task["id"] for task in exported] == [identifier]
    assert [record.state.name for record in store.records(1)] == ["READY"]
    store.close()


def test_export_overwrites_nothing(spool: Spool, tmp_path: Path) -> None:
    """An existing file is not overwritten."""
    target = tmp_path / "tasks.jsonl"
    target.write_text("mine")
    said = spool("export", str(target))
    assert (said.status, target.read_text()) == (2, "mine")
    assert "already exists" in said.err


def test_export_is_whole_or_not_there(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an export fails, it leaves no partial file."""

    def break_off(task: object) -> str:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(transfer, "write_line", break_off)
    (tmp_path / "d").mkdir()
    assert spool("export", str(tmp_path / "d" / "tasks.jsonl")).status == 1
    assert list((tmp_path / "d").iterdir()) == []
    assert spool("export", str(tmp_path / "nowhere" / "tasks.jsonl")).status == 1


def test_spool_directory(spool: Spool, empty: Spool, tmp_path: Path) -> None:
    """Tasks are exported to a uWSGI's spool directory and imported from it; broken files are named."""
    directory = tmp_path / "uwsgi"
    directory.mkdir()
    assert spool("export", f"dir:{directory}").status == 0
    assert len(list(directory.glob("**/uwsgi_spoolfile_on_*"))) == 3
    (directory / "uwsgi_spoolfile_on_x").write_bytes(b"")
    said = empty("import", f"dir:{directory}")
    assert said.status == 1
    assert "left: uwsgi_spoolfile_on_x: " in said.err
    assert said.err.endswith("3 tasks imported\n")
    assert sorted(map(name_of, empty.tasks())) == ["later", "ready", "running"]
    assert [task.priority for task in empty.tasks() if task.body == b"12345"] == [3]
    assert [path.name for path in directory.glob("**/uwsgi_*")] == ["uwsgi_spoolfile_on_x"]
    assert empty("import", f"dir:{tmp_path}/nowhere").status == 1


def test_large_files_in_a_spool_directory(
    spool: Spool, empty: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are together too large for one request are sent in several."""
    assert spool("export", f"dir:{tmp_path}").status == 0
    monkeypatch.setattr(transfer, "BATCH_BYTES", 1)
    added: list[int] = []
    add = places.OpenStore.add

    def note(self: places.OpenStore, tasks: Sequence[Task]) -> Any:
        added.append(len(tasks))
        return add(self, tasks)

    monkeypatch.setattr(places.OpenStore, "add", note)
    assert empty("import", f"dir:{tmp_path}").err == "3 tasks imported\n"
    assert added == [1, 1, 1]
    assert len(empty.tasks()) == 3


def test_unordered_spool_directory(spool: Spool, tmp_path: Path) -> None:
    """For a uWSGI that doesn't look into subdirectories, there are none."""
    assert spool("export", f"dir:{tmp_path}", "--unordered").status == 0
    assert len(list(tmp_path.glob("uwsgi_spoolfile_on_*"))) == 3


def test_import_of_what_was_written_by_hand(empty: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line needs no more than variables."""
    feed(
        monkeypatch,
        '{"variables": {"to": "ann", "n": 1}}',
        "",
        '{"variables": {"priority": "3"}, "body": "é", "queue": "mail"}',
        '{"variables": {"priority": "3"}, "priority": null, "body_base64": "/w==", "idempotency_key": "k"}',
        '{"variables_base64": "AQBhAQBi", "at": 1767225600.5}',
    )
    assert empty("import").err == "4 tasks imported\n"
    first, second, third, fourth = empty.tasks()
    assert first.variables == encode_vars({"to": "ann", "n": 1})
    assert (second.priority, second.queue, second.body) == (3, "mail", "é".encode())
    assert second.variables == encode_vars({"priority": 3})
    assert (third.priority, third.body, third.key) == (UNPRIORITIZED, b"\xff", "k")
    assert (fourth.variables, fourth.at) == (encode_vars({"a": "b"}), 1767225600.5)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("junk", "it is not JSON"),
        (b"\xff", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", 'it is not an object with "variables"'),
        ("{}", 'it is not an object with "variables"'),
        ('{"variables": {}, "prioritty": 1}', "it has unknown names: prioritty"),
        ('{"variables": []}', "a task is a dict"),
        ('{"variables": {"a": null}}', "a key or value of type NoneType"),
        ('{"variables": {"": "b"}}', "an empty key"),
        ('{"variables": {"a": "\\ud800"}}', "text that has no UTF-8 form"),
        ('{"variables": {"at": "never"}}', "is no time"),
        ('{"variables": {}, "at": "never"}', "is no time"),
        ('{"variables": {}, "priority": 1.5}', "is no priority"),
        ('{"variables": {}, "queue": "\\u0000"}', "zero byte"),
        ('{"variables": {}, "body": 1.5, "body_base64": 1}', "a value in base64 must be text"),
        ('{"variables": {}, "body_base64": "x"}', "its base64 is broken"),
        ('{"variables_base64": "eA=="}', "the block ends within a length"),
    ],
)
def test_import_of_junk(empty: Spool, row: str | bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid line stops the import; the error says that the lines before it are imported."""
    feed(monkeypatch, '{"variables": {}}', row, '{"variables": {}}')
    said = empty("import")
    assert said.status == 1
    assert said.err.startswith("uwsgitwisted: line 2: ")
    assert reason in said.err
    assert said.err.endswith("; those before are imported\n")
    assert len(said.err.splitlines()) == 1
    assert len(empty.tasks()) == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (StoreUnavailable("the disk is full"), "lines 3 to 4: the disk is full; those before are imported"),
        (
            ConnectionFailed("it broke"),
            "it broke; whether the lines 3 to 4 are imported is not known; those before are imported",
        ),
    ],
)
def test_import_that_breaks_off(
    empty: Spool, error: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a batch can't be enqueued, the error says which lines are imported."""
    monkeypatch.setattr(transfer, "BATCH_LIMIT", 2)
    add = places.OpenStore.add
    added: list[int] = []

    def add_twice(self: places.OpenStore, tasks: Sequence[Task]) -> Any:
        if added:
            raise error
        added.append(len(tasks))
        return add(self, tasks)

    monkeypatch.setattr(places.OpenStore, "add", add_twice)
    feed(monkeypatch, *['{"variables": {}}'] * 5)
    said = empty("import")
    assert (said.status, said.err) == (1, f"uwsgitwisted: {text}\n")
    assert len(empty.tasks()) == 2


def test_import_makes_a_spool(
    tmp_path: Path, run: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import creates a missing spool; nothing else does."""
    made = Spool(tmp_path / "new.sqlite", run)
    said = made("list")
    assert (said.status, said.err) == (1, f"uwsgitwisted: there is no spool {made.path}\n")
    assert not made.path.exists()
    feed(monkeypatch, '{"variables": {}}')
    assert made("import").status == 0
    assert len(made.tasks()) == 1


TASKS = st.builds(
    Task,
    st.dictionaries(st.binary(min_size=1, max_size=9), st.binary(max_size=9)).map(
        lambda pairs: encode_vars(
            {key: value for key, value in pairs.items() if key not in lines._SETTINGS.values()}.items()
        )
    )
    | st.just(encode_vars([("twice", "a"), ("twice", "b")])),
    at=st.floats(0, 4e9).map(lambda seconds: round(seconds, 3)).filter(bool),
    created=st.just(5.0),
    priority=st.just(UNPRIORITIZED) | st.integers(-PRIORITY_LIMIT, PRIORITY_LIMIT),
    queue=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    key=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    body=st.binary(max_size=20) | st.text().map(str.encode),
)


@given(TASKS)
def test_lines_round_trip(task: Task) -> None:
    """A task comes back from its line as it was."""
    exported = {
        "id": 1,
        "state": "ready",
        "at": task.at,
        "queue": task.queue,
        "priority": None if task.priority == UNPRIORITIZED else task.priority,
        "idempotency_key": task.key,
        "variables": task.variables,
        "body": task.body,
    }
    line = lines.write_line(exported)
    assert "\n" not in line
    assert lines.read_line(line, 5.0) == task


@given(TASKS)
def test_settings_round_trip(task: Task) -> None:
    """A task's settings for the spooler arrive, whatever its variables contain."""
    item = places.batch_item(task)
    assert replace(new_task(item.settings, 5.0), variables=task.variables, body=task.body) == task
    assert (item.variables, item.body) == (task.variables, task.body)
