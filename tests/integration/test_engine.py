"""Handlers that misbehave, workers that die, services that end: the service stays up for all others."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import DeferredList, gatherResults

from tests.integration.handlers import FAULTS
from tests.integration.services import (
    TERMINATED,
    Launcher,
    Service,
    eventually,
    is_alive,
    kill_if_alive,
    marshal_packet,
    script,
    until,
)
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import (
    Busy,
    MessageTooLarge,
    NoAnswer,
    RemoteError,
    RequestTimeout,
    UwsgiError,
    WorkerDied,
)

pytestmark = pytest.mark.integration

#: Seconds that a request may run on the shared node, and the largest message in a session there.
TIMEOUT, MAX_MESSAGE = 1.0, 1 << 20
WORKERS = 2


@pytest.fixture(scope="module")
def shared_node(shared: Launcher) -> Service:
    """A node whose handler does what the message says."""
    limits = ("--timeout", str(TIMEOUT), "--max-message", str(MAX_MESSAGE))
    return shared.start("uwsgi-node", "--engine", f"processes:{WORKERS}", *limits, handler=FAULTS)


@pytest.fixture
def node(shared_node: Service) -> Iterator[Service]:
    """That node, which is as healthy after the test as it was before."""
    yield shared_node
    _check_health(shared_node)


def _check_health(node: Service) -> None:
    """The node lives, has its workers, no zombie, and works."""
    assert node.process.poll() is None, node.log
    until(lambda: len(node.workers()) == WORKERS, "as many workers as before")
    until(lambda: not node.zombies(), "the end of every zombie")
    assert node.exchange(marshal_packet(("echo", "here"))) == marshal_packet("here")


def _check_answers(node: Service) -> None:
    assert node.ask(("echo", "still here")) == "still here"


# A handler's failure affects only its request.


@pytest.mark.parametrize(
    ("message", "type_", "text"),
    [
        (("raise", "no such thing"), "KeyError", "no such thing"),
        (("unmarshallable",), "UnencodableMessage", "object"),
        (("code",), "UnencodableMessage", "code"),
        (("sys_exit",), "SystemExit", "leaving"),
        (("recurse",), "RecursionError", "recursion"),
        (("unknown",), "KeyError", "unknown"),
        ((), "ValueError", "not enough values"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_handler_that_raises(
    node: Service, client: Client, message: object, type_: str, text: str
) -> None:
    """A session's caller learns what was raised; the worker lives on and answers the next request."""
    before = node.workers()
    with pytest.raises(RemoteError) as caught:
        await client.send_message(node.address, 33, 17, message)
    assert caught.value.type == type_
    assert text in caught.value.message
    assert "Traceback" in caught.value.traceback
    assert await client.send_message(node.address, 33, 17, ("echo", [1])) == [1]
    assert node.workers() == before


@pytest.mark.parametrize("message", [("raise", "plain"), ("unmarshallable",), ("sys_exit",), ("recurse",)])
def test_a_handler_that_raises_plain(node: Service, message: object) -> None:
    """A plain caller sees the end of the connection, as from uWSGI; the worker lives on."""
    before = node.workers()
    with pytest.raises(NoAnswer):
        node.ask(message)
    _check_answers(node)
    assert node.workers() == before


def test_a_handlers_traceback_is_logged(node: Service) -> None:
    """The node's log has the exception."""

    def logged() -> bool:
        with pytest.raises(NoAnswer):  # others that were raised there may have had this second's line
            node.ask(("raise", "look for me"))
        return "KeyError: 'look for me'" in node.log

    until(logged, "the exception in the log")
    assert "my_handler.py" in node.log


def test_a_large_answer_plain(node: Service) -> None:
    """An answer too large for a packet closes a plain connection; the largest possible one arrives."""
    largest = 65_535 - len(b"s....")
    assert len(node.ask(("big", largest))) == largest
    with pytest.raises(NoAnswer):
        node.ask(("big", largest + 1))
    _check_answers(node)


@pytest_twisted.ensureDeferred
async def test_a_large_answer_in_a_session(node: Service, client: Client) -> None:
    """In a session it arrives, up to --max-message; beyond that the caller gets an error."""
    for size in (65_531, 70_000, MAX_MESSAGE - 5):
        assert await client.send_message(node.address, 33, 17, ("big", size)) == b"x" * size
    with pytest.raises(MessageTooLarge):
        await client.send_message(node.address, 33, 17, ("big", MAX_MESSAGE))
    assert await client.send_message(node.address, 33, 17, ("echo", 1)) == 1


@pytest_twisted.ensureDeferred
async def test_a_large_request_in_a_session(node: Service, client: Client) -> None:
    """A large object is echoed; one over --max-message is refused before it is sent."""
    large = ["text", b"x" * 400_000, list(range(20_000))]
    assert await client.send_message(node.address, 33, 17, ("echo", large)) == large
    with pytest.raises(MessageTooLarge):
        await client.send_message(node.address, 33, 17, ("echo", b"x" * MAX_MESSAGE))


