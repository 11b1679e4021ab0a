"""What is accepted as a spool's file, and that everything else is left as it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from uwsgitwisted.errors import SpoolCorrupt, SpoolError, SpoolInUse
from uwsgitwisted.spool.stores.sqlite import file as sqlite_file
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.spool.task import State, Task


def refused(path: Path, kind: type[SpoolError], reason: str) -> None:
    """Assert that *path* is refused and no byte of it, or of what lies beside it, changed."""
    before = contents(path.parent)
    with pytest.raises(kind, match=reason):
        SqliteStore(str(path)).open(lambda: None)
    assert contents(path.parent) == before


def contents(directory: Path) -> dict[str, bytes]:
    """Return what the files hold, but for the lock and SQLite's index in shared memory, which hold no data."""
    return {
        file.name: file.read_bytes()
        for file in directory.iterdir()
        if file.is_file() and not file.name.endswith((".lock", "-shm"))
    }


def spool_of(path: Path, tasks: int) -> None:
    store = SqliteStore(str(path))
    store.open(lambda: None)
    store.add([Task(b"x" * 2000, 1.0, 1.0) for _ in range(tasks)])
    store.close()


@pytest.mark.parametrize("content", [b"hello\n", b"\0" * 8192, b"SQLite format 3\0", b"x"])
def test_not_a_database(tmp_path: Path, content: bytes) -> None:
    """A file that is no database is refused and unchanged."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    refused(path, SpoolCorrupt, "not an SQLite database; nothing was changed")


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_foreign_database(tmp_path: Path, journal: str) -> None:
    """The database of another program is refused and unchanged."""
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY)")
    refused(path, SpoolCorrupt, "something else; nothing was changed")


def test_newer(tmp_path: Path) -> None:
    """The spool of a newer release is refused and unchanged."""
    path = tmp_path / "spool.sqlite"
    spool_of(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    refused(path, SpoolCorrupt, r"version 99.*knows 3")


def test_newer_in_log(tmp_path: Path) -> None:
    """A newer version that stands only in the write-ahead log is seen too."""
    spool_of(tmp_path / "live", 1)
    with closing(sqlite3.connect(tmp_path / "live", isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 99")
        (tmp_path / "copy").mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(tmp_path / f"live{suffix}", tmp_path / "copy" / f"spool{suffix}")
    refused(tmp_path / "copy" / "spool", SpoolCorrupt, "version 99")


def test_damaged(tmp_path: Path) -> None:
    """A damaged spool is refused and unchanged."""
    path = tmp_path / "spool.sqlite"
    spool_of(path, 100)
    content = bytearray(path.read_bytes())
    content[20_000:60_000] = b"\xaa" * 40_000
    path.write_bytes(content)
    refused(path, SpoolCorrupt, "damaged")


def test_huge_is_not_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file over the limit is opened without the check."""
    path = tmp_path / "spool.sqlite"
    spool_of(path, 100)
    content = bytearray(path.read_bytes())
    content[-4096:] = b"\xaa" * 4096
    path.write_bytes(content)
    monkeypatch.setattr(sqlite_file, "QUICK_CHECK_LIMIT", 1000)
    store = SqliteStore(str(path))
    store.open(lambda: None)
    store.close()


