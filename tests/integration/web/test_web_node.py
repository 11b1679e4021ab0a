"""A node that answers web requests: what holds for objects holds for them, whichever way a request takes.

A small request that arrives at once is taken by a worker, any other one by the front.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nginx import Response
from tests.integration.services import (
    PATIENCE,
    TERMINATED,
    Launcher,
    Service,
    is_alive,
    read_to_end,
    until,
)
from tests.integration.web_apps import GREETING, PIECE, WAITING_TIME, pattern
from tests.integration.web_servers import (
    ask,
    connect,
    exchange,
    parse_response,
    request_packet,
    request_variables,
    start_node,
)
from uwsgitwisted.wire.packet import PING, Packet, encode_packet

pytestmark = pytest.mark.integration

#: A body that no worker takes by itself.
LARGE = 300_000
HANDLER = """
import uwsgi
uwsgi.message_manager_marshal = lambda value, modifier2: ("got", value)
"""
APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"web"]
"""
PING_BYTES = encode_packet(Packet(PING, 0))
PONG = encode_packet(Packet(PING, 1))


def packet(path: str, body: bytes = b"", method: str = "GET") -> bytes:
    """Return the bytes of a request."""
    return request_packet(request_variables(method, path, body)) + body


def by_way(way: str, data: bytes) -> bytes:
    """Return a request as it takes one of the ways: a worker hands over one that has a byte too many."""
    return data + b"\0" if way == "front" else data


def by_the_front(address: Any, data: bytes) -> bytes:
    """Send a request that the front takes; return the answer."""
    return exchange(address, by_way("front", data))


#: Both ways of a request.
WAYS: dict[str, Callable[[Any, bytes], bytes]] = {"worker": exchange, "front": by_the_front}
both_ways = pytest.mark.parametrize("way", WAYS)


class Waiting:
    """Requests that occupy workers until they are released.

    :param service: where they run.
    :param directory: for the files that they wait for.
    :param number: how many.
    """

    def __init__(self, service: Service, directory: Path, number: int, way: str = "worker") -> None:
        self._end = directory / "end"
        self._end.unlink(missing_ok=True)
        self._pool = ThreadPoolExecutor(number)
        self.pids = []
        self._answers = []
        for each in range(number):
            started = directory / f"started{each}"
            started.unlink(missing_ok=True)
            path = f"/wait?started={started}&until={self._end}"
            data = by_way(way, packet(path))
            self._answers.append(self._pool.submit(exchange, service.address, data, WAITING_TIME))
            until(started.exists, "a worker that waits")
            self.pids.append(int(started.read_text()))

    def release(self) -> list[Response]:
        """Let them end, and return their answers."""
        self._end.touch()
        answers = [parse_response(answer.result(PATIENCE)) for answer in self._answers]
        self._pool.shutdown()
        return answers


@contextlib.contextmanager
def occupied(service: Service, directory: Path, number: int = 2, way: str = "worker") -> Iterator[Waiting]:
    """Occupy workers, and release them at the end."""
    waiting = Waiting(service, directory, number, way)
    try:
        yield waiting
    finally:
        assert [answer.body for answer in waiting.release()] == [b"waited"] * number


@pytest.fixture(scope="module")
def shared_node(shared: Launcher) -> Service:
    """A node with two workers."""
    return start_node(shared)


@pytest.fixture
def node(shared_node: Service) -> Iterator[Service]:
    """That node, for tests that put nothing in its log; after each it has the workers that it had before."""
    before = shared_node.workers()
    yield shared_node
    assert shared_node.workers() == before


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_greeting(launch: Launcher, tcp: bool) -> None:
    """A request is answered, on a UNIX socket and on a port of TCP."""
    node = start_node(launch, tcp=tcp)
    for way in WAYS.values():
        assert parse_response(way(node.address, packet("/"))).body == GREETING


