"""Attacks on the queue on disk: they fill it, take all its cycles or open it twice."""

from __future__ import annotations

import json
import resource
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from tests.integration.postgresql.postgres import postgres_server
from tests.integration.services import TWISTD, Launcher, Service, run_to_end, script, until
from uwsgitwisted import blocking
from uwsgitwisted.errors import Busy
from uwsgitwisted.responders.spool import SPOOL_OVER_HTTP
from uwsgitwisted.wire.packet import SPOOL, Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

pytestmark = pytest.mark.integration

#: Runs a task that does nothing; one with the key ``wait`` when that file is there. One with the key
#: ``fail`` fails once.
HANDLER = """
import os, time, uwsgi

def run(task):
    if b"fail" in task and not os.path.exists("failed"):
        open("failed", "w").close()
        raise ValueError("the first time")
    name = task.get(b"wait", b"").decode()
    while name and not os.path.exists(name):
        time.sleep(0.01)
    return uwsgi.SPOOL_OK

uwsgi.spooler = run
"""
#: How many callers a flood has.
CALLERS = 8
FAR_AHEAD = 4_000_000_000


def start(launch: Launcher, *options: str, spool: str = "sqlite:spool.db") -> Service:
    """Start a spooler with one worker; its queue is in the file ``spool.db`` unless *spool* is another."""
    return launch.start(
        *("uwsgi-spooler", "--engine", "processes:1", "--spool", spool, *options), handler=HANDLER
    )


def enqueue(service: Service, **task: object) -> bool:
    """Enqueue a task as every uwsgi client does, and return whether it was accepted."""
    variables = {key: str(value) for key, value in task.items()}
    return script(blocking.send_message, service.address, SPOOL, 0, variables) is True


class Pool:
    """Callers that enqueue at the same time, as a flood does.

    Each has a thread of its own, which ends with the pool.
    """

    def __init__(self, service: Service) -> None:
        self._address = service.address
        self._pool = ThreadPoolExecutor(CALLERS)

    def enqueue_all(self, tasks: Sequence[Mapping[str, str]]) -> list[bool]:
        """Enqueue *tasks* and return which were taken."""
        return list(self._pool.map(self._enqueue, tasks))

    def _enqueue(self, task: Mapping[str, str]) -> bool:
        return blocking.send_message(self._address, SPOOL, 0, task) is True

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def ask_plainly_over_http(service: Service) -> bytes:
    """Enqueue a task as nginx does, and return the answer."""
    return service.exchange(
        encode_packet(Packet(SPOOL, SPOOL_OVER_HTTP, encode_vars({"REQUEST_METHOD": "POST"})))
    )


def read(service: Service, query: str) -> list[tuple[Any, ...]]:
    """Read the queue's file as an operator would."""
    with closing(sqlite3.connect(service.directory / "spool.db", timeout=20)) as database:
        return database.execute(query).fetchall()


def count(service: Service, where: str = "true") -> int:
    """Return how many tasks the file holds."""
    return int(read(service, f"SELECT count(*) FROM tasks WHERE {where}")[0][0])


def test_results_of_an_idle_spooler(launch: Launcher) -> None:
    """A result is deleted after --keep-results, even if nothing else happens."""
    service = start(launch, "--keep-results", "1")
    assert enqueue(service, key="value")
    until(lambda: not count(service), "the end of the task, and of its result")


