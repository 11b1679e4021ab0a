"""The responder of a spooler's modifier1 33: permissions, commands and answers."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from tests.unit.peers import peer_at
from uwsgitwisted.access import Peer
from uwsgitwisted.errors import (
    Busy,
    MalformedPacket,
    MessageTooLarge,
    NoSuchTask,
    NotAllowed,
    RequestTimeout,
    SpoolError,
    StoreUnavailable,
    Unavailable,
    UnsafeObject,
    UwsgiError,
)
from uwsgitwisted.interfaces import IResponder, Request
from uwsgitwisted.responders.manage import MAX_COMMAND, MAX_WAIT, ManageResponder
from uwsgitwisted.spool import job_scheduler
from uwsgitwisted.spool.job_scheduler import JobScheduler
from uwsgitwisted.spool.records import describe_record
from uwsgitwisted.spool.stores.interface import ISpoolStore, Record
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.spool.task import State, Task
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.wire.tasks import MAX_BATCH, batch_items, encode_batch
from uwsgitwisted.wire.vars import encode_vars

NOW = 1_700_000_000.0
HERE, ELSEWHERE = peer_at("127.0.0.1"), peer_at("10.0.0.7")
TASK = Task(encode_vars({"to": "ann"}), NOW, NOW, id=7)


class FakeSpooler:
    """Calls a store at once, or when released; the test finishes tasks."""

    def __init__(self, store: ISpoolStore) -> None:
        self.held: list[Callable[[], None]] | None = None
        self.jobs = JobScheduler(self, store)  # type: ignore[arg-type]
        self.jobs.open()
        self.waiting: list[tuple[int, Deferred[Any]]] = []
        self.groups: list[str] = []
        self.cancelled: list[int] = []
        self.changes: list[list[int]] = []

    def run(self, function: Callable[..., Any], *args: object) -> Deferred[Any]:
        if self.held is None:
            return maybeDeferred(function, *args)
        asked: Deferred[Any] = Deferred()
        self.held.append(lambda: maybeDeferred(function, *args).chainDeferred(asked))
        return asked

    def wait(self, identifier: int, group: str) -> Deferred[Any]:
        over: Deferred[Any] = Deferred(lambda _: self.cancelled.append(identifier))
        self.waiting.append((identifier, over))
        self.groups.append(group)
        return over

    def note_change(self, ended: Iterable[int]) -> None:
        self.changes.append(list(ended))

    def release(self) -> None:
        """Make the calls that are held."""
        calls, self.held = self.held or [], None
        for call in calls:
            call()


class Bench:
    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.store = SqliteStore(str(path))
        self.store.open(lambda: None)
        self.spooler = FakeSpooler(self.store)
        self.responder = ManageResponder(self.clock, self.spooler, now=lambda: NOW)  # type: ignore[arg-type]

    def send(
        self, payload: bytes, peer: Peer = HERE, seconds: float | None = None, modifier2: int = 0
    ) -> Deferred[Packet]:
        packet = Packet(MARSHAL, modifier2, payload)
        return self.responder.respond(Request(packet, peer=peer, seconds=seconds))

    def ask(
        self, operation: object, *, peer: Peer = HERE, seconds: float | None = None, **arguments: object
    ) -> Any:
        """Send a request; return the answer, or the error with which it failed."""
        return value_of(self.send(dumps((operation, arguments)), peer, seconds))

    def enqueue(self, *tasks: Any, peer: Peer = ELSEWHERE) -> Any:
        return value_of(self.send(dumps(encode_batch(batch_items(tasks))), peer))


def value_of(deferred: Deferred[Packet]) -> Any:
    """Return the content of an answer that has arrived."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "there is no answer yet"
    if isinstance(results[0], Failure):
        raise results[0].value  # type: ignore[misc]
    return loads(results[0].payload)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "spool.sqlite")
    yield made
    made.store.close()


def test_interface(bench: Bench) -> None:
    """It is a responder."""
    assert verifyObject(IResponder, bench.responder)


