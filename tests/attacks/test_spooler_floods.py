"""Attacks on a spooler with commands that take long to load or to answer, or come by the thousand."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from tests.attacks.callers import limit_beside
from tests.attacks.test_objects import OBJECTS
from tests.attacks.witness import Witness, assert_within, pinging, watching
from tests.integration.postgresql.postgres import postgres_server
from tests.integration.services import PATIENCE, Launcher, RawSession, Service, script, until
from uwsgitwisted import blocking
from uwsgitwisted.blocking.tasks import manage
from uwsgitwisted.responders.spool import SPOOL_OVER_HTTP
from uwsgitwisted.spool.waiters import MAX_PEER_WAITERS
from uwsgitwisted.wire.events import AnswerReceived, ErrorReceived
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import MARSHAL, SPOOL, Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

pytestmark = pytest.mark.integration

#: A task says what it returns: many numbers, a dict whose keys collide, or bytes. Each start is written down.
#: One with the key ``wait`` ends when that file is there.
HANDLER = """
import os, time, uwsgi

RESULTS = {
    b"numbers": lambda: list(range(200_000)),
    b"collisions": lambda: dict.fromkeys(number * ((1 << 61) - 1) for number in range(2_000)),
    b"bytes": lambda: bytes(1_000_000),
}

def run(task):
    with open(os.environ.get("RUNS", "runs"), "a") as runs:
        runs.write(task["spooler_task_name"].decode() + "\\n")
    name = task.get(b"wait", b"").decode()
    while name and not os.path.exists(name):
        time.sleep(0.01)
    return RESULTS.get(task.get(b"returns"), lambda: None)()

uwsgi.spooler = run
"""
FAR_AHEAD = "4000000000"
#: What nine of ten enqueues, or a ping, may always take beside an attack, in seconds.
FLOOR = 0.1
#: How much more memory a spooler may take while it is attacked, in bytes.
MEMORY = 160 * 1024 * 1024
#: How many waits one session has, one less than it may have requests.
WAITS = 999
#: For how long a flood goes on at most, in seconds.
FLOOD_TIME = 2.0


def start(launch: Launcher, *options: str, spool: str = "sqlite:spool.db", **more: Any) -> Service:
    """Start a spooler with one worker."""
    return launch.start(
        *("uwsgi-spooler", "--engine", "processes:1", "--spool", spool, *options),
        handler=HANDLER,
        tcp=True,
        **more,
    )


@contextlib.contextmanager
def spools(kind: str) -> Iterator[str]:
    """Give the address of a spool of that kind."""
    if kind == "sqlite":
        yield "sqlite:spool.db"
    else:
        with postgres_server() as server:
            yield server.url()


SPOOLS = pytest.mark.parametrize(
    "kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))]
)


class Elsewhere:
    """A spooler as another machine sees it."""

    def __init__(self, service: Service, number: int = 2) -> None:
        self._service = service
        self._source = (f"127.0.0.{number}", 0)

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """Connect from there."""
        return socket.create_connection(self._service.address, 20, self._source)


@contextlib.contextmanager
def sessions(service: Service, number: int) -> Iterator[list[RawSession]]:
    """Give sessions from as many machines."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(closing(RawSession(Elsewhere(service, 2 + each))))  # type: ignore[arg-type]
            for each in range(number)
        ]


def flood(
    session: RawSession,
    questions: Sequence[object],
    first: int = 1,
    answers: int | None = None,
    seconds: float = FLOOD_TIME,
) -> tuple[int, int]:
    """Send all at once, as far as possible in a while; return how many were answered, and refused.

    :param first: the id of the first question.
    :param answers: after how many answers to end; None for as many as there are questions.
    :param seconds: for how long it goes on at most.
    """
    for identifier, question in enumerate(questions, first):
        session.session.send_request(identifier, Packet(MARSHAL, 17, dumps(question)))
    session.connection.settimeout(0.01)
    answered = refused = 0
    deadline = time.monotonic() + seconds
    data = b""
    while time.monotonic() < deadline and answered + refused < len(questions) and answered != answers:
        data = data or session.session.data_to_send()
        with contextlib.suppress(TimeoutError):
            if data:
                data = data[session.connection.send(data) :]
        with contextlib.suppress(TimeoutError):
            for event in session.session.receive(session.connection.recv(1 << 20)):
                answered += isinstance(event, AnswerReceived)
                refused += isinstance(event, ErrorReceived)
    return answered, refused


def wait_for(session: RawSession, tasks: Sequence[int]) -> int:
    """Wait for *tasks*, each in a request of its own; return how many are refused."""
    # A session runs more requests at once when it has seen that answers are small.
    assert flood(session, [b""] * 400, seconds=PATIENCE) == (400, 0)
    waits = [*(("wait", {"id": task}) for task in tasks), b""]
    return flood(session, waits, 401, answers=1, seconds=PATIENCE)[1]


