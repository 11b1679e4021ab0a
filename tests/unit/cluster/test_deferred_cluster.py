"""A cluster with Deferreds, against nodes in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.unit.transports import ServedEndpoint
from uwsgitwisted.cluster import Cluster
from uwsgitwisted.errors import (
    InvalidAddress,
    MalformedAnswer,
    MisuseError,
    NoAnswer,
    RemoteError,
    RequestCancelled,
    Unavailable,
    UnencodableMessage,
    WorkerDied,
)
from uwsgitwisted.interfaces import Reply, Request, TimedAnswer
from uwsgitwisted.planner.progress import Progress
from uwsgitwisted.transport.client.node import Node
from uwsgitwisted.transport.server.factory import ServerFactory
from uwsgitwisted.wire.bundle import decode_bundle, encode_error, encode_value
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import BUNDLE, MARSHAL, Packet
from uwsgitwisted.wire.terms import KEEPALIVE, Terms

A, B, C = "192.0.2.1:3033", "192.0.2.2:3033", "192.0.2.3:3033"


class Farm:
    """A cluster, and its nodes in memory: a test answers their requests.

    :param terms: what the nodes say about themselves.
    """

    def __init__(self, *addresses: str, workers: int = 1, **terms: Any) -> None:
        self.clock = Clock()
        self.terms = Terms(workers=workers, **terms)
        #: Whether the node may run the requests again.
        self.idempotent: list[bool] = []
        self.endpoints: dict[str, ServedEndpoint] = {}
        #: The requests that are not answered, with their nodes and messages, and those that were cancelled.
        self.waiting: list[tuple[str, Any, Deferred[Any]]] = []
        self.cancelled: list[Any] = []
        farm = self

        class MemoryCluster(Cluster):
            def _connect(self, address: Any, on_session: Any) -> Node:
                return Node(farm.clock, farm.endpoint(str(address)), Terms(), on_session=on_session)  # type: ignore[arg-type]

        self.cluster = MemoryCluster(self.clock, addresses)

    def endpoint(self, address: str) -> ServedEndpoint:
        def respond(request: Request) -> Reply:
            message = content(request.packet)
            self.idempotent.append(request.idempotent)
            answer: Deferred[Any] = Deferred(lambda _: self.cancelled.append(message))
            answer.addErrback(lambda failure: failure)
            self.waiting.append((address, message, answer))
            return answer

        factory = ServerFactory(self.clock, respond, terms=self.terms)
        self.endpoints[address] = ServedEndpoint(factory)
        return self.endpoints[address]

    def flush(self) -> None:
        for _ in range(3):
            for endpoint in list(self.endpoints.values()):
                endpoint.flush()

    def messages(self) -> list[Any]:
        self.flush()
        return [message for _, message, answer in self.waiting if message not in self.cancelled]

    def end(self, message: Any, result: object) -> None:
        """Answer a request with a value, or let it fail with an error."""
        self.flush()
        entry = next(each for each in self.waiting if each[1] == message and not each[2].called)
        self.waiting.remove(entry)
        self.clock.advance(0.01)
        if isinstance(result, Exception):
            entry[2].errback(result)
        else:
            packet = result if isinstance(result, Packet) else Packet(MARSHAL, 0, dumps(result))
            entry[2].callback(TimedAnswer(packet, 0.01))
        self.flush()


def content(packet: Packet) -> Any:
    """Return the object of a request, or the list of those in a bundle."""
    if packet.modifier1 == BUNDLE:
        return [loads(each.payload) for each in decode_bundle(packet)]
    return loads(packet.payload)


def collect(iterator: AsyncIterator[Any], until: object = None) -> tuple[list[Any], Deferred[Any]]:
    """Collect what an iterator yields, up to a value; return the list, and the Deferred of its end."""
    collected: list[Any] = []

    async def run() -> None:
        async for value in iterator:
            collected.append(value)
            if value == until:
                break

    return collected, Deferred.fromCoroutine(run())


def error_of(deferred: Deferred[Any]) -> BaseException:
    results: list[Any] = []
    deferred.addErrback(results.append)
    [failure] = results
    assert isinstance(failure, Failure)
    assert failure.value is not None
    return failure.value


class TestMap:
    def test_values_in_order(self) -> None:
        """A map yields the answers in the order of the items, and uses all nodes."""
        farm = Farm(A, B)
        values, end = collect(farm.cluster.map(33, 0, [1, 2, 3]))
        farm.flush()
        assert {address for address, _, _ in farm.waiting} == {A, B}
        farm.end(2, "two")
        farm.end(3, "three")
        assert values == []
        farm.end(1, "one")
        assert values == ["one", "two", "three"]
        assert end.called

    def test_as_completed(self) -> None:
        """Results come as they are there, with what is known about each."""
        farm = Farm(A, B)
        results, end = collect(farm.cluster.as_completed(33, 0, [1, 2]))
        error = RemoteError(type="KeyError")
        farm.end(2, "two")
        farm.end(1, error)
        first, second = results
        assert (first.index, first.value, first.error, first.node) == (1, "two", None, B)
        assert first.seconds == pytest.approx(0.01)
        assert (second.index, second.value, second.node) == (0, None, A)
        assert second.error.type == "KeyError"
        assert end.called

    def test_bundles(self) -> None:
        """A node that takes bundles gets several items in a request, and each has its result."""
        farm = Farm(A, bundle=256)
        results, end = collect(farm.cluster.as_completed(33, 0, range(5), chunk=2, idempotent=True))
        assert farm.messages() == [0]  # before the terms are known
        farm.end(0, "zero")
        assert farm.messages() == [[1, 2], [3, 4]]
        failure = encode_error(encode_failure(RemoteError(type="KeyError")))
        farm.end([1, 2], Packet(BUNDLE, 0, encode_value(dumps("one")) + failure))
        farm.end([3, 4], WorkerDied())
        assert farm.messages() == [3, 4]
        farm.end(3, "three")
        farm.end(4, "four")
        assert end.called
        assert [(each.index, each.value) for each in results] == [
            (0, "zero"),
            (1, "one"),
            (2, None),
            (3, "three"),
            (4, "four"),
        ]
        error = results[2].error
        assert (error.type, error.address) == ("KeyError", A)
        # A worker that dies shows nothing about the items of a bundle, so the node must not run it twice.
        assert farm.idempotent == [True, False, False, True, True]

    def test_an_answer_that_is_no_bundle(self) -> None:
        """A node that answers a bundle with something else has failed each of its items."""
        farm = Farm(A, bundle=256)
        results, _ = collect(farm.cluster.as_completed(33, 0, range(3), chunk=2))
        farm.end(0, "zero")
        farm.end([1, 2], "what")
        assert [type(each.error) for each in results[1:]] == [MalformedAnswer, MalformedAnswer]

    def test_an_error_is_raised(self) -> None:
        """A piece's error is raised at its place, and all behind it is withdrawn."""
        farm = Farm(A, B)
        values, end = collect(farm.cluster.map(33, 0, range(10)))
        assert farm.messages() == [0, 1]
        farm.end(0, "zero")
        farm.end(1, RemoteError(type="KeyError"))
        assert values == ["zero"]
        assert isinstance(error_of(end), RemoteError)
        assert farm.messages() == []
        assert set(farm.cancelled) == {2, 3}

    def test_a_frozen_node(self) -> None:
        """A node that answers no keep-alive ping is noticed long before the time limit."""
        farm = Farm(A, B)
        values, end = collect(farm.cluster.map(33, 0, [1, 2], timeout=600, on_error="return"))
        assert farm.messages() == [1, 2]
        del farm.endpoints[B]  # nothing gets there or comes back any more
        farm.end(1, "one")
        for _ in range(2):
            assert values == ["one"]
            farm.clock.advance(KEEPALIVE)
            farm.flush()
        assert end.called
        assert isinstance(values[1], NoAnswer)

    def test_an_error_is_returned(self) -> None:
        """With on_error="return", it is yielded in its place, and the rest goes on."""
        farm = Farm(A)
        values, end = collect(farm.cluster.map(33, 0, [1, 2], on_error="return"))
        farm.end(1, RemoteError(type="KeyError"))
        farm.end(2, "two")
        assert isinstance(values[0], RemoteError)
        assert values[1:] == ["two"]
        assert end.called

    def test_a_break_withdraws(self) -> None:
        """Leaving the loop cancels what is in flight."""
        farm = Farm(A, B)
        values, end = collect(farm.cluster.map(33, 0, range(100)), until="zero")
        farm.end(0, "zero")
        assert values == ["zero"]
        assert end.called
        assert farm.messages() == []
        assert set(farm.cancelled) == {1, 2, 3}

    def test_cancelling_withdraws(self) -> None:
        """Cancelling the Deferred of whoever iterates cancels what is in flight."""
        farm = Farm(A, B)
        _, end = collect(farm.cluster.map(33, 0, range(100)))
        assert farm.messages() == [0, 1]
        end.cancel()
        error_of(end)
        assert farm.messages() == []
        assert set(farm.cancelled) == {0, 1}

    def test_elsewhere(self) -> None:
        """What can't be sent to a node goes to another one."""
        farm = Farm(A, B)
        farm.endpoints[A].refusing = True
        values, _ = collect(farm.cluster.map(33, 0, [1]))
        farm.flush()
        assert [address for address, _, _ in farm.waiting] == [B]
        farm.end(1, "one")
        assert values == ["one"]

    def test_workers_of_the_terms(self) -> None:
        """A node gets as many requests as it has workers, before it has answered any."""
        farm = Farm(A, workers=4)
        collect(farm.cluster.map(33, 0, range(100)))
        assert sorted(farm.messages()) == [0, 1, 2, 3]

    def test_nodes_that_join_and_leave(self) -> None:
        """Nodes may change while a map runs."""
        farm = Farm(A)
        values, end = collect(farm.cluster.map(33, 0, range(3)))
        farm.flush()
        farm.cluster.set_nodes([B, ["192.0.2.3", 3033]])
        assert farm.cluster.nodes == [B, ("192.0.2.3", 3033)]
        farm.flush()
        assert [address for address, _, _ in farm.waiting] == [A, B, C]
        for message in (0, 1, 2):
            farm.end(message, message)
        assert values == [0, 1, 2]
        assert end.called

    def test_progress(self) -> None:
        """The progress is reported while the map runs, and at its end."""
        farm = Farm(A)
        reports: list[Progress] = []
        collect(farm.cluster.map(33, 0, [1, 2], on_progress=reports.append))
        farm.end(1, 1)
        farm.clock.advance(0.1)
        assert [(report.done, report.total) for report in reports] == [(1, 2)]
        farm.end(2, 2)
        assert reports[-1].done == 2
        assert farm.cluster.nodes == [A]

    def test_misuse(self) -> None:
        """What can't be meant is refused at once, and what can't be sent is the piece's error."""
        farm = Farm(A)
        for arguments in ({"on_error": "ignore"}, {"timeout": 0}, {"chunk": 2}):
            with pytest.raises(MisuseError):
                farm.cluster.map(173, 0, [], **arguments)  # type: ignore[arg-type]
        with pytest.raises(MisuseError):
            farm.cluster.as_completed(300, 0, [])
        with pytest.raises(InvalidAddress):
            Farm("nowhere at all")
        _, end = collect(farm.cluster.map(33, 0, [object()]))
        assert isinstance(error_of(end), UnencodableMessage)