def test_other_requests_on_the_same_port(launch: Launcher) -> None:
    """Objects, pings and what nobody knows reach the front unharmed, however their bytes are cut."""
    directory = launch.new_directory()
    (directory / "my_handler.py").write_text(HANDLER)
    (directory / "app.py").write_text(
        "def application(environ, start):\n    start('200 OK', [])\n    return [b'web']\n"
    )
    node = launch.start(
        "uwsgi-node", "--engine", "processes:2", "--wsgi", "app", "--handler", "my_handler", directory=directory
    )
    assert node.ask(("a", 1)) == ("got", ("a", 1))
    assert parse_response(exchange(node.address, packet("/"))).body == b"web"
    for cut in range(len(PING_BYTES)):
        with node.connect() as connection:
            connection.sendall(PING_BYTES[:cut])
            time.sleep(0.01)
            connection.sendall(PING_BYTES[cut:])
            assert read_to_end(connection) == PONG
    assert exchange(node.address, encode_packet(Packet(99, 0))) == b""
    assert node.ask(2) == ("got", 2)


def test_a_ping_beside_busy_workers(node: Service, tmp_path: Path) -> None:
    """While all workers are busy with requests that they took, a ping is answered soon."""
    took = []
    with occupied(node, tmp_path):
        for _ in range(20):
            before = time.monotonic()
            assert exchange(node.address, PING_BYTES) == PONG
            took.append(time.monotonic() - before)
    assert sorted(took)[len(took) // 2] < 1  # any single one may have waited for a processor


@both_ways
def test_waiting_for_a_worker(node: Service, tmp_path: Path, way: str) -> None:
    """Requests that come while all workers are busy are answered when one is free."""
    with ThreadPoolExecutor(8) as pool:
        with occupied(node, tmp_path):
            answers = [pool.submit(WAYS[way], node.address, packet("/")) for _ in range(8)]
            assert exchange(node.address, PING_BYTES) == PONG
            assert not any(answer.done() for answer in answers)
        assert [parse_response(answer.result(PATIENCE)).body for answer in answers] == [GREETING] * 8


def test_a_full_queue(launch: Launcher, tmp_path: Path) -> None:
    """Beyond --max-queue, a request is refused at once, with when to try again."""
    node = start_node(launch, "--max-queue", "1", engine="processes:1")
    with ThreadPoolExecutor(5) as pool:
        # Through the front: a worker that has accepted its request itself may have another one assigned.
        with occupied(node, tmp_path, 1, way="front"):
            answers = [pool.submit(by_the_front, node.address, packet("/")) for _ in range(5)]
            until(lambda: sum(answer.done() for answer in answers) >= 4, "refusals")
        found = [parse_response(answer.result(PATIENCE)) for answer in answers]
    refused = [answer for answer in found if answer.status == 503]
    assert len(refused) == 4
    assert all(answer.headers["Retry-After"] for answer in refused)
    assert [answer.body for answer in found if answer not in refused] == [GREETING]


def test_a_free_worker_takes_over(node: Service, tmp_path: Path) -> None:
    """A request that the front has given to a worker doesn't wait behind one that this has taken itself."""
    with occupied(node, tmp_path, 1):
        for _ in range(50):
            assert parse_response(by_the_front(node.address, packet("/"))).body == GREETING


@both_ways
def test_timeout(launch: Launcher, way: str) -> None:
    """A request that hangs costs its worker, and no other request anything."""
    node = start_node(launch, "--timeout", "1")
    before = node.workers()
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(WAYS[way], node.address, packet("/hang"))
        for _ in range(20):
            assert ask(node.address, "GET", "/").body == GREETING
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            answer = hanging.result()
        assert (way == "worker" and not answer) or parse_response(answer).status == 504
    node.wait_for("limit of 1 s; its worker was killed")
    until(lambda: len(set(node.workers()) & set(before)) == 1, "one other worker")
    until(lambda: len(node.workers()) == 2, "two workers")
    assert ask(node.address, "GET", "/").body == GREETING


@both_ways
def test_a_worker_that_dies(launch: Launcher, way: str) -> None:
    """A request whose worker dies is not answered, or with 502; the next ones are."""
    node = start_node(launch)
    for how in ("exit", "kill"):
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            answer = WAYS[way](node.address, packet(f"/exits?how={how}"))
        assert (way == "worker" and not answer) or parse_response(answer).status == 502
        for _ in range(10):
            assert ask(node.address, "GET", "/").body == GREETING


@both_ways
def test_sys_exit(launch: Launcher, way: str) -> None:
    """sys.exit() ends a request with 500, not its worker."""
    node = start_node(launch)
    before = node.workers()
    assert parse_response(WAYS[way](node.address, packet("/exits?how=sys"))).status == 500
    assert node.workers() == before


@both_ways
def test_an_error(launch: Launcher, way: str) -> None:
    """An application that raises gives 500; the log has its traceback, the answer nothing of it."""
    node = start_node(launch)
    for when in ("before", "after"):
        answer = parse_response(WAYS[way](node.address, packet(f"/raises?when={when}")))
        assert answer.status == 500
        assert b"secret" not in answer.body
    node.wait_for("ValueError: the secret of the application")
    node.wait_for("web_apps.py")


@both_ways
def test_an_error_later(launch: Launcher, way: str) -> None:
    """An answer that fails in the middle ends with a reset, and has its traceback in the log."""
    node = start_node(launch, tcp=True)
    with connect(node.address) as connection:
        connection.sendall(by_way(way, packet("/raises?when=later")))
        with pytest.raises(ConnectionResetError):  # noqa: PT012
            while connection.recv(65_536):
                pass
            raise AssertionError("the end looks like a good one")
    node.wait_for("ValueError: the secret of the application")


@both_ways
def test_a_client_that_goes_away(node: Service, tmp_path: Path, way: str) -> None:
    """An application whose client has gone is told at its next write, and its answer is closed."""
    closed = tmp_path / "closed"
    with connect(node.address) as connection:
        connection.sendall(by_way(way, packet(f"/closing?path={closed}")))
        connection.recv(1_000)
    until(closed.exists, "the end of the answer")
    assert ask(node.address, "GET", "/").body == GREETING
    assert "Traceback" not in node.log


def test_a_body_that_breaks_off(launch: Launcher) -> None:
    """An application whose client goes in the middle of a large body gets an error, and its worker goes on."""
    node = start_node(launch, engine="processes:1")
    worker = node.workers()
    with connect(node.address) as connection:
        connection.sendall(packet("/digest", bytes(2 * LARGE), "POST")[:-LARGE])
    assert ask(node.address, "GET", "/").body == GREETING
    assert node.workers() == worker


@pytest.mark.parametrize("path", ["/echo", "/echo-in-pieces"])
def test_a_large_body(node: Service, path: str) -> None:
    """A body that comes as a stream arrives whole, also if the answer is sent meanwhile."""
    body = pattern(3_000_000)
    with connect(node.address) as connection, ThreadPoolExecutor(1) as pool:
        pool.submit(connection.sendall, packet(path, body, "POST"))
        assert parse_response(read_to_end(connection)).body == body


@both_ways
def test_an_answer_before_the_body(node: Service, way: str) -> None:
    """An answer to a body that nobody has read arrives, and no reset instead."""
    for size in (10, 100_000, 5_000_000):
        assert (
            parse_response(WAYS[way](node.address, packet("/unread", bytes(size), "POST"))).body == b"not read"
        )


def test_too_large_a_body(launch: Launcher) -> None:
    """A body over --max-body is refused before it is sent, and its bytes are dropped."""
    node = start_node(launch, "--max-body", "1M")
    assert ask(node.address, "POST", "/echo", bytes(1 << 20)).status == 200
    assert ask(node.address, "POST", "/echo", bytes((1 << 20) + 1)).status == 413
    with connect(node.address) as connection:
        connection.sendall(request_packet({"REQUEST_METHOD": "PUT", "CONTENT_LENGTH": str(1 << 40)}))
        assert connection.recv(100).startswith(b"HTTP/1.0 413 ")


@both_ways
def test_malformed(node: Service, way: str) -> None:
    """A request that is broken gets 400, and its worker goes on."""
    before = node.workers()
    no_method = request_packet({"A": "b"})[4:]
    for payload in (b"\x05", b"\x00\x00\x01\x00x", b"\x01\x00a\x05\x00x", no_method, b""):
        answer = WAYS[way](node.address, encode_packet(Packet(0, 0, payload)))
        assert parse_response(answer).status == 400
    length = request_packet({"CONTENT_LENGTH": "0"})[4:]
    twice = request_packet({"REQUEST_METHOD": "GET"})[4:] + 2 * length
    assert parse_response(WAYS[way](node.address, encode_packet(Packet(0, 0, twice)))).status == 400
    assert ask(node.address, "GET", "/", CONTENT_LENGTH="x").status == 400
    assert node.workers() == before


def test_hostile_variables(node: Service) -> None:
    """Variables that load code in uWSGI don't reach the application, and none replaces what WSGI sets."""
    hostile = {"UWSGI_FILE": "/etc/passwd", "UWSGI_SETENV": "A=b", "wsgi.url_scheme": "evil", "wsgi.input": "x"}
    answer = ask(node.address, "GET", "/variables", **hostile)
    assert b"UWSGI" not in answer.body
    assert b"evil" not in answer.body


def test_whose_connections(launch: Launcher) -> None:
    """A worker takes connections from the networks of --allow only; the front refuses the others."""
    node = start_node(launch, "--allow", "127.0.0.2", tcp=True)
    with socket.create_connection(node.address, PATIENCE, ("127.0.0.2", 0)) as connection:
        connection.sendall(packet("/"))
        assert parse_response(read_to_end(connection)).body == GREETING
    with socket.create_connection(node.address, PATIENCE, ("127.0.0.1", 0)) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may be refused before
            connection.sendall(packet("/"))
        assert read_to_end(connection) == b""
    node.wait_for("its address is in none of the allowed networks")


def test_max_requests(launch: Launcher) -> None:
    """After --max-requests, a worker is replaced, and no request fails."""
    node = start_node(launch, "--max-requests", "5")
    seen = set()

    def are_several() -> bool:
        answer = ask(node.address, "GET", "/process")
        assert answer.status == 200
        seen.add(answer.body)
        return len(seen) >= 6

    until(are_several, "six processes", 3 * PATIENCE)


def test_reload_under_load(launch: Launcher, tmp_path: Path) -> None:
    """A reload replaces the workers without a failed request; one that runs meanwhile ends in its own time."""
    node = start_node(launch)
    before = node.workers()
    stop = threading.Event()
    failures: list[str] = []

    def load() -> int:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                answer = ask(node.address, "GET", "/")
                if answer.body != GREETING:
                    failures.append(str(answer))
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
        return number

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load) for _ in range(3)]
        try:
            with occupied(node, tmp_path, 1) as waiting:
                reload_twice(node)
                time.sleep(2.5)  # longer than an idle worker gets to end
                assert is_alive(waiting.pids[0])
        finally:
            stop.set()
        assert min(each.result() for each in loads) > 10
    assert failures == []
    until(lambda: len(node.workers()) == 2 and not set(node.workers()) & set(before), "new workers")


