"""The nodes behind a router: connects to them, and pings them to know which are well."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    clientFromString,
)
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.address import Address
from uwsgitwisted.balancer import Balancer
from uwsgitwisted.errors import ConnectionFailed, MalformedPacket, RequestTimeout, StartupError, UwsgiError
from uwsgitwisted.transport.client.node import Node
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.turns import Grouped, Turns
from uwsgitwisted.wire.packet import PING, Packet
from uwsgitwisted.wire.terms import Terms

#: Seconds between two pings of a node that is well, and for the answer to one.
PING_INTERVAL, PING_TIMEOUT = 5.0, 5.0
_PING = Packet(PING, 0)


def make_endpoint(reactor: Any, address: Address, timeout: float) -> IStreamClientEndpoint:
    """Make the endpoint that connects to *address*.

    An IP address needs no resolver, for which Twisted would start a thread each time.

    :param timeout: seconds for connecting, unless the address has a limit of its own.
    :raises StartupError: if the address has an option that can't be used.
    """
    seconds = float(address.option("timeout") or timeout)
    if address.kind == "tcp" and address.option("bindAddress") is None:
        kind = _BY_VERSION[_ip_version(address.host)]
        connecting: IStreamClientEndpoint = kind(reactor, address.host, address.port, timeout=seconds)
        return connecting
    others = (option for option in address.options if option[0] != "timeout")
    limited = address._replace(options=(*others, ("timeout", str(max(1, round(seconds))))))
    try:
        endpoint: IStreamClientEndpoint = clientFromString(reactor, limited.description)
    except (ImportError, NameError) as error:  # Twisted raises them where pyOpenSSL isn't installed
        raise StartupError(f"--nodes {address}: TLS needs more: install uwsgitwisted[tls]") from error
    except (ValueError, TypeError, OSError) as error:
        raise StartupError(f"--nodes {address}: {error}") from error
    return endpoint


#: The endpoints of IP addresses by their version, and that of names.
_BY_VERSION: dict[int, Any] = {4: TCP4ClientEndpoint, 6: TCP6ClientEndpoint, 0: HostnameEndpoint}


def _ip_version(host: str) -> int:
    """Return the version of an IP address; 0 for a name."""
    return 4 if isIPAddress(host) else 6 if isIPv6Address(host) else 0


class RoutedNode:
    """A node behind the router.

    :param name: its address, for the log.
    :param endpoint: connects to it.
    """

    def __init__(self, name: str, endpoint: IStreamClientEndpoint) -> None:
        self.name = name
        self.endpoint = endpoint

    def __str__(self) -> str:
        return self.name


class Waiting(Grouped, Protocol):
    """A request that needs a node."""

    #: The nodes that have failed it.
    tried: list[RoutedNode]

    def go(self, node: RoutedNode | None) -> None:
        """Go to a node; None if no other one is well."""


class Nodes:
    """All nodes behind a router.

    :param clock: for the time limits, and the pauses of nodes that fail.
    :param nodes: the nodes.
    :param limit: how many requests a node may have in flight.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, nodes: Iterable[RoutedNode], limit: int) -> None:
        known = list(nodes)
        self._balancer = Balancer(known, clock.seconds, limit)
        #: The requests that wait until a node has room, each client in turn.
        self._waiting: Turns[Waiting] = Turns()
        self._checks = {node: _Check(clock, node, self) for node in known}

    def start(self) -> None:
        """Start to ping the nodes."""
        for check in self._checks.values():
            check.run()

    def stop(self) -> Deferred[Any]:
        """Stop that.

        :return: fires when no connection of a ping is open.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for closed in [check.stop() for check in self._checks.values()]:
            await closed

    def send(self, request: Waiting) -> None:
        """Give *request* a node: at once, or as soon as one has room; or None, if none is well."""
        if request.tried:
            request.go(self._balancer.choose(request.tried))
        else:
            self._waiting.append(request)
            self._go_on()

    def withdraw(self, request: Waiting) -> None:
        """Let *request* wait no longer."""
        self._waiting.discard(request)

    def finish(self, node: RoutedNode) -> None:
        """Count a request of *node* as no longer in flight."""
        self._balancer.finish(node)
        self._go_on()

    def _go_on(self) -> None:
        """Give nodes to the requests that wait, as far as there is room."""
        while self._waiting.length:
            node = self._balancer.choose()
            if node is None and self._balancer.any_well:
                return
            self._waiting.pop().go(node)

    @property
    def shortest_pause(self) -> float:
        """Seconds until the first node may be well again."""
        return self._balancer.shortest_pause

    def fail(self, node: RoutedNode, error: UwsgiError) -> None:
        """Leave *node* out for a while: a connection to it failed, or a ping."""
        late = isinstance(error, RequestTimeout)
        if self._balancer.fail_unless_last(node) if late else self._balancer.fail(node):
            self._log.warn("node {node} is left out for now: {error}", node=node.name, error=error)
        self._checks[node].run_after(self._balancer.pause(node))
        self._go_on()

    def recover(self, node: RoutedNode) -> None:
        """Use *node*, which has answered a ping."""
        if self._balancer.recover(node):
            self._log.info("node {node} is back", node=node.name)
        self._checks[node].run_after(None)
        self._go_on()

    def suspect(self, node: RoutedNode) -> None:
        """See now whether *node*, which has closed a connection without an answer, is well."""
        if self._balancer.pause(node) is None:
            self._checks[node].run()


class _Check:
    """Pings one node again and again, once at a time."""

    def __init__(self, clock: IReactorTime, node: RoutedNode, nodes: Nodes) -> None:
        self._node = node
        self._nodes = nodes
        self._connection = Node(clock, node.endpoint, Terms(), plain=True)
        self._timer = Timer(clock, self.run)
        self._running = False
        self._stopped = False

    def run_after(self, pause: float | None) -> None:
        """Ping when the *pause* of the node is over, or after the usual interval if there is none."""
        if not self._running and not self._stopped:
            self._timer.set(PING_INTERVAL if pause is None else pause)

    def run(self) -> None:
        """Ping now."""
        if self._running or self._stopped:
            return
        self._timer.clear()
        self._running = True
        self._connection.call(_PING, PING_TIMEOUT).addCallbacks(self._on_answer, self._on_failure)

    def _on_answer(self, answer: Packet) -> None:
        self._running = False
        if answer.modifier1 == PING:
            self._nodes.recover(self._node)
        else:
            self._nodes.fail(self._node, MalformedPacket("its answer to a ping is none; does it speak uwsgi?"))

    def _on_failure(self, failure: Failure) -> None:
        self._running = False
        if self._stopped:
            return
        error = failure.value
        self._nodes.fail(self._node, error if isinstance(error, UwsgiError) else ConnectionFailed(str(error)))

    def stop(self) -> Deferred[None]:
        """Stop; the Deferred fires when no connection is open."""
        self._stopped = True
        self._timer.clear()
        return self._connection.close()
