"""The PostgreSQL server of a spool: how it is reached, again and again. What is in it: :mod:`.store`."""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from uwsgitwisted.errors import SpoolCorrupt, SpoolError, StoreUnavailable
from uwsgitwisted.spool.stores.postgres.schema import check_tables, create_tables, upgrade_tables

#: How long a statement may take at the server, and how long it may wait there for a lock, in seconds: with the
#: time between two heartbeats, that is less than a lease. No spooler holds a lock for longer than it takes to
#: commit; who waits for longer waits for a transaction that somebody left open.
STATEMENT_LIMIT, LOCK_LIMIT = 5.0, 2.0
#: After how many seconds in one call the server is taken for hung: a large batch is many statements.
CALL_LIMIT = 60.0
#: How long to wait for a connection to each of the hosts that are named, in seconds.
CONNECT_LIMIT = 5
#: The schema that the tables are in, unless the address names another.
SCHEMA = "uwsgitwisted"

#: What a connection gets unless the address says otherwise. That a host went away is noticed within some 15
#: seconds; tcp_user_timeout is in milliseconds.
_DEFAULTS: dict[str, Any] = {
    "application_name": "uwsgitwisted",
    "connect_timeout": CONNECT_LIMIT,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    # Of several hosts, the one that can be written.
    "target_session_attrs": "read-write",
}
#: Letters that need no quotes, and no longer than a name may be there.
_SCHEMA_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")
#: The first with everything that the statements use.
_OLDEST_SERVER = 120_000

# Each statement has an index that gives it its rows in order. The planner must not think otherwise because its
# statistics are old, as those of a queue always are, and need not think about it each time.
_SETTINGS = """SELECT set_config(name, value, false) FROM (VALUES
    ('search_path', %(schema)s),
    ('synchronous_commit',
        CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END),
    ('statement_timeout', %(limit)s),
    ('lock_timeout', %(lock_limit)s),
    ('idle_in_transaction_session_timeout', %(limit)s),
    ('plan_cache_mode', 'force_generic_plan'),
    ('enable_seqscan', 'off'),
    ('enable_bitmapscan', 'off'),
    ('jit', 'off')) AS settings (name, value)"""

_LOST = "the connection broke; what was asked for may have been done, or not. See that the server runs"
# What PostgreSQL's error codes mean for whoever runs the spooler, by how they begin.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_MEANINGS: tuple[tuple[str, type[SpoolError], str], ...] = (
    ("53100", StoreUnavailable, "nothing was written; it goes on when the server's disk has space again"),
    ("53", StoreUnavailable, "nothing was written; look at the server's memory and its max_connections"),
    ("58", StoreUnavailable, "nothing was written; look at the server's disk"),
    ("25006", StoreUnavailable, "nothing was written; name a server that can be written"),
    ("57014", StoreUnavailable, "nothing was changed; look at what keeps the server busy"),
    ("55P03", StoreUnavailable, "nothing was changed; look for a transaction that was left open on the server"),
    ("40", StoreUnavailable, "nothing was changed; another program works on the same tasks"),
    ("42501", StoreUnavailable, "nothing was changed; give the user the rights to the schema and its tables"),
    ("42", SpoolCorrupt, "nothing was changed; the tables are missing or were altered, restore them"),
    ("XX", SpoolCorrupt, "nothing was changed; the server's data may be damaged, look at its log"),
    ("22", SpoolError, "nothing was changed; this can't be stored"),
    ("08", StoreUnavailable, _LOST),
    ("25P", StoreUnavailable, _LOST),
    ("57P", StoreUnavailable, _LOST),
)
#: What psycopg notices by itself has no code.
_NO_CODE: dict[type[psycopg.Error], str] = {psycopg.DataError: "22000", psycopg.OperationalError: "08000"}


@contextmanager
def translated_errors(description: str) -> Iterator[None]:
    """Turn psycopg's exceptions about the spool *description* into ours."""
    try:
        yield
    except psycopg.Error as error:
        code = error.sqlstate or _NO_CODE.get(type(error), "")
        for prefix, kind, meaning in _MEANINGS:
            if code.startswith(prefix):
                raise kind(f"the spool {description}: {_reason(error)}; {meaning}") from error
        raise SpoolError(f"the spool {description}: {_reason(error)}") from error
    except UnicodeEncodeError as error:
        raise SpoolError(f"the spool {description}: {error.object!r} is no text and can't be stored") from error


