"""Many nodes as one, with Deferreds.

    cluster = Cluster(reactor, ["10.0.0.5:3033", "10.0.0.6:3033"])
    answer = await cluster.send_message(33, 17, {"key": "value"})
    async for value in cluster.map(33, 17, items):
        ...

:mod:`uwsgitwisted.planner` decides which node does what.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred

from uwsgitwisted.address import Address, AddressLike
from uwsgitwisted.cluster.nodes import NodeAddress, Nodes
from uwsgitwisted.cluster.run import Run
from uwsgitwisted.cluster.sources import SourceWatcher, may_change
from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.planner.calls import Attempts, CallPlanner
from uwsgitwisted.planner.map import MapPlanner
from uwsgitwisted.planner.piece import OnError, Result, Sending
from uwsgitwisted.planner.progress import Progress
from uwsgitwisted.planner.settings import TARGET, Settings
from uwsgitwisted.sources.sources import Nodes as SourceNodes
from uwsgitwisted.timeouts import check_timeout
from uwsgitwisted.transport.client.call import Call
from uwsgitwisted.transport.client.endpoint import make_endpoint
from uwsgitwisted.transport.client.node import Node
from uwsgitwisted.wire.message import decode_answer, encode_request
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.wire.terms import MAX_MESSAGE, Terms

_T = TypeVar("_T")


class Cluster:
    """Sends single messages and whole maps to whichever nodes will answer first.

    :param reactor: connects, and runs the timers.
    :param nodes: addresses, as :class:`~uwsgitwisted.client.Client` takes them; ``"@nodes.txt"`` for the
        nodes in a file, which may change; and names that stand for several nodes, such as
        ``"dns:farm.example.com:3033"`` or ``"srv:_uwsgi._tcp.example.com"``, which are looked up again and
        again. Close a cluster that has files or names at its end.
    :param max_message: the largest answer to accept, in bytes.
    :raises MisuseError: if an address is none, or a file can't be read.
    """

    def __init__(self, reactor: Any, nodes: SourceNodes = (), *, max_message: int = MAX_MESSAGE) -> None:
        self._reactor = reactor
        self._terms = Terms(max_message=max_message)
        self._nodes = Nodes(self._connect)
        self._calls = _Calls()
        self._nodes.watch(self._calls)
        self._watcher: SourceWatcher | None = None
        given = [nodes] if isinstance(nodes, str) else list(nodes)
        if may_change(given):
            self._watcher = SourceWatcher(reactor, given, self.set_nodes)
            self._watcher.start()
        else:
            self.set_nodes(given)

    # Nodes

    @property
    def nodes(self) -> list[NodeAddress]:
        """The addresses of the nodes, as they were given."""
        return list(self._nodes)

    def add_node(self, address: AddressLike) -> None:
        """Use a node from now on, also for the maps that run.

        :raises InvalidAddress: if *address* is none.
        """
        self._nodes.add(_hashable(address))

    def remove_node(self, address: AddressLike) -> None:
        """Give a node nothing more. What it has already is waited for."""
        self._nodes.remove(_hashable(address))

    def set_nodes(self, addresses: Iterable[AddressLike]) -> None:
        """Add the nodes that are new, and remove those that are not among *addresses*.

        :raises InvalidAddress: if an address is none.
        """
        wanted = dict.fromkeys(map(_hashable, addresses))
        for address in wanted:
            self._nodes.add(address)
        for address in self.nodes:
            if address not in wanted:
                self._nodes.remove(address)

    def close(self) -> Deferred[None]:
        """Close every connection, and follow files and names no longer; requests in flight fail.

        :return: fires when all connections are closed.
        """
        if self._watcher is not None:
            self._watcher.stop()
        return self._nodes.close()

    # Work

    def send_message(
        self, modifier1: int, modifier2: int, message: object, timeout: float = 30, *, idempotent: bool = False
    ) -> Deferred[object]:
        """Send *message* to the node with the shortest expected wait, and get its answer.

        :param modifier1: the kind of request, as for :meth:`uwsgitwisted.client.Client.send_message`.
        :param modifier2: a number from 0 to 255 that the handler gets.
        :param message: the content.
        :param timeout: seconds for everything, other nodes included.
        :param idempotent: whether the request may run twice; it is then tried elsewhere also if it may have
            been started.
        :return: fires once, with the answer. Fails with the error of the last node, if the request can't be
            tried on another one, or three have failed; with ``Unavailable`` if there is no node; or with
            ``MisuseError``. Cancelling the Deferred cancels the request.
        """
        return Deferred.fromCoroutine(self._send(modifier1, modifier2, message, timeout, idempotent))

    async def _send(
        self, modifier1: int, modifier2: int, message: object, timeout: float, idempotent: bool
    ) -> object:
        packet = encode_request(modifier1, modifier2, message)
        if self._watcher is not None:
            await self._watcher.when_settled()
        end = self._reactor.seconds() + check_timeout(timeout)
        attempts = Attempts(self._calls.planner, idempotent=idempotent, until=end)
        while True:
            now = self._reactor.seconds()
            sending = attempts.begin(now)
            try:
                return await self._send_to(sending, packet, end - now, idempotent)
            except UwsgiError as error:
                attempts.failed(sending, error)

    async def _send_to(self, sending: Sending, packet: Packet, timeout: float, idempotent: bool) -> object:
        address: Any = sending.node
        call = self._make_call(address, packet, timeout, idempotent)
        ended: BaseException | None = None
        try:
            self._nodes.connection(address).send(call)
            return await call.answer
        except BaseException as error:
            ended = error
            raise
        finally:
            self._calls.planner.end(sending, self._reactor.seconds(), took=call.took, error=ended)

    def as_completed(
        self,
        modifier1: int,
        modifier2: int,
        items: Iterable[Any],
        timeout: float = 30,
        *,
        chunked: bool = False,
        chunk: int | None = None,
        target: float = TARGET,
        idempotent: bool = False,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> AsyncIterator[Result]:
        """Send each item to a node, and yield a result for each as soon as it is there.

        Nothing is sent before the first result is asked for. When the iteration ends early, all that is in
        flight is withdrawn: at a ``break``, or when the Deferred that waits for it is cancelled.

        :param modifier1: the kind of request, as for :meth:`send_message`.
        :param modifier2: a number from 0 to 255 that the handler gets.
        :param items: what the handler gets, one by one. A generator is read only as far as the work has gone.
        :param timeout: seconds for each request. If no node is well for so long, the map ends with
            ``Unavailable``.
        :param chunked: whether the handler gets a list of items at once; of a ``range``, the bounds
            ``[start, stop]`` of a part, or ``[start, stop, step]`` if the step isn't 1. There is one result for
            each chunk.
        :param chunk: how many items a chunk has; None to size chunks by the time that they take. Without
            *chunked* it is how many items of modifier1 33 go in one request at most, though the handler gets
            them one by one; with None it is many if they are tiny.
        :param target: how long a chunk should take, in seconds.
        :param idempotent: whether an item may run twice. It is then tried elsewhere also if it may have been
            started, and toward the end idle nodes get copies of the oldest pieces.
        :param on_progress: called with the progress, ten times a second at most, and at the end.
        :return: the results, each with the value or the error.
        :raises MisuseError: if the arguments don't fit together.
        """
        settings = Settings(
            ordered=False,
            chunked=chunked,
            bundled=modifier1 == MARSHAL,
            chunk=chunk,
            target=target,
            idempotent=idempotent,
            timeout=check_timeout(timeout),
        )
        return self._run(modifier1, modifier2, items, settings, on_progress, _whole)

    def map(
        self,
        modifier1: int,
        modifier2: int,
        items: Iterable[Any],
        timeout: float = 30,
        *,
        chunked: bool = False,
        chunk: int | None = None,
        target: float = TARGET,
        idempotent: bool = False,
        on_error: OnError = "raise",
        on_progress: Callable[[Progress], object] | None = None,
    ) -> AsyncIterator[Any]:
        """Send each item to a node, and yield the answers in the order of the items.

        The other parameters are those of :meth:`as_completed`.

        :param on_error: ``"raise"`` raises the error of an item at its place, and withdraws all behind it;
            ``"return"`` yields the error, and goes on.
        :return: the answers.
        :raises MisuseError: if the arguments don't fit together.
        """
        settings = Settings(
            chunked=chunked,
            bundled=modifier1 == MARSHAL,
            chunk=chunk,
            target=target,
            idempotent=idempotent,
            on_error=on_error,
            timeout=check_timeout(timeout),
        )

        def pick(result: Result) -> object:
            return result.value_or_error(on_error)

        return self._run(modifier1, modifier2, items, settings, on_progress, pick)

    def _run(
        self,
        modifier1: int,
        modifier2: int,
        items: Iterable[Any],
        settings: Settings,
        on_progress: Callable[[Progress], object] | None,
        pick: Callable[[Result], _T],
    ) -> AsyncIterator[_T]:
        encode_request(modifier1, modifier2, None if modifier1 == MARSHAL else b"")

        def encode(message: object) -> Packet:
            return encode_request(modifier1, modifier2, message)

        def make_call(address: AddressLike, sending: Sending) -> Call:
            packet = sending.request or encode(sending.message)
            idempotent = settings.idempotent and not sending.bundled
            return self._make_call(address, packet, settings.timeout, idempotent, sending.decode)

        planner = MapPlanner(items, settings, self._reactor.seconds(), encode)
        return Run(self._reactor, self._nodes, planner, make_call, self._terms, on_progress).results(pick)

    def _make_call(
        self,
        address: AddressLike,
        packet: Packet,
        timeout: float,
        idempotent: bool,
        decode: Callable[[Packet], object] = decode_answer,
    ) -> Call:
        return Call(
            packet,
            self._reactor.seconds() + timeout,
            timeout,
            address=address,
            idempotent=idempotent,
            decode=decode,
        )

    def _connect(self, address: Address, on_session: Callable[[Terms], None]) -> Node:
        endpoint = make_endpoint(self._reactor, address)
        return Node(self._reactor, endpoint, self._terms, on_session=on_session)


class _Calls:
    """Tells the planner of single calls of the nodes."""

    def __init__(self) -> None:
        self.planner = CallPlanner()

    def add_node(self, address: NodeAddress, terms: Terms | None) -> None:
        self.planner.add_node(address)

    def remove_node(self, address: NodeAddress) -> None:
        self.planner.remove_node(address)

    def set_terms(self, address: NodeAddress, terms: Terms) -> None:
        self.planner.set_terms(address, terms.workers)


def _whole(result: Result) -> Result:
    return result


def _hashable(address: AddressLike) -> NodeAddress:
    return cast(NodeAddress, tuple(address)) if isinstance(address, list) else address
