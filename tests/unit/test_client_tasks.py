"""The calls for tasks, with Deferreds and blocking: what they send, and what they make of answers."""

from __future__ import annotations

import dataclasses
import marshal
import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock

from tests.unit.servers import (
    ScriptedServer,
    answering,
    frame,
    nothing_left_open,  # noqa: F401 - a fixture
    outside_the_reactor,  # noqa: F401 - a fixture
    plain_peers,  # noqa: F401 - a fixture
)
from tests.unit.transports import ServedEndpoint
from uwsgitwisted import blocking
from uwsgitwisted.blocking.tasks import manage
from uwsgitwisted.client import Client
from uwsgitwisted.errors import (
    MalformedPacket,
    MessageTooLarge,
    MisuseError,
    NoSuchTask,
    NotAllowed,
    ProtocolError,
    RequestCancelled,
    RequestTimeout,
    SpoolRefused,
    UnencodableMessage,
)
from uwsgitwisted.interfaces import Reply, Request
from uwsgitwisted.transport.server.factory import ServerFactory
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import ANSWER, MARSHAL, NO, SPOOL, YES, Packet
from uwsgitwisted.wire.tasks import (
    SPOOL_WITH_ID,
    BatchItem,
    TaskMessage,
    TaskStatus,
    batch_items,
    decode_batch,
    encode_batch,
)
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.wire.vars import encode_vars, split_vars

A = ("192.0.2.1", 3_034)
TOLD: dict[str, object] = {
    "id": 7,
    "state": "done",
    "queue": "mail",
    "attempts": 2,
    "crashes": 1,
    "created": 1.5,
    "at": 2,
    "started": 3.0,
    "finished": 4.0,
    "error": "KeyError: 'x'",
    "result": dumps({"sent": [1, 2]}),
}
STATUS = TaskStatus(**{**TOLD, "result": {"sent": [1, 2]}})  # type: ignore[arg-type]


class Spooler(Client):
    """A client of a spooler in memory, whose answers the test sets."""

    def __init__(self, answer: object = None, **options: Any) -> None:
        self.clock = Clock()
        super().__init__(self.clock, **options)
        self.answer = answer
        self.asked: list[Packet] = []
        self.withdrawn: list[object] = []
        self.endpoint: ServedEndpoint | None = None

    def _endpoint(self, address: Any) -> IStreamClientEndpoint:
        self.endpoint = ServedEndpoint(
            ServerFactory(self.clock, self.respond, terms=Terms(max_message=1 << 20))
        )
        return self.endpoint  # type: ignore[return-value]

    def respond(self, request: Request) -> Reply:
        self.asked.append(request.packet)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is Deferred:
            return Deferred(self.withdrawn.append)
        if isinstance(self.answer, Packet):
            return self.answer
        if isinstance(self.answer, Mapping) and "status" in self.answer:  # an answer for each operation
            return Packet(MARSHAL, 0, dumps(self.answer[loads(request.packet.payload)[0]]))  # type: ignore[index]
        return Packet(MARSHAL, 0, dumps(self.answer))

    def result(self, deferred: Deferred[Any]) -> Any:
        """Return what *deferred* fires with when all is delivered, or raise what it fails with."""
        results: list[Any] = []
        deferred.addCallbacks(results.append, lambda failure: results.append(failure.value))
        if self.endpoint is not None:
            self.endpoint.flush()
        assert len(results) == 1, "it has not fired once"
        if isinstance(results[0], Exception):
            raise results[0]
        return results[0]


def identified(identifier: bytes) -> Packet:
    return Packet(ANSWER, 1, identifier)


