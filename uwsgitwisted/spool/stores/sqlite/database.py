"""An SQLite spool's file, held and open: its connection, and transactions on it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from uwsgitwisted.errors import StoreUnavailable
from uwsgitwisted.spool.stores.rows import make_rows
from uwsgitwisted.spool.stores.sqlite.file import open_database, prepare_file, translated_errors
from uwsgitwisted.spool.stores.sqlite.lock import FileLock

_T = TypeVar("_T")


class SqliteDatabase:
    """The file at *path*. It is :class:`..sql.Database`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock: FileLock | None = None
        self._connection: sqlite3.Connection | None = None

    def open(self) -> sqlite3.Connection:
        """Lock the file and open it; create it if it doesn't exist.

        :raises SpoolCorrupt: if it is no spool of ours, or a damaged or newer one; it was left unchanged.
        :raises SpoolError: if another spooler has it, it has several names, or it can't be opened.
        """
        # By its real name, so that nobody else opens it over a symbolic link.
        path = os.path.realpath(self.path)
        lock = FileLock(path)
        lock.acquire()
        try:
            prepare_file(path)
            lock.hold_file()
            self._connection = open_database(path)
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        return self._connection

    def close(self) -> None:
        """Close the file and release its lock."""
        connection, self._connection = self._connection, None
        lock, self._lock = self._lock, None
        try:
            if connection is not None:
                with translated_errors(self.path):
                    connection.close()
        finally:
            if lock is not None:
                lock.release()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection."""
        if self._connection is None:
            raise StoreUnavailable(f"the spool {self.path} is not open")
        with translated_errors(self.path):
            yield self._connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit the changes of the block durably, or undo all of them."""
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite may have undone it by itself, as it does where the disk is full.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows that a statement reads."""
        with self.reading() as connection:
            return connection.execute(statement, values).fetchall()

    def fetch_as(self, make: Callable[..., _T], statement: str, values: Sequence[Any] = ()) -> list[_T]:
        """Return what *make* makes of the rows that a statement reads, given their columns by name."""
        with self.reading() as connection:
            return make_rows(make, connection.execute(statement, values))

    def change(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Execute a statement durably. There is no other spooler to be told of it."""
        with self.transaction() as connection:
            connection.execute(statement, values)