def enqueuing(service: Service) -> Callable[[], object]:
    """Return a call that enqueues a task."""
    return lambda: blocking.enqueue(service.address, {"at": FAR_AHEAD}, timeout=60)


def store_many(service: Service, number: int, **variables: str) -> list[int]:
    """Enqueue tasks, and return their ids."""
    ids: list[int] = script(blocking.enqueue_many, service.address, [variables] * number, 60)
    return ids


def states(service: Service, ids: list[int]) -> set[str]:
    return {task["state"] for task in script(manage, service.address, "status", {"ids": ids})}


def slow_part(witness: Witness) -> float:
    assert witness.errors == []
    return witness.percentile(0.9)


@OBJECTS
@pytest.mark.parametrize("in_session", [True, False], ids=["session", "plain"])
def test_questions_that_take_long_to_load(data: bytes, in_session: bool, launch: Launcher) -> None:
    """Objects whose keys collide, or are trees, are refused before they are loaded."""
    spooler = start(launch)
    question = dumps(("status", {"ids": None}))[:-1] + data + b"0"

    limit = limit_beside(FLOOR, pinging(spooler.address))

    def attack() -> float:
        with watching(pinging(spooler.address)) as witness:
            if in_session:
                with closing(RawSession(spooler)) as session:
                    session.session.send_request(1, Packet(MARSHAL, 17, data))
                    session.session.send_request(2, Packet(MARSHAL, 17, question))
                    session.flush()
                    events = session.events()
                    while len(events) < 2:
                        events += session.events()
                    assert all(isinstance(event, ErrorReceived) for event in events)
            else:
                for each in (data, question):
                    if len(each) < 65_536:
                        assert spooler.exchange(encode_packet(Packet(MARSHAL, 17, each))) == b""
            called = len(witness.durations)
            until(lambda: len(witness.durations) > called + 5, "more pings")
        return witness.slowest

    assert_within(limit, attack, "a ping beside such questions")


@pytest.mark.needs("postgresql")
def test_questions_to_spoolers_that_share_a_queue(launch: Launcher) -> None:
    """However many such commands arrive, the leases of running tasks are kept, and each runs once."""
    data = OBJECTS.args[1][1]
    with postgres_server() as server:
        spoolers = [start(launch, spool=server.url()) for _ in range(2)]
        for spooler in spoolers:
            script(blocking.enqueue, spooler.address, {"wait": "go"})

        def started() -> list[str]:
            logs = [spooler.directory / "runs" for spooler in spoolers]
            return [line for log in logs if log.exists() for line in log.read_text().split()]

        until(lambda: len(started()) == 2, "the start of both tasks")
        began = time.monotonic()
        for _ in range(4):
            for spooler in spoolers:
                assert spooler.exchange(encode_packet(Packet(MARSHAL, 17, data))) == b""
        assert time.monotonic() - began < 4
        for spooler in spoolers:
            (spooler.directory / "go").touch()
        until(lambda: states(spoolers[0], [1, 2]) == {"done"}, "the end of both tasks")
        assert sorted(started()) == ["1", "2"]
        for spooler in spoolers:
            spooler.terminate()


@SPOOLS
def test_many_questions_for_many_tasks(kind: str, launch: Launcher) -> None:
    """Enqueues beside thousands of queries for a thousand tasks each take no longer than usual."""
    with spools(kind) as spool:
        spooler = start(launch, spool=spool)
        ids = store_many(spooler, 1_000, at=FAR_AHEAD)

        limit = limit_beside(FLOOR, enqueuing(spooler))

        def attack() -> float:
            with sessions(spooler, 1) as (hostile,), watching(enqueuing(spooler)) as witness:
                flood(hostile, [("status", {"ids": ids})] * 3_000)
            return slow_part(witness)

        assert_within(limit, attack, "an enqueue beside questions")
        assert states(spooler, ids) == {"scheduled"}
        spooler.terminate()


@SPOOLS
def test_many_waiters(kind: str, launch: Launcher) -> None:
    """Thousands of waiters, and batches without tasks, don't hold up enqueues either."""
    with spools(kind) as spool:
        spooler = start(launch, spool=spool)
        ids = store_many(spooler, WAITS, at=FAR_AHEAD)
        with sessions(spooler, 10) as (hostile, *waiting):
            for session in waiting:
                assert wait_for(session, ids) == 0
            first = 1

            limit = limit_beside(FLOOR, enqueuing(spooler))

            def attack() -> float:
                nonlocal first
                with watching(enqueuing(spooler)) as witness:
                    answered, refused = flood(hostile, [b""] * 900, first, seconds=PATIENCE)
                    first += 900
                    assert (answered, refused) == (900, 0)
                    task = script(blocking.enqueue, spooler.address, {"at": FAR_AHEAD})
                    script(blocking.cancel, spooler.address, [task])
                    assert script(blocking.wait, spooler.address, task).state == "cancelled"
                return slow_part(witness)

            assert_within(limit, attack, "an enqueue beside waiters")
        spooler.terminate()


