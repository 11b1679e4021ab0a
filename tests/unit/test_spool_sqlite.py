"""The SQLite store: order, durability, and what happens when the disk is full."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from uwsgitwisted.errors import SpoolCorrupt, StartupError
from uwsgitwisted.spool import sqlite
from uwsgitwisted.spool.descriptions import make_store
from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.sqlite import SqliteStore
from uwsgitwisted.spool.stores import DeadLetter, ISpoolStore, Settlement, StoreUnavailable, Turn
from uwsgitwisted.spool.task import UNPRIORITIZED, Task

NOW = 1_700_000_000.0


def task(name: str = "t", *, at: float = NOW, priority: int = UNPRIORITIZED) -> Task:
    return Task(name.encode(), at=at, created=NOW, priority=priority)


def names(turn: Turn) -> list[str]:
    return [claimed.variables.decode() for claimed in turn.claimed]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(str(path))
    store.open()
    yield store
    store.close()


def reopened(store: SqliteStore) -> SqliteStore:
    store.close()
    store.open()
    return store


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    """Look at the file from outside, as an administrator does while the spooler runs."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def test_interface(store: SqliteStore, path: Path) -> None:
    """It is a store, and says which."""
    assert verifyObject(ISpoolStore, store)
    assert store.description == f"sqlite:{path}"


def test_order(store: SqliteStore) -> None:
    """Tasks come by priority, then time, then id; later ones not at all."""
    ids = store.add(
        [
            task("plain"),
            task("second", priority=5),
            task("earlier", at=NOW - 9),
            task("first", priority=-1),
            task("plain too"),
            task("tomorrow", at=NOW + 86400, priority=-9),
        ]
    )
    assert ids == [1, 2, 3, 4, 5, 6]
    turn = store.advance([], 3, NOW)
    assert names(turn) == ["first", "second", "earlier"]
    assert turn.next_at == NOW
    turn = store.advance([], 10, NOW)
    assert names(turn) == ["plain", "plain too"]
    assert turn.next_at == NOW + 86400
    assert store.advance([], 10, NOW) == Turn([], NOW + 86400)
    assert names(store.advance([], 10, NOW + 86400)) == ["tomorrow"]
    assert store.advance([], 10, NOW + 86400) == Turn([], None)


def test_claimed_task_is_whole(store: SqliteStore) -> None:
    """A claimed task is the one that was added, with its id."""
    added = Task(b"\x00\xff", at=NOW - 0.25, created=NOW, priority=7, queue="mail", attempts=2, crashes=1)
    (identifier,) = store.add([added])
    (claimed,) = store.advance([], 1, NOW).claimed
    assert claimed == Task(b"\x00\xff", NOW - 0.25, NOW, 7, "mail", 2, 1, identifier)


def test_removed(store: SqliteStore) -> None:
    """A task that is done is gone, and its id is not given again."""
    store.add([task()])
    store.advance([], 1, NOW)
    store.advance([Settlement(1, Action.REMOVE)], 0, NOW)
    assert reopened(store).interrupted() == []
    assert store.add([task()]) == [2]


def test_retry(store: SqliteStore) -> None:
    """A task to retry waits for its time, with its new counts; without a time it keeps its place."""
    store.add([task("a"), task("b")])
    store.advance([], 2, NOW)
    turn = store.advance(
        [Settlement(1, Action.RETRY, 3, 1, NOW + 10, "why"), Settlement(2, Action.RETRY, 0, 0)], 9, NOW
    )
    assert names(turn) == ["b"]
    assert turn.next_at == NOW + 10
    (again,) = store.advance([], 9, NOW + 10).claimed
    assert (again.attempts, again.crashes, again.at) == (3, 1, NOW + 10)


def test_bury(store: SqliteStore) -> None:
    """A buried task is a dead letter with its counts, its last error and the times."""
    store.add([task("a"), task("b"), task("c")])
    store.advance([], 3, NOW + 1)
    store.advance([Settlement(1, Action.BURY, 4, 2, NOW + 5, "Traceback: KeyError")], 0, NOW + 5)
    store.advance([Settlement(2, Action.RETRY, 1, 0, NOW, "earlier")], 0, NOW + 5)
    store.advance([Settlement(2, Action.BURY, 2, 0, NOW + 6)], 0, NOW + 6)
    first, second = reopened(store).dead_letters(10)
    assert first == DeadLetter(
        Task(b"a", NOW, NOW, UNPRIORITIZED, "", 4, 2, 1), "Traceback: KeyError", NOW + 1, NOW + 5
    )
    assert (second.task.id, second.error) == (2, "earlier")
    assert store.dead_letters(10, after=1) == [second]
    assert store.dead_letters(1) == [first]
    assert [left.id for left in store.interrupted()] == [3]


def test_interrupted(store: SqliteStore) -> None:
    """What ran when the process ended comes up as interrupted until it is settled; the rest waits on."""
    store.add([task("ran"), task("waits")])
    store.advance([], 1, NOW)
    for _ in range(2):
        (interrupted,) = reopened(store).interrupted()
        assert interrupted.variables == b"ran"
    assert names(store.advance([], 9, NOW)) == ["waits"]


