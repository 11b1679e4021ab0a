"""A router: takes HTTP requests, and has nodes answer them that speak uwsgi."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from uwsgitwisted.address import Address
from uwsgitwisted.router.channel import RouterFactory
from uwsgitwisted.router.nodes import Nodes, RoutedNode, make_endpoint
from uwsgitwisted.router.shared import RouterSettings, Shared
from uwsgitwisted.services.access_logs import ServiceAccessLog
from uwsgitwisted.services.descriptors import share_descriptors
from uwsgitwisted.services.listening import Listener, has_tls, listen, stop_listening
from uwsgitwisted.services.process import prepare_process
from uwsgitwisted.services.signals import Signals

#: Descriptors of a connection: the client's socket, the node's, and a temporary file for a body of unknown
#: size.
_DESCRIPTORS_EACH = 3


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """What the command line says.

    :param listen: endpoint descriptions.
    :param nodes: the addresses of the nodes.
    :param max_in_flight: how many requests a node may have at once.
    :param connect_timeout: seconds for connecting to a node.
    :param drain_timeout: seconds that requests in flight get to finish when the service stops.
    :param requests: how requests are handled.
    :param access_log: where a line is written for each request: a path, or ``-`` for the standard output; empty
        for nowhere.
    :param access_log_format: the name of one of :data:`uwsgitwisted.access_log.FORMATS`.
    """

    listen: Sequence[str]
    nodes: Sequence[Address]
    max_in_flight: int = 100
    connect_timeout: float = 3.0
    drain_timeout: float = 30.0
    requests: RouterSettings = field(default_factory=RouterSettings)
    access_log: str = ""
    access_log_format: str = "combined"


def _option(description: str) -> str:
    """Return the option that has named an endpoint."""
    return "--https" if has_tls(description) else "--http"


class RouterService(Service):
    """The service of a router.

    :param reactor: opens the ports and connections, and runs the timers.
    :param options: what the command line says.
    """

    _log = Logger()

    def __init__(self, reactor: Any, options: RouterOptions) -> None:
        self._reactor = reactor
        self._options = options
        self._listeners: list[Listener] = []
        self._signals = Signals(reactor)
        nodes = [
            RoutedNode(str(address), make_endpoint(reactor, address, options.connect_timeout))
            for address in dict.fromkeys(options.nodes)
        ]
        self._nodes = Nodes(reactor, nodes, options.max_in_flight)
        self._access_log = ServiceAccessLog(options.access_log, options.access_log_format)
        requests = (
            replace(options.requests, log=self._access_log.write) if options.access_log else options.requests
        )
        self._shared = Shared(reactor, self._nodes, self._fit(requests))
        self._factory = RouterFactory(self._shared)

    def _fit(self, settings: RouterSettings) -> RouterSettings:
        """Reduce the number of connections to what the file descriptors allow."""
        limits = settings.limits
        shares = share_descriptors(limits.max_connections * _DESCRIPTORS_EACH, 0)
        allowed = shares.connections // _DESCRIPTORS_EACH
        if allowed < limits.max_connections:
            self._log.warn(
                "{allowed} connections may be open, not {wanted}: raise the hard limit of file descriptors "
                "(ulimit -Hn, LimitNOFILE=) for more",
                allowed=allowed,
                wanted=limits.max_connections,
            )
        return replace(settings, limits=replace(limits, max_connections=min(allowed, limits.max_connections)))

    def privilegedStartService(self) -> None:
        """Open the ports and the access log while this process may still have the privileges that they need."""
        prepare_process(self._reactor)
        self._access_log.open()
        for description in self._options.listen:
            self._listeners.append(listen(self._reactor, description, self._factory, _option(description)))

    def startService(self) -> None:
        """Start to ping the nodes."""
        super().startService()  # type: ignore[no-untyped-call]
        if not self._listeners:
            self.privilegedStartService()
        self._signals.install(signal.SIGHUP, self.reload)
        self._nodes.start()
        self._log.info(
            "the router takes requests on {where}, for {nodes}",
            where=", ".join(listener.description for listener in self._listeners),
            nodes=", ".join(map(str, self._options.nodes)),
        )

    def reload(self) -> None:
        """Open the access log again, since the signal HUP arrived."""
        if self._access_log.open():
            self._log.info("the access log is open again; restart the router to change its options")
        else:
            self._log.warn("a router has no code to reload; restart it to change its options")

    def stopService(self) -> Deferred[None]:
        """Accept no new request, finish those in flight, and stop.

        :return: fires when the service has stopped.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        for number in (signal.SIGTERM, signal.SIGINT):
            self._signals.install(number, self.stop_at_once)
        return Deferred.fromCoroutine(self._drain_and_stop())

    async def _drain_and_stop(self) -> None:
        await stop_listening(self._reactor, self._listeners)
        self._listeners = []
        closed = self._shared.finish()
        overdue = self._reactor.callLater(self._options.drain_timeout, self._shared.abort)
        await closed
        if overdue.active():
            overdue.cancel()
        await self._nodes.stop()
        self._signals.restore()

    def stop_at_once(self) -> None:
        """Stop without waiting for the requests in flight, since a second signal arrived."""
        self._log.warn("stopping without waiting for running requests")
        self._shared.abort()
