"""The way of one web request to a node, or to another one if the first fails before it has begun."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import TCPTimedOutError
from twisted.internet.error import TimeoutError as ConnectionTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from uwsgitwisted.errors import ConnectionFailed, NoAnswer, RequestTimeout, UwsgiError
from uwsgitwisted.router.bodies import Body
from uwsgitwisted.router.nodes import Nodes, RoutedNode
from uwsgitwisted.transport.client.factory import SingleFactory
from uwsgitwisted.transport.client.web import WebProtocol
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.wire.http import AnswerHead

#: The methods that may run twice (RFC 9110, 9.2.2).
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
#: How many nodes may get a request that may run twice: one that kills its workers shouldn't kill those of all
#: nodes.
_MAX_SENT = 3


class Outgoing(NamedTuple):
    """A request as the nodes get it.

    :param method: such as ``GET``.
    :param packet: the bytes of its packet.
    :param body: what follows.
    """

    method: bytes
    packet: bytes
    body: Body


class Client(Protocol):
    """Who gets the answer."""

    def answer_began(self, head: AnswerHead, producer: WebProtocol) -> None:
        """Handle the head of the answer, and pause and resume its producer from now on."""

    def answer_received(self, data: bytes) -> None:
        """Handle a piece of its body."""

    def answer_ended(self) -> None:
        """Handle its end."""

    def answer_cut(self) -> None:
        """Handle the loss of the rest: the answer has begun, and its end won't come."""

    def refuse(self, status: HTTPStatus, text: str, *, retry_after: float | None = None) -> None:
        """Answer without a node."""

    def node_failed(self, node: RoutedNode, error: UwsgiError) -> None:
        """Log that the request failed at a node."""


class Forwarding:
    """Sends a request to a node and its answer to the client.

    :param clock: for the time limits.
    :param nodes: the nodes.
    :param client: gets the answer.
    :param outgoing: the request.
    :param group: the peer that it belongs to; peers take turns where requests wait for a node.
    :param timeout: seconds for which a node may do nothing, and the request may wait for one.
    """

    def __init__(
        self,
        clock: IReactorTime,
        nodes: Nodes,
        client: Client,
        outgoing: Outgoing,
        *,
        group: str,
        timeout: float,
    ) -> None:
        self._clock = clock
        self._nodes = nodes
        self._client = client
        self._request = outgoing
        self._timeout = timeout
        self.group = group
        #: The nodes that it has gone to.
        self.tried: list[RoutedNode] = []
        self._timer = Timer(clock, self._wait_no_longer)
        #: How many nodes have got the request.
        self._sent = 0
        self._error: UwsgiError | None = None
        self._connecting: Deferred[Any] | None = None
        self._connection: WebProtocol | None = None
        self._begun = False
        self._ended = False

    def start(self) -> None:
        """Send the request to the node that has the fewest, when that has room."""
        self._nodes.send(self)
        if not self.tried and not self._ended:
            self._timer.set(self._timeout)

    def go(self, node: RoutedNode | None) -> None:
        """Send the request to *node*, or give up if there is none."""
        self._timer.clear()
        if node is None:
            self._give_up()
            return
        self.tried.append(node)
        protocol = WebProtocol(self._clock, self._request.packet, self._request.method, self, self._timeout)
        self._connecting = node.endpoint.connect(SingleFactory(protocol))
        self._connecting.addCallbacks(self._on_connected, self._on_not_connected)

    def stop(self) -> None:
        """Close the connection: nobody waits for the answer any more."""
        if self._ended:
            return
        if self._timer.running:
            self._withdraw()
            return
        self._end()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()

    def _on_connected(self, protocol: WebProtocol) -> None:
        self._connecting = None
        self._connection = protocol
        self._sent += 1
        self._request.body.attach(protocol)

    def _on_not_connected(self, failure: Failure) -> None:
        self._connecting = None
        if self._ended:  # it was cancelled
            return
        node = self.tried[-1]
        late = failure.check(ConnectionTimeout, TCPTimedOutError) is not None
        kind = RequestTimeout if late else ConnectionFailed
        self._nodes.fail(node, kind(f"no connection: {failure.getErrorMessage()}"))
        self._nodes.finish(node)
        self._nodes.send(self)

    def _give_up(self) -> None:
        self._ended = True
        if self._error is not None:
            self._refuse(self._error)
        else:
            self._client.refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "No server is free now. Please try again soon.",
                retry_after=self._nodes.shortest_pause,
            )

    def _wait_no_longer(self) -> None:
        """Give up: no node has had room in time."""
        self._withdraw()
        self._give_up()

    def _withdraw(self) -> None:
        self._ended = True
        self._timer.clear()
        self._nodes.withdraw(self)

    def _end(self) -> None:
        self._ended = True
        self._nodes.finish(self.tried[-1])

    # The node's answer

    def body_wanted(self, wanted: bool) -> None:
        """Go on with the request's body, or wait."""
        self._request.body.want(wanted)

    def answer_began(self, head: AnswerHead) -> None:
        """Pass on the head of the answer."""
        assert self._connection is not None
        self._begun = True
        self._client.answer_began(head, self._connection)

    def answer_received(self, data: bytes) -> None:
        """Pass on a piece of the answer's body."""
        self._client.answer_received(data)

    def answer_ended(self) -> None:
        """Pass on the end of the answer."""
        self._end()
        self._client.answer_ended()

    def answer_failed(self, error: UwsgiError) -> None:
        """Try another node, or answer with an error, or cut the answer."""
        node = self.tried[-1]
        self._connection = None
        self._client.node_failed(node, error)
        if isinstance(error, (NoAnswer, RequestTimeout)):
            self._nodes.suspect(node)
        if isinstance(error, NoAnswer) and self._may_run_again:
            self._error = error
            self._request.body.detach()
            self._nodes.finish(node)
            self._nodes.send(self)
            return
        self._end()
        if self._begun:
            self._client.answer_cut()
        else:
            self._refuse(error)

    @property
    def _may_run_again(self) -> bool:
        request = self._request
        return request.method in IDEMPOTENT and request.body.replayable and self._sent < _MAX_SENT

    def _refuse(self, error: UwsgiError) -> None:
        if isinstance(error, RequestTimeout):
            self._client.refuse(
                HTTPStatus.GATEWAY_TIMEOUT, "The server behind this one has not answered in time."
            )
        else:
            self._client.refuse(HTTPStatus.BAD_GATEWAY, "The server behind this one has not answered properly.")
