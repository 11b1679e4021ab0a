"""What the connections of a router's clients share: its settings, its nodes, and the limits on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from uwsgitwisted.access import Network, Peer
from uwsgitwisted.access_log import Entry
from uwsgitwisted.router.nodes import Nodes
from uwsgitwisted.router.static import StaticFiles
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.transport.server.budget import Budget
from uwsgitwisted.transport.server.connections import Connections
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.transport.timer import Deadlines

#: Seconds for which a client may go on sending a request that was answered before its end.
_LINGER_TIMEOUT = 30.0
#: For how many seconds a request may be on its way, on a new connection or an idle one that is evicted.
TRANSIT_TIME = 0.5


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """How requests are handled.

    :param timeout: seconds for which a node may do nothing.
    :param max_body: the largest body of a request, in bytes.
    :param buffer_body: the largest body that reaches a node only when all of it has come, in bytes. A larger
        one is passed on as it comes, so a slow client keeps a worker busy.
    :param max_spooled: how many bytes of bodies are kept until their end for all clients together.
    :param static: the directories whose files the router sends itself.
    :param networks: the networks that may connect; None for all.
    :param trusted: the networks of proxies whose X-Forwarded headers are true.
    :param limits: the limits of connections.
    :param log: gets a line for each request; None for no lines.
    """

    timeout: float = 60.0
    max_body: int = 1 << 30
    buffer_body: int = 1 << 20
    max_spooled: int = 2 << 30
    static: Sequence[StaticFiles] = ()
    networks: Sequence[Network] | None = None
    trusted: Sequence[Network] = ()
    limits: Limits = field(default_factory=lambda: Limits(header_timeout=10.0, idle_timeout=60.0))
    log: Callable[[Entry], None] | None = None


class Shared:
    """What all connections of a router share.

    :param clock: for the time limits.
    :param nodes: the nodes behind it.
    :param settings: how requests are handled.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, nodes: Nodes, settings: RouterSettings) -> None:
        self.clock = clock
        self.nodes = nodes
        self.settings = settings
        self.limits = limits = settings.limits
        self.reports = Reports(self._log)
        self.connections = Connections(limits.max_connections, limits.peer_connections)
        #: The bytes of bodies that are kept until their end.
        self.spooled = Budget(settings.max_spooled)
        #: The time limits of the states of connections; see :mod:`uwsgitwisted.router.channel`.
        self.headers = self._deadlines(limits.header_timeout)
        self.bodies = self._deadlines(limits.body_timeout)
        self.idle = self._deadlines(limits.idle_timeout)
        self.evicted = self._deadlines(TRANSIT_TIME)
        self.lingering = self._deadlines(_LINGER_TIMEOUT)
        self.closing = self._deadlines(limits.write_timeout)
        #: The connections whose clients have to read some of their answers.
        self.unread: Deadlines[Any] = Deadlines(
            clock, limits.write_timeout, lambda channel: channel.leave_unread()
        )

    def _deadlines(self, seconds: float) -> Deadlines[Any]:
        return Deadlines(self.clock, seconds, lambda channel: channel.time_out())

    def refusal(self, peer: Peer) -> str | None:
        """Return why *peer* can't open a connection, or None if it can."""
        networks = self.settings.networks
        if networks is not None and not peer.is_allowed(networks):
            return "its address is in none of the allowed networks"
        return self.connections.refusal(peer)

    def trusts(self, peer: Peer) -> bool:
        """Whether *peer* is a proxy whose headers about its own clients are true."""
        return bool(self.settings.trusted) and peer.is_allowed(self.settings.trusted)

    def log_access(self, variables: Mapping[str, str], status: int, size: int, seconds: float) -> None:
        """Write a line to the access log, if there is one."""
        if self.settings.log is not None:
            self.settings.log(Entry(variables, str(int(status)), size, seconds, 0, time.time()))

    def finish(self) -> Deferred[None]:
        """Let every connection finish its request, then close it.

        :return: fires when all are closed.
        """
        for connection in self.connections:
            connection.finish()
        return self.connections.emptied()

    def abort(self) -> None:
        """Close every connection now."""
        for connection in self.connections:
            connection.abort()
