"""The client with Deferreds.

    client = Client(reactor)
    answer = await client.send_message(("10.0.0.5", 3033), 33, 17, {"key": "value"})

It keeps one session open with each of our own nodes, and opens a connection for each request to any other uwsgi
server. It finds out by itself which kind a server is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import IStreamClientEndpoint

from uwsgitwisted.address import Address, AddressLike, FanOutNode, parse_address, split_nodes
from uwsgitwisted.errors import MisuseError, UwsgiError
from uwsgitwisted.timeouts import check_timeout
from uwsgitwisted.transport.client.endpoint import make_endpoint
from uwsgitwisted.transport.client.node import Node
from uwsgitwisted.transport.client.stream import AnswerStream
from uwsgitwisted.wire.message import decoder, encode_request
from uwsgitwisted.wire.packet import MARSHAL, PING, RPC, SPOOL
from uwsgitwisted.wire.rpc import RPC_FRAMED, read_result
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
from uwsgitwisted.wire.terms import MAX_MESSAGE, STREAM_WINDOW, Terms
from uwsgitwisted.wire.vars import VarsValue

__all__ = ["AnswerStream", "Client"]


class Client:
    """Sends messages to uwsgi servers.

    An address is ``(host, port)``, ``"host:port"``, a Twisted client endpoint description such as
    ``"unix:/run/node.sock"`` or ``"tls:host:port"``, or a UNIX socket's path.

    :param reactor: connects, and runs the timers.
    :param max_message: the largest answer to accept, in bytes.
    :param plain: addresses to which the client never offers a session.
    :param python2: the encoding of the text in the objects that Python 2 nodes answer, such as ``"utf-8"``,
        which is decoded then; empty to leave it bytes.
    :raises ValueError: if there is no such encoding.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        max_message: int = MAX_MESSAGE,
        plain: Iterable[AddressLike] = (),
        python2: str = "",
    ) -> None:
        self._reactor = reactor
        self._decode = decoder(python2)
        self._terms = Terms(max_message=max_message, window=STREAM_WINDOW)
        self._plain = {parse_address(address) for address in plain}
        self._nodes: dict[Address, Node] = {}
        # The same nodes by each spelling of their addresses, which saves parsing and comparing at each call.
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
        """Send *message*, and get its answer.

        :param modifier1: the kind of request: 33 sends an object, 17 a task, 100 a ping, 101 an echo.
        :param modifier2: a number from 0 to 255 that the handler gets.
        :param message: the content; :func:`uwsgitwisted.wire.message.encode_request` encodes it.
        :param timeout: seconds for the whole call: connecting, sending, and receiving the answer.
        :param idempotent: whether the request may run again if its worker dies. Our own nodes then run it once
            more; plain uwsgi servers ignore this.
        :return: fires once: with the object for modifier1 33, True or False for modifier1 17, else bytes. Fails
            with a :class:`~uwsgitwisted.errors.UwsgiError` that has the address: ``MisuseError`` if the message
            can't be sent, ``ConnectionFailed``, ``NoAnswer``, ``RequestTimeout``, or ``ProtocolError`` if the
            answer's bytes are broken; from one of our own nodes also ``RemoteError`` if its handler raised,
            ``Busy``, or ``WorkerDied``. Cancelling the Deferred cancels the request and fails it with
            ``RequestCancelled``.
        """
        try:
            node = self._find_node(address)
            check_timeout(timeout)
            packet = encode_request(modifier1, modifier2, message)
            return node.call(packet, timeout, address=address, idempotent=idempotent, decode=self._decode)
        except UwsgiError as error:
            error.address = error.address or address
            return fail(error)

    def stream(
        self,
        address: AddressLike,
        modifier1: int,
        modifier2: int,
        message: object,
        timeout: float = 30,
        *,
        idempotent: bool = False,
    ) -> Deferred[AnswerStream]:
        """Send *message*, and read the bytes of its answer as they arrive.

            async with await client.stream(address, 173, 1, ("render", "page.html")) as page:
                async for part in page:
                    ...

        Only our own nodes send an answer in parts: web requests (0), and a renderer's calls of modifiers 173
        and 1. Any other answer comes whole, as one part.

        :param modifier1: as for :meth:`send_message`, also the other parameters.
        :param timeout: seconds until the answer begins, and then for each part, while the caller waits for it.
        :param idempotent: as for :meth:`send_message`, until the answer has begun.
        :return: fires when the answer has begun. Fails as :meth:`send_message` does; what happens later is
            raised where the answer is read. Cancelling it cancels the request.
        """
        try:
            node = self._find_node(address)
            check_timeout(timeout)
            packet = encode_request(modifier1, modifier2, message)
            return node.stream(packet, timeout, address=address, idempotent=idempotent)
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
        """Send each node its message, all in parallel.

        :param nodes: ``(host, port, message)`` or ``(address, message)`` for each.
        :param modifier1: as for :meth:`send_message`, the same for all nodes.
        :param modifier2: as for :meth:`send_message`, the same for all nodes.
        :param timeout: seconds for each node; they run in parallel.
        :return: a ``DeferredList`` that fires when all nodes have answered or failed, with ``(True, answer)``
            or ``(False, Failure)`` for each node, in order. Cancelling it cancels every request. It fails with
            ``MisuseError``, before anything is sent, if a node has another form.
        """
        try:
            pairs = split_nodes(nodes)
        except MisuseError as error:
            return fail(error)
        return DeferredList(
            [self.send_message(address, modifier1, modifier2, message, timeout) for address, message in pairs],
            consumeErrors=True,
        )

    def rpc(
        self, address: AddressLike, name: str | bytes, *args: VarsValue, timeout: float = 30
    ) -> Deferred[bytes | None]:
        """Call a function of a node.

        :param name: the function's name there.
        :param args: its arguments: bytes, text or numbers. None may be empty or over 65535 bytes, and there are
            at most 254, since uWSGI drops or wraps others.
        :param timeout: seconds for the whole call.
        :return: fires with what the function returned; None if it returned None, which only our own nodes say.
            Fails as :meth:`send_message` does: from a node of ours also with ``UnknownFunction``, and from a
            uWSGI with ``NoAnswer`` if it has no such function, or it raised, or returned nothing.
        """
        answer = self.send_message(address, RPC, RPC_FRAMED, (name, *args), timeout)
        return answer.addCallback(read_result, address)

    def spool(self, address: AddressLike, task: Variables, timeout: float = 30) -> Deferred[bool]:
        """Enqueue *task*.

        :param task: the variables that the spooler function gets. The keys ``at`` and ``priority`` also tell
            the spooler when to run the task.
        :param timeout: seconds for the whole call.
        :return: fires with True when the task is safely stored. Fails with ``SpoolRefused`` if the spooler
            refused the task, or as :meth:`send_message` does. After a timeout or a lost connection, the task
            may have been stored nevertheless.
        """
        return self.send_message(address, SPOOL, 0, task, timeout).addCallback(read_taken, address)

    def enqueue(
        self, address: AddressLike, task: Variables, body: bytes = b"", timeout: float = 30
    ) -> Deferred[int | None]:
        """Enqueue *task*, and get its id.

        :param task: the variables that the spooler function gets. The keys ``at``, ``priority``, ``spooler``
            and ``idempotency_key`` also tell the spooler when and how to run the task.
        :param body: bytes that the function gets besides; the spooler's limit for messages applies.
        :param timeout: seconds for the whole call.
        :return: fires with the id when the task is safely stored, or with None if the spooler assigns no ids,
            like a real uWSGI. Fails as :meth:`spool` does.
        """
        answer = self.send_message(address, SPOOL, SPOOL_WITH_ID, TaskMessage(task, body), timeout)
        return answer.addCallback(read_accepted, address, body)

    def enqueue_many(
        self, address: AddressLike, tasks: Iterable[TaskLike], timeout: float = 30
    ) -> Deferred[list[int]]:
        """Enqueue several tasks, all or none.

        :param tasks: up to 10,000: the variables of each, or a pair of variables and a body.
        :param timeout: seconds for the whole call.
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
        """Get the status of a task.

        :param identifier: the task's id.
        :param timeout: seconds to wait.
        :return: fires with the status. Fails with ``NoSuchTask`` if the spooler doesn't know the task, or no
            longer does, or as :meth:`send_message` does.
        """
        answer = self._manage(address, "status", {"ids": [identifier]}, timeout)
        return answer.addCallback(read_single, identifier, address)

    def wait(self, address: AddressLike, identifier: int, timeout: float = 30) -> Deferred[TaskStatus]:
        """Wait until a task has finished.

        :param identifier: the task's id.
        :param timeout: seconds to wait.
        :return: fires with the final status. Fails with ``RequestTimeout`` if the task doesn't finish in time,
            or as :meth:`status` does. Cancelling it stops waiting, and doesn't cancel the task.
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
        """Cancel tasks. Waiting tasks won't run; the spooler drops the outcomes of running tasks.

        :param identifiers: up to 1,000 ids.
        :param timeout: seconds to wait.
        :return: fires with the ids of those that were still cancellable. Fails with ``NotAllowed`` if the
            spooler doesn't let this machine manage its queue, or as :meth:`send_message` does.
        """
        answer = self._manage(address, "cancel", {"ids": list(identifiers)}, timeout)
        return answer.addCallback(read_changed, address)

    def _manage(
        self, address: AddressLike, operation: str, arguments: Mapping[str, object], timeout: float
    ) -> Deferred[object]:
        return self.send_message(address, MARSHAL, 0, (operation, dict(arguments)), timeout)

    def ping(self, address: AddressLike, timeout: float = 5) -> Deferred[float]:
        """Check that a server is alive.

        :param timeout: seconds to wait.
        :return: fires with the round-trip time in seconds. Fails as :meth:`send_message` does.
        """
        start = self._reactor.seconds()
        return self.send_message(address, PING, 0, None, timeout).addCallback(
            lambda _: self._reactor.seconds() - start
        )

    def close(self) -> Deferred[None]:
        """Close every connection; requests in flight fail. The client may be used again.

        :return: fires when all connections are closed.
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
        return make_endpoint(self._reactor, address)
