"""A real PostgreSQL server for the tests, in a directory of its own, and spools on it."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from tests.integration.services import PATIENCE, until
from tests.store_contract import Bench, nothing
from uwsgitwisted.spool.stores.postgres.lease import Lease
from uwsgitwisted.spool.stores.postgres.store import PostgresStore

#: Where Debian has the programs, which are not on the path there; the highest version comes last.
_DEBIAN = Path("/usr/lib/postgresql")
#: In a socket's name only: nothing listens on a port.
_PORT = 5432

_numbers = itertools.count(1)


def program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs.

    :raises FileNotFoundError: if it isn't installed.
    """
    found = shutil.which(name) or next(
        (str(path) for path in sorted(_DEBIAN.glob(f"*/bin/{name}"), reverse=True)), None
    )
    if found is None:
        raise FileNotFoundError(
            f"PostgreSQL's {name} is missing; install it, for example: apt install postgresql"
        )
    return found


class PostgresServer:
    """A server that can be stopped, frozen and started again.

    :param directory: an empty directory for its data, its log and its socket, which it must be able to enter.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._data = directory / "data"
        self._user = _server_user()
        self._process: subprocess.Popen[bytes] | None = None
        os.chown(directory, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")

    def _as_its_user(self) -> dict[str, Any]:
        """Return what has a process run as another user: the server refuses to run as root."""
        if os.getuid() == self._user.pw_uid:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _run(self, name: str, *options: str) -> None:
        command = [program(name), f"--pgdata={self._data}", *options]
        with (self.directory / "initdb.log").open("wb") as log:
            subprocess.run(
                command, check=True, stdout=log, stderr=log, cwd=self.directory, **self._as_its_user()
            )

    def url(self, database: str = "postgres", **options: str) -> str:
        """Return the address of one of its databases, with *options* for it."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        host = quote(str(self.directory), safe="")
        return f"postgresql://postgres@{host}:{_PORT}/{database}" + (f"?{query}" if query else "")

    @property
    def pid(self) -> int:
        """The id of its first process."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def start(self, **settings: object) -> None:
        """Start it and wait until it can be used.

        :param settings: what to set, besides what is in its files.
        """
        given = {
            "listen_addresses": "''",
            "unix_socket_directories": f"'{self.directory}'",
            "unix_socket_permissions": "0700",
            "max_connections": "60",
            "shared_buffers": "'32MB'",
        } | settings
        options = [f"--{name}={str(value).strip(chr(39))}" for name, value in given.items()]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program("postgres"), "-D", str(self._data), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **self._as_its_user(),
            )
        until(self._is_up, "PostgreSQL answers", 2 * PATIENCE)

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it ended:\n{(self.directory / 'server.log').read_text()}"
        try:
            with contextlib.closing(psycopg.connect(self.url(), connect_timeout=2)):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it: with SIGINT in order, with SIGQUIT as a crash does."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(2 * PATIENCE)

    def execute(self, statement: str, *values: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Do what an administrator would, and return the rows."""
        with contextlib.closing(psycopg.connect(self.url(database), autocommit=True)) as connection:
            cursor = connection.execute(statement, values or None)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []


def _server_user() -> pwd.struct_passwd:
    """Return the user that the server runs as: whoever runs the tests, but for root."""
    if os.getuid():
        return pwd.getpwuid(os.getuid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise LookupError("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server until the block ends."""
    # Not in pytest's directory: only root can enter that if root runs the tests, and its name is long for a
    # socket's.
    with tempfile.TemporaryDirectory(prefix="postgres-") as directory:
        server = PostgresServer(Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)


class Spool:
    """A schema for one test, and its stores."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.schema = f"spool_{next(_numbers)}"
        self.url = server.url(schema=self.schema)
        self._stores: list[PostgresStore] = []

    def open(self, woken: Callable[[], None] = nothing, **options: Any) -> Bench:
        """Return another spooler's bench."""
        store = PostgresStore(self.url, **options)
        store.open(woken)
        self._stores.append(store)
        return Bench(store, time.time, self.pass_time)  # the server has this machine's clock

    def close(self) -> None:
        """Close all its stores."""
        for store in self._stores:
            store.close()

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Do what an administrator would; the schema stands in the statement as ``{}``."""
        return self.server.execute(statement.replace("{}", self.schema), *values)

    def server_age(self) -> float:
        """Return for how many seconds the server has run."""
        return time.time() - float(self.execute("SELECT extract(epoch FROM pg_postmaster_start_time())")[0][0])

    def pass_time(self, seconds: float) -> None:
        """Move all times back: the server's clock can't be set."""
        self.execute("UPDATE {}.tasks SET at = at - %s, expires = expires - %s", seconds, seconds)

    def silence(self, bench: Bench, seconds: float = 1000.0) -> None:
        """Have the last heartbeat of a spooler be so much older."""
        owner = lease_of(bench).owner
        self.execute("UPDATE {}.spoolers SET beat = beat - %s WHERE id = %s", seconds, owner)

    def silence_others(self, *benches: Bench) -> None:
        """Have the last heartbeats of all other spoolers be much older."""
        owners = [lease_of(bench).owner for bench in benches]
        self.execute("UPDATE {}.spoolers SET beat = beat - 1000 WHERE id <> ALL(%s)", owners)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """Give another program's connection, whose transaction is committed when the block ends."""
        with psycopg.connect(self.server.url(), options=f"-csearch_path={self.schema}") as connection:
            yield connection

    def blocked(self) -> bool:
        """Whether somebody waits for a lock."""
        return bool(self.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


def store_of(bench: Bench) -> PostgresStore:
    """Return the store of a bench."""
    assert isinstance(bench.store, PostgresStore)
    return bench.store


def lease_of(bench: Bench) -> Lease:
    """Return the lease of a bench's spooler."""
    return store_of(bench)._lease