class TestEnqueue:
    def test_id(self) -> None:
        """The answer brings the task's id."""
        spooler = Spooler(identified(b"17"))
        assert spooler.result(spooler.enqueue(A, {"to": "ann", "priority": 1})) == 17
        assert spooler.asked == [Packet(SPOOL, SPOOL_WITH_ID, encode_vars({"to": "ann", "priority": 1}))]

    @pytest.mark.parametrize("body", [b"x", bytes(200_000), encode_vars({"looks": "like more"})])
    def test_body(self, body: bytes) -> None:
        """A body goes behind the variables, which say how large it is."""
        spooler = Spooler(identified(b"17"))
        assert spooler.result(spooler.enqueue(A, {"to": "ann"}, body)) == 17
        ((_, _, payload),) = spooler.asked
        block, rest, missing = split_vars(payload)
        assert (rest, missing) == (body, 0)
        assert block == encode_vars([("CONTENT_LENGTH", len(body)), ("to", "ann")])

    def test_another_kind_of_spooler(self) -> None:
        """A spooler that gives no ids has accepted the task nevertheless."""
        spooler = Spooler(YES)
        assert spooler.result(spooler.enqueue(A, {"to": "ann"})) is None

    def test_another_kind_of_spooler_and_a_body(self) -> None:
        """One that can't have seen the body is an error."""
        spooler = Spooler(YES)
        with pytest.raises(ProtocolError, match="doesn't support bodies") as caught:
            spooler.result(spooler.enqueue(A, {"to": "ann"}, b"body"))
        assert caught.value.address == A

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (NO, SpoolRefused),
            (Packet(100, 1, b"x"), ProtocolError),
            (Packet(MARSHAL, 0, dumps([1])), ProtocolError),
            (SpoolRefused("no"), SpoolRefused),
        ],
    )
    def test_not_accepted(self, answer: object, error: type[Exception]) -> None:
        """Anything else means that the task was not accepted."""
        spooler = Spooler(answer)
        with pytest.raises(error) as caught:
            spooler.result(spooler.enqueue(A, {"to": "ann"}))
        assert caught.value.address == A  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("task", "body", "error"),
        [
            (None, b"", UnencodableMessage),
            ([("a", "b")], b"", UnencodableMessage),
            ({"a": None}, b"", UnencodableMessage),
            ({"a": "b"}, "text", UnencodableMessage),
            ({"a": "b"}, None, UnencodableMessage),
            ({"a": "b", "CONTENT_LENGTH": 1}, b"x", UnencodableMessage),
            ({b"CONTENT_LENGTH": b""}, b"", UnencodableMessage),
            ({"a": "x" * 40_000, "b": "x" * 40_000}, b"", MessageTooLarge),
            ({"a": "x" * 65_530}, b"body", MessageTooLarge),
            ({"a": "b"}, bytes(2 << 20), MessageTooLarge),
        ],
    )
    def test_misuse(self, task: Any, body: Any, error: type[Exception]) -> None:
        """What can't be sent fails before anything is."""
        spooler = Spooler(identified(b"17"))
        with pytest.raises(error):
            spooler.result(spooler.enqueue(A, task, body))
        assert spooler.asked == []


class TestEnqueueMany:
    def test_ids(self) -> None:
        """Several tasks are one request, and their ids its answer."""
        spooler = Spooler([5, 6])
        assert spooler.result(spooler.enqueue_many(A, [{"to": "ann"}, ({b"to": b"bob"}, b"body")])) == [5, 6]
        ((modifier1, _, payload),) = spooler.asked
        batch: Any = loads(payload)
        assert modifier1 == MARSHAL
        assert decode_batch(batch) == [
            BatchItem(encode_vars({"to": "ann"})),
            BatchItem(encode_vars({"to": "bob"}), b"body"),
        ]

    def test_misuse(self) -> None:
        """A task that can't be sent keeps all of them here, and the error says which it is."""
        spooler = Spooler([5])
        with pytest.raises(MisuseError, match="task 1: a key or value of type list") as caught:
            spooler.result(spooler.enqueue_many(A, [{"a": "b"}, {"a": []}]))  # type: ignore[dict-item]
        assert caught.value.address == A
        assert spooler.asked == []

    def test_too_many(self) -> None:
        """There is a limit to how many go at once."""
        spooler = Spooler([5])
        with pytest.raises(MisuseError, match="more than 10000 tasks"):
            spooler.result(spooler.enqueue_many(A, ({} for _ in range(10_001))))

    @pytest.mark.parametrize("answer", [None, 5, ["5"], [True], (5,), {"changed": [5]}])
    def test_another_kind_of_answer(self, answer: object) -> None:
        """What isn't a list of ids isn't taken for one."""
        spooler = Spooler(answer)
        with pytest.raises(ProtocolError, match="not a uwsgitwisted spooler"):
            spooler.result(spooler.enqueue_many(A, [{}]))


