"""The client with Deferreds.

    client = Client(reactor)
    answer = await client.send_message(("10.0.0.5", 3033), 33, 17, {"key": "value"})

It keeps one session with each of our own nodes and opens a connection a request to any other uwsgi server;
which is which it finds out by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.endpoints import HostnameEndpoint, clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint

from uwsgitwisted.address import Address, AddressLike, FanOutNode, parse_address, split_nodes
from uwsgitwisted.errors import InvalidAddress, MisuseError, UwsgiError
from uwsgitwisted.timeouts import check_timeout
from uwsgitwisted.transport.client.node import Node
from uwsgitwisted.wire.message import decode_answer, encode_request
from uwsgitwisted.wire.packet import MARSHAL, PING, SPOOL
from uwsgitwisted.wire.tasks import (
    LEAST_TIMEOUT,
    SPOOL_WITH_ID,
    TaskLike,
    TaskMessage,
    TaskStatus,
    Variables,
    batch_items,
    encode_batch,
    lacks_result,
    read_accepted,
    read_changed,
    read_ids,
    read_single,
    read_status,
    read_taken,
)
from uwsgitwisted.wire.terms import MAX_MESSAGE, Terms


class Client:
    """Sends messages to uwsgi servers.

    An address is ``(host, port)``, ``"host:port"``, a Twisted client endpoint description such as
    ``"unix:/run/node.sock"`` or ``"tls:host:port"``, or a UNIX socket's path.

    :param reactor: connects and keeps the time.
    :param max_message: the largest answer that is taken, in bytes.
    :param plain: addresses that are never offered a session.
    """

    def __init__(
        self, reactor: Any, *, max_message: int = MAX_MESSAGE, plain: Iterable[AddressLike] = ()
    ) -> None:
        self._reactor = reactor
        self._terms = Terms(max_message=max_message)
        self._plain = {parse_address(address) for address in plain}
        self._nodes: dict[Address, Node] = {}
        # The same by each spelling of their addresses, so that nothing is parsed or compared for each call.
        self._known: dict[Address | str | tuple[str, int | str], Node] = {}

    def send_message(
        self,
        address: AddressLike,
        modifier1: int,
        modifier2: int,
        message: object,
        timeout: float = 30,
        *,
        idempotent: bool = False,
    ) -> Deferred[object]:
        """Send *message* and get its answer.

        :param modifier1: what is asked for: 33 sends an object, 17 a task, 100 a ping, 101 an echo.
        :param modifier2: for the handler to read, 0 to 255.
        :param message: what is sent; :func:`uwsgitwisted.wire.message.encode_request` says how.
        :param timeout: seconds for all of it: connecting, sending, the whole answer.
        :param idempotent: whether it may be run a second time if the worker that runs it dies. A node of ours
            does so once; in plain uwsgi it means nothing.
        :return: fires once: with the object for modifier1 33, True or False for modifier1 17, else bytes. Fails
            with a :class:`~uwsgitwisted.errors.UwsgiError` that has the address: ``MisuseError`` if the message
            can't be sent, ``ConnectionFailed``, ``NoAnswer``, ``RequestTimeout``, ``ProtocolError`` if the
            answer's bytes are broken; and from one of our own nodes ``RemoteError`` if its handler raised,
            ``Busy``, ``WorkerDied``. Cancelling it withdraws the request and fails it with
            ``RequestCancelled``.
        """
        try:
            node = self._find_node(address)
            check_timeout(timeout)
            packet = encode_request(modifier1, modifier2, message)
            return node.call(packet, timeout, address=address, idempotent=idempotent, decode=decode_answer)
        except UwsgiError as error:
            error.address = error.address or address
            return fail(error)

    def send_multi_message(
        self,
        nodes: Iterable[FanOutNode],
        modifier1: int,
        modifier2: int,
        timeout: float = 30,
    ) -> Deferred[list[tuple[bool, object]]]:
        """Send each node its message, to all at once.

        :param nodes: ``(host, port, message)`` or ``(address, message)`` for each.
        :param modifier1: as for :meth:`send_message`, the same for all.
        :param modifier2: as there.
        :param timeout: seconds that each node has, all at the same time.
        :return: a ``DeferredList`` that fires when all have answered or failed, with ``(True, answer)`` or
            ``(False, Failure)`` for each node, in order. Cancelling it withdraws every request. It fails,
            before anything is sent, with ``MisuseError`` if *nodes* has something else.
        """
        try:
            pairs = split_nodes(nodes)
        except MisuseError as error:
            return fail(error)
        return DeferredList(
            [self.send_message(address, modifier1, modifier2, message, timeout) for address, message in pairs],
            consumeErrors=True,
        )

    def spool(self, address: AddressLike, task: Variables, timeout: float = 30) -> Deferred[bool]:
        """Hand *task* to a spooler.

        :param task: the variables that the spooler function gets. Of them ``at`` and ``priority`` also tell the
            spooler when to run it.
        :param timeout: seconds for all of it.
        :return: fires with True when the task is safely stored. Fails with ``SpoolRefused`` if the spooler did
            not take it, or as :meth:`send_message` does; after a timeout or a lost connection the task may have
            been taken nevertheless.
        """
        return self.send_message(address, SPOOL, 0, task, timeout).addCallback(read_taken, address)

    def enqueue(
        self, address: AddressLike, task: Variables, body: bytes = b"", timeout: float = 30
    ) -> Deferred[int | None]:
        """Hand *task* to a spooler and get its id.

        :param task: the variables that the spooler function gets. Of them ``at``, ``priority``, ``spooler`` and
            ``idempotency_key`` also tell the spooler when and how to run it.
        :param body: what the function gets besides; it may be as large as the spooler takes messages.
        :param timeout: seconds for all of it.
        :return: fires with the id when the task is safely stored; with None if it is, but the spooler gives no
            ids, as a real uWSGI. Fails as :meth:`spool` does.
        """
        answer = self.send_message(address, SPOOL, SPOOL_WITH_ID, TaskMessage(task, body), timeout)
        return answer.addCallback(read_accepted, address, body)

    def enqueue_many(
        self, address: AddressLike, tasks: Iterable[TaskLike], timeout: float = 30
    ) -> Deferred[list[int]]:
        """Hand several tasks to a spooler, all of them or none.

        :param tasks: up to 10,000: the variables of each, or a pair of these and a body.
        :param timeout: seconds for all of it.
        :return: fires with their ids, in the same order, when they are safely stored. Fails as
            :meth:`send_message` does.
        """
        try:
            batch = encode_batch(batch_items(tasks))
        except MisuseError as error:
            error.address = address
            return fail(error)
        return self.send_message(address, MARSHAL, 0, batch, timeout).addCallback(read_ids, address)

    def status(self, address: AddressLike, identifier: int, timeout: float = 30) -> Deferred[TaskStatus]:
        """Ask what a spooler knows of a task.

        :param identifier: the task's id.
        :param timeout: seconds to wait.
        :return: fires with it. Fails with ``NoSuchTask`` if there is no such task, or not any more, or as
            :meth:`send_message` does.
        """
        answer = self._manage(address, "status", {"ids": [identifier]}, timeout)
        return answer.addCallback(read_single, identifier, address)

    def wait(self, address: AddressLike, identifier: int, timeout: float = 30) -> Deferred[TaskStatus]:
        """Wait until a task is over.

        :param identifier: the task's id.
        :param timeout: seconds to wait.
        :return: fires with what the spooler knows of it then. Fails with ``RequestTimeout`` if it is not over
            in time, and as :meth:`status` does. Cancelling it leaves the task alone.
        """
        return Deferred.fromCoroutine(self._wait(address, identifier, timeout))

    async def _wait(self, address: AddressLike, identifier: int, timeout: float) -> TaskStatus:
        end = self._reactor.seconds() + check_timeout(timeout)
        answer = await self._manage(address, "wait", {"id": identifier}, timeout)
        if lacks_result(answer):
            return await self.status(address, identifier, max(end - self._reactor.seconds(), LEAST_TIMEOUT))
        return read_status(answer, address)

    def cancel(
        self, address: AddressLike, identifiers: Iterable[int], timeout: float = 30
    ) -> Deferred[list[int]]:
        """Take tasks back. Those that wait won't run; of those that run, the outcome is dropped.

        :param identifiers: up to 1,000 ids.
        :param timeout: seconds to wait.
        :return: fires with the ids of those for which that was possible. Fails with ``NotAllowed`` if the
            spooler doesn't let this machine manage its queue, or as :meth:`send_message` does.
        """
        answer = self._manage(address, "cancel", {"ids": list(identifiers)}, timeout)
        return answer.addCallback(read_changed, address)

    def _manage(
        self, address: AddressLike, operation: str, arguments: Mapping[str, object], timeout: float
    ) -> Deferred[object]:
        return self.send_message(address, MARSHAL, 0, (operation, dict(arguments)), timeout)

    def ping(self, address: AddressLike, timeout: float = 5) -> Deferred[float]:
        """Ask whether a server lives.

        :param timeout: seconds to wait.
        :return: fires with how long the answer took, in seconds; fails as :meth:`send_message` does.
        """
        start = self._reactor.seconds()
        return self.send_message(address, PING, 0, None, timeout).addCallback(
            lambda _: self._reactor.seconds() - start
        )

    def close(self) -> Deferred[None]:
        """Close every connection; what is in flight fails. The client may be used again.

        :return: fires when they are closed.
        """
        nodes, self._nodes = self._nodes, {}
        self._known = {}
        return DeferredList([node.close() for node in nodes.values()]).addCallback(lambda _: None)

    def _find_node(self, address: AddressLike) -> Node:
        try:
            return self._known[address]  # type: ignore[index]
        except (KeyError, TypeError):
            node = self._node(parse_address(address))
        if not isinstance(address, list):
            self._known[address] = node
        return node

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(
                self._reactor, self._endpoint(address), self._terms, plain=address in self._plain
            )
        return node

    def _endpoint(self, address: Address) -> IStreamClientEndpoint:
        if address.kind == "tcp" and not address.options:
            return HostnameEndpoint(self._reactor, address.host, address.port)
        try:
            endpoint: IStreamClientEndpoint = clientFromString(self._reactor, address.description)
        except (ImportError, NameError) as error:  # Twisted's own, where pyOpenSSL isn't there
            raise InvalidAddress("TLS needs more: install uwsgitwisted[tls]") from error
        except (ValueError, TypeError, OSError) as error:
            raise InvalidAddress(f"not an address that can be connected to: {error}") from error
        return endpoint
