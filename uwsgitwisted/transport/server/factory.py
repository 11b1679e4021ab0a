"""Makes the connections of one service, and has what they share: limits, budget, deadlines, reports."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from uwsgitwisted.access import Network, Peer
from uwsgitwisted.interfaces import Reply, Request
from uwsgitwisted.transport.batch import Slices
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.transport.server.bodies import MAX_BODY, BodyRules
from uwsgitwisted.transport.server.budget import Budget, default_limit
from uwsgitwisted.transport.server.connections import Connections
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.transport.server.protocol import ServerProtocol
from uwsgitwisted.transport.timer import Deadlines
from uwsgitwisted.wire.terms import MAX_MESSAGE, Terms


class ServerFactory(Factory):
    """Makes the connections of one service and keeps track of them.

    :param clock: for the time limits.
    :param respond: answers a request; see :meth:`uwsgitwisted.interfaces.IResponder.respond`.
    :param terms: the terms on which it grants sessions; None to serve plain uwsgi only.
    :param limits: see :class:`Limits`.
    :param networks: the networks from which it accepts connections; None for all.
    :param tracebacks: whether to send peers the tracebacks of handlers' exceptions.
    :param bodies: the modifiers of packets with a body; the CONTENT_LENGTH in their vars block is its size. If
        the server can't take it, the request says why; see :attr:`uwsgitwisted.interfaces.Request.refused`.
    :param streamed_bodies: the values of modifier1 whose bodies, if they are large, are passed on as streams.
    :param max_body: the largest such body, in bytes.
    :param ended_by_peer: the values of modifier1 whose requests end when the peer closes its sending side. For
        other requests it may still read the answer; the system doesn't say whether it has gone.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        respond: Callable[[Request], Reply],
        *,
        terms: Terms | None = None,
        limits: Limits | None = None,
        networks: Sequence[Network] | None = None,
        tracebacks: bool = True,
        bodies: Container[tuple[int, int]] = (),
        streamed_bodies: Container[int] = (),
        max_body: int = MAX_BODY,
        ended_by_peer: Container[int] = (),
    ) -> None:
        self.clock = clock
        self.respond = respond
        self.terms = terms
        max_message = terms.max_message if terms else MAX_MESSAGE
        self.limits = limits = limits or Limits()
        self.tracebacks = tracebacks
        self._networks = networks
        self.body_rules = BodyRules(bodies, streamed_bodies, max_message, max_body)
        self.ended_by_peer = ended_by_peer
        #: Log the mistakes of peers, and the requests that fail.
        self.reports, self.failures = Reports(self._log), Reports(self._log)
        self.budget = Budget(default_limit() if limits.max_buffered is None else limits.max_buffered)
        self.connections = Connections(limits.max_connections, limits.peer_connections)
        #: Where sessions put work that is too much for one turn of the reactor.
        self.slices = Slices(clock)
        #: The connections that still owe a header, still owe the rest of a packet or body, or still have to
        #: read their answer.
        self.headers = Deadlines(clock, limits.header_timeout, ServerProtocol.time_out)
        self.bodies = Deadlines(clock, limits.body_timeout, ServerProtocol.time_out)
        self.answers = Deadlines(clock, limits.write_timeout, ServerProtocol.time_out)

    def buildProtocol(self, addr: IAddress | None) -> ServerProtocol | None:
        """Return a connection's protocol, or None, which closes it."""
        assert addr is not None
        peer = Peer(addr)
        if self._networks is not None and not peer.is_allowed(self._networks):
            reason: str | None = "its address is in none of the allowed networks"
        else:
            reason = self.connections.refusal(peer)
        if reason is None:
            return ServerProtocol(self, peer)
        self.reports.report(reason, "a connection of {peer} was refused: {reason}", peer=peer, reason=reason)
        return None

    def remove(self, connection: ServerProtocol) -> None:
        """Remove a closed connection."""
        self.connections.remove(connection)
        if not self.connections.any:
            for deadlines in (self.headers, self.bodies, self.answers):
                deadlines.rest()

    @property
    def expects_requests(self) -> bool:
        """Whether a connection has none, or only a part, of its request yet."""
        return any(isinstance(each, ServerProtocol) and each.arriving for each in self.connections)

    def finish(self) -> Deferred[None]:
        """Drain every connection: let it finish its requests in flight.

        :return: fires when all are closed.
        """
        for connection in self.connections:
            connection.finish()
        return self.connections.emptied()

    def abort(self) -> None:
        """Close every connection now."""
        for connection in self.connections:
            connection.abort()