class TestStatus:
    def test_known(self) -> None:
        """What the spooler knows of a task comes with names."""
        spooler = Spooler([TOLD])
        assert spooler.result(spooler.status(A, 7)) == STATUS
        assert loads(spooler.asked[0].payload) == ("status", {"ids": [7]})

    def test_more_is_told(self) -> None:
        """A later spooler may say more."""
        spooler = Spooler([{**TOLD, "colour": "red"}])
        assert spooler.result(spooler.status(A, 7)) == STATUS

    @pytest.mark.parametrize(
        ("told", "result"),
        [(b"", None), (None, None), (dumps(1j), 1j), (b"junk", "(the result can't be read: ")],
    )
    def test_result(self, told: bytes | None, result: object) -> None:
        """What the handler returned is loaded here; what isn't safe to load is a text that says so."""
        spooler = Spooler([{**TOLD, "result": told}])
        loaded = spooler.result(spooler.status(A, 7)).result
        assert loaded == result if told != b"junk" else str(loaded).startswith(str(result))

    def test_unknown(self) -> None:
        """A task that is not there is an error."""
        spooler = Spooler([])
        with pytest.raises(NoSuchTask, match="no task 7, or not any more") as caught:
            spooler.result(spooler.status(A, 7))
        assert caught.value.address == A

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            TOLD,
            [None],
            [{}],
            [{**TOLD, "state": b"done"}],
            [{**TOLD, "id": "7"}],
            [{**TOLD, "at": None}],
            [{**TOLD, "result": [1]}],
            [{name: value for name, value in TOLD.items() if name != "result"}],
        ],
    )
    def test_another_kind_of_answer(self, answer: object) -> None:
        """An answer of another form is an error."""
        spooler = Spooler(answer)
        with pytest.raises(ProtocolError, match="not a uwsgitwisted spooler"):
            spooler.result(spooler.status(A, 7))

    @pytest.mark.parametrize(
        ("state", "done", "failed", "over"),
        [
            ("scheduled", False, False, False),
            ("ready", False, False, False),
            ("running", False, False, False),
            ("done", True, False, True),
            ("dead", False, True, True),
            ("cancelled", False, False, True),
        ],
    )
    def test_what_a_state_means(self, state: str, done: bool, failed: bool, over: bool) -> None:
        """Whether a task succeeded, failed, or is over at all can be asked."""
        status = dataclasses.replace(STATUS, state=state)
        assert (status.done, status.failed, status.over) == (done, failed, over)

    def test_value(self) -> None:
        """A status is a value: it can be compared, pickled, and not be changed."""
        assert pickle.loads(pickle.dumps(STATUS)) == STATUS
        with pytest.raises(dataclasses.FrozenInstanceError):
            STATUS.state = "dead"  # type: ignore[misc]