@pytest.mark.parametrize("modifier2", [0, 17, 255])
def test_answer(bench: Bench, modifier2: int) -> None:
    """The answer has the request's modifiers, as a node's has."""
    results: list[Packet] = []
    bench.send(dumps(("stats", {})), modifier2=modifier2).addCallback(results.append)
    assert results == [Packet(MARSHAL, modifier2, dumps([]))]


# Operations that are open to everybody.


def test_batch(bench: Bench) -> None:
    """Tasks of one batch are stored together, with their bodies."""
    ids = bench.enqueue({"to": "ann", "priority": 1}, ({b"to": b"bob"}, b"body"))
    first, second = bench.store.find(ids)
    assert (first.task.priority, first.task.created) == (1, NOW)
    assert bench.store.body(second.task.id) == b"body"


def test_empty_batch(bench: Bench) -> None:
    """An empty batch gets no ids, and doesn't use the store."""
    bench.spooler.held = []
    assert bench.enqueue() == []
    assert [value_of(bench.send(marshal.dumps(b"", version))) for version in range(5)] == [[]] * 5
    assert bench.spooler.changes == []


def test_a_large_batch(bench: Bench) -> None:
    """A batch may be far larger than a command."""
    assert len(bench.enqueue(*[({"n": n}, bytes(1_000)) for n in range(1_000)])) == 1_000


def test_batch_by_other_hands(bench: Bench) -> None:
    """The bytes of a batch may have been marshalled in any version."""
    batch = encode_batch(batch_items([{"a": "b"}]))
    assert all(value_of(bench.send(marshal.dumps(batch, version))) for version in range(5))


@pytest.mark.parametrize(
    "task", [{"priority": "../x"}, {"at": "never"}, {f"k{n}": "x" * 60_000 for n in range(2)}]
)
def test_refused_batch(bench: Bench, task: dict[str, str]) -> None:
    """If a task is refused, no task of its batch is stored."""
    blocks = [encode_vars({"a": "b"}), encode_vars(task)]
    batch = b"".join(len(block).to_bytes(4, "little") + bytes(8) + block for block in blocks)
    with pytest.raises(UwsgiError):
        value_of(bench.send(dumps(batch)))
    assert bench.store.records(10) == []


@pytest.mark.parametrize("batch", [b"x", bytes(11), b"\xff" * 12, bytes(12) * (MAX_BATCH + 1)])
def test_broken_batch(bench: Bench, batch: bytes) -> None:
    """Bytes that are not a batch are refused."""
    with pytest.raises(MalformedPacket):
        value_of(bench.send(dumps(batch)))


def test_status(bench: Bench) -> None:
    """Every peer may query a task whose id it knows."""
    (identifier,) = bench.enqueue({"a": "b"})
    (status,) = bench.ask("status", ids=[identifier, 99], peer=ELSEWHERE)
    assert (status["id"], status["state"]) == (identifier, "ready")


def test_wait(bench: Bench) -> None:
    """A waiting peer gets an answer when the task is finished."""
    waiting = bench.send(dumps(("wait", {"id": 7})), ELSEWHERE, 60.0)
    assert not waiting.called
    ((identifier, over),) = bench.spooler.waiting
    assert identifier == 7
    over.callback(describe_record(Record(TASK, State.DONE, finished=NOW, result=dumps([1]))))
    assert value_of(waiting)["result"] == dumps([1])
    assert bench.spooler.groups == [ELSEWHERE.group]
    assert not bench.clock.getDelayedCalls()


def test_wait_without_a_deadline(bench: Bench) -> None:
    """A plain peer can't send its timeout; its wait has a default timeout."""
    waiting = bench.send(dumps(("wait", {"id": 7})))
    bench.clock.advance(MAX_WAIT - 0.1)
    assert not waiting.called
    bench.clock.advance(0.2)
    with pytest.raises(RequestTimeout, match="not finished after 55 s"):
        value_of(waiting)
    assert bench.spooler.cancelled == [7]


