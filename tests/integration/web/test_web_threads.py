"""A node whose workers run several web requests at a time, in threads, whichever way a request takes."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.services import (
    PATIENCE,
    TERMINATED,
    Launcher,
    Service,
    is_alive,
    read_to_end,
    until,
)
from tests.integration.web.test_web_node import (
    PING_BYTES,
    PONG,
    WAYS,
    both_ways,
    by_the_front,
    by_way,
    occupied,
    packet,
    refuses,
    reload_twice,
)
from tests.integration.web_apps import GREETING, PIECE, pattern
from tests.integration.web_servers import (
    ask,
    connect,
    exchange,
    parse_response,
    start_node,
)

pytestmark = pytest.mark.integration

#: A body that no worker takes by itself, and that fits one window.
LARGE = 200_000
#: So much of a body has to arrive before its request begins.
BEGUN = 300_000
#: A size that takes a body, or an answer, several windows.
LONG = 3_000_000
HANDLER = """
import os, time, uwsgi

def handle(path, modifier2):
    if path is None:
        return os.getpid(), uwsgi.worker_id()
    with open(path + ".begun", "w"):
        pass
    while not os.path.exists(path):
        time.sleep(0.005)
    return os.getpid(), uwsgi.worker_id()

uwsgi.message_manager_marshal = handle
"""
APPLICATION = """
import uwsgi

def application(environ, start_response):
    start_response("200 OK", [])
    return [b"%d" % uwsgi.worker_id()]
"""


def start_threads(launch: Launcher, *options: str, processes: int = 1, threads: int = 2, **how: Any) -> Service:
    """Start a node with threads."""
    return start_node(launch, "--wsgi-threads", str(threads), *options, engine=f"processes:{processes}", **how)


@contextlib.contextmanager
def sent(service: Service, data: bytes, way: str) -> Iterator[Future[bytes]]:
    """Send a request in the background, and give its answer; none, if the connection is reset."""

    def send() -> bytes:
        with contextlib.suppress(ConnectionResetError):
            return WAYS[way](service.address, data)
        return b""

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(send)


@contextlib.contextmanager
def under_load(service: Service) -> Iterator[None]:
    """Send requests all the time, none of which may fail."""
    stop = threading.Event()
    failures: list[str] = []

    def load(way: str) -> int:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                answer = parse_response(WAYS[way](service.address, packet("/")))
                if answer.body != GREETING:
                    failures.append(str(answer))
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
        return number

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load, way) for way in ("worker", "worker", "worker", "front")]
        try:
            yield
        finally:
            stop.set()
        number = min(each.result(PATIENCE) for each in loads)
    assert failures == []
    assert number > 10


@both_ways
def test_at_once(launch: Launcher, tmp_path: Path, way: str) -> None:
    """A worker with two threads runs two requests at once, and a third one when a thread is free."""
    node = start_threads(launch)
    with ThreadPoolExecutor(3) as pool:
        with occupied(node, tmp_path, 2, way) as waiting:
            assert waiting.pids == node.workers() * 2
            more = [pool.submit(WAYS[each], node.address, packet("/")) for each in (*WAYS, way)]
            assert exchange(node.address, PING_BYTES) == PONG
            assert not any(answer.done() for answer in more)
        assert [parse_response(answer.result(PATIENCE)).body for answer in more] == [GREETING] * 3


def test_both_ways_at_once(launch: Launcher, tmp_path: Path) -> None:
    """Requests of either way use the same threads, and none waits while one is free."""
    node = start_threads(launch, threads=3)
    for first in (tmp_path / "first", tmp_path / "second"):
        first.mkdir()
    with occupied(node, tmp_path / "first", 1, "worker"), occupied(node, tmp_path / "second", 1, "front"):
        for way in WAYS:
            assert [parse_response(WAYS[way](node.address, packet("/"))).body for _ in range(5)] == [
                GREETING
            ] * 5


def test_a_free_worker_takes_over(launch: Launcher, tmp_path: Path) -> None:
    """A request that the front has assigned to a full worker goes to another one as soon as that is free."""
    node = start_threads(launch, processes=2)
    with occupied(node, tmp_path, 3):
        for _ in range(50):
            assert parse_response(by_the_front(node.address, packet("/"))).body == GREETING


def test_environ(launch: Launcher) -> None:
    """The application knows whether threads may call it at once."""
    for threads, expected in ((1, False), (2, True)):
        node = start_threads(launch, threads=threads)
        for way in WAYS.values():
            found = json.loads(parse_response(way(node.address, packet("/variables"))).body)
            assert found["wsgi.multithread"] is expected
            assert found["wsgi.multiprocess"] is False


def test_objects_too(launch: Launcher) -> None:
    """The handler of other requests runs in the same threads; uwsgi.worker_id() is the worker's in all."""
    directory = launch.new_directory()
    (directory / "my_handler.py").write_text(HANDLER)
    (directory / "app.py").write_text(APPLICATION)
    options = ("--engine", "processes:1", "--wsgi", "app", "--handler", "my_handler", "--wsgi-threads", "3")
    node = launch.start("uwsgi-node", *options, directory=directory)
    paths = [directory / "first", directory / "second"]
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(node.ask, str(path)) for path in paths]
        for path in paths:
            until(path.with_suffix(".begun").exists, "both requests")
        assert node.ask(None) == (node.workers()[0], 1)
        for way in WAYS.values():
            assert parse_response(way(node.address, packet("/"))).body == b"1"
        for path in paths:
            path.touch()
        assert [answer.result(PATIENCE) for answer in waiting] == [(node.workers()[0], 1)] * 2