class TestWait:
    def test_over(self) -> None:
        """Whoever waits gets what is known of the task then."""
        spooler = Spooler(TOLD)
        assert spooler.result(spooler.wait(A, 7)) == STATUS
        assert loads(spooler.asked[0].payload) == ("wait", {"id": 7})

    def test_large_result(self) -> None:
        """A result that was too large for the answer is asked for."""
        spooler = Spooler({"wait": {**TOLD, "result": None}, "status": [TOLD]})
        waiting = spooler.wait(A, 7)
        assert spooler.endpoint is not None
        spooler.endpoint.flush()
        assert spooler.result(waiting) == STATUS
        assert [loads(packet.payload) for packet in spooler.asked] == [
            ("wait", {"id": 7}),
            ("status", {"ids": [7]}),
        ]

    def test_timeout(self) -> None:
        """A timeout that is no number fails the call before anything is sent."""
        spooler = Spooler(TOLD)
        timeout: Any = "soon"
        with pytest.raises(MisuseError, match="a number of seconds above 0"):
            spooler.result(spooler.wait(A, 7, timeout))
        assert spooler.endpoint is None

    def test_not_over(self) -> None:
        """A task that isn't over in time is an error, and nobody waits any more."""
        spooler = Spooler(Deferred)
        waiting = spooler.wait(A, 7, timeout=5)
        assert spooler.endpoint is not None
        spooler.endpoint.flush()
        spooler.clock.advance(5.1)
        with pytest.raises(RequestTimeout):
            spooler.result(waiting)
        assert len(spooler.withdrawn) == 1

    def test_cancel(self) -> None:
        """So it is when the caller gives up."""
        spooler = Spooler(Deferred)
        waiting = spooler.wait(A, 7)
        assert spooler.endpoint is not None
        spooler.endpoint.flush()
        waiting.cancel()
        with pytest.raises(RequestCancelled):
            spooler.result(waiting)
        assert len(spooler.withdrawn) == 1

    def test_unknown(self) -> None:
        """The spooler's errors come as they are."""
        spooler = Spooler(NoSuchTask("there is no task 7"))
        with pytest.raises(NoSuchTask, match="there is no task 7"):
            spooler.result(spooler.wait(A, 7))


class TestCancel:
    def test_changed(self) -> None:
        """Whoever takes tasks back learns of which that was possible."""
        spooler = Spooler({"changed": [5], "more": False, "after": 6})
        assert spooler.result(spooler.cancel(A, (5, 6))) == [5]
        assert loads(spooler.asked[0].payload) == ("cancel", {"ids": [5, 6]})

    def test_not_allowed(self) -> None:
        """Not everybody may."""
        spooler = Spooler(NotAllowed("192.0.2.7:40001 may not manage this queue"))
        with pytest.raises(NotAllowed, match="may not manage"):
            spooler.result(spooler.cancel(A, [5]))

    @pytest.mark.parametrize("answer", [None, [5], {}, {"changed": 5}])
    def test_another_kind_of_answer(self, answer: object) -> None:
        """An answer of another form is an error."""
        spooler = Spooler(answer)
        with pytest.raises(ProtocolError, match="not a uwsgitwisted spooler"):
            spooler.result(spooler.cancel(A, [5]))


# Batches.


@given(
    st.lists(
        st.builds(BatchItem, st.binary(max_size=50), st.binary(max_size=50), st.binary(max_size=50)), max_size=8
    )
)
def test_batch_round_trip(items: list[BatchItem]) -> None:
    """What goes into a batch comes out of it."""
    assert decode_batch(encode_batch(items)) == items


@given(st.binary(max_size=100))
def test_batch_of_junk(data: bytes) -> None:
    """Junk is a batch by chance, or our error."""
    with suppress(MalformedPacket):
        assert encode_batch(decode_batch(data)) == data


@given(st.lists(st.builds(BatchItem, st.binary(max_size=9)), min_size=1, max_size=4), st.data())
def test_batch_that_is_cut(items: list[BatchItem], data: st.DataObject) -> None:
    """Of a batch that ends early, there are only whole tasks, or an error."""
    batch = encode_batch(items)
    cut = data.draw(st.integers(0, len(batch) - 1))
    with suppress(MalformedPacket):
        whole = decode_batch(batch[:cut])
        assert whole == items[: len(whole)]


def test_variables_of_a_batch() -> None:
    """A task that has been somewhere else may have brought a CONTENT_LENGTH from there."""
    assert batch_items([{"CONTENT_LENGTH": "5"}]) == [BatchItem(encode_vars({"CONTENT_LENGTH": "5"}))]


# Blocking calls. They send what those with Deferreds send, so here is only that they do, and what comes of it.