def test_wait_that_is_over_first(bench: Bench) -> None:
    """When the wait times out, the request fails, and nothing waits for the task any more."""
    waiting = bench.send(dumps(("wait", {"id": 7})), seconds=5.0)
    bench.clock.advance(4.9)
    assert not waiting.called
    bench.clock.advance(0.2)
    with pytest.raises(RequestTimeout, match="not finished after 5 s"):
        value_of(waiting)
    assert bench.spooler.cancelled == [7]


def test_wait_that_is_withdrawn(bench: Bench) -> None:
    """When the peer is gone, nothing waits for the task any more."""
    waiting = bench.send(dumps(("wait", {"id": 7})), seconds=5.0)
    waiting.cancel()
    with pytest.raises(CancelledError):
        value_of(waiting)
    assert bench.spooler.cancelled == [7]
    assert not bench.clock.getDelayedCalls()


@pytest.mark.parametrize("error", [NoSuchTask("x"), Busy("x"), Unavailable("x"), StoreUnavailable("x")])
def test_wait_that_fails(bench: Bench, error: UwsgiError) -> None:
    """The spooler's errors go to the peer."""
    waiting = bench.send(dumps(("wait", {"id": 7})), seconds=5.0)
    bench.spooler.waiting[0][1].errback(error)
    with pytest.raises(type(error)):
        value_of(waiting)


@pytest.mark.parametrize("arguments", [{}, {"id": 0}, {"id": "7"}, {"id": 7, "x": 1}, [], None])
def test_wait_for_what(bench: Bench, arguments: object) -> None:
    """A wait needs an id."""
    with pytest.raises(SpoolError, match="wait"):
        bench.send(dumps(("wait", arguments)))


# Operations for managers.


def test_managing(bench: Bench) -> None:
    """A manager may do everything, and the spooler is notified."""
    ids = bench.enqueue({"a": "b"}, {"a": "c"})
    assert bench.ask("cancel", ids=ids[:1])["changed"] == ids[:1]
    assert [task["state"] for task in bench.ask("list")] == ["cancelled", "ready"]
    assert bench.spooler.changes == [[], ids[:1]]
    bench.ask("pause", queue="")
    assert bench.spooler.changes == [[], ids[:1], []]


@pytest.mark.parametrize(
    "operation",
    [
        "list",
        "show",
        "stats",
        "dead",
        "export",
        "retry",
        "drop",
        "cancel",
        "pause",
        "resume",
        "enqueue",
        "nothing",
    ],
)
def test_not_for_others(bench: Bench, operation: str) -> None:
    """Nobody else may, and the error says who is allowed to."""
    (identifier,) = bench.enqueue({"a": "b"})
    with pytest.raises(NotAllowed, match=r"10\.0\.0\.7:5000 may not manage this queue; .*--manage"):
        bench.ask(operation, ids=[identifier], peer=ELSEWHERE)
    assert [record.state for record in bench.store.records(10)] == [State.READY]


# Invalid commands.


@pytest.mark.parametrize(
    "message",
    [None, 1, "list", [], ("list",), ("list", {}, {}), (1, {}), (b"list", {}), ({}, "list"), {"list": {}}, 0.5],
)
def test_no_question(bench: Bench, message: object) -> None:
    """A message of another form is refused; the error shows the right form."""
    with pytest.raises(SpoolError, match=r"\(operation, arguments\)"):
        bench.send(dumps(message))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"junk",
        b"s",
        b"s\x05\x00\x00\x00x",
        b"c\x00",
        b"(\xff\xff\xff\x7f",
        b")\x02",
        b")\x02z",
        b")\x02z\x04stat",
        b")\x02z\x06statusc",
        b")\x02u\x06\0\0\0statusN0",
    ],
)
def test_no_object(bench: Bench, payload: bytes) -> None:
    """Bytes that are not safe to load are not loaded."""
    with pytest.raises((UnsafeObject, SpoolError)):
        value_of(bench.send(payload))


