"""Hears, in a thread of its own, when another process has changed something in a PostgreSQL spool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from threading import Event, Thread

import psycopg
from psycopg import sql
from twisted.logger import Logger

from uwsgitwisted.errors import SpoolError
from uwsgitwisted.spool.stores.postgres.server import CONNECT_LIMIT, Server, Session, translated_errors

#: What is heard within so many seconds after something is taken together: a spooler that commits a thousand
#: times a second must not make all others look as often.
PAUSE = 0.05
#: How soon to try again when the server is away, in seconds; doubled each time up to the second.
FIRST_RETRY, LAST_RETRY = 0.25, 5.0
#: How often to see whether the store's own connection hangs, in seconds.
WATCH_INTERVAL = 5.0

_log = Logger()


class Listener:
    """Calls *woken* when another process may have given this one something to do.

    :param server: what the store says on its own connection is not listened to; that connection is cut if the
        server hangs.
    :param woken: is called in the listener's thread; also when nothing could be heard for a while.
    :raises SpoolError: if the server can't be reached.
    """

    def __init__(self, server: Server, woken: Callable[[], None]) -> None:
        self._server = server
        self._woken = woken
        self._stopped = Event()
        self._session = self._connect()
        self._thread = Thread(target=self._run, name="spool-listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for that."""
        self._stopped.set()
        self._session.cut()
        self._thread.join(CONNECT_LIMIT)  # it may be connecting; if that takes longer, it ends by itself

    def _connect(self) -> Session:
        address = self._server.address
        session = Session(address)
        try:
            with translated_errors(address.description):
                session.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(address.schema)))
        except BaseException:
            session.close()
            raise
        return session

    def _run(self) -> None:
        while True:
            with closing(self._session):
                self._listen()
            if not self._reconnect():
                return
            self._woken()

    def _listen(self) -> None:
        """Listen until the connection breaks."""
        connection = self._session.connection
        with suppress(psycopg.Error):
            while not self._stopped.is_set():
                self._session.wait(WATCH_INTERVAL)
                self._server.cut_if_hung()
                heard = list(connection.notifies(timeout=0))
                if any(notification.pid != self._server.process for notification in heard):
                    self._woken()
                    self._stopped.wait(PAUSE)

    def _reconnect(self) -> bool:
        """Connect as soon as that is possible; return whether it was before the end."""
        delay = FIRST_RETRY
        while not self._stopped.wait(delay):
            self._server.cut_if_hung()
            try:
                self._session = self._connect()
            except SpoolError as error:
                if delay == FIRST_RETRY:
                    _log.warn(
                        "not told of what others change until it can be reached: {reason}", reason=str(error)
                    )
                delay = min(2 * delay, LAST_RETRY)
            else:
                return True
        return False
