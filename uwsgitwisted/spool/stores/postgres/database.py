"""The database of a PostgreSQL spool: one connection, which is made again when it breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

from uwsgitwisted.errors import StoreUnavailable
from uwsgitwisted.spool.stores.postgres.address import DatabaseAddress
from uwsgitwisted.spool.stores.postgres.connection import ServerConnection, translated_errors
from uwsgitwisted.spool.stores.postgres.schema import (
    NOTIFY,
    check_tables,
    create_tables,
    mark_values,
    upgrade_tables,
)
from uwsgitwisted.spool.stores.rows import make_rows

#: After how many seconds in one call the server is taken for hung: a large batch is many statements.
CALL_LIMIT = 60.0

_T = TypeVar("_T")


class PostgresDatabase:
    """Executes the store's statements. It is :class:`..sql.Database`.

    Its methods are called one at a time, as those of a store; :meth:`cut_if_hung` in any thread.
    """

    def __init__(self, address: DatabaseAddress) -> None:
        self.address = address
        self._connection: ServerConnection | None = None
        self._is_open = False
        self._call_began: float | None = None

    @property
    def process(self) -> int:
        """The id of the server's process that does the work; 0 if there is none."""
        connection = self._connection
        return 0 if connection is None else connection.process

    def open(self) -> None:
        """Connect, and create the tables if they don't exist.

        :raises SpoolError: if that can't be done.
        """
        self._connection = ServerConnection(self.address)
        self._is_open = True
        try:
            with translated_errors(self.address.description):
                create_tables(self._connection.psycopg, self.address.schema)
                upgrade_tables(self._connection.psycopg)
                check_tables(self._connection.psycopg, self.address.description)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._is_open = False
        self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def reading(self) -> Iterator[psycopg.Connection[Any]]:
        """Give the connection for one statement."""
        if not self._is_open:
            raise StoreUnavailable(f"the spool {self.address.description} is not open")
        self._call_began = time.monotonic()
        try:
            with translated_errors(self.address.description):
                yield self._usable_connection().psycopg
        finally:
            self._call_began = None

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """Commit the changes of the block durably, or undo all of them."""
        with self.reading() as connection, connection.transaction():
            yield connection

    @contextmanager
    def changing(self) -> Iterator[psycopg.Connection[Any]]:
        """Commit the changes of the block as :meth:`transaction` does, and notify all spoolers."""
        with self.transaction() as connection:
            yield connection
            connection.execute(NOTIFY)

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows that a statement reads."""
        with self.reading() as connection:
            return connection.execute(mark_values(statement), values, binary=True).fetchall()

    def fetch_as(self, make: Callable[..., _T], statement: str, values: Sequence[Any] = ()) -> list[_T]:
        """Return what *make* makes of the rows that a statement reads, given their columns by name."""
        with self.reading() as connection:
            return make_rows(make, connection.execute(mark_values(statement), values, binary=True))

    def change(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Execute a statement durably, and tell all spoolers of the change."""
        with self.changing() as connection:
            connection.execute(mark_values(statement), values)

    def _usable_connection(self) -> ServerConnection:
        if self._connection is not None and not self._connection.usable:
            self._drop_connection()
        if self._connection is None:
            connection = ServerConnection(self.address)
            try:
                # There may be another server behind the same name by now.
                check_tables(connection.psycopg, self.address.description)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def cut_if_hung(self) -> None:
        """Break the connection if a call has waited for the server for too long."""
        began, connection = self._call_began, self._connection
        if connection is not None and began is not None and time.monotonic() - began > CALL_LIMIT:
            connection.cut()