def _reason(error: psycopg.Error) -> str:
    """Return what went wrong, on one line."""
    text = error.diag.message_primary or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a spool is.

    :param conninfo: what psycopg connects to; the password is in it.
    :param description: the same for people, without the password.
    :param schema: the schema that the tables are in.
    :param fsync: whether the server must have its ``fsync`` on.
    """

    conninfo: str = field(repr=False)
    description: str
    schema: str = SCHEMA
    fsync: bool = True


def parse_address(url: str) -> Address:
    """Return the address that *url* means.

    :param url: ``postgresql://user:password@host/database``, as libpq takes it, with two options more:
        ``schema=NAME`` for another schema, and ``fsync=off`` to accept a server that has switched that off.
    :raises SpoolError: if it can't be understood.
    """
    start, _, query = url.partition("?")
    options = query.split("&") if query else []
    ours = dict(option.split("=", 1) for option in options if option.startswith(("schema=", "fsync=")))
    theirs = [option for option in options if option.partition("=")[0] not in ours]
    try:
        given = conninfo_to_dict("?".join(filter(None, (start, "&".join(theirs)))))
    except (psycopg.Error, UnicodeEncodeError):
        # What libpq says about it has the password in it.
        raise SpoolError(
            "the address of the PostgreSQL spool can't be understood; write for example "
            "postgresql://user:password@host/database, with %-codes for special characters"
        ) from None
    schema = ours.get("schema", SCHEMA)
    if not _SCHEMA_NAME.fullmatch(schema):
        raise SpoolError(
            f"schema={schema!r} names no schema; it takes up to 63 small letters, digits and underscores"
        )
    if ours.get("fsync", "off") != "off":
        raise SpoolError(
            "fsync= takes only 'off', for a spool that may lose tasks when the server's host stops"
        )
    conninfo = make_conninfo(**(_DEFAULTS | given | {"client_encoding": "UTF8"}))
    return Address(conninfo, _description(given, schema), schema, "fsync" not in ours)


def _description(given: dict[str, Any], schema: str) -> str:
    user = f"{quote(given['user'])}@" if given.get("user") else ""
    port = f":{given['port']}" if given.get("port") else ""
    host = quote(given.get("host") or given.get("hostaddr") or "", safe=",:")
    name = quote(given.get("dbname") or "")
    other = "" if schema == SCHEMA else f"?schema={schema}"
    return f"postgresql://{user}{host}{port}/{name}{other}"


class Session:
    """A connection that another thread can cut, so that nobody waits for a server that says nothing."""

    def __init__(self, address: Address) -> None:
        try:
            self.connection = psycopg.connect(address.conninfo, autocommit=True)
        except psycopg.Error as error:
            raise StoreUnavailable(
                f"the spool {address.description} can't be reached: {_reason(error)}; see that the server runs "
                "and lets this user in"
            ) from error
        #: The id of the server's process at its other end.
        self.process = self.connection.info.backend_pid
        # A duplicate, since the number of one that was closed may be another's already.
        self._socket = socket.socket(fileno=os.dup(self.connection.fileno()))
        try:
            with translated_errors(address.description):
                _set_up(self.connection, address)
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether it waits for a statement, with nothing to read: a server that ends says so."""
        if self.connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def wait(self, seconds: float) -> None:
        """Wait until there is something to read, or so many seconds."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.poll(seconds * 1000)

    def cut(self) -> None:
        """Break the connection, from any thread; whoever waits for the server gets an error."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
        self.connection.close()


def _set_up(connection: psycopg.Connection[Any], address: Address) -> None:
    """Set what the promise and the statements rest on, and refuse a server that can't keep it."""
    limit, lock_limit = (str(round(limit * 1000)) for limit in (STATEMENT_LIMIT, LOCK_LIMIT))
    if connection.info.server_version < _OLDEST_SERVER:
        raise SpoolError(
            f"the spool {address.description} needs PostgreSQL {_OLDEST_SERVER // 10_000} or later"
        )
    connection.execute(_SETTINGS, {"schema": address.schema, "limit": limit, "lock_limit": lock_limit})
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SpoolError(
            f"the spool {address.description} is in a database whose encoding is {encoding}; create one with "
            "ENCODING 'UTF8'"
        )
    row = connection.execute("SHOW fsync").fetchone()
    if address.fsync and row != ("on",):
        raise SpoolError(
            f"the spool {address.description} can't be made durable, since the server's fsync is off; switch "
            "it on, or add fsync=off to the address if tasks may be lost"
        )


class Server:
    """What the store does its work on: one connection, made again when it broke.

    Its methods are called as the store's are; :meth:`cut_if_hung` in any thread.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._session: Session | None = None
        self._is_open = False
        self._call_began: float | None = None

    @property
    def process(self) -> int:
        """The id of the server's process that does the work; 0 if there is none."""
        session = self._session
        return 0 if session is None else session.process

    def open(self) -> None:
        """Connect, and create the tables where there are none.

        :raises SpoolError: if that can't be done.
        """
        self._session = Session(self.address)
        self._is_open = True
        try:
            with translated_errors(self.address.description):
                create_tables(self._session.connection, self.address.schema)
                upgrade_tables(self._session.connection)
                check_tables(self._session.connection, self.address.description)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._is_open = False
        self._drop()

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @contextmanager
    def reading(self) -> Iterator[psycopg.Connection[Any]]:
        """Give the connection for one statement."""
        if not self._is_open:
            raise StoreUnavailable(f"the spool {self.address.description} is not open")
        self._call_began = time.monotonic()
        try:
            with translated_errors(self.address.description):
                yield self._usable_session().connection
        finally:
            self._call_began = None

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """Commit what the block does, durably, or undo all of it."""
        with self.reading() as connection, connection.transaction():
            yield connection

    def _usable_session(self) -> Session:
        if self._session is not None and not self._session.usable:
            self._drop()
        if self._session is None:
            session = Session(self.address)
            try:
                # There may be another server behind the same name by now.
                check_tables(session.connection, self.address.description)
            except BaseException:
                session.close()
                raise
            self._session = session
        return self._session

    def cut_if_hung(self) -> None:
        """Break the connection if a call has waited for the server for too long."""
        began, session = self._call_began, self._session
        if session is not None and began is not None and time.monotonic() - began > CALL_LIMIT:
            session.cut()
