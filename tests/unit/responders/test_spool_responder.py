"""The responder of modifier1 17: the forms of requests, and their answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.unit.peers import peer_at
from uwsgitwisted.errors import (
    Busy,
    MalformedPacket,
    MessageTooLarge,
    SpoolCorrupt,
    SpoolError,
    StoreUnavailable,
    Unavailable,
)
from uwsgitwisted.interfaces import IEngine, IResponder, Request
from uwsgitwisted.responders.spool import (
    BODIES,
    MAX_WAITING_CONVERSIONS,
    SPOOL_OVER_HTTP,
    SpoolResponder,
)
from uwsgitwisted.spool.slices import Job, finish
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.spool.stores.interface import Record
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.spool.task import State, Task
from uwsgitwisted.transport.reports import INTERVAL
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import ANSWER, NO, SPOOL, YES, Packet
from uwsgitwisted.wire.tasks import SPOOL_WITH_ID, TaskMessage, decode_run
from uwsgitwisted.wire.vars import decode_vars, encode_vars

TASK = encode_vars({"to": "ann"})


def result_of(deferred: Deferred[Any]) -> Any:
    """Return what *deferred* has fired with."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "it has not fired"
    return results[0]


class FakeSpooler:
    """Records its calls; the test decides their outcomes."""

    def __init__(self) -> None:
        self.enqueued: list[tuple[bytes, bytes]] = []
        self.stored: Deferred[int] = succeed(7)
        self.looked_up: list[list[int]] = []
        self.found: list[Record] | Exception = [Record(Task(TASK, 1.0, 1.0, id=7), State.READY)]
        self.results: dict[int, bytes] = {}
        self.groups: list[str] = []

    def enqueue(self, variables: bytes, body: bytes = b"") -> Deferred[int]:
        self.enqueued.append((variables, body))
        return self.stored

    @property
    def jobs(self) -> FakeSpooler:
        return self

    def submit(self, group: str, job: Job[Any]) -> Deferred[Any]:
        self.groups.append(group)
        return maybeDeferred(lambda: finish(job(self)))  # type: ignore[arg-type]

    # As a store.

    def find(self, ids: list[int]) -> list[Record]:
        self.looked_up.append(ids)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def states(self, ids: list[int]) -> dict[int, State]:
        return {record.task.id: record.state for record in self.find(ids)}

    def result(self, identifier: int) -> bytes:
        return self.results[identifier]


class Bench:
    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.spooler = FakeSpooler()
        self.in_threads: list[Callable[[], None]] = []
        self.responder = SpoolResponder(
            self.spooler,  # type: ignore[arg-type]
            monotonic=self.clock.seconds,
            in_thread=self.in_thread,
            **options,
        )

    def in_thread(self, function: Callable[..., bytes], *args: object) -> Deferred[bytes]:
        """Hold a call until the test makes it."""
        called: Deferred[bytes] = Deferred()
        self.in_threads.append(lambda: maybeDeferred(function, *args).chainDeferred(called))
        return called

    def ask(self, payload: bytes, modifier2: int = 9) -> Deferred[Any]:
        return self.responder.respond(Request(Packet(SPOOL, modifier2, payload), peer=peer_at("10.0.0.7")))

    def http(
        self, method: str, path: str = "/tasks", body: bytes = b"", more: Mapping[str, str] | None = None
    ) -> Http:
        """Ask as nginx does."""
        size = str(len(body)) if body else ""
        variables = {"REQUEST_METHOD": method, "CONTENT_LENGTH": size, "REQUEST_URI": path, **(more or {})}
        return Http(result_of(self.ask(encode_vars(variables) + body, SPOOL_OVER_HTTP)))