@pytest.mark.integration
@pytest.mark.usefixtures("outside_the_reactor", "plain_peers", "nothing_left_open")
class TestBlocking:
    @pytest.mark.parametrize(
        ("call", "answer", "value"),
        [
            (lambda at: blocking.enqueue(at, {"a": "b"}), frame(255, 1, b"17"), 17),
            (lambda at: blocking.enqueue(at, {"a": "b"}), frame(255, 1), None),
            (
                lambda at: blocking.enqueue_many(at, [{"a": "b"}, {}]),
                frame(33, 0, marshal.dumps([5, 6], 2)),
                [5, 6],
            ),
            (lambda at: blocking.status(at, 7), frame(33, 0, marshal.dumps([TOLD], 2)), STATUS),
            (lambda at: blocking.wait(at, 7), frame(33, 0, marshal.dumps(TOLD, 2)), STATUS),
            (lambda at: blocking.cancel(at, [5]), frame(33, 0, marshal.dumps({"changed": [5]}, 2)), [5]),
            (lambda at: manage(at, "stats", {}), frame(33, 0, marshal.dumps([], 2)), []),
        ],
    )
    def test_answers(self, call: Callable[[Any], object], answer: bytes, value: object) -> None:
        """Each call returns what its answer means."""
        with ScriptedServer(answering(answer)) as server:
            assert call(server.address) == value

    @pytest.mark.parametrize(
        ("call", "request_"),
        [
            (lambda at: blocking.enqueue(at, {"a": "b"}), frame(17, 2, encode_vars({"a": "b"}))),
            (
                lambda at: blocking.enqueue_many(at, [{"a": "b"}]),
                frame(33, 0, marshal.dumps(encode_batch([BatchItem(encode_vars({"a": "b"}))]), 2)),
            ),
            (lambda at: blocking.status(at, 7), frame(33, 0, marshal.dumps(("status", {"ids": [7]}), 2))),
            (lambda at: blocking.wait(at, 7), frame(33, 0, marshal.dumps(("wait", {"id": 7}), 2))),
            (lambda at: blocking.cancel(at, (5,)), frame(33, 0, marshal.dumps(("cancel", {"ids": [5]}), 2))),
        ],
    )
    def test_requests(self, call: Callable[[Any], object], request_: bytes) -> None:
        """Each call sends what the client with Deferreds sends; an answer that means nothing is an error."""
        with ScriptedServer(answering(frame(100, 1))) as server, pytest.raises(ProtocolError) as caught:
            call(server.address)
        assert server.requests == [request_]
        assert caught.value.address == server.address

    def test_large_result(self) -> None:
        """A result that was too large for the answer to a wait is asked for."""

        def answer(server: ScriptedServer, connection: Any) -> None:
            waits = b"wait" in server.read_request(connection)
            connection.sendall(frame(33, 0, dumps({**TOLD, "result": None} if waits else [TOLD])))

        with ScriptedServer(answer) as server:
            assert blocking.wait(server.address, 7) == STATUS

    def test_unknown(self) -> None:
        """A task that isn't there is an error."""
        with ScriptedServer(answering(frame(33, 0, marshal.dumps([], 2)))) as server, pytest.raises(NoSuchTask):
            blocking.status(server.address, 7)

    def test_a_body_for_another_kind_of_spooler(self) -> None:
        """A plain peer can't know of a body, so nothing is sent to it."""
        with ScriptedServer(answering(frame(255, 1))) as server, pytest.raises(MisuseError, match="body"):
            blocking.enqueue(server.address, {"a": "b"}, b"body")
        assert server.requests == []

    def test_refused(self) -> None:
        """So is one that was not accepted."""
        with ScriptedServer(answering(frame(255, 0))) as server, pytest.raises(SpoolRefused):
            blocking.enqueue(server.address, {"a": "b"})


def test_task_message_without_a_body() -> None:
    """A task without a body is what every spooler takes."""
    assert TaskMessage({"a": "b"}).encode() == encode_vars({"a": "b"})
