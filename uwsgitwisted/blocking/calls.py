"""uWSGI's original calls: a request to one node, and requests to many nodes in parallel."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from uwsgitwisted.address import Address, AddressLike, FanOutNode, parse_address, split_nodes
from uwsgitwisted.blocking import sessions
from uwsgitwisted.blocking.sessions import call, call_fast
from uwsgitwisted.blocking.sockets import Deadline, Steps, converse, drive, explained, run
from uwsgitwisted.blocking.streams import AnswerStream, begin
from uwsgitwisted.errors import (
    FanOutError,
    MisuseError,
    ProtocolError,
    UwsgiError,
)
from uwsgitwisted.timeouts import check_timeout
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.message import encode_request
from uwsgitwisted.wire.packet import MARSHAL, PING, RPC, SPOOL, Packet
from uwsgitwisted.wire.python2 import check_encoding, to_text
from uwsgitwisted.wire.rpc import RPC_FRAMED, read_result
from uwsgitwisted.wire.tasks import read_taken
from uwsgitwisted.wire.vars import VarsValue


def send_uwsgi_message(
    host: str,
    port: int | str,
    modifier1: int,
    modifier2: int,
    message: object,
    timeout: float = 30,
    *,
    python2: str = "",
) -> object:
    """Send *message* to a node and return its answer.

    :param host: an IP address, or a name, whose addresses are tried in turn.
    :param port: a number, or its digits.
    :param modifier1: the kind of request: 33 sends an object, 17 a task, 173 a call, 100 a ping.
    :param modifier2: a number from 0 to 255 that the handler gets.
    :param message: the content; :func:`uwsgitwisted.wire.message.encode_request` encodes it.
    :param timeout: seconds for the whole call: the look-up, connecting, sending, and receiving the answer.
    :param python2: the encoding of the text in the object that a Python 2 node answers, such as ``"utf-8"``,
        which is decoded then; empty to leave it bytes.
    :return: the object for modifier1 33, True or False for modifier1 17, else bytes.
    :raises MisuseError: if the message can't be sent; nothing was sent then.
    :raises ConnectionFailed: if connecting fails, or the connection breaks.
    :raises NoAnswer: if the peer closes without an answer, which is how plain uwsgi reports every failure.
    :raises RequestTimeout: if the call times out.
    :raises ProtocolError: if the answer's bytes are broken.
    """
    return send_message((host, port), modifier1, modifier2, message, timeout, python2=python2)


def send_message(
    address: AddressLike,
    modifier1: int,
    modifier2: int,
    message: object,
    timeout: float = 30,
    *,
    python2: str = "",
) -> object:
    """Send *message* to an address and return its answer, as :func:`send_uwsgi_message` does.

    :param address: ``(host, port)``, ``"host:port"``, a unix socket's path, or a Twisted endpoint
        description such as ``"tls:host:port"``.
    """
    refuse_in_reactor()
    place = parse_address(address)
    python2 = python2 and check_encoding(python2)
    packet = _encode(address, modifier1, modifier2, message)
    try:
        answer = call_fast(place, packet, _deadline(timeout))
    except (UwsgiError, OSError) as error:
        raise explained(error, address) from error.__cause__
    return _decoded(answer, modifier1, python2)


def stream(
    address: AddressLike, modifier1: int, modifier2: int, message: object, timeout: float = 30
) -> AnswerStream:
    """Send *message*, and read the bytes of its answer as they arrive.

        with stream("10.0.0.5:3033", 173, 1, ("render", "page.html")) as page:
            for part in page:
                ...

    Only our own nodes send an answer in parts: web requests (0), and a renderer's calls of modifiers 173 and 1.
    Any other answer comes whole, as one part.

    :param address: as for :func:`send_message`, also the other parameters.
    :param timeout: seconds until the answer begins, and then for each part.
    :return: the answer, which has begun; what happens later is raised where it is read.
    :raises UwsgiError: as :func:`send_uwsgi_message` does.
    """
    refuse_in_reactor()
    place = parse_address(address)
    packet = _encode(address, modifier1, modifier2, message)
    try:
        first, session = drive(begin(place, packet, _deadline(timeout)))
    except (UwsgiError, OSError) as error:
        raise explained(error, address) from error.__cause__
    return AnswerStream(first, session, timeout, address)


def send_multi_uwsgi_message(
    cluster: Iterable[FanOutNode], modifier1: int, modifier2: int, timeout: float = 30, *, python2: str = ""
) -> tuple[object, ...]:
    """Send each node its message, all in parallel, and return their answers in the same order.

    :param cluster: ``(host, port, message)`` or ``(address, message)`` for each node.
    :param modifier1: as for :func:`send_uwsgi_message`, the same for all nodes.
    :param modifier2: as for :func:`send_uwsgi_message`, the same for all nodes.
    :param timeout: seconds for all nodes together.
    :param python2: as for :func:`send_uwsgi_message`.
    :raises MisuseError: if one of the messages can't be sent; nothing was sent to any node then.
    :raises FanOutError: if a node failed. Its ``results`` has each node's answer or error.
    """
    refuse_in_reactor()
    python2 = python2 and check_encoding(python2)
    requests = [
        (address, parse_address(address), _encode(address, modifier1, modifier2, message))
        for address, message in split_nodes(cluster)
    ]
    deadline = _deadline(timeout)
    results = run(
        [_with_address(call(place, packet, deadline), address) for address, place, packet in requests]
    )
    failures = [result for result in results if isinstance(result, UwsgiError)]
    if failures:
        raise FanOutError(
            f"{len(failures)} of {len(results)} nodes failed: {'; '.join(map(str, failures))}",
            results=tuple(results),
        )
    return tuple(_decoded(result, modifier1, python2) for result in results)


def rpc(address: AddressLike, name: str | bytes, *args: VarsValue, timeout: float = 30) -> bytes | None:
    """Call a function of a node and return its result.

    :param address: as for :func:`send_message`.
    :param name: the function's name there.
    :param args: its arguments: bytes, text or numbers. None may be empty or over 65535 bytes, and there are at
        most 254, since uWSGI drops or wraps others.
    :param timeout: seconds for the whole call.
    :return: what the function returned; None if it returned None, which only our own nodes say.
    :raises UnknownFunction: if a node of ours has no such function.
    :raises RemoteError: if the function of a node of ours raised.
    :raises NoAnswer: if a uWSGI has no such function, or it raised, or returned nothing; its log says which.
    :raises UwsgiError: as :func:`send_uwsgi_message` does.
    """
    return read_result(send_message(address, RPC, RPC_FRAMED, (name, *args), timeout), address)


def spool(
    address: AddressLike, task: Mapping[str, VarsValue] | Mapping[bytes, VarsValue], timeout: float = 30
) -> bool:
    """Enqueue *task*.

    :param address: as for :func:`send_message`.
    :param task: the variables that the spooler function gets. The keys ``at``, ``priority`` and ``spooler``
        also tell the spooler when and where to run the task.
    :param timeout: seconds for the whole call.
    :return: True: the task is safely stored.
    :raises SpoolRefused: if the spooler refused the task.
    :raises UwsgiError: as :func:`send_uwsgi_message` does. After a timeout or a broken connection, the task may
        have been stored nevertheless.
    """
    return read_taken(send_message(address, SPOOL, 0, task, timeout), address)


def ping(address: AddressLike, timeout: float = 5) -> float:
    """Check that a node is alive.

    :param address: as for :func:`send_message`.
    :param timeout: seconds to wait.
    :return: the time for connecting and getting the answer, in seconds.
    :raises UwsgiError: as :func:`send_uwsgi_message` does, if the node is not alive.
    """
    start = time.monotonic()
    refuse_in_reactor()
    place = parse_address(address)
    drive(_with_address(_ping(place, _deadline(timeout)), address))
    return time.monotonic() - start


class Reply(NamedTuple):
    """What one of several nodes has answered.

    :param address: the node's address, as the caller wrote it.
    :param result: the answer, or the error with which the node failed.
    :param seconds: the time until then.
    """

    address: AddressLike
    result: object
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the node has answered."""
        return not isinstance(self.result, UwsgiError)