def reload_twice(node: Service) -> None:
    """Have a node replace its workers, and those that it has then."""
    for times in (1, 2):
        node.process.send_signal(signal.SIGHUP)
        until(lambda: node.log.count("every worker was replaced") == times, "new workers")  # noqa: B023


@both_ways
def test_drain(launch: Launcher, tmp_path: Path, way: str) -> None:
    """After SIGTERM, a running request is answered; nothing new is accepted; then the node ends."""
    node = start_node(launch)
    with occupied(node, tmp_path, 2, way):
        node.process.send_signal(signal.SIGTERM)

        until(lambda: refuses(node), "a refusal")
        assert node.process.poll() is None
    assert node.process.wait(PATIENCE) == TERMINATED


def refuses(node: Service) -> bool:
    """Whether a node accepts nothing new. One that is only slow doesn't refuse."""
    try:
        with connect(node.address) as connection:
            connection.sendall(PING_BYTES)
            return connection.recv(1) == b""
    except TimeoutError:
        raise
    except OSError:
        return True


def test_second_signal(launch: Launcher, tmp_path: Path) -> None:
    """A second SIGTERM ends the node at once, with its workers."""
    node = start_node(launch)
    workers = node.workers()
    waiting = Waiting(node, tmp_path, 2)
    node.process.send_signal(signal.SIGTERM)
    until(lambda: refuses(node), "a refusal")
    node.process.send_signal(signal.SIGTERM)
    node.process.wait(PATIENCE)
    until(lambda: not any(map(is_alive, workers)), "the end of the workers")
    with contextlib.suppress(ConnectionResetError, http.client.HTTPException):
        waiting.release()