@both_ways
def test_timeout(launch: Launcher, way: str) -> None:
    """A request that hangs costs its worker, with the other requests in it; those of other workers go on."""
    node = start_threads(launch, "--timeout", "1", processes=2)
    before = node.workers()
    with sent(node, packet("/hang"), way) as hanging:
        until(hanging.done, "the end")
        answer = hanging.result()
        assert (way == "worker" and not answer) or parse_response(answer).status == 504
    node.wait_for("limit of 1 s; its worker was killed")
    until(lambda: len(set(node.workers()) & set(before)) == 1, "one other worker")
    until(lambda: len(node.workers()) == 2, "two workers")
    assert ask(node.address, "GET", "/").body == GREETING


def test_timeout_of_each(launch: Launcher) -> None:
    """The time limit holds for a request whatever the other threads of its worker do."""
    node = start_threads(launch, "--timeout", "1")
    (worker,) = node.workers()
    with sent(node, packet("/hang", bytes(LARGE), "POST"), "worker") as hanging:
        ends = time.monotonic() + PATIENCE
        while not hanging.done() and time.monotonic() < ends:
            with contextlib.suppress(ConnectionResetError, http.client.HTTPException):
                by_the_front(node.address, packet("/"))  # its worker answers, and so seems to go on
        assert parse_response(hanging.result(PATIENCE)).status == 504
    until(lambda: worker not in node.workers(), "another worker")
    assert ask(node.address, "GET", "/").body == GREETING


@both_ways
def test_a_worker_that_dies(launch: Launcher, tmp_path: Path, way: str) -> None:
    """A worker that dies takes the requests in all of its threads with it, and the next ones are answered."""
    node = start_threads(launch)
    started = tmp_path / "started"
    with sent(node, packet(f"/wait?started={started}&until=/nothing"), way) as beside:
        until(started.exists, "a request")
        with sent(node, packet("/exits?how=kill"), way) as dying:
            answers = [dying.result(PATIENCE), beside.result(PATIENCE)]
    for answer in answers:
        assert (way == "worker" and not answer) or parse_response(answer).status == 502
    assert ask(node.address, "GET", "/").body == GREETING


@both_ways
def test_slow_peers(launch: Launcher, tmp_path: Path, way: str) -> None:
    """The time for which a thread waits for its peer doesn't count, and another thread goes on meanwhile."""
    node = start_threads(launch, "--timeout", "2", tcp=True)
    workers = node.workers()
    closed = tmp_path / "closed"
    data = packet(f"/closing?path={closed}&size=100000")
    body = pattern(LONG)
    with connect(node.address) as upload, connect(node.address) as download:
        upload.sendall(packet("/digest", body, "POST")[:-PIECE])
        download.sendall(by_way(way, data))
        for _ in range(25):
            time.sleep(0.1)
            assert download.recv(100_000)
        assert node.workers() == workers
        upload.sendall(body[-PIECE:])
        assert hashlib.sha256(body).hexdigest().encode() in read_to_end(upload)
    until(closed.exists, "the end of the answer")
    assert node.workers() == workers


def test_slow_uploads(launch: Launcher) -> None:
    """Peers that are slow to send their bodies don't occupy all threads."""
    node = start_threads(launch)
    body = bytes(LONG)
    data = packet("/digest", body, "POST")
    with connect(node.address) as first, connect(node.address) as second:
        for connection in (first, second):
            connection.sendall(data[:BEGUN])
        for way in WAYS.values():
            assert parse_response(way(node.address, packet("/"))).body == GREETING
        for connection in (first, second):
            connection.sendall(data[BEGUN:])
            assert hashlib.sha256(body).hexdigest().encode() in read_to_end(connection)


