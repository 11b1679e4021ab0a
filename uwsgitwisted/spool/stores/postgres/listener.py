"""Listens, in a thread of its own, for changes that other processes make to a PostgreSQL spool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from threading import Event, Thread

import psycopg
from psycopg import sql
from twisted.logger import Logger

from uwsgitwisted.errors import SpoolError
from uwsgitwisted.spool.stores.postgres.address import CONNECT_LIMIT
from uwsgitwisted.spool.stores.postgres.connection import ServerConnection, translated_errors
from uwsgitwisted.spool.stores.postgres.database import PostgresDatabase

#: Notifications within so many seconds count as one: a spooler that commits a thousand times a second must not
#: wake all others as often.
PAUSE = 0.05
#: How soon to try again when the server is away, in seconds: first, and at most; it doubles each time.
FIRST_RETRY, LAST_RETRY = 0.25, 5.0
#: How often to check whether the store's own connection hangs, in seconds.
WATCH_INTERVAL = 5.0

_log = Logger()


class NotificationListener:
    """Calls *woken* when another process may have given this one something to do.

    :param database: the store's own database. Its notifications are ignored, and its connection is broken if
        the server hangs.
    :param woken: is called in the listener's thread; also after a time in which notifications may have been
        lost.
    :raises SpoolError: if the server can't be reached.
    """

    def __init__(self, database: PostgresDatabase, woken: Callable[[], None]) -> None:
        self._database = database
        self._woken = woken
        self._stopped = Event()
        self._connection = self._connect()
        self._thread = Thread(target=self._run, name="spool-listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for its end."""
        self._stopped.set()
        self._connection.cut()
        self._thread.join(CONNECT_LIMIT)  # it may be connecting; if that takes longer, it ends by itself

    def _connect(self) -> ServerConnection:
        address = self._database.address
        connection = ServerConnection(address)
        try:
            with translated_errors(address.description):
                connection.psycopg.execute(sql.SQL("LISTEN {}").format(sql.Identifier(address.schema)))
        except BaseException:
            connection.close()
            raise
        return connection

    def _run(self) -> None:
        while True:
            with closing(self._connection):
                self._listen()
            if not self._reconnect():
                return
            self._woken()

    def _listen(self) -> None:
        """Listen until the connection breaks."""
        connection = self._connection.psycopg
        with suppress(psycopg.Error):
            while not self._stopped.is_set():
                self._connection.wait(WATCH_INTERVAL)
                self._database.cut_if_hung()
                heard = list(connection.notifies(timeout=0))
                if any(notification.pid != self._database.process for notification in heard):
                    self._woken()
                    self._stopped.wait(PAUSE)

    def _reconnect(self) -> bool:
        """Connect, retrying until the listener is stopped; return whether it succeeded."""
        delay = FIRST_RETRY
        while not self._stopped.wait(delay):
            self._database.cut_if_hung()
            try:
                self._connection = self._connect()
            except SpoolError as error:
                if delay == FIRST_RETRY:
                    _log.warn(
                        "changes by others are noticed late until the server is back: {reason}",
                        reason=str(error),
                    )
                delay = min(2 * delay, LAST_RETRY)
            else:
                return True
        return False