class Http:
    """An answer, taken apart."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        version, code, self.phrase = status.split(" ", 2)
        assert version == "HTTP/1.0"
        self.status = int(code)
        self.headers = dict(line.split(": ", 1) for line in lines)
        assert self.headers["Content-Type"] == "application/json"

    @property
    def told(self) -> Any:
        """What the body says."""
        assert int(self.headers["Content-Length"]) == len(self.body)
        return json.loads(self.body)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    """The logged refusals."""
    events: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        if event["log_namespace"] == "uwsgitwisted.responders.spool.SpoolResponder":
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


def test_interface(bench: Bench) -> None:
    """It is a responder."""
    assert verifyObject(IResponder, bench.responder)


class TestPlain:
    def test_yes(self, bench: Bench) -> None:
        """The answer is yes, after the commit and not before it."""
        bench.spooler.stored = Deferred()
        asked = bench.ask(TASK)
        assert not asked.called
        bench.spooler.stored.callback(7)
        assert result_of(asked) == YES
        assert bench.spooler.enqueued == [(TASK, b"")]

    def test_no_body(self, bench: Bench) -> None:
        """A CONTENT_LENGTH means nothing here: the payload is the variables, as uWSGI has it."""
        block = encode_vars({"CONTENT_LENGTH": 3})
        bench.ask(block + b"abc")
        assert bench.spooler.enqueued == [(block + b"abc", b"")]

    @pytest.mark.parametrize(
        "error",
        [MalformedPacket("why"), SpoolError("why"), Busy("why"), StoreUnavailable("why"), Unavailable("why")],
    )
    def test_no(self, bench: Bench, logged: list[dict[str, Any]], error: Exception) -> None:
        """What is not stored is answered with no; the log has the reason and the peer."""
        bench.spooler.stored = fail(error)
        assert result_of(bench.ask(TASK)) == NO
        (event,) = logged
        assert event["reason"] == "why"
        assert (event["peer"].name, event["count"]) == ("10.0.0.7:5000", 1)

    def test_defect(self, bench: Bench, logged: list[dict[str, Any]]) -> None:
        """A defect of ours is answered with no too, and logged with its traceback."""
        bench.spooler.stored = fail(ZeroDivisionError())
        assert result_of(bench.ask(TASK)) == NO
        assert isinstance(logged[0]["log_failure"].value, ZeroDivisionError)

    def test_log_is_bounded(self, bench: Bench, logged: list[dict[str, Any]]) -> None:
        """However many tasks are refused, the log gets a line in a while, which counts them."""

        def refuse() -> None:
            bench.spooler.stored = fail(SpoolError("why"))
            bench.ask(TASK)

        for _ in range(100):
            refuse()
        bench.clock.advance(INTERVAL)
        refuse()
        assert [event["count"] for event in logged] == [1, 100]

    @pytest.mark.parametrize("modifier2", [0, SPOOL_OVER_HTTP, SPOOL_WITH_ID])
    def test_withdrawn(self, bench: Bench, logged: list[dict[str, Any]], modifier2: int) -> None:
        """A cancelled request drops its task, and leaves no line in the log."""
        withdrawn: list[object] = []
        bench.spooler.stored = Deferred(withdrawn.append)
        asked = bench.ask(encode_vars({"REQUEST_METHOD": "POST"}), modifier2)
        asked.cancel()
        result = result_of(asked)
        assert isinstance(result, Failure)
        assert isinstance(result.value, CancelledError)
        assert withdrawn == [bench.spooler.stored]
        assert logged == []


class TestWithId:
    def test_id(self, bench: Bench) -> None:
        """The answer to a task with a body is its id; the handler doesn't see the body's framing."""
        payload = TaskMessage({"to": "ann", "priority": 1}, b"a letter").encode()
        assert result_of(bench.ask(payload, SPOOL_WITH_ID)) == Packet(ANSWER, 1, b"7")
        assert bench.spooler.enqueued == [(encode_vars({"to": "ann", "priority": 1}), b"a letter")]

    def test_no_body(self, bench: Bench) -> None:
        """Without a body, the variables are stored unchanged."""
        block = encode_vars([("to", "ann"), ("to", "bob"), ("note", "CONTENT_LENGTH")])
        result_of(bench.ask(block, SPOOL_WITH_ID))
        (variables, body), *_ = bench.spooler.enqueued
        assert (decode_vars(variables), body) == (decode_vars(block), b"")

    @pytest.mark.parametrize(
        ("payload", "error"),
        [
            (b"\x01", MalformedPacket),
            (encode_vars({"CONTENT_LENGTH": "x"}), MalformedPacket),
            (encode_vars({"CONTENT_LENGTH": 5}) + b"abc", MalformedPacket),
            (encode_vars({"CONTENT_LENGTH": 5}), MessageTooLarge),
            (encode_vars([("k", bytes(40_000)), ("l", bytes(40_000))]), MessageTooLarge),
        ],
    )
    def test_malformed(self, bench: Bench, payload: bytes, error: type[Exception]) -> None:
        """An invalid task fails, and nothing is enqueued."""
        assert isinstance(result_of(bench.ask(payload, SPOOL_WITH_ID)).value, error)
        assert bench.spooler.enqueued == []

    def test_refused(self, bench: Bench, logged: list[dict[str, Any]]) -> None:
        """A refusal is passed on unchanged; the server logs it."""
        bench.spooler.stored = fail(StoreUnavailable("the disk is full"))
        assert isinstance(result_of(bench.ask(TASK, SPOOL_WITH_ID)).value, StoreUnavailable)
        assert logged == []


class TestHttp:
    @pytest.mark.parametrize("method", ["POST", "PUT"])
    def test_accepted(self, bench: Bench, method: str) -> None:
        """A request that enqueues gets the task's id and state, and the Location of its status."""
        answer = bench.http(method, "/tasks?to=ann", b"a letter", {"QUERY_STRING": "to=ann"})
        assert (answer.status, answer.phrase) == (202, "Accepted")
        assert answer.headers["Location"] == "/tasks/7"
        assert answer.told == {"id": 7, "state": "ready"}
        ((variables, body),) = bench.spooler.enqueued
        assert decode_vars(variables) == {b"REQUEST_METHOD": method.encode(), b"QUERY_STRING": b"to=ann"}
        assert body == b"a letter"

    def test_only_what_is_listed(self) -> None:
        """The task gets only the listed variables, and the spooler's, which a browser can't set."""
        bench = Bench(http_vars=["HTTP_X_USER", "REMOTE_ADDR"])
        sent = {
            "HTTP_X_USER": "ann",
            "HTTP_AT": "5",
            "HTTP_SPOOLER": "evil",
            "HTTP_COOKIE": "secret",
            "UWSGI_FILE": "/etc/passwd",
            "at": "17",
            "priority": "3",
            "spooler": "web",
            "idempotency_key": "k",
            "HTTP_IDEMPOTENCY_KEY": "other",
        }
        assert bench.http("POST", more=sent).status == 202
        ((variables, _),) = bench.spooler.enqueued
        assert decode_vars(variables) == {
            b"HTTP_X_USER": b"ann",
            b"at": b"17",
            b"priority": b"3",
            b"spooler": b"web",
            b"idempotency_key": b"k",
        }

    @pytest.mark.parametrize("own", [{}, {"idempotency_key": ""}])
    def test_idempotency_key(self, bench: Bench, own: dict[str, str]) -> None:
        """The header Idempotency-Key is the key where nginx sets none."""
        bench.http("POST", more={"HTTP_IDEMPOTENCY_KEY": "k-1", **own})
        assert decode_vars(bench.spooler.enqueued[0][0])[b"idempotency_key"] == b"http:k-1"

    def test_no_idempotency_key(self, bench: Bench) -> None:
        """An empty header is not a key, so it doesn't merge two tasks."""
        bench.http("POST", more={"HTTP_IDEMPOTENCY_KEY": ""})
        assert b"idempotency_key" not in decode_vars(bench.spooler.enqueued[0][0])

    def test_status(self, bench: Bench) -> None:
        """A GET of a task's path returns its status."""
        task = Task(TASK, at=20.5, created=10.0, queue="web", attempts=2, crashes=1, id=7)
        error = "Traceback ...\n  File secret.py\nValueError: no such user"
        result = dumps({"sent": [1, None]})
        bench.spooler.found = [Record(task, State.DONE, 30.0, 31.0, error, result)]
        answer = bench.http("GET", "/tasks/7?x=1")
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.told == {
            "id": 7,
            "state": "done",
            "queue": "web",
            "attempts": 2,
            "crashes": 1,
            "created": 10.0,
            "at": 20.5,
            "started": 30.0,
            "finished": 31.0,
            "error": "ValueError: no such user",
            "result": {"sent": [1, None]},
        }
        assert bench.spooler.looked_up == [[7]]
        assert bench.spooler.groups == ["10.0.0.7"]
        assert bench.spooler.enqueued == []

    def get(self, bench: Bench) -> Deferred[bytes]:
        """Ask for a task whose result is large."""
        bench.spooler.found = [Record(Task(TASK, 1.0, 1.0, id=7), State.DONE, result_size=5_000)]
        bench.spooler.results[7] = dumps(["x"] * 1_000)
        get = {"REQUEST_METHOD": "GET", "REQUEST_URI": "/tasks/7"}
        return bench.ask(encode_vars(get), SPOOL_OVER_HTTP)

    def test_large_result(self, bench: Bench) -> None:
        """A thread encodes large results as JSON, one at a time; too many waiting requests are refused."""
        number = 1 + MAX_WAITING_CONVERSIONS
        answers = [self.get(bench) for _ in range(number)]
        assert len(bench.in_threads) == 1
        assert Http(result_of(self.get(bench))).status == 503
        while bench.in_threads:
            assert len(bench.in_threads) == 1
            bench.in_threads.pop(0)()
        assert [Http(result_of(answer)).told["result"] for answer in answers] == [["x"] * 1_000] * number

    def test_large_result_nobody_waits_for(self, bench: Bench) -> None:
        """A cancelled request makes room for another."""
        answers = [self.get(bench) for _ in range(2)]
        for answer in answers[:-1]:
            answer.addErrback(lambda _: None)
            answer.cancel()
        assert len(bench.in_threads) == 2
        bench.in_threads[-1]()
        assert Http(result_of(answers[-1])).status == 200

    def test_head(self, bench: Bench) -> None:
        """A HEAD is answered like a GET, without the body."""
        get, head = bench.http("GET", "/tasks/7"), bench.http("HEAD", "/tasks/7")
        assert (head.status, head.headers, head.body) == (200, get.headers, b"")

    @pytest.mark.parametrize("path", ["/tasks/8", "/tasks", "/tasks/7/", "/", "", "/tasks/x7", "/" + "9" * 19])
    def test_not_found(self, bench: Bench, path: str) -> None:
        """A path without a task's id, or with an unknown one, is not found."""
        bench.spooler.found = []
        answer = bench.http("GET", path)
        assert answer.status == 404
        assert "error" in answer.told
        assert bench.http("HEAD", path).body == b""

    @pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "PATCH", "get", "PO\r\nST"])
    def test_other_methods(self, bench: Bench, method: str) -> None:
        """The answer to any other method names the allowed ones."""
        answer = bench.http(method)
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD, POST, PUT"
        assert bench.spooler.enqueued == []

    @pytest.mark.parametrize(
        ("error", "status", "text"),
        [
            (MalformedPacket("why"), 400, "why"),
            (SpoolError("priority='x' is no priority"), 400, "priority='x' is no priority"),
            (MessageTooLarge("why"), 413, "why"),
            (Busy("try later"), 503, "try later"),
            (Unavailable("it starts"), 503, "it starts"),
            (StoreUnavailable("/secret/spool.db: disk full"), 503, "can't be reached"),
            (SpoolCorrupt("/secret/spool.db is damaged"), 500, "the spooler failed"),
            (ZeroDivisionError("/secret"), 500, "the spooler failed"),
        ],
    )
    def test_refused(
        self, bench: Bench, logged: list[dict[str, Any]], error: Exception, status: int, text: str
    ) -> None:
        """Each failure has its status, and its text reveals nothing that belongs in the log only."""
        bench.spooler.stored = fail(error)
        answer = bench.http("POST")
        assert answer.status == status
        assert text in answer.told["error"]
        assert "secret" not in answer.body.decode()
        assert ("Retry-After" in answer.headers) is (status == 503)
        assert len(logged) == 1

    @pytest.mark.parametrize(
        ("payload", "status"),
        [
            (b"\x01", 400),
            (b"", 400),
            (encode_vars({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "-1"}), 400),
            (encode_vars({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "3"}) + b"ab", 400),
            (encode_vars([("CONTENT_LENGTH", 1), ("CONTENT_LENGTH", 1)]) + b"a", 400),
            (encode_vars({"CONTENT_LENGTH": "99999999"}), 413),
        ],
    )
    def test_malformed(self, bench: Bench, payload: bytes, status: int) -> None:
        """A malformed request is answered, and nothing is enqueued."""
        assert Http(result_of(bench.ask(payload, SPOOL_OVER_HTTP))).status == status
        assert bench.spooler.enqueued == []

    def test_accepted_and_gone(self, bench: Bench) -> None:
        """A task that has finished and was deleted at once is still reported as accepted."""
        bench.spooler.found = []
        answer = bench.http("POST")
        assert (answer.status, answer.told) == (202, {"id": 7, "state": "done"})

    def test_accepted_and_unseen(self, bench: Bench) -> None:
        """A stored task is accepted, even if its state can't be read."""
        bench.spooler.found = StoreUnavailable("away")
        answer = bench.http("POST")
        assert (answer.status, answer.told) == (202, {"id": 7, "state": "accepted"})

    def test_status_unavailable(self, bench: Bench) -> None:
        """If a status can't be read now, the answer asks to try again."""
        bench.spooler.found = StoreUnavailable("away")
        assert bench.http("GET", "/tasks/7").status == 503