def test_one_peers_waits(launch: Launcher) -> None:
    """One peer can't use up the limit of waits."""
    spooler = start(launch)
    task = script(blocking.enqueue, spooler.address, {"at": FAR_AHEAD})
    with contextlib.ExitStack() as stack:
        refused = 0
        for _ in range(3):
            session = stack.enter_context(closing(RawSession(Elsewhere(spooler))))  # type: ignore[arg-type]
            refused += wait_for(session, [task] * WAITS)
        assert refused == 3 * WAITS - MAX_PEER_WAITERS
        script(blocking.cancel, spooler.address, [task])
        assert script(blocking.wait, spooler.address, task).state == "cancelled"


def done_with(service: Service, number: int, returns: str) -> list[int]:
    """Have tasks done that return something, and give their ids."""
    ids = store_many(service, number, returns=returns)
    until(lambda: states(service, ids) == {"done"}, "the end of the tasks")
    return ids


@pytest.mark.parametrize("at_once", [60, 1], ids=["together", "one by one"])
def test_large_results(at_once: int, launch: Launcher) -> None:
    """Results of a megabyte are passed on without being loaded, and no more of them at once than fit."""
    spooler = start(launch, "--max-buffered", "64M")
    ids = done_with(spooler, 60, "numbers")
    before = spooler.memory()
    questions = [("status", {"ids": [each]}) for each in ids * 17] if at_once == 1 else []
    questions += [("status", {"ids": ids})] * 30
    most = 0

    def ping() -> None:
        nonlocal most
        pinging(spooler.address)()
        most = max(most, spooler.memory())

    limit = limit_beside(FLOOR, ping)

    def attack() -> float:
        with sessions(spooler, 2) as hostile, watching(ping) as witness:
            for session in hostile:
                flood(session, questions)
        return witness.slowest

    assert_within(limit, attack, "a ping beside large results")
    assert most - before < MEMORY
    assert script(blocking.status, spooler.address, ids[-1]).result == list(range(200_000))
    assert script(blocking.wait, spooler.address, ids[-1]).result == list(range(200_000))


@pytest.mark.parametrize("returns", ["numbers", "collisions"])
def test_large_results_over_http(returns: str, launch: Launcher) -> None:
    """Encoding a result as JSON blocks nothing else; keys that collide are reported, not loaded."""
    spooler = start(launch)
    (task,) = done_with(spooler, 1, returns)
    get = encode_vars({"REQUEST_METHOD": "GET", "REQUEST_URI": f"/tasks/{task}"})
    request = encode_packet(Packet(SPOOL, SPOOL_OVER_HTTP, get))
    bodies: list[bytes] = []

    limit = limit_beside(FLOOR, pinging(spooler.address))

    def attack() -> float:
        with watching(pinging(spooler.address)) as witness, contextlib.ExitStack() as stack:
            connections = [stack.enter_context(spooler.connect()) for _ in range(20)]
            for connection in connections:
                connection.sendall(request)
            for connection in connections:
                received = b""
                while data := connection.recv(1 << 20):
                    received += data
                bodies.append(received.partition(b"\r\n\r\n")[2])
        return witness.slowest

    assert_within(limit, attack, "a ping beside large results over HTTP")
    told = json.loads(bodies[0])
    assert told["state"] == "done"
    assert (told["result"] == list(range(200_000))) is (returns == "numbers")
    assert ("can't be read" in str(told["result"])) is (returns == "collisions")


def test_counting_many_tasks(launch: Launcher) -> None:
    """Counting or searching all tasks of a long queue doesn't delay enqueues."""
    spooler = start(launch)
    spooler.terminate()
    with closing(sqlite3.connect(spooler.directory / "spool.db")) as database, database:
        database.executemany(
            "INSERT INTO tasks (state, priority, at, created, attempts, crashes, queue, variables) "
            "VALUES (0, 0, 4e9, 1e9, 0, 0, ?, x'')",
            ((f"q{number % 500}",) for number in range(400_000)),
        )
    spooler = start(launch, directory=spooler.directory)
    questions = [("stats", {}), ("list", {"state": "cancelled", "queue": "q1"})] * 500

    limit = limit_beside(FLOOR, enqueuing(spooler))

    def attack() -> float:
        with sessions(spooler, 2) as hostile, watching(enqueuing(spooler)) as witness:
            for session in hostile:
                flood(session, questions)
        return slow_part(witness)

    assert_within(limit, attack, "an enqueue beside questions for all tasks")
    rows = script(manage, spooler.address, "stats", {})
    assert sum(row["scheduled"] for row in rows) > 400_000