@both_ways
def test_a_slow_reader(launch: Launcher, tmp_path: Path, way: str) -> None:
    """A client that reads slowly doesn't run into --timeout; one that reads nothing into --write-timeout."""
    node = start_node(launch, "--timeout", "2", "--write-timeout", "4", tcp=True)
    workers = node.workers()
    closed = tmp_path / "closed"
    with connect(node.address) as connection:
        connection.sendall(by_way(way, packet(f"/closing?path={closed}&size=100000")))
        for _ in range(25):
            time.sleep(0.1)
            assert connection.recv(100_000)
        assert not closed.exists()
        until(closed.exists, "the end of the answer")
    assert node.workers() == workers


def _megabytes(memory: int) -> float:
    return memory / (1 << 20)


def test_a_gigabyte(launch: Launcher) -> None:
    """A gigabyte goes up, and one comes down, in constant memory: of the front, and of the workers."""
    node = start_node(launch)
    ask(node.address, "POST", "/digest", bytes(2 * LARGE))
    size = 1 << 30
    before = node.memory(), _worker_memory(node)
    head = request_packet({**request_variables("POST", "/digest"), "CONTENT_LENGTH": str(size)})
    piece = bytes(1 << 20)
    with connect(node.address) as connection:
        connection.sendall(head)
        for _ in range(size // len(piece)):
            connection.sendall(piece)
        assert b'"size": 1073741824' in read_to_end(connection)
    with connect(node.address) as connection:
        closed = f"{node.directory}/closed"
        path = f"/closing?path={closed}&size={PIECE}&pieces={size // PIECE}"
        connection.sendall(packet(path))
        received = 0
        while data := connection.recv(1 << 20):
            received += len(data)
    assert received > size
    assert _megabytes(node.memory() - before[0]) < 64
    assert _megabytes(_worker_memory(node) - before[1]) < 64


def _worker_memory(node: Service) -> int:
    """Return the largest peak of a worker's memory, in bytes."""
    peaks = []
    for pid in node.workers():
        status = Path(f"/proc/{pid}/status").read_text()
        peaks.append(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
    return max(peaks)


@both_ways
def test_access_log(launch: Launcher, tmp_path: Path, way: str) -> None:
    """Each request has a line with its status, size, time and worker, whatever is in its variables."""
    log = tmp_path / "access.log"
    node = start_node(launch, "--access-log", str(log))
    for path, headers in (("/", {"User-Agent": 'a"b\nc'}), ("/10k?x=1", {}), ("/raises?when=before", {})):
        before = len(log.read_text().splitlines())
        variables = request_variables("GET", path, headers=headers)
        WAYS[way](node.address, request_packet(variables))
        until(lambda: len(log.read_text().splitlines()) == before + 1, "its line")  # noqa: B023
    found = log.read_text().splitlines()
    line = r"192\.0\.2\.1 - - \[\d\d/\w+/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "
    assert re.fullmatch(line + r'"GET / HTTP/1\.1" 200 14 "-" "a\\x22b\\x0ac" \d+\.\d{6} [12]', found[0])
    assert re.fullmatch(line + r'"GET /10k\?x=1 HTTP/1\.1" 200 10240 "-" "-" \d+\.\d{6} [12]', found[1])
    assert '"GET /raises?when=before HTTP/1.1" 500 0 ' in found[2]
    log.rename(tmp_path / "old.log")
    node.process.send_signal(signal.SIGHUP)
    node.wait_for("every worker was replaced")
    ask(node.address, "GET", "/")
    until(lambda: len(log.read_text().splitlines()) == 1, "a line in a new file")


def test_access_log_as_json(launch: Launcher) -> None:
    """The lines may be JSON; the front's own answers have some too."""
    node = start_node(launch, "--access-log", "access.log", "--access-log-format", "json", "--max-body", "1K")
    log = node.directory / "access.log"
    lines: list[dict[str, Any]] = []

    def wait_for(number: int) -> None:
        until(lambda: len(log.read_text().splitlines()) == number, f"{number} lines")
        lines[:] = map(json.loads, log.read_text().splitlines())

    ask(node.address, "HEAD", "/10k")
    wait_for(1)  # a worker's line follows its answer, and may come after the next request's
    ask(node.address, "POST", "/", bytes(2_000))
    wait_for(2)
    assert ask(node.address, "", "/no-method", REQUEST_URI="").status == 400
    wait_for(3)
    assert [(line["method"], line["uri"], line["status"], line["bytes"]) for line in lines] == [
        ("HEAD", "/10k", 200, 0),
        ("POST", "/", 413, 29),
        ("", "/no-method", 400, 16),
    ]
    # Whoever has the last one refuses it.
    assert [line["worker"] > 0 for line in lines[:2]] == [True, False]
