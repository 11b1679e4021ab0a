"""A connection to the PostgreSQL server of a spool, and what the server's errors mean."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from uwsgitwisted.errors import SpoolCorrupt, SpoolError, StoreUnavailable
from uwsgitwisted.spool.stores.postgres.address import DatabaseAddress

#: How long a statement may take at the server, and how long it may wait there for a lock, in seconds. Together
#: with the time between two heartbeats, that is less than a lease. No spooler holds a lock for longer than it
#: takes to commit; whoever waits longer waits for a transaction that somebody left open.
STATEMENT_LIMIT, LOCK_LIMIT = 5.0, 2.0
#: The first server version that has everything that the statements use.
_OLDEST_SERVER = 120_000

# Each statement has an index that gives it its rows in order. The planner must not decide otherwise because its
# statistics are old, as those of a queue always are, and need not plan each statement again.
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

_LOST = "the connection broke; the change may have been made, or not. See that the server runs"
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
#: Errors that psycopg finds by itself have no code.
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
                raise kind(f"the spool {description}: {_describe_error(error)}; {meaning}") from error
        raise SpoolError(f"the spool {description}: {_describe_error(error)}") from error
    except UnicodeEncodeError as error:
        raise SpoolError(f"the spool {description}: {error.object!r} is no text and can't be stored") from error


def _describe_error(error: psycopg.Error) -> str:
    """Return what went wrong, on one line."""
    text = error.diag.message_primary or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")


class ServerConnection:
    """A connection that another thread can break, so that nobody waits for a server that hangs.

    :raises SpoolError: if the server can't be reached, or can't keep the store's promise.
    """

    def __init__(self, address: DatabaseAddress) -> None:
        try:
            #: psycopg's connection.
            self.psycopg = psycopg.connect(address.conninfo, autocommit=True)
        except psycopg.Error as error:
            raise StoreUnavailable(
                f"the spool {address.description} can't be reached: {_describe_error(error)}; see that the "
                "server runs and lets this user in"
            ) from error
        #: The id of the server's process at its other end.
        self.process = self.psycopg.info.backend_pid
        # A duplicate: once a descriptor is closed, another file may have its number.
        self._socket = socket.socket(fileno=os.dup(self.psycopg.fileno()))
        try:
            with translated_errors(address.description):
                _set_up(self.psycopg, address)
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether it can take a statement, and has nothing to read: a server that ends says so."""
        if self.psycopg.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
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
        """Break the connection, in any thread; whoever waits for the server gets an error."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
        self.psycopg.close()


def _set_up(connection: psycopg.Connection[Any], address: DatabaseAddress) -> None:
    """Set what the promise and the statements rest on, and refuse a server that can't keep the promise."""
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