@pytest.mark.parametrize("version", range(5))
def test_questions_by_other_hands(bench: Bench, version: int) -> None:
    """A command may be marshalled in any version, as a tuple or a list."""
    (identifier,) = bench.enqueue({"a": "b"})
    for kind in (tuple, list):
        question = kind(("status", {"ids": [identifier]}))
        (status,) = value_of(bench.send(marshal.dumps(question, version), ELSEWHERE))
        assert status["id"] == identifier
    text = marshal.dumps("st" + "atus", version)  # not interned
    asked = bench.send(b"(\x02\0\0\0" + text + marshal.dumps({"ids": [identifier]}, version), ELSEWHERE)
    assert len(value_of(asked)) == 1


def test_rights_come_first(bench: Bench) -> None:
    """A command without permission is not loaded; a permitted one has plain types, or is refused."""
    data = dumps({1})
    with pytest.raises(NotAllowed):
        bench.send(b")\x02z\x04list" + data, ELSEWHERE)
    with pytest.raises(UnsafeObject, match="a set"):
        bench.send(b")\x02z\x04list" + data)
    with pytest.raises(UnsafeObject, match="a set"):
        bench.send(b")\x02z\x06status" + data, ELSEWHERE)


@given(payload=st.binary(max_size=200))
def test_junk(shared: Bench, payload: bytes) -> None:
    """Junk gives one of our errors, and nothing else."""
    with suppress(UwsgiError):
        value_of(shared.send(payload))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("shared") / "spool.sqlite")
    yield made
    made.store.close()


def test_a_question_is_small(bench: Bench) -> None:
    """The bytes to unmarshal are limited, and keys that collide are refused."""
    with pytest.raises(MessageTooLarge) as caught:
        bench.ask("list", queue="x" * MAX_COMMAND)
    assert caught.value.limit == MAX_COMMAND
    colliding = dumps(("list", {"queue": {n * (2**61 - 1): None for n in range(1, 2_000)}}))
    assert len(colliding) < MAX_COMMAND
    with pytest.raises(UnsafeObject, match="chosen to collide"):
        bench.send(colliding)


# What waits for the store.


def test_too_many(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited number of a peer's requests may wait for the store; more are refused."""
    monkeypatch.setattr(job_scheduler, "MAX_PEER_PENDING", 2)
    bench.spooler.held = []
    waiting = [bench.send(dumps(("stats", {}))) for _ in range(2)]
    with pytest.raises(Busy):
        bench.ask("stats")
    waiting.append(bench.send(dumps(("status", {"ids": [1]})), ELSEWHERE))
    bench.spooler.release()
    assert [value_of(each) for each in waiting] == [[], [], []]
    assert bench.ask("stats") == []


def test_what_many_ids_weigh(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query for many tasks counts once for each of its slices."""
    monkeypatch.setattr(job_scheduler, "MAX_PEER_PENDING", 20)
    bench.spooler.held = []
    ask = dumps(("status", {"ids": list(range(1, 1_001))}))
    assert not bench.send(ask).called
    with pytest.raises(Busy):
        value_of(bench.send(ask))


def test_withdrawn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose peer is gone is dropped if it hasn't started; otherwise it is stored, and noted."""
    bench.spooler.held = []
    batch = dumps(encode_batch(batch_items([{}])))
    begun, waiting = bench.send(batch), bench.send(batch)
    for each in (begun, waiting):
        each.cancel()
        with pytest.raises(CancelledError):
            value_of(each)
    bench.spooler.release()
    assert len(bench.store.records(10)) == 1
    assert bench.spooler.changes == [[]]


@pytest.mark.parametrize("error", [StoreUnavailable("the disk is full"), Unavailable("not running")])
def test_failures(bench: Bench, monkeypatch: pytest.MonkeyPatch, error: UwsgiError) -> None:
    """An error in the store fails the request, which no longer counts against the limit."""
    monkeypatch.setattr(job_scheduler, "MAX_PEER_PENDING", 1)
    with monkeypatch.context() as patched:
        patched.setattr(bench.spooler, "run", lambda *_: fail(error))
        with pytest.raises(type(error)):
            bench.ask("stats")
    assert bench.ask("stats") == []
