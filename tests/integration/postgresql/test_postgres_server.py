"""The PostgreSQL store and its server: notifications, restarts, hung and full servers, and other kinds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from tests.integration.postgresql.postgres import PostgresServer, Spool, store_of
from tests.integration.services import PATIENCE, until
from tests.store_contract import Bench, names, nothing, settle
from uwsgitwisted.errors import SpoolCorrupt, SpoolError, StartupError, StoreUnavailable
from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.stores.bounds import Usage
from uwsgitwisted.spool.stores.factory import make_store
from uwsgitwisted.spool.stores.interface import Want
from uwsgitwisted.spool.stores.postgres import connection as connection_module
from uwsgitwisted.spool.stores.postgres import database as database_module
from uwsgitwisted.spool.stores.postgres import lease as postgres_lease
from uwsgitwisted.spool.stores.postgres import listener as postgres_listener
from uwsgitwisted.spool.stores.postgres.store import PostgresStore
from uwsgitwisted.spool.task import State, Task

pytestmark = [pytest.mark.integration, pytest.mark.needs("postgresql")]


# Being woken.


@contextmanager
def heard(spool: Spool) -> Iterator[Callable[[], int]]:
    """Give a function that says how often the spoolers were notified since its last call."""
    with closing(psycopg.connect(spool.server.url(), autocommit=True)) as connection:
        connection.execute(f"LISTEN {spool.schema}")

        def count() -> int:
            spool.execute("NOTIFY {}, 'that is all'")
            number = 0
            for notification in connection.notifies(timeout=PATIENCE):
                if notification.payload == "that is all":
                    break
                number += 1
            return number

        yield count


def test_notifications(spool: Spool, bench: Bench) -> None:
    """The spoolers are notified, once a transaction, of new tasks, earlier times, and outcomes."""
    with heard(spool) as count:
        ids = bench.add("a", "b", "c")
        assert count() == 1
        bench.add("t", later=1000)
        assert count() == 1
        bench.add("t", later=2000)
        bench.store.add([])
        assert count() == 0
        bench.store.add([bench.task(later=500), bench.task(later=3000)])
        assert count() == 1
        bench.cycle(3)
        bench.cycle(0)
        assert count() == 0
        bench.cycle(
            0, settle(ids[0], Action.FINISH), settle(ids[1], Action.DEAD_LETTER), settle(ids[2], Action.RETRY)
        )
        assert count() == 1
        bench.cycle(0, settle(ids[0], Action.FINISH))
        assert count() == 0
        for change in (
            lambda: bench.store.retry([ids[1]], 0.0),
            lambda: bench.store.pause("q", True),
            lambda: bench.store.pause("q", False),
            lambda: bench.store.cancel(ids, 0.0),
            lambda: bench.store.occur("clean", 1.0, bench.task()),
        ):
            change()
            assert count() == 1


def test_woken(spool: Spool) -> None:
    """A spooler is woken by what another does, not by what it does itself."""
    woken = threading.Event()
    bench, other = spool.open(woken.set), spool.open()
    bench.add("a")
    other.store.add([])
    assert not woken.is_set()
    other.add("b")
    assert woken.wait(PATIENCE)


def test_burst_wakes_a_few_times(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often another commits, a spooler is woken at once, and then once in a while."""
    monkeypatch.setattr(postgres_listener, "PAUSE", PATIENCE)
    calls: list[int] = []
    woken = threading.Event()

    def wake() -> None:
        calls.append(1)
        woken.set()

    spool.open(wake)
    other = spool.open()
    for _ in range(50):
        other.add("a")
    assert woken.wait(PATIENCE)
    assert len(calls) == 1
    spool.close()


def test_nothing_is_left_running(spool: Spool) -> None:
    """A store that is closed leaves neither a thread nor a connection."""
    count = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'uwsgitwisted'"
    bench = spool.open()
    until(lambda: len(spool.execute(count)) == 2, "those of earlier tests end")
    bench.store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "spool-listener"]
    until(lambda: not spool.execute(count), "the connections end")


# The server goes and comes.


@pytest.fixture
def restarted(server: PostgresServer) -> Iterator[PostgresServer]:
    """The server, for a test that stops it."""
    yield server
    server.stop()
    server.start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["ends", "crashes"])