@pytest_twisted.ensureDeferred
async def test_tracebacks_kept_back(launch: Launcher, client: Client) -> None:
    """With --no-tracebacks callers get the exception without its traceback; the log has both."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", "--no-tracebacks", handler=FAULTS)
    with pytest.raises(RemoteError) as caught:
        await client.send_message(node.address, 33, 17, ("raise", "told"))
    assert (caught.value.type, caught.value.traceback) == ("KeyError", "")
    await eventually(lambda: "my_handler.py" in node.log, "the traceback in the log")


def test_what_a_handler_prints(node: Service) -> None:
    """A handler's output is in the node's log, with the number of its worker."""
    node.ask(("print", "printed by a handler"))
    node.wait_for("] printed by a handler")
    assert re.search(r"\[worker [12]\] printed by a handler\n", node.log)


# A worker's death affects only its request.

DEADLY = [("os_exit",), ("kill",), ("terminate",), ("close_socket",)]


@pytest.mark.parametrize("message", DEADLY)
@pytest_twisted.ensureDeferred
async def test_a_handler_that_ends_its_worker(node: Service, client: Client, message: object) -> None:
    """The caller gets WorkerDied; the worker is replaced, and other requests are answered meanwhile."""
    died = client.send_message(node.address, 33, 17, message)
    others = [client.send_message(node.address, 33, 17, ("echo", number)) for number in range(20)]
    with pytest.raises(WorkerDied):
        await died
    assert await gatherResults(others) == list(range(20))
    node.wait_for("replacing it")


@pytest.mark.parametrize("message", [*DEADLY, ("interrupt",)])
def test_a_handler_that_ends_its_worker_plain(node: Service, message: object) -> None:
    """A plain caller's connection is closed at once, not after its timeout."""
    start = time.monotonic()
    with pytest.raises(NoAnswer):
        node.ask(message)
    assert time.monotonic() - start < 10
    _check_answers(node)


@pytest_twisted.ensureDeferred
async def test_a_handler_that_loops(node: Service, client: Client) -> None:
    """Its worker is killed after --timeout and replaced; the other worker answers meanwhile."""
    before = node.workers()
    looping = client.send_message(node.address, 33, 17, ("loop",))
    meanwhile = 0
    for number in range(20):
        assert await client.send_message(node.address, 33, 17, ("echo", number)) == number
        meanwhile += not looping.called
    assert meanwhile
    with pytest.raises(RequestTimeout) as caught:
        await looping
    assert f"{TIMEOUT:g} s" in str(caught.value)
    await eventually(lambda: len(node.workers()) == WORKERS, "a new worker")
    assert len(set(before) & set(node.workers())) == WORKERS - 1