def test_many_become_due_at_once(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When more tasks become due than one turn promotes, the earliest go first and none is forgotten."""
    monkeypatch.setattr(sqlite, "PROMOTE_LIMIT", 2)
    store.add([task(str(n), at=NOW + n) for n in range(1, 6)])
    seen: list[str] = []
    while claimed := names(store.advance([], 10, NOW + 100)):
        seen += claimed
    assert seen == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (sqlite.NEXT_READY, "tasks_ready"),
        (sqlite.ANY_READY, "tasks_ready"),
        (sqlite.PROMOTE, "tasks_scheduled"),
        (sqlite.NEXT_SCHEDULED, "tasks_scheduled"),
        (sqlite.INTERRUPTED, "tasks_running"),
    ],
)
def test_plans(store: SqliteStore, path: Path, statement: str, index: str) -> None:
    """Each step of a turn reads its own partial index in order: no other scan, nothing sorted."""
    values = ", ".join("1" for _ in range(statement.count("?")))
    bound = statement
    for _ in values.split(", "):
        bound = bound.replace("?", "1", 1)
    steps = [str(row[3]) for row in query(path, f"EXPLAIN QUERY PLAN {bound}")]
    assert any(f"USING INDEX {index}" in step or f"USING COVERING INDEX {index}" in step for step in steps)
    assert not [step for step in steps if "TEMP B-TREE" in step or ("SCAN" in step and index not in step)]


def test_durable_settings(store: SqliteStore, path: Path) -> None:
    """The file is in WAL mode and is signed; a commit waits for the disk."""
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    assert query(path, "PRAGMA application_id") == [(0x75775370,)]
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_failed_batch_leaves_nothing(store: SqliteStore) -> None:
    """A batch is stored whole or not at all."""
    with pytest.raises(OverflowError):
        store.add([task("good"), task("bad", priority=2**70)])
    assert store.advance([], 9, NOW) == Turn([], None)


def test_full(store: SqliteStore) -> None:
    """A full disk refuses the batch whole; what was there stays, and it goes on when there is space."""
    store.add([task("kept")])
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreUnavailable, match="full; nothing was written"):
        store.add([task("small"), task("x" * 60_000)])
    assert names(store.advance([], 9, NOW)) == ["kept"]
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert len(store.add([task("x" * 60_000)])) == 1
    assert len(store.advance([Settlement(1, Action.REMOVE)], 9, NOW).claimed) == 1


def test_read_only(store: SqliteStore) -> None:
    """A store that became read-only says so, and works again when it is writable."""
    store._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable, match="make the file, its directory and the disk writable"):
        store.add([task()])
    store._connection.execute("PRAGMA query_only = OFF")
    assert store.add([task()]) == [1]


def test_another_program_holds_it(store: SqliteStore, path: Path) -> None:
    """While another program writes to the file the store is unavailable, not broken."""
    store._connection.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        store.add([task()])
    other.close()
    assert store.add([task()]) == [1]


def test_damaged_while_open(store: SqliteStore, path: Path) -> None:
    """Damage that is met while the spool is open is reported as such."""
    store.add([task("x" * 3000) for _ in range(50)])
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damaged = reopened(store)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xaa" * (path.stat().st_size - 4096))
    with pytest.raises(SpoolCorrupt, match="damaged"):
        damaged.advance([], 50, NOW)


def test_not_open(path: Path) -> None:
    """A store that is not open says so; to close it is no mistake."""
    store = SqliteStore(str(path))
    store.close()
    with pytest.raises(StoreUnavailable, match="not open"):
        store.add([task()])


def test_file_size_limit(path: Path) -> None:
    """When the file system takes no more bytes the batch is refused, what was acknowledged stays."""
    program = f"""
import resource
from uwsgitwisted.spool.sqlite import SqliteStore
from uwsgitwisted.spool.stores import StoreUnavailable
from uwsgitwisted.spool.task import Task
store = SqliteStore({str(path)!r})
store.open()
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
stored = []
try:
    while True:
        stored += store.add([Task(b"x" * 20_000, 1.0, 1.0)])
except StoreUnavailable:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
stored += store.add([Task(b"after", 1.0, 1.0)])
store.close()
print(len(stored))
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count = int(shown.stdout)
    assert count > 2
    store = SqliteStore(str(path))
    store.open()
    claimed = store.advance([], 1000, NOW).claimed
    store.close()
    assert len(claimed) == count
    assert claimed[-1].variables == b"after"


def test_killed_after_commit(path: Path) -> None:
    """What was acknowledged is there after SIGKILL, and what ran comes back as interrupted."""
    program = f"""
import os, signal
from uwsgitwisted.spool.sqlite import SqliteStore
from uwsgitwisted.spool.task import Task
store = SqliteStore({str(path)!r})
store.open()
store.add([Task(b"one", 1.0, 1.0), Task(b"two", 1.0, 1.0)])
store.advance([], 1, 2.0)
store.add([Task(b"three", 1.0, 1.0)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    store = SqliteStore(str(path))
    store.open()
    assert [left.variables for left in store.interrupted()] == [b"one"]
    assert names(store.advance([], 9, NOW)) == ["two", "three"]
    store.close()


def test_make_store(tmp_path: Path) -> None:
    """The description finds the store, and nothing is touched by that."""
    store = make_store(f"sqlite:{tmp_path}/spool.sqlite")
    assert isinstance(store, SqliteStore)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("mysql:x", "begins with one of: sqlite:"),
        ("sqlite", "no known kind"),
        ("sqlite:", "sqlite:spool.sqlite"),
    ],
)
def test_bad_description(description: str, reason: str) -> None:
    """A description that means no store says which there are."""
    with pytest.raises(StartupError, match=reason):
        make_store(description)
