"""One plain uwsgi request on a Twisted connection of its own."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from uwsgitwisted.errors import ConnectionBroken, ConnectionFailed, UwsgiError
from uwsgitwisted.transport.writer import set_nodelay
from uwsgitwisted.wire.exchange import PlainExchange


class PlainProtocol(Protocol):
    """Sends a request when it is connected, and closes the connection when the answer is complete.

    :param exchange: the request.
    """

    def __init__(self, exchange: PlainExchange) -> None:
        self._exchange = exchange
        #: Fires when the connection is lost.
        self.lost: Deferred[None] = Deferred()
        #: Fires with the exchange when its answer is complete; fails with one of our errors. Cancelling it
        #: closes the connection.
        self.finished: Deferred[PlainExchange] = Deferred(lambda _: self._close())

    def connectionMade(self) -> None:
        """Send the request."""
        assert self.transport is not None
        set_nodelay(self.transport)
        self.transport.write(self._exchange.outgoing)

    def dataReceived(self, data: bytes) -> None:
        """Handle a part of the answer."""
        try:
            self._exchange.receive(data)
        except UwsgiError as error:
            self._conclude(error)
            return
        if self._exchange.done:
            self._conclude(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Complete the request with the answer that has come, or with an error."""
        try:
            if not reason.check(ConnectionDone):
                raise ConnectionBroken(f"the connection broke: {reason.getErrorMessage()}")
            self._exchange.receive_eof()
        except UwsgiError as error:
            self._conclude(error)
        else:
            self._conclude(None)
        self.lost.callback(None)

    def close(self) -> None:
        """Fail the request, and close the connection."""
        self._conclude(ConnectionFailed("the client was closed before the answer came"))

    def _conclude(self, error: UwsgiError | None) -> None:
        self._close()
        if self.finished.called:
            return
        if error is None:
            self.finished.callback(self._exchange)
        else:
            self.finished.errback(error)

    def _close(self) -> None:
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]