@pytest.mark.parametrize("how", ["hard link", "lock removed", "moved"])
def test_a_second_spooler_on_the_file(launch: Launcher, how: str) -> None:
    """A second spooler on the same file doesn't start, by whatever path, and the first keeps running."""
    service = start(launch)
    path = service.directory / "spool.db"
    assert enqueue(service, key="before", at=FAR_AHEAD)
    if how == "hard link":
        path.with_name("other.db").hardlink_to(path)
    elif how == "moved":
        path = path.rename(path.with_name("other.db"))
    else:
        path.with_name("spool.db.lock").unlink()
    name = "spool.db" if how == "lock removed" else "other.db"
    line = [*TWISTD, "-n", "--pidfile=", "uwsgi-spooler", "--listen", f"unix:{service.directory}/second"]
    second = run_to_end([*line, "--spool", f"sqlite:{name}", "--handler", "my_handler"], service.directory)
    assert second.returncode == 1
    assert ("has 2 names" if how == "hard link" else "is in use by another spooler") in second.stderr
    assert enqueue(service, key="after", at=FAR_AHEAD)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def ask_over_http(service: Service, spooler: str, key: str) -> int:
    """Enqueue a task as nginx does for a browser with an idempotency key, and return its id."""
    variables = {
        "REQUEST_METHOD": "POST",
        "spooler": spooler,
        "at": str(FAR_AHEAD),
        "HTTP_IDEMPOTENCY_KEY": key,
    }
    answer = service.exchange(encode_packet(Packet(SPOOL, SPOOL_OVER_HTTP, encode_vars(variables.items()))))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 202"), answer
    return int(json.loads(body)["id"])


def test_a_key_taken_by_a_browser(launch: Launcher) -> None:
    """A browser's idempotency key merges only tasks of browsers in the same queue."""
    service = start(launch)
    first = ask_over_http(service, "web", "order-17")
    assert ask_over_http(service, "web", "order-17") == first
    assert ask_over_http(service, "mail", "order-17") != first
    for name in ("", "web", "mail"):
        assert enqueue(service, spooler=name, idempotency_key="order-17", at=FAR_AHEAD)
    assert count(service) == 5


def test_a_flood_of_queue_names(launch: Launcher) -> None:
    """Tasks in a thousand queues don't starve others: some names are accepted, the others refused."""
    service = start(launch, "--max-queues", "20", "--workers", "1")
    assert enqueue(service, key="blocks", wait="go")
    with closing(Pool(service)) as pool:
        taken = pool.enqueue_all([{"spooler": f"flood-{number:03}"} for number in range(1_000)])
        good = pool.enqueue_all([{"spooler": "", "key": "good"}] * 20)
    assert (taken.count(True), good.count(True)) == (20, 20)
    assert "tasks wait in 20 queues already (--max-queues)" in service.log
    (service.directory / "go").touch()
    until(lambda: not count(service, "queue = '' AND state < 3"), "the end of the good caller's tasks")


def test_more_tasks_than_are_wanted(launch: Launcher) -> None:
    """Above the limit tasks are refused, stored ones run, and then there is room again."""
    service = start(launch, "--max-tasks", "50", "--first-delay", "0.05")
    assert enqueue(service, key="blocks", wait="go")
    with closing(Pool(service)) as pool:
        taken = pool.enqueue_all([{"number": str(number)} for number in range(200)])
        assert taken.count(True) == 49
        assert count(service, "state < 3") == 50
        assert "50 is the most (--max-tasks)" in service.log
        assert b"HTTP/1.0 503" in ask_plainly_over_http(service)
        with pytest.raises(Busy, match="50 tasks wait or run already"):
            script(blocking.enqueue, service.address, {"key": "value"})
        (service.directory / "go").touch()
        until(lambda: not count(service, "state < 3"), "the end of the tasks")
        until(lambda: pool.enqueue_all([{"number": "next"}]) == [True], "room for the next one")


def test_a_retry_in_a_full_queue(launch: Launcher) -> None:
    """A task that fails is tried again though the queue is full."""
    service = start(launch, "--max-tasks", "1", "--first-delay", "0.3")
    assert enqueue(service, fail="once", wait="go")
    service.wait_for("runs again in")
    assert not enqueue(service, key="value")
    (service.directory / "go").touch()
    until(lambda: count(service, "state = 3"), "the end of the task")
    until(lambda: enqueue(service, key="value"), "room for the next one")