def test_streams(launch: Launcher, tmp_path: Path) -> None:
    """Bodies and answers of several threads at once are not mixed up, whatever their way and size."""
    node = start_threads(launch, threads=4)
    path = tmp_path / "file"
    path.write_bytes(pattern(LONG)[::-1])

    def check_echo(number: int) -> None:
        body = bytes([number]) + pattern(LONG + number)
        answer = exchange_streams(node, packet("/echo-in-pieces", body, "POST"))
        assert parse_response(answer).body == body

    def check_file(number: int) -> None:
        answer = parse_response(by_the_front(node.address, packet(f"/file?path={path}&offset={number}")))
        assert answer.body == path.read_bytes()[number:]

    def check_small(number: int) -> None:
        body = str(number).encode() * 10
        way = list(WAYS.values())[number % 2]
        for _ in range(10):
            assert parse_response(way(node.address, packet("/echo", body, "POST"))).body == body

    with ThreadPoolExecutor(12) as pool:
        checks = [
            pool.submit(check, number) for number in range(8) for check in (check_echo, check_file, check_small)
        ]
        for check in checks:
            check.result(2 * PATIENCE)


def exchange_streams(node: Service, data: bytes) -> bytes:
    """Send a request while its answer is read."""
    with connect(node.address) as connection, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(connection.sendall, data)
        answer = read_to_end(connection)
        sending.result(PATIENCE)
        return answer


def test_a_client_that_goes_away(launch: Launcher, tmp_path: Path) -> None:
    """A thread whose client has gone is told, and the one beside it goes on."""
    node = start_threads(launch)
    closed = tmp_path / "closed"
    with occupied(node, tmp_path, 1, "front"):
        data = packet(f"/closing?path={closed}")
        with connect(node.address) as connection:
            connection.sendall(by_way("front", data))
            connection.recv(1_000)
        until(closed.exists, "the end of the answer")
        with connect(node.address) as connection:
            connection.sendall(packet("/digest", bytes(LONG), "POST")[:-1])
        assert ask(node.address, "GET", "/").body == GREETING


@both_ways
def test_drain(launch: Launcher, tmp_path: Path, way: str) -> None:
    """After SIGTERM, the requests in all threads are answered; then the node ends."""
    node = start_threads(launch, threads=3)
    with occupied(node, tmp_path, 2, way):
        node.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(node), "a refusal")
        assert node.process.poll() is None
    assert node.process.wait(PATIENCE) == TERMINATED


def test_reload_under_load(launch: Launcher, tmp_path: Path) -> None:
    """A reload loses nothing, and a worker that finishes a long request takes no others meanwhile."""
    node = start_threads(launch, processes=2)
    before = node.workers()
    for each in ("worker", "front"):
        (tmp_path / each).mkdir()
    with (
        under_load(node),
        occupied(node, tmp_path / "worker", 1, "worker"),
        occupied(node, tmp_path / "front", 1, "front"),
    ):
        reload_twice(node)
        seen = {int(ask(node.address, "GET", "/process").body) for _ in range(100)}
        assert not seen & set(before)
        time.sleep(2.5)  # longer than an idle worker gets to end
        assert set(before) & set(node.workers())
    until(lambda: len(node.workers()) == 2 and not any(map(is_alive, before)), "new workers")


def test_reload_with_free_threads(launch: Launcher, tmp_path: Path) -> None:
    """A worker that was replaced takes nothing more, although it has free threads beside a long request."""
    node = start_threads(launch, threads=3)
    before = node.workers()
    with occupied(node, tmp_path, 1, "front"):
        node.process.send_signal(signal.SIGHUP)
        node.wait_for("every worker was replaced")
        seen = {int(ask(node.address, "GET", "/process").body) for _ in range(50)}
        assert seen == set(node.workers()) - set(before)
    until(lambda: not any(map(is_alive, before)), "the end of the old worker")


def test_max_requests_under_load(launch: Launcher) -> None:
    """After --max-requests, all threads together, a worker is replaced, and no request fails."""
    node = start_threads(launch, "--max-requests", "50", processes=2)
    seen = set()

    def are_several() -> bool:
        seen.add(ask(node.address, "GET", "/process").body)
        return len(seen) >= 6

    with under_load(node):
        until(are_several, "six processes", 3 * PATIENCE)


@both_ways
def test_access_log(launch: Launcher, tmp_path: Path, way: str) -> None:
    """Each request has a line, with the worker's number."""
    log = tmp_path / "access.log"
    node = start_threads(launch, "--access-log", str(log))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: WAYS[way](node.address, packet(f"/?{number}")), range(20)))
    until(lambda: len(log.read_text().splitlines()) == 20, "all lines")
    assert {line.rpartition(" ")[2] for line in log.read_text().splitlines()} == {"1"}
