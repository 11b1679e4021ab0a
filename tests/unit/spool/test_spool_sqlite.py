"""The SQLite store: its plans, durability, and what happens when the disk is full. See also the contract."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from uwsgitwisted.errors import SpoolCorrupt, StartupError, StoreUnavailable
from uwsgitwisted.spool.retry import Action, Decision
from uwsgitwisted.spool.stores import claiming, sql
from uwsgitwisted.spool.stores.factory import make_store
from uwsgitwisted.spool.stores.interface import Cycle, Settlement, Want
from uwsgitwisted.spool.stores.sqlite import claim as sqlite_claim
from uwsgitwisted.spool.stores.sqlite import file as sqlite_file
from uwsgitwisted.spool.stores.sqlite import store as sqlite
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.spool.task import UNPRIORITIZED, Task

NOW = 1_700_000_000.0


def task(name: str = "t", *, at: float = NOW, priority: int = UNPRIORITIZED) -> Task:
    return Task(name.encode(), at=at, created=NOW, priority=priority)


def nothing() -> None:
    """Be woken and do nothing."""


def advance(store: SqliteStore, limit: int, now: float, *settlements: Settlement) -> Cycle:
    return store.advance(settlements, {None: Want(limit)}, now)


def settle(
    identifier: int,
    action: Action,
    attempts: int = 0,
    crashes: int = 0,
    delay: float | None = None,
    error: str = "",
) -> Settlement:
    return Settlement(identifier, Decision(action, attempts, crashes, delay, error))


def names(cycle: Cycle) -> list[str]:
    return [claimed.variables.decode() for claimed in cycle.claimed]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(str(path))
    store.open(nothing)
    yield store
    store.close()


def connection_of(store: SqliteStore) -> sqlite3.Connection:
    assert store._database._connection is not None
    return store._database._connection


def reopened(store: SqliteStore) -> SqliteStore:
    store.close()
    store.open(nothing)
    return store


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    """Look at the file from outside, as an administrator does while the spooler runs."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def test_description(store: SqliteStore, path: Path) -> None:
    """It says which it is."""
    assert store.description == f"sqlite:{path}"


def test_orphans_come_up_after_a_failure(store: SqliteStore) -> None:
    """A cycle that fails doesn't lose the orphans."""
    store.add([task("ran")])
    advance(store, 1, NOW)
    connection = reopened(store)._database._connection
    assert connection is not None
    connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable):
        advance(store, 0, NOW, settle(1, Action.FINISH))
    connection.execute("PRAGMA query_only = OFF")
    assert len(advance(store, 0, NOW).orphans) == 1