def test_server_restarts(restarted: PostgresServer, spool: Spool, number: signal.Signals) -> None:
    """While the server is away, all calls are refused; then all work again, with every acknowledged task."""
    woken = threading.Event()
    bench, other = spool.open(woken.set), spool.open()
    (running,) = bench.run("runs", queue="a")
    (kept,) = bench.add("kept")
    restarted.stop(number)
    calls: tuple[Callable[[], object], ...] = (
        lambda: bench.store.add([Task(b"x", 1.0, 1.0)]),
        lambda: bench.store.advance([], {None: Want(1)}, 0.0),
        bench.store.counts,
    )
    for call in calls * 2:
        with pytest.raises(StoreUnavailable, match=r"can't be reached|the connection broke"):
            call()
    woken.clear()
    restarted.start()
    assert names(bench.cycle(5)) == ["kept"]
    assert bench.states() == {running: State.RUNNING, kept: State.RUNNING}
    assert woken.wait(PATIENCE), "it looks for what it may not have heard"
    until(lambda: store_of(bench)._listener._connection.usable, "it listens again")  # type: ignore[union-attr]
    woken.clear()
    (new,) = other.add("new")
    assert new > kept
    assert woken.wait(PATIENCE)


def test_first_call_after_a_restart(restarted: PostgresServer, bench: Bench) -> None:
    """A restart that happened while nobody asked anything is not noticed by who asks next."""
    bench.add("a")
    restarted.stop()
    restarted.start()
    assert names(bench.cycle(5)) == ["a"]


