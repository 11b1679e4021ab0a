"""CPU fan-out: nodes that run a handler module, called by the blocking calls and by the client."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from tests.integration.services import (
    PATIENCE,
    Launcher,
    RawSession,
    Service,
    eventually,
    free_port,
    is_alive,
    script,
    until,
)
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import (
    ConnectionFailed,
    FanOutError,
    NoAnswer,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
)
from uwsgitwisted.wire.events import AnswerReceived
from uwsgitwisted.wire.message import encode_request

pytestmark = pytest.mark.integration

#: What a handler of old uWSGI code looks like: the scenario's computation, and who did it.
HANDLER = """
import os, time, uwsgi

def compute(message, modifier2):
    if message == "fail":
        raise ValueError("this node fails")
    if message == "slow":
        time.sleep(60)
    if message == "wait":
        while not os.path.exists("go"):
            time.sleep(0.01)
        return None
    if message == "nap":
        time.sleep(0.2)
        return None
    if message == "who":
        return {"pid": os.getpid(), "worker": uwsgi.worker_id(),
                "front": uwsgi.masterpid(), "numproc": uwsgi.numproc, "modifier2": modifier2}
    start = time.time()
    for number in range(*message):
        number ** 4096
    return [uwsgi.masterpid(), time.time() - start]

uwsgi.message_manager_marshal = compute
"""
WORK = [0, 300]


@pytest.fixture(scope="module")
def nodes(shared: Launcher) -> list[Service]:
    """Five nodes on TCP ports."""
    return [
        shared.start("uwsgi-node", "--engine", "processes:1", "--timeout", "3", handler=HANDLER, tcp=True)
        for _ in range(5)
    ]


@pytest.fixture
def node(nodes: list[Service]) -> Service:
    """One of them."""
    return nodes[0]


def _cluster(nodes: list[Service], messages: list[object]) -> list[tuple[str, int, object]]:
    return [
        (service.address[0], service.address[1], message)
        for service, message in zip(nodes, messages, strict=True)
    ]


def _check_answers(nodes: list[Service], answers: list[object]) -> None:
    """Each answer is the time it took and comes from the node in its place."""
    assert [answer[0] for answer in answers] == [service.pid for service in nodes]
    assert all(0 < answer[1] < 30 for answer in answers)


def test_blocking_fan_out(nodes: list[Service]) -> None:
    """The five answers come in order, each from its own node."""
    answers = script(blocking.send_multi_uwsgi_message, _cluster(nodes, [WORK] * 5), 33, 17, 40)
    assert isinstance(answers, tuple)
    _check_answers(nodes, list(answers))


@pytest_twisted.ensureDeferred
async def test_client_fan_out(nodes: list[Service], client: Client) -> None:
    """The same with Deferreds: one success per node, in order."""
    results = await client.send_multi_message(_cluster(nodes, [WORK] * 5), 33, 17, 40)
    assert [ok for ok, _ in results] == [True] * 5
    _check_answers(nodes, [answer for _, answer in results])


def test_blocking_fan_out_with_failures(nodes: list[Service]) -> None:
    """A node that is down, one that raises and one that is too slow: FanOutError has the others' answers."""
    cluster = [
        *_cluster(nodes[:2], [WORK, "fail"]),
        ("127.0.0.1", free_port(), WORK),
        *_cluster(nodes[2:4], ["slow", WORK]),
    ]
    with pytest.raises(FanOutError) as caught:
        script(blocking.send_multi_uwsgi_message, cluster, 33, 17, 2)
    results = caught.value.results
    kinds = [type(result) for result in results]
    assert kinds in (
        [list, RemoteError, ConnectionFailed, RequestTimeout, list],
        [list, NoAnswer, ConnectionFailed, RequestTimeout, list],  # where a node grants no session
    )
    _check_answers([nodes[0], nodes[3]], [results[0], results[4]])
    assert sorted(caught.value.failures) == [1, 2, 3]


@pytest_twisted.ensureDeferred
async def test_client_fan_out_with_failures(nodes: list[Service], client: Client) -> None:
    """The same with Deferreds; the session says which exception the handler raised."""
    cluster = [
        *_cluster(nodes[:2], [WORK, "fail"]),
        ("127.0.0.1", free_port(), WORK),
        *_cluster([nodes[4], nodes[3]], ["slow", WORK]),
    ]
    results = await client.send_multi_message(cluster, 33, 17, 2)
    assert [ok for ok, _ in results] == [True, False, False, False, True]
    failures = [result.value for ok, result in results if not ok]
    assert [type(failure) for failure in failures] == [RemoteError, ConnectionFailed, RequestTimeout]
    assert (failures[0].type, failures[0].message) == ("ValueError", "this node fails")
    assert "compute" in failures[0].traceback
    assert "here worker 1" in failures[0].node
    _check_answers([nodes[0], nodes[3]], [results[0][1], results[4][1]])


def test_a_slow_nodes_worker_is_replaced(launch: Launcher) -> None:
    """After a request over --timeout the node has a new worker; the caller gets the error at once."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", "--timeout", "1.5", handler=HANDLER)
    (before,) = node.workers()
    with pytest.raises(NoAnswer):
        node.ask("slow")
    assert node.ask("who")["pid"] != before
    until(lambda: not is_alive(before), "the old worker's end")


def test_what_a_handler_knows(node: Service) -> None:
    """A handler runs in a worker, knows its number and its master, and gets the request's modifier2."""
    who = node.ask("who", modifier2=42)
    (worker,) = node.workers()
    assert who == {
        "pid": worker,
        "front": node.pid,
        "worker": 1,
        "numproc": 1,
        "modifier2": 42,
    }