@pytest.mark.needs("postgresql")
def test_more_tasks_than_are_wanted_of_two_spoolers(launch: Launcher) -> None:
    """Spoolers that share a database have one limit, which the end of one of them doesn't change."""
    with postgres_server() as server:
        first, second = (start(launch, "--max-tasks", "50", spool=server.url()) for _ in range(2))
        with closing(Pool(first)) as pool:
            assert pool.enqueue_all([{"at": str(FAR_AHEAD)}] * 100).count(True) == 50
        assert not enqueue(second, key="value")
        first.kill()
        third = start(launch, "--max-tasks", "51", spool=server.url())
        assert [enqueue(third, at=FAR_AHEAD) for _ in range(2)] == [True, False]
        assert not enqueue(second, key="value")
        second.terminate()
        third.terminate()


def test_more_bytes_than_are_wanted(launch: Launcher) -> None:
    """Above the limit large tasks are refused, and the file stays below it."""
    service = start(launch, "--max-spool-size", "4M")
    with closing(Pool(service)) as pool:
        taken = pool.enqueue_all([{"x": "x" * 60_000, "at": str(FAR_AHEAD)}] * 150)
    assert 40 < taken.count(True) < 70
    assert count(service) == taken.count(True)
    assert (service.directory / "spool.db").stat().st_size < 4.5 * 2**20


HOSTILE = [
    {"at": "1e308"},
    {"at": "nan"},
    {"at": "-1"},
    {"at": "9" * 400},
    {"priority": "9" * 5_000},
    {"priority": str(2**31)},
    {"spooler": b"\xed\xa0\x80"},
    {"spooler": "a\0b"},
    {"spooler": "q" * 65_000},
    {"idempotency_key": "k" * 65_000},
]
STRANGE = [
    {"at": "253402300799"},
    {"priority": str(1 - 2**31)},
    {"spooler": "q" * 255, "idempotency_key": "'; DROP TABLE tasks; --"},
    {f"{number}": "" for number in range(8_000)},
]


def test_hostile_variables(launch: Launcher) -> None:
    """Invalid tasks are refused, odd but valid ones stored, and the next task runs."""
    service = start(launch)

    def taken(variables: Mapping[str, str | bytes]) -> bool:
        return service.exchange(encode_packet(Packet(SPOOL, 0, encode_vars(variables)))) == b"\xff\0\0\1"

    assert not any(map(taken, HOSTILE))
    assert all(map(taken, STRANGE))
    assert enqueue(service, key="good")
    until(lambda: count(service, "state = 3") == len(STRANGE), "the end of all but the one in the year 9999")
    assert count(service) == len(STRANGE) + 1


def test_a_full_disk(launch: Launcher) -> None:
    """While nothing can be written, tasks are refused in a short log; outcomes are stored later."""
    service = start(launch)
    assert enqueue(service, wait="go")
    until(lambda: count(service, "state = 2"), "the start of the task")
    limits = resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    for size in (60_000, 1):
        while enqueue(service, x="x" * size, at=FAR_AHEAD):
            assert count(service) < 1_000
    before = count(service)
    (service.directory / "go").touch()
    service.wait_for("can't be written")
    with closing(Pool(service)) as pool:
        assert not any(pool.enqueue_all([{"number": str(number)} for number in range(1_000)]))
    assert count(service, "state = 2") == 1
    assert len(service.log) < 40_000
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, limits)
    until(lambda: count(service, "state = 3") == 1, "the end of the task")
    assert count(service) == before
    assert enqueue(service, key="room again")


def test_space_after_a_flood(launch: Launcher) -> None:
    """When a flood's tasks are done, the file shrinks while the spooler is idle."""
    service = start(launch, "--keep-results", "0")
    path = service.directory / "spool.db"
    assert enqueue(service, key="blocks", wait="go")
    with closing(Pool(service)) as pool:
        assert all(pool.enqueue_all([{"x": "x" * 60_000}] * 400))
    until(lambda: path.stat().st_size > 15e6, "a large file")
    (service.directory / "go").touch()
    until(lambda: not count(service), "the end of the tasks")
    until(lambda: path.stat().st_size < 10e6, "a small file")
    assert enqueue(service, key="next")