def test_leases_after_a_restart(
    restarted: PostgresServer, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the server was away everybody gets a whole lease to come back, also from a spooler that is new."""
    monkeypatch.setattr(postgres_lease, "HEARTBEAT", 0.0)
    monkeypatch.setattr(postgres_lease, "LEASE", 3600.0)
    holder = spool.open()
    (identifier,) = holder.run("a")
    spool.silence(holder, 1e6)
    restarted.stop()
    restarted.start()
    new = spool.open()
    assert new.cycle(0).orphans == []
    monkeypatch.setattr(postgres_lease, "LEASE", 0.1)
    until(lambda: new.cycle(0).orphans, "the task is taken over")
    assert new.record(identifier).state is State.RUNNING


def test_connection_is_ended(spool: Spool, bench: Bench) -> None:
    """A connection that an administrator ends in the middle of a statement is made again."""
    pid = store_of(bench)._database.process
    with ThreadPoolExecutor(1) as pool:
        with spool.transaction() as other:
            other.execute("LOCK TABLE tasks")
            adding = pool.submit(bench.add, "a")
            until(spool.blocked, "the task waits for the lock")
            spool.execute("SELECT pg_terminate_backend(%s)", pid)
            with pytest.raises(StoreUnavailable, match="may have been made, or not"):
                adding.result(PATIENCE)
        assert len(bench.add("b")) == 1
    assert store_of(bench)._database.process != pid


def test_hung_server(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call to a silent server fails after a while; the next call opens a new connection."""
    monkeypatch.setattr(postgres_listener, "WATCH_INTERVAL", 0.05)
    bench = spool.open()
    pid = store_of(bench)._database.process
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(database_module, "CALL_LIMIT", 0.2)
    with ThreadPoolExecutor(1) as pool:
        try:
            with pytest.raises(StoreUnavailable, match="the connection broke"):
                pool.submit(bench.add, "a").result(PATIENCE)
            monkeypatch.setattr(database_module, "CALL_LIMIT", 60.0)
            assert len(pool.submit(bench.add, "b").result(PATIENCE)) == 1
        finally:
            os.kill(pid, signal.SIGCONT)


def test_busy_server(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that waits for too long is cancelled, and nothing is changed."""
    other_bench = spool.open()
    monkeypatch.setattr(connection_module, "STATEMENT_LIMIT", 0.5)
    bench = spool.open()
    with spool.transaction() as other:
        other.execute("LOCK TABLE tasks")
        with pytest.raises(StoreUnavailable, match="nothing was changed; look at what keeps the server busy"):
            bench.add("a")
    assert other_bench.states() == {}
    assert len(bench.add("b")) == 1


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("53100", StoreUnavailable, "goes on when the server's disk has space again"),
        ("53200", StoreUnavailable, "look at the server's memory"),
        ("58030", StoreUnavailable, "look at the server's disk"),
        ("25006", StoreUnavailable, "name a server that can be written"),
        ("40P01", StoreUnavailable, "another program works on the same tasks"),
        ("42501", StoreUnavailable, "give the user the rights"),
        ("42703", SpoolCorrupt, "restore them"),
        ("XX001", SpoolCorrupt, "may be damaged"),
        ("22003", SpoolError, "can't be stored"),
        ("P0001", SpoolError, "it is raised"),
    ],
)
def test_errors(spool: Spool, bench: Bench, code: str, kind: type[SpoolError], reason: str) -> None:
    """A server's error becomes one of ours, undoes the batch, and keeps the connection open."""
    spool.execute(
        "CREATE FUNCTION {}.fail() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE 'it is raised' USING ERRCODE = '{code}'; END $$;"
        "CREATE TRIGGER fail AFTER INSERT ON {}.tasks EXECUTE FUNCTION {}.fail()"
    )
    pid = store_of(bench)._database.process
    with pytest.raises(SpoolError, match=reason) as raised:
        bench.add("a")
    assert type(raised.value) is kind
    assert "it is raised" in str(raised.value)
    spool.execute("DROP TRIGGER fail ON {}.tasks")
    assert bench.states() == {}
    assert store_of(bench)._database.process == pid


@pytest.mark.parametrize("queue", ["a\0b", "\ud800"])
def test_names_that_are_no_text(bench: Bench, queue: str) -> None:
    """A name that the server can't hold is refused as such."""
    with pytest.raises(SpoolError, match="can't be stored"):
        bench.store.pause(queue, True)
    assert bench.store.paused() == set()


# What is promised of the disk.


def test_commits_wait_for_the_disk(spool: Spool) -> None:
    """A commit is on the disk whatever is the default of the user or the database; what asks for more stays."""
    for default, expected in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        spool.execute(f"ALTER ROLE postgres SET synchronous_commit = {default}")
        try:
            bench = spool.open()
            with store_of(bench)._database.reading() as connection:
                assert connection.execute("SHOW synchronous_commit").fetchone() == (expected,)
        finally:
            spool.execute("ALTER ROLE postgres RESET synchronous_commit")


def test_server_without_fsync(restarted: PostgresServer, spool: Spool) -> None:
    """A server that doesn't wait for its disk is refused, also later; but not if one says that it may be so."""
    bench = spool.open()
    restarted.stop()
    restarted.start(fsync="off")
    with pytest.raises(SpoolError, match="fsync is off"):
        bench.add("a")
    with pytest.raises(SpoolError, match="add fsync=off to the address"):
        spool.open()
    spool.url += "&fsync=off"
    assert len(spool.open().add("a")) == 1


# What is accepted as a spool.


def contents(spool: Spool) -> list[tuple[Any, ...]]:
    return spool.execute(
        "SELECT relname, relfilenode FROM pg_class WHERE relnamespace = to_regnamespace('{}') ORDER BY 1"
    )


def refused(spool: Spool, kind: type[SpoolError], reason: str) -> None:
    before = contents(spool)
    with pytest.raises(kind, match=reason):
        spool.open()
    assert contents(spool) == before


def test_created_once(spool: Spool) -> None:
    """Several spoolers that begin at the same time agree on the tables."""
    barrier = threading.Barrier(4)

    def open_and_add(number: int) -> list[int]:
        barrier.wait(PATIENCE)
        return spool.open().add("a")

    with ThreadPoolExecutor(4) as pool:
        ids = [identifier for some in pool.map(open_and_add, range(4)) for identifier in some]
    assert sorted(ids) == [1, 2, 3, 4]


def test_newer(spool: Spool, bench: Bench) -> None:
    """The spool of a newer release is refused and unchanged."""
    spool.execute("UPDATE {}.spool SET version = 99")
    refused(spool, SpoolCorrupt, "version 99, this program knows 2; nothing was changed")


def test_upgrade(spool: Spool, bench: Bench) -> None:
    """In a spool of the first version a key was one of all queues; several that upgrade it do so once."""
    bench.add("kept", key="k", body=b"body")
    spool.execute("""DROP INDEX {}.tasks_key; DROP INDEX {}.tasks_later; DROP TABLE {}.usage;
        CREATE UNIQUE INDEX tasks_key ON {}.tasks (key) WHERE key IS NOT NULL;
        UPDATE {}.spool SET version = 1""")
    with ThreadPoolExecutor(3) as pool:
        benches = list(pool.map(lambda _: spool.open(), range(3)))
    assert [other.add("t", queue="other", key="k") for other in benches] == [[2]] * 3
    assert spool.execute("SELECT version FROM {}.spool") == [(2,)]
    assert benches[0].store.usage() == Usage(2, len("kept") + len("body") + len("t"))
    assert benches[0].add("again", key="k") == [1]


@pytest.mark.parametrize(
    "table", ["tasks (id bigint)", "spool (id bigint)", "spool (version text)", "spool (version integer)"]
)
def test_foreign(spool: Spool, table: str) -> None:
    """A schema with something else in it is refused and unchanged."""
    spool.execute(f"CREATE SCHEMA {{}}; CREATE TABLE {{}}.{table}")
    refused(spool, SpoolCorrupt, "nothing was changed")


def test_prepared_schema(spool: Spool) -> None:
    """An empty schema that an administrator made is used, also by a user who could not make it."""
    spool.execute("CREATE ROLE {} LOGIN; CREATE SCHEMA {} AUTHORIZATION {}")
    spool.url = spool.url.replace("postgres@", f"{spool.schema}@")
    assert spool.open().add("a") == [1]


def test_user_without_rights(spool: Spool) -> None:
    """A user who may not create a schema gets an error that says so."""
    spool.execute("CREATE ROLE {} LOGIN")
    spool.url = spool.url.replace("postgres@", f"{spool.schema}@")
    refused(spool, StoreUnavailable, "give the user the rights")


def test_tables_are_gone(spool: Spool, bench: Bench) -> None:
    """Tables that vanish are reported, and not created again, neither now nor after a new connection."""
    bench.add("a")
    spool.execute("ALTER SCHEMA {} RENAME TO gone")
    try:
        with pytest.raises(SpoolCorrupt, match="missing or were altered"):
            bench.add("b")
        session = store_of(bench)._database._connection
        assert session is not None
        spool.execute("SELECT pg_terminate_backend(%s)", session.process)
        until(lambda: not session.usable, "the end of the connection")
        with pytest.raises(SpoolCorrupt, match="nothing any more"):
            bench.add("b")
    finally:
        spool.execute("ALTER SCHEMA gone RENAME TO {}")
    assert len(bench.add("c")) == 1
    assert len(bench.states()) == 2


def test_encoding(server: PostgresServer) -> None:
    """A database that can't hold every text is refused."""
    server.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(SpoolError, match="encoding is LATIN1; create one with ENCODING 'UTF8'"):
        PostgresStore(server.url("latin")).open(nothing)


def test_read_only_server(server: PostgresServer) -> None:
    """A server that can't be written, such as a replica, is refused."""
    server.execute("CREATE DATABASE replica")
    server.execute("ALTER DATABASE replica SET default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match=r"can't be reached.*read-only"):
        PostgresStore(server.url("replica")).open(nothing)


def test_no_such_database(server: PostgresServer) -> None:
    """A database that isn't there is named."""
    with pytest.raises(StoreUnavailable, match=r'can\'t be reached.*"missing" does not exist'):
        PostgresStore(server.url("missing")).open(nothing)


# The address.


@pytest.mark.parametrize(
    ("url", "description"),
    [
        ("postgresql://u:secret@h:99/d", "postgresql://u@h:99/d"),
        ("postgresql://h/d?password=secret&user=u", "postgresql://u@h/d"),
        ("postgresql://u:se%63ret@h1:1,h2:2/d", "postgresql://u@h1,h2:1,2/d"),
        ("postgresql://%2Frun%2Fpg/d?sslpassword=secret", "postgresql://%2Frun%2Fpg/d"),
        ("postgresql:///?schema=mine", "postgresql:///?schema=mine"),
    ],
)
def test_description(url: str, description: str) -> None:
    """A store says where it is without the password."""
    store = make_store(url)
    assert isinstance(store, PostgresStore)
    assert store.description == description
    assert "secret" not in repr(vars(store)) + repr(store._database.address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:secret@[h/d", "can't be understood"),
        ("postgresql://u:secret%zz@h/d", "%-codes for special characters"),
        ("postgresql://u:secret@h/d?nonsense=1", "can't be understood"),
        ("postgresql://u:secret\udc80@h/d", "can't be understood"),
        ("postgresql://u:secret@h/d?schema=pg_catalog", "names no schema"),
        ("postgresql://u:secret@h/d?schema=a;b", "small letters"),
        ("postgresql://u:secret@h/d?schema=", "names no schema"),
        ("postgresql://u:secret@h/d?fsync=on", "takes only 'off'"),
    ],
)
def test_bad_address(url: str, reason: str) -> None:
    """An address that can't be understood is refused without the password, also where a cause is shown."""
    with pytest.raises(StartupError, match=reason) as raised:
        make_store(url)
    error: BaseException | None = raised.value
    while error is not None:
        assert "secret" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_without_psycopg() -> None:
    """Where the library is missing, it is said how to get it."""
    program = """
import sys
sys.modules["psycopg"] = None
from uwsgitwisted.spool.stores.factory import make_store
make_store("postgresql://h/d")
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert "pip install 'uwsgitwisted[postgres]'" in shown.stderr