def test_a_host_by_name(node: Service) -> None:
    """The original call takes a host's name and a port in digits."""
    port = node.address[1]
    answer = script(blocking.send_uwsgi_message, "localhost", str(port), 33, 17, "who")
    assert answer["front"] == node.pid


@pytest_twisted.ensureDeferred
async def test_many_requests_in_flight(node: Service, client: Client) -> None:
    """Each of several requests in flight gets its own answer."""
    asked = [client.send_message(node.address, 33, number, "who") for number in range(100)]
    answers = await gatherResults(asked)
    assert [answer["modifier2"] for answer in answers] == list(range(100))


@pytest_twisted.ensureDeferred
async def test_cancelling(node: Service, client: Client) -> None:
    """A cancelled request fails with RequestCancelled at once; the session stays open."""
    running = client.send_message(node.address, 33, 17, "wait")
    await client.ping(node.address)
    running.cancel()
    with pytest.raises(RequestCancelled):
        await running
    (node.directory / "go").touch()
    assert (await client.send_message(node.address, 33, 17, "who"))["front"] == node.pid


def test_ping_and_echo(node: Service) -> None:
    """A node answers ping and echo as uWSGI does, then closes."""
    assert node.exchange(b"\x64\x00\x00\x00") == b"\x64\x00\x00\x01"
    assert node.exchange(b"\x65\x05\x00\x00hello") == b"hello"
    assert script(blocking.ping, node.address) > 0


@pytest_twisted.ensureDeferred
async def test_client_ping(node: Service, client: Client) -> None:
    """The client's ping gives the time that the answer took."""
    assert 0 < await client.ping(node.address) < 5


def test_several_addresses(launch: Launcher) -> None:
    """A node listens on every address that it is given."""
    port = free_port()
    node = launch.start("uwsgi-node", "-l", f"tcp:{port}", handler=HANDLER)
    for address in (node.address, ("127.0.0.1", port)):
        assert script(blocking.send_message, address, 33, 17, "who")["front"] == node.pid


def test_loopback_by_default(node: Service) -> None:
    """Without --allow a TCP port is on 127.0.0.1 alone, not even on the rest of loopback."""
    port = node.address[1]
    with socket.socket() as connection, pytest.raises(ConnectionRefusedError):
        connection.connect(("127.0.0.2", port))


def test_the_reactor_engine(launch: Launcher) -> None:
    """The engine `reactor` runs the same handler module in the service's own process."""
    node = launch.start("uwsgi-node", "--engine", "reactor", handler=HANDLER)
    assert node.ask("who")["pid"] == node.pid
    assert node.workers() == []
    with pytest.raises(NoAnswer):
        node.ask("fail")
    assert node.ask([0, 10])[0] == node.pid


def test_threads_of_a_script(nodes: list[Service]) -> None:
    """Blocking calls from several threads don't get into each other's way."""
    answers: dict[int, object] = {}

    def ask(place: int) -> None:
        answers[place] = blocking.send_message(nodes[place].address, 33, 17, "who")

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fronts = [answers[place]["front"] for place in range(5)]
    assert fronts == [service.pid for service in nodes]


def _call_before_and_after(address: object, before: threading.Event, frozen: threading.Event) -> object:
    """Call a node, and again once it is frozen; return what the second and a third call fail with."""
    blocking.send_message(address, 33, 17, "who")  # type: ignore[arg-type]
    before.set()
    frozen.wait(PATIENCE)
    failures = []
    for _ in range(2):
        with pytest.raises(ConnectionFailed) as caught:
            blocking.send_message(address, 33, 17, WORK, 600)  # type: ignore[arg-type]
        failures.append(str(caught.value))
    return failures


@pytest_twisted.ensureDeferred
async def test_a_frozen_node(launch: Launcher, client: Client) -> None:
    """Both clients notice within seconds that a node hangs, and say so; their timeouts are far longer."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", handler=HANDLER, tcp=True)
    before, frozen = threading.Event(), threading.Event()
    other = deferToThread(script, _call_before_and_after, node.address, before, frozen)
    await client.send_message(node.address, 33, 17, "who")
    await eventually(before.is_set, "the first call")
    node.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        frozen.set()
        failures = []
        for _ in range(2):
            with pytest.raises(ConnectionFailed) as caught:
                await client.send_message(node.address, 33, 17, WORK, timeout=600)
            failures.append(str(caught.value))
        for hung, silent in (failures, await other):
            assert "not even the answer to a ping: it hangs" in hung
            assert "accepts connections but has sent nothing for 10 s: it hangs" in silent
        assert time.monotonic() - began < 30
    finally:
        node.process.send_signal(signal.SIGCONT)
    assert await client.send_message(node.address, 33, 17, "who", timeout=30)


def test_how_long_the_handler_ran(node: Service) -> None:
    """An answer in a session tells how long its handler ran, without the time that the request waited."""
    session = RawSession(node)
    began = time.monotonic()
    for request in (1, 2):
        session.session.send_request(request, encode_request(33, 17, "nap"))
    session.flush()
    answers = []
    while len(answers) < 2:
        answers += session.events()
    took = time.monotonic() - began
    session.close()
    ran = [answer.took for answer in answers if isinstance(answer, AnswerReceived)]
    assert len(ran) == 2
    assert min(ran) >= 0.2
    # The only worker runs one after the other, so with its waiting time the second would exceed that.
    assert sum(ran) <= took