def test_ahead_is_bounded_by_size(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tasks are not prefetched in numbers."""
    monkeypatch.setattr(sqlite_claim, "PREFETCH_BYTES", 1_000)
    store.add([replace(task(), body=bytes(600)) for _ in range(10)])
    assert len(store.advance([], {None: Want(1, 10)}, NOW).claimed) == 2


def test_queues_take_turns(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks a queue has, the others get their turns, also if there are many queues."""
    for module in (claiming, sqlite_claim):
        monkeypatch.setattr(module, "QUEUES_PER_CYCLE", 2)
    store.add([replace(task(), queue="a") for _ in range(20)])
    store.add([replace(task(), queue=queue) for queue in "bcd"])
    store.add([replace(task(), queue="mail") for _ in range(5)])
    seen = []
    for _ in range(5):
        cycle = store.advance([], {None: Want(1), "mail": Want(1)}, NOW)
        seen.append("".join(sorted(claimed.queue[0] for claimed in cycle.claimed)))
    assert seen == ["am", "bm", "cm", "dm", "am"]
    assert cycle.ready == {None}


def test_many_become_due_at_once(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When more tasks become due than one cycle promotes, the earliest go first and none is left out."""
    monkeypatch.setattr(sqlite, "PROMOTE_LIMIT", 2)
    store.add([task(str(n), at=NOW + n) for n in range(1, 6)])
    seen: list[str] = []
    while claimed := names(advance(store, 10, NOW + 100)):
        seen += claimed
    assert seen == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (sqlite_claim.READY, "tasks_ready"),
        (sqlite_claim.ANY_READY, "tasks_ready"),
        (sqlite_claim.NEXT_QUEUE, "tasks_ready"),
        (sqlite_claim.FIRST_QUEUE, "tasks_ready"),
        (sqlite_claim.NEXT_LATER, "tasks_later"),
        (sqlite.PROMOTE, "tasks_scheduled"),
        (sql.NEXT_SCHEDULED, "tasks_scheduled"),
        (sqlite.ORPHANS, "tasks_running"),
        (sql.EXPIRED, "tasks_expiring"),
        (sql.NEXT_EXPIRY, "tasks_expiring"),
        (sqlite.CANCELLING, "tasks_cancelling"),
        (sqlite.FIND_KEY, "tasks_key"),
    ],
)
def test_plans(store: SqliteStore, path: Path, statement: str, index: str) -> None:
    """Each step of a cycle reads its own partial index in order: no other scan, nothing sorted."""
    values = ", ".join("1" for _ in range(statement.count("?")))
    bound = statement
    for _ in values.split(", "):
        bound = bound.replace("?", "1", 1)
    steps = [str(row[3]) for row in query(path, f"EXPLAIN QUERY PLAN {bound}")]
    assert any(f"USING INDEX {index}" in step or f"USING COVERING INDEX {index}" in step for step in steps)
    assert not [step for step in steps if "TEMP B-TREE" in step or ("SCAN" in step and index not in step)]


def test_space_is_given_back(store: SqliteStore, path: Path) -> None:
    """A file that was large becomes small again when nothing is left to do, a few pages each cycle."""
    store.keep = 0.0
    store.add([task("x" * 60_000) for _ in range(400)])
    claimed = advance(store, 1000, NOW).claimed
    connection_of(store).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    large = path.stat().st_size
    cycle = advance(store, 0, NOW, *(settle(one.id, Action.FINISH, 1) for one in claimed))
    assert cycle.upkeep == sqlite.BUSY_PAUSE
    cycles = 0
    while (cycle := advance(store, 0, NOW)).upkeep is not None:
        assert cycle.upkeep == 0.0
        cycles += 1
    assert large > 20e6
    assert path.stat().st_size < 5e6
    assert cycles > 10
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def test_space_is_kept_while_the_disk_is_full(store: SqliteStore) -> None:
    """That space can't be given back now doesn't fail the cycle, and isn't tried all the time."""
    store.keep = 0.0
    store.add([task("x" * 60_000) for _ in range(400)])
    claimed = advance(store, 1000, NOW).claimed
    advance(store, 0, NOW, *(settle(one.id, Action.FINISH, 1) for one in claimed))
    connection = connection_of(store)
    store._database._connection = _Unshrinkable(connection)  # type: ignore[assignment]
    assert advance(store, 0, NOW).upkeep == sqlite.SHRINK_PAUSE
    store._database._connection = connection
    assert advance(store, 0, NOW).upkeep == 0.0


class _Unshrinkable:
    """A connection that can't give space back."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def executescript(self, script: str) -> None:
        raise sqlite3.OperationalError("database or disk is full")


def test_durable_settings(store: SqliteStore, path: Path) -> None:
    """The file is in WAL mode and is signed; a commit waits for the disk."""
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    assert query(path, "PRAGMA application_id") == [(0x75775370,)]
    assert connection_of(store).execute("PRAGMA synchronous").fetchone() == (2,)


def test_full(store: SqliteStore) -> None:
    """A full disk refuses the batch whole; what was there stays, and it goes on when there is space."""
    store.add([task("kept")])
    (pages,) = connection_of(store).execute("PRAGMA page_count").fetchone()
    connection_of(store).execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreUnavailable, match="full; nothing was written"):
        store.add([task("small"), task("x" * 60_000)])
    assert names(advance(store, 9, NOW)) == ["kept"]
    connection_of(store).execute("PRAGMA max_page_count = 100000")
    assert len(store.add([task("x" * 60_000)])) == 1
    assert len(advance(store, 9, NOW, settle(1, Action.FINISH)).claimed) == 1


def test_space_is_left_for_outcomes(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the disk is quite full tasks are refused, and outcomes of running ones are written."""
    (identifier,) = store.add([task()])
    advance(store, 1, NOW)
    monkeypatch.setattr(sqlite_file, "_DISK_PART", 1)
    monkeypatch.setattr(sqlite_file, "_DISK_RESERVE", 1 << 60)
    (refusal,) = store.refusals([task()])
    assert "the disk is almost full" in str(refusal)
    advance(store, 0, NOW, settle(identifier, Action.FINISH))
    assert store.usage().tasks == 0
    monkeypatch.setattr(sqlite_file, "_DISK_RESERVE", 0)
    spare = store.usage().spare
    assert spare is not None
    assert spare > 0


def test_space_that_is_not_known(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that doesn't say what it has left is taken to have enough."""

    def statvfs(path: str) -> None:
        raise OSError("not here")

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert store.usage().spare is None
    assert store.refusals([task()]) == [None]


def test_read_only(store: SqliteStore) -> None:
    """A store that became read-only says so, and works again when it is writable."""
    connection_of(store).execute("PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable, match="make the file, its directory and the disk writable"):
        store.add([task()])
    connection_of(store).execute("PRAGMA query_only = OFF")
    assert store.add([task()]) == [1]


def test_another_program_holds_it(store: SqliteStore, path: Path) -> None:
    """While another program writes to the file the store is unavailable, not broken."""
    connection_of(store).execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        store.add([task()])
    other.close()
    assert store.add([task()]) == [1]


def test_damaged_while_open(store: SqliteStore, path: Path) -> None:
    """Damage that is met while the spool is open is reported as such."""
    store.add([task("x" * 3000) for _ in range(50)])
    connection_of(store).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damaged = reopened(store)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xaa" * (path.stat().st_size - 4096))
    with pytest.raises(SpoolCorrupt, match="damaged"):
        advance(damaged, 50, NOW)


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
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.errors import StoreUnavailable
from uwsgitwisted.spool.task import Task
store = SqliteStore({str(path)!r})
store.open(lambda: None)
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
    store.open(nothing)
    claimed = advance(store, 1000, NOW).claimed
    store.close()
    assert len(claimed) == count
    assert claimed[-1].variables == b"after"


def test_killed_after_commit(path: Path) -> None:
    """What was acknowledged is there after SIGKILL, and what ran comes back as interrupted."""
    program = f"""
import os, signal
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.spool.stores.interface import Want
from uwsgitwisted.spool.task import Task
store = SqliteStore({str(path)!r})
store.open(lambda: None)
store.add([Task(b"one", 1.0, 1.0), Task(b"two", 1.0, 1.0)])
store.advance([], {{None: Want(1)}}, 2.0)
store.add([Task(b"three", 1.0, 1.0)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    store = SqliteStore(str(path))
    store.open(nothing)
    cycle = advance(store, 9, NOW)
    assert [orphan.variables for orphan in cycle.orphans] == [b"one"]
    assert names(cycle) == ["two", "three"]
    store.close()


def test_make_store(tmp_path: Path) -> None:
    """The description finds the store, and nothing is touched by that."""
    store = make_store(f"sqlite:{tmp_path}/spool.sqlite")
    assert isinstance(store, SqliteStore)
    assert os.listdir(tmp_path) == []


def test_a_file_whose_name_means_more_to_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its directory before it, such a name is a file like any other."""
    monkeypatch.chdir(tmp_path)
    store = make_store("sqlite:./:memory:")
    store.open(lambda: None)
    store.close()
    assert ":memory:" in os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("mysql:x", "no known kind; write for example sqlite:"),
        ("postgresql:", "doesn't say where it is"),
        ("sqlite", "no known kind"),
        ("sqlite:", "sqlite:spool.sqlite"),
        ("sqlite: ", "doesn't say where it is"),
        ("sqlite::memory:", "'sqlite::memory:' names no file.*write for example sqlite:spool.sqlite"),
        ("sqlite::memory:?cache=shared", "names no file"),
        ("sqlite:file:spool.sqlite", "names no file"),
        ("sqlite:file::memory:?cache=shared", "names no file"),
    ],
)
def test_bad_description(description: str, reason: str) -> None:
    """A description that means no store says which there are."""
    with pytest.raises(StartupError, match=reason):
        make_store(description)