def ping_all(addresses: Iterable[AddressLike], timeout: float = 5) -> list[Reply]:
    """Check which nodes are alive, all in parallel.

    :param addresses: the nodes, each as for :func:`send_message`.
    :param timeout: seconds for all nodes together.
    :return: each node's reply, in the same order; the result of a node that is alive is None.
    :raises MisuseError: if an address is invalid; no node was pinged then.
    """
    refuse_in_reactor()
    places = [(address, parse_address(address)) for address in addresses]
    deadline = _deadline(timeout)
    return _replies((address, _ping(place, deadline)) for address, place in places)


def send_to_all(
    addresses: Iterable[AddressLike], modifier1: int, modifier2: int, message: object, timeout: float = 30
) -> list[Reply]:
    """Send the same message to several nodes, all in parallel.

    :param addresses: the nodes, each as for :func:`send_message`.
    :param timeout: seconds for all nodes together.
    :return: each node's reply, in the same order.
    :raises MisuseError: if an address is invalid, or the message can't be sent; nothing was sent then.
    """
    refuse_in_reactor()
    places = [(address, parse_address(address)) for address in addresses]
    packet = encode_request(modifier1, modifier2, message)
    deadline = _deadline(timeout)
    return _replies((address, call(place, packet, deadline)) for address, place in places)