def test_every_worker_loops(node: Service) -> None:
    """While every worker computes, a ping is answered at once; when they are killed, requests are again."""
    failures: list[UwsgiError] = []

    def loop() -> None:
        try:
            node.ask(("loop",))
        except UwsgiError as error:
            failures.append(error)

    threads = [threading.Thread(target=loop) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    pings = [script(blocking.ping, node.address) for _ in range(10)]
    for thread in threads:
        thread.join()
    # The slowest may have waited for a processor, but not for a worker.
    assert sorted(pings)[len(pings) // 2] < 0.5
    assert [type(failure) for failure in failures] == [NoAnswer] * WORKERS
    _check_answers(node)


def test_a_worker_killed_from_outside(node: Service) -> None:
    """An idle worker that is killed is replaced."""
    victim = node.workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in node.workers() and len(node.workers()) == WORKERS, "a new worker")
    _check_answers(node)


@pytest_twisted.ensureDeferred
async def test_no_answer_is_mixed_up(node: Service, client: Client) -> None:
    """Among requests that kill their workers every other one gets its own answer, or learns of the death."""
    asked = []
    for number in range(200):
        message = ("kill",) if number % 50 == 25 else ("echo", ["request", number])
        asked.append(client.send_message(node.address, 33, 17, message))
    results = await DeferredList(asked, consumeErrors=True)
    answered = [number for number, (ok, _) in enumerate(results) if ok]
    assert [results[number][1] for number in answered] == [["request", number] for number in answered]
    failed = [number for number in range(200) if number not in answered]
    assert failed == [25, 75, 125, 175]
    assert {type(results[number][1].value) for number in failed} == {WorkerDied}


def test_a_grandchild_that_holds_the_output(node: Service) -> None:
    """A process that a handler leaves behind, with the worker's output, doesn't hold up the next request."""
    grandchild = node.ask(("grandchild", "return"))
    assert isinstance(grandchild, int)
    try:
        _check_answers(node)
        assert is_alive(grandchild)
    finally:
        kill_if_alive(grandchild)


def test_a_dead_workers_grandchild(node: Service) -> None:
    """A worker that ends is replaced although a process that it started still holds its output."""
    with pytest.raises(NoAnswer):
        node.ask(("grandchild", "exit"))
    grandchild = int((node.directory / "grandchild").read_text())
    try:
        _check_health(node)
        _check_answers(node)
    finally:
        kill_if_alive(grandchild)


def test_stopping_beside_a_grandchild(launch: Launcher) -> None:
    """A node ends at SIGTERM although a process that a handler started holds a worker's output."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", handler=FAULTS)
    grandchild = node.ask(("grandchild", "return"))
    assert isinstance(grandchild, int)
    try:
        assert node.terminate() == TERMINATED
    finally:
        kill_if_alive(grandchild)


# The queue.


@pytest_twisted.ensureDeferred
async def test_a_full_queue(launch: Launcher, client: Client, tmp_path: Path) -> None:
    """Over --max-queue a session's caller is told Busy and a plain one sees the end; what waits is answered."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", "--max-queue", "1", handler=FAULTS)
    started, go = tmp_path / "started", tmp_path / "go"
    running = client.send_message(node.address, 33, 17, ("wait_for", str(started), str(go)))
    await eventually(started.exists, "the start of the first request")
    waiting = client.send_message(node.address, 33, 17, ("echo", "waited"))
    with pytest.raises(Busy):
        await client.send_message(node.address, 33, 17, ("echo", "refused"))
    plain = Client(client._reactor, plain=[node.address])
    with pytest.raises(NoAnswer):
        await plain.send_message(node.address, 33, 17, ("echo", "refused"))
    await plain.close()
    go.touch()
    assert await running == node.workers()[0]
    assert await waiting == "waited"


# The service's end.


def _ask_in_thread(node: Service, message: object) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def ask() -> None:
        try:
            results.append(node.ask(message))
        except UwsgiError as error:
            results.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, results


def test_sigterm_during_a_request(launch: Launcher, tmp_path: Path) -> None:
    """A request that runs at SIGTERM is answered; no new one is accepted; then the node exits cleanly."""
    node = launch.start("uwsgi-node", "--engine", "processes:2", handler=FAULTS)
    started, go = tmp_path / "started", tmp_path / "go"
    thread, results = _ask_in_thread(node, ("wait_for", str(started), str(go)))
    until(started.exists, "the start of the request")
    workers = node.workers()
    node.process.send_signal(signal.SIGTERM)
    node.wait_for("socket Closed)")
    with pytest.raises(OSError, match=r"No such file|without|refused"):
        node.ask(("echo", "too late"))
    go.touch()
    assert node.process.wait(20) == TERMINATED
    thread.join()
    assert len(results) == 1
    assert results[0] in workers
    assert not any(map(is_alive, workers))


async def _echo_until_refused(node: Service, client: Client) -> None:
    """Call a node that was told to end: until its end begins, a moment after the signal, it answers."""
    for _ in range(1_000):
        await client.send_message(node.address, 33, 17, ("echo", "too late"))


@pytest_twisted.ensureDeferred
async def test_sigterm_during_a_session(launch: Launcher, client: Client, tmp_path: Path) -> None:
    """The same in a session: running requests are answered, new ones fail since the node stops."""
    node = launch.start("uwsgi-node", "--engine", "processes:2", handler=FAULTS)
    started, go = tmp_path / "started", tmp_path / "go"
    running = client.send_message(node.address, 33, 17, ("wait_for", str(started), str(go)))
    await eventually(started.exists, "the start of the request")
    node.process.send_signal(signal.SIGTERM)
    with pytest.raises(UwsgiError):
        await _echo_until_refused(node, client)
    go.touch()
    assert isinstance(await running, int)
    await eventually(lambda: node.process.poll() is not None, "the node's end")
    assert node.process.returncode == TERMINATED


def test_workers_end_by_themselves(launch: Launcher, tmp_path: Path) -> None:
    """When a node is stopped, its workers exit normally, and run their atexit functions."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", handler=FAULTS)
    node.ask(("atexit", str(tmp_path / "left")))
    node.terminate()
    assert (tmp_path / "left").exists()


@pytest_twisted.ensureDeferred
async def test_sigterm_beyond_the_drain_timeout(launch: Launcher, client: Client) -> None:
    """A request that doesn't finish within --drain-timeout fails with that reason, and isn't repeated."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", "--drain-timeout", "0.3", handler=FAULTS)
    started = node.directory / "started"
    running = client.send_message(node.address, 33, 17, ("wait_for", str(started), "never"))
    await eventually(started.exists, "the start of the request")
    node.process.send_signal(signal.SIGTERM)
    with pytest.raises(UwsgiError, match="stopped while running the request"):
        await running
    await eventually(lambda: node.process.poll() is not None, "the node's end")
    assert node.process.returncode == TERMINATED


def test_sigkill_of_the_front(launch: Launcher, tmp_path: Path) -> None:
    """No worker survives the front: neither one that is idle nor one that computes."""
    node = launch.start("uwsgi-node", "--engine", "processes:2", handler=FAULTS)
    started = tmp_path / "started"
    thread, results = _ask_in_thread(node, ("wait_for", str(started), str(tmp_path / "never")))
    until(started.exists, "the start of the request")
    workers = node.workers()
    assert len(workers) == 2
    node.process.kill()
    assert node.process.wait(20) == -signal.SIGKILL
    until(lambda: not any(map(is_alive, workers)), "the end of every worker")
    thread.join()
    assert isinstance(results[0], UwsgiError)