def test_bodies() -> None:
    """The forms with a body are those for which the server reads one."""
    assert {(SPOOL, SPOOL_OVER_HTTP), (SPOOL, SPOOL_WITH_ID)} == BODIES


# With a spooler and a store.


@implementer(IEngine)
class IdleEngine:
    """Runs whatever it is given for ever."""

    description = "idle"

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def start(self) -> Deferred[None]:
        return succeed(None)

    def stop(self, seconds: float) -> Deferred[None]:
        return succeed(None)

    def submit(self, request: Request) -> Deferred[Packet]:
        self.requests.append(request)
        return Deferred()


class InlineRunner:
    """Makes the store's calls at once."""

    def start(self) -> None:
        """Nothing to begin."""

    def stop(self) -> None:
        """Nothing to end."""

    def run(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return maybeDeferred(function, *args, **kwargs)


def test_a_real_spooler(tmp_path: Path) -> None:
    """A task enqueued over HTTP is in the store, and the same key twice is one task."""
    clock = Clock()
    store, engine = SqliteStore(str(tmp_path / "spool.sqlite")), IdleEngine()
    spooler = Spooler(clock, store, engine, runner=InlineRunner())
    spooler.start()
    clock.advance(0)
    responder = SpoolResponder(spooler)
    block = encode_vars({"REQUEST_METHOD": "PUT", "CONTENT_LENGTH": 4, "HTTP_IDEMPOTENCY_KEY": "k"})
    answers = []
    for _ in range(2):
        asked = responder.respond(Request(Packet(SPOOL, SPOOL_OVER_HTTP, block + b"body")))
        clock.advance(0)
        answers.append(Http(result_of(asked)))
    assert [(answer.status, answer.told["id"]) for answer in answers] == [(202, 1), (202, 1)]
    ((identifier, variables, body),) = map(decode_run, (request.packet for request in engine.requests))
    assert (identifier, body) == (1, b"body")
    assert decode_vars(variables) == {b"REQUEST_METHOD": b"PUT", b"idempotency_key": b"http:k"}
    spooler.stop(0)