def test_cut_short(tmp_path: Path) -> None:
    """A spool of which the end is missing is refused and unchanged."""
    path = tmp_path / "spool.sqlite"
    spool_of(path, 100)
    os.truncate(path, path.stat().st_size // 2)
    refused(path, SpoolError, "malformed|damaged|disk I/O")


@pytest.mark.parametrize("database", [None, b""])
@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_orphaned_log(tmp_path: Path, database: bytes | None, suffix: str) -> None:
    """A log whose database is missing or empty holds tasks: it is not begun afresh beside it."""
    path = tmp_path / "spool.sqlite"
    if database is not None:
        path.write_bytes(database)
    path.with_name(path.name + suffix).write_bytes(b"tasks")
    refused(path, SpoolCorrupt, "missing or empty")


def test_empty_file_becomes_a_spool(tmp_path: Path) -> None:
    """An empty file holds nothing that could be lost."""
    path = tmp_path / "spool.sqlite"
    path.touch()
    spool_of(path, 1)
    assert path.read_bytes().startswith(b"SQLite format 3\0")


def test_created_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A creation that fails half-way leaves nothing but the lock."""
    monkeypatch.setattr(sqlite_file, "SCHEMA", "BEGIN; CREATE TABLE a (b); nonsense; COMMIT;")
    with pytest.raises(SpoolError, match="syntax error"):
        SqliteStore(str(tmp_path / "spool.sqlite")).open(lambda: None)
    assert os.listdir(tmp_path) == ["spool.sqlite.lock"]


def test_private(tmp_path: Path) -> None:
    """The files can be read by nobody else: tasks hold what people send."""
    path = tmp_path / "spool.sqlite"
    store = SqliteStore(str(path))
    store.open(lambda: None)
    store.add([Task(b"", 1.0, 1.0)])
    assert {file.stat().st_mode & 0o077 for file in tmp_path.iterdir()} == {0}
    store.close()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/proc/spool.sqlite", "can't make the lock"),
        ("missing/spool.sqlite", "can't make the lock"),
        (".", "can't make the lock|is not a file"),
    ],
)
def test_impossible_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str) -> None:
    """A read-only file system, a missing directory and a directory are refused in plain words."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SpoolError, match=reason):
        SqliteStore(path).open(lambda: None)


def test_fifo(tmp_path: Path) -> None:
    """Something that is no regular file is refused without waiting for it."""
    os.mkfifo(tmp_path / "spool")
    with pytest.raises(SpoolError, match="is not a file"):
        SqliteStore(str(tmp_path / "spool")).open(lambda: None)


def test_name_too_long(tmp_path: Path) -> None:
    """A name that the file system refuses is reported, also where only the lock's name is."""
    with pytest.raises(SpoolError, match="too long"):
        SqliteStore(str(tmp_path / ("x" * 300))).open(lambda: None)
    with pytest.raises(SpoolError, match="can't create"):
        SqliteStore(str(tmp_path / ("x" * 248))).open(lambda: None)


def test_not_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that can't have its write-ahead log is refused, for instance in memory."""
    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(SpoolError, match="durable"):
        sqlite_file._make_durable(connection, "x")


def test_second_opener(tmp_path: Path) -> None:
    """A second spooler is refused and hears who has the file, in this process or another, by any name."""
    path = tmp_path / "spool.sqlite"
    (tmp_path / "link").symlink_to(path)
    store = SqliteStore(str(path))
    store.open(lambda: None)
    holder = f"process {os.getpid()} on "
    with pytest.raises(SpoolError, match=holder):
        SqliteStore(str(tmp_path / "link")).open(lambda: None)
    program = (
        "from uwsgitwisted.spool.stores.sqlite.store import SqliteStore; "
        f"SqliteStore({str(path)!r}).open(print)"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert holder in other.stderr
    assert store.add([Task(b"", 1.0, 1.0)]) == [1]
    store.close()
    spool_of(path, 1)


@pytest.mark.parametrize("process", ["this", "another"])
@pytest.mark.parametrize("how", ["the lock was removed", "the file was moved"])
def test_second_opener_without_the_lock(tmp_path: Path, how: str, process: str) -> None:
    """A second spooler is refused by the file itself too, and nothing drops the locks that SQLite has on it."""
    path = other = tmp_path / "spool.sqlite"
    store = SqliteStore(str(path))
    store.open(lambda: None)
    if how == "the lock was removed":
        path.with_name("spool.sqlite.lock").unlink()
    else:
        other = path.rename(tmp_path / "moved.sqlite")
    locks = _locks_of(other)
    if process == "this":
        with pytest.raises(SpoolInUse, match=r"opened it under another name, or whose \.lock file was"):
            SqliteStore(str(other)).open(lambda: None)
    else:
        program = (
            "from uwsgitwisted.spool.stores.sqlite.store import SqliteStore; "
            f"SqliteStore({str(other)!r}).open(print)"
        )
        second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "SpoolInUse" in second.stderr
    assert _locks_of(other) == locks
    assert {kind for kind, _ in locks} == {"FLOCK", "POSIX"}
    store.close()
    assert _locks_of(other) == set()


def _locks_of(path: Path) -> set[tuple[str, str]]:
    """Return which locks this process has on a file, as Linux lists them: their kinds and their ranges."""
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    inode = str(path.stat().st_ino)
    return {
        (line[1], f"{line[6]}-{line[7]}")
        for line in held
        if line[4] == str(os.getpid()) and line[5].rpartition(":")[2] == inode
    }


def test_hard_link(tmp_path: Path) -> None:
    """A file that has two names is refused under both: its log is found by its name."""
    path, link = tmp_path / "spool.sqlite", tmp_path / "link.sqlite"
    store = SqliteStore(str(path))
    store.open(lambda: None)
    store.add([Task(b"", 1.0, 1.0)])
    link.hardlink_to(path)
    for name in (link, link):
        with pytest.raises(SpoolError, match=r"has 2 names \(hard links\)"):
            SqliteStore(str(name)).open(lambda: None)
    assert store.add([Task(b"", 1.0, 1.0)]) == [2]
    store.close()
    with pytest.raises(SpoolError, match="keep one of them and remove the others"):
        SqliteStore(str(path)).open(lambda: None)
    link.unlink()
    store.open(lambda: None)
    assert len(store.records(10)) == 2
    store.close()


def test_lock_without_a_name(tmp_path: Path) -> None:
    """A lock whose holder could not write its name on a full disk keeps the second one out all the same."""
    store = SqliteStore(str(tmp_path / "spool.sqlite"))
    store.open(lambda: None)
    (tmp_path / "spool.sqlite.lock").write_bytes(b"")
    with pytest.raises(SpoolError, match="did not say who it is"):
        SqliteStore(str(tmp_path / "spool.sqlite")).open(lambda: None)
    store.close()


def test_file_system_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A symbolic link that points to itself is reported, not followed for ever."""
    path = tmp_path / "loop"
    path.symlink_to(path)
    with pytest.raises(SpoolError, match="Too many levels"):
        SqliteStore(str(path)).open(lambda: None)


# The tables of version 1, as that release made them.
VERSION_1 = """
PRAGMA application_id = 1970754416;
PRAGMA user_version = 1;
CREATE TABLE tasks (id INTEGER PRIMARY KEY AUTOINCREMENT, state INTEGER NOT NULL, priority INTEGER NOT NULL,
    at REAL NOT NULL, created REAL NOT NULL, started REAL, attempts INTEGER NOT NULL, crashes INTEGER NOT NULL,
    queue TEXT NOT NULL, variables BLOB NOT NULL, error TEXT NOT NULL DEFAULT '');
CREATE INDEX tasks_scheduled ON tasks (at) WHERE state = 0;
CREATE INDEX tasks_ready ON tasks (priority, at, id) WHERE state = 1;
CREATE INDEX tasks_running ON tasks (id) WHERE state = 2;
CREATE TABLE dead_letters (id INTEGER PRIMARY KEY, priority INTEGER NOT NULL, at REAL NOT NULL,
    created REAL NOT NULL, started REAL, buried REAL NOT NULL, attempts INTEGER NOT NULL,
    crashes INTEGER NOT NULL, queue TEXT NOT NULL, variables BLOB NOT NULL, error TEXT NOT NULL);
"""
TASKS_1 = """
INSERT INTO tasks VALUES (3, 0, 5, 2e9, 1.0, NULL, 1, 0, 'mail', x'01', 'why');
INSERT INTO tasks VALUES (4, 2, 5, 1.0, 1.0, 2.0, 0, 0, '', x'02', '');
INSERT INTO dead_letters VALUES (1, 5, 1.0, 1.0, 2.0, 3.0, 9, 1, '', x'03', 'Traceback');
UPDATE sqlite_sequence SET seq = 7;
"""


def test_upgrade(tmp_path: Path) -> None:
    """A spool of the first version is brought up to date with all that is in it, and no id is given again."""
    path = tmp_path / "spool.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA journal_mode = WAL; {VERSION_1} {TASKS_1}")
    store = SqliteStore(str(path))
    store.open(lambda: None)
    dead, scheduled, ran = store.records(10)
    assert (dead.task.id, dead.state, dead.task.attempts, dead.error) == (1, State.DEAD, 9, "Traceback")
    assert (dead.started, dead.finished) == (2.0, 3.0)
    assert (scheduled.task.id, scheduled.state, scheduled.task.queue) == (3, State.SCHEDULED, "mail")
    assert (ran.task.id, ran.state, ran.task.variables) == (4, State.RUNNING, b"\x02")
    assert store.add([Task(b"new", 1.0, 1.0)]) == [8]
    store.close()
    spool_of(path, 4)


# What was different in version 2.
VERSION_2 = """
DROP INDEX tasks_key;
DROP INDEX tasks_later;
CREATE UNIQUE INDEX tasks_key ON tasks (key) WHERE key IS NOT NULL;
PRAGMA user_version = 2;
"""


def test_upgrade_of_the_second_version(tmp_path: Path) -> None:
    """In a spool of the second version a key was one of all queues; after the upgrade it is one of its own."""
    path = tmp_path / "spool.sqlite"
    spool_of(path, 3)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_2)
    store = SqliteStore(str(path))
    store.open(lambda: None)
    assert len(store.records(10)) == 3
    ids = store.add([Task(b"", 1.0, 1.0, queue=queue, key="k") for queue in ("a", "b", "a")])
    assert ids == [4, 5, 4]
    store.close()


def test_upgrade_of_an_empty_spool(tmp_path: Path) -> None:
    """A spool of the first version that never had a task is brought up to date too."""
    path = tmp_path / "spool.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
    store = SqliteStore(str(path))
    store.open(lambda: None)
    assert store.add([Task(b"new", 1.0, 1.0)]) == [1]
    store.close()


def test_upgrade_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade that fails leaves the spool as it was."""
    path = tmp_path / "spool.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{VERSION_1} {TASKS_1}")
    monkeypatch.setattr(sqlite_file, "UPGRADES", {1: "BEGIN; DROP TABLE dead_letters; nonsense;"})
    with pytest.raises(SpoolError, match="nonsense"):
        SqliteStore(str(path)).open(lambda: None)
    monkeypatch.undo()
    store = SqliteStore(str(path))
    store.open(lambda: None)
    assert [record.task.id for record in store.records(10)] == [1, 3, 4]
    store.close()