class TestSendMessage:
    def test_answer(self) -> None:
        """A message gets the answer of one node."""
        farm = Farm(A, B)
        answer = farm.cluster.send_message(33, 0, "hello")
        farm.end("hello", "world")
        results: list[object] = []
        answer.addCallback(results.append)
        assert results == ["world"]

    def test_three_nodes(self) -> None:
        """It is tried on three nodes if that is safe; then the last error is the answer."""
        farm = Farm(A, B, C, "192.0.2.4:3033")
        answer = farm.cluster.send_message(33, 0, "hello", idempotent=True)
        places = []
        for _ in range(3):
            farm.flush()
            places.append(farm.waiting[0][0])
            farm.end("hello", WorkerDied())
        assert isinstance(error_of(answer), WorkerDied)
        assert len(set(places)) == 3

    def test_unsafe(self) -> None:
        """What may have run is not tried again."""
        farm = Farm(A, B)
        answer = farm.cluster.send_message(33, 0, "hello")
        farm.end("hello", WorkerDied())
        assert isinstance(error_of(answer), WorkerDied)

    def test_no_node(self) -> None:
        """Without nodes there is no answer."""
        assert isinstance(error_of(Farm().cluster.send_message(33, 0, "hello")), Unavailable)

    def test_cancel(self) -> None:
        """Cancelling cancels the request."""
        farm = Farm(A)
        answer = farm.cluster.send_message(33, 0, "hello")
        farm.flush()
        answer.cancel()
        assert isinstance(error_of(answer), RequestCancelled)
        farm.flush()
        assert farm.cancelled == ["hello"]


def test_close() -> None:
    """Closing closes all connections, also that of a node that has left."""
    farm = Farm(A, B)
    answers = [farm.cluster.send_message(33, 0, number) for number in range(2)]
    farm.flush()
    farm.cluster.remove_node(B)
    closed = farm.cluster.close()
    farm.flush()
    for answer in answers:
        answer.addErrback(lambda _: None)
    assert closed.called