def _replies(asked: Iterable[tuple[AddressLike, Steps[object]]]) -> list[Reply]:
    outcomes = run([_reply(address, steps) for address, steps in asked])
    return [outcome for outcome in outcomes if isinstance(outcome, Reply)]


def _reply(address: AddressLike, steps: Steps[object]) -> Steps[Reply]:
    """Run *steps* to the end, and return what came of them."""
    began = time.monotonic()
    try:
        result = yield from _with_address(steps, address)
    except UwsgiError as error:
        result = error
    return Reply(address, result, time.monotonic() - began)


def declare_plain(address: AddressLike) -> None:
    """Declare that *address* is not one of our own nodes, so that no call offers it a session.

    This helps with a uWSGI whose only worker may be busy: the offer of a session would wait for that worker.

    :param address: as for :func:`send_message`.
    """
    sessions.declare_plain(parse_address(address))


def close() -> None:
    """Close the sessions that this thread has cached. A later call opens new ones.

    When a thread or the process ends, its sessions are closed.
    """
    sessions.close_cached()


def _ping(place: Address, deadline: Deadline) -> Steps[object]:
    """Ping on a new connection, so that a stale session doesn't make a live node look dead."""
    exchange = PlainExchange(Packet(PING, 0))
    yield from converse(place, exchange, deadline)
    if exchange.answer is None or exchange.answer.modifier1 != PING:
        raise ProtocolError("the server at this address is not a uwsgi server")
    return None


def _encode(address: AddressLike, modifier1: int, modifier2: int, message: object) -> Packet:
    try:
        return encode_request(modifier1, modifier2, message)
    except UwsgiError as error:
        error.address = address
        raise


def _decoded(answer: object, modifier1: int, python2: str) -> object:
    """Return an answer, with text in place of the bytes of a Python 2 node if an encoding is given."""
    return to_text(answer, python2) if python2 and modifier1 == MARSHAL else answer


def _with_address(steps: Steps[object], address: AddressLike) -> Steps[object]:
    """Run *steps*, and add the address to the errors that they raise."""
    try:
        return (yield from steps)
    except (UwsgiError, OSError) as error:
        raise explained(error, address) from None


def _deadline(timeout: float) -> Deadline:
    return Deadline.after(check_timeout(timeout))


def refuse_in_reactor() -> None:
    """Check that Twisted's reactor doesn't run in this thread, without importing Twisted.

    :raises MisuseError: if it does.
    """
    reactor = sys.modules.get("twisted.internet.reactor")
    threadable = sys.modules.get("twisted.python.threadable")
    if reactor is None or threadable is None:
        return
    if getattr(reactor, "running", False) and threadable.isInIOThread():
        raise MisuseError(
            "a blocking call in the reactor's thread would stop everything else there; call "
            "uwsgitwisted.client.Client's method, which returns a Deferred, or use deferToThread"
        )
