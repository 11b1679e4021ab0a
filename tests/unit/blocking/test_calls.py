"""The blocking calls against a real server on loopback that follows a script."""

from __future__ import annotations

import marshal
import pickle
import socket
import subprocess
import sys
import threading
import time

import pytest
from twisted.internet import reactor

from tests.unit.servers import (
    ENOUGH,
    ScriptedServer,
    answering,
    closed_port,
    echoing,
    frame,
    nothing_left_open,  # noqa: F401 - a fixture
    outside_the_reactor,  # noqa: F401 - a fixture
    plain_peers,  # noqa: F401 - a fixture
    resetting,
    silent,
)
from uwsgitwisted import blocking
from uwsgitwisted.errors import (
    ConnectionFailed,
    FanOutError,
    MessageTooLarge,
    MisuseError,
    NoAnswer,
    PacketTooLarge,
    ProtocolError,
    RequestTimeout,
    SpoolRefused,
    UnencodableMessage,
    UnsafeObject,
    UwsgiError,
)

MESSAGE = ("mytemplate.txt", {"fib_sequence": [1, 1, 2], "whattimeisit": 1.5})
ANSWER = frame(33, 17, marshal.dumps("page", 2))

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("outside_the_reactor", "plain_peers", "nothing_left_open"),
]


def test_an_object() -> None:
    """An object goes out marshalled and its answer comes back as an object."""
    with ScriptedServer(answering(ANSWER)) as server:
        assert blocking.send_uwsgi_message("127.0.0.1", server.port, 33, 17, MESSAGE, 10) == "page"
    assert server.requests == [frame(33, 17, marshal.dumps(MESSAGE, 2))]


def test_names_are_looked_up_and_each_family_is_tried() -> None:
    """A name works as well as an address, even if only one of its address families answers."""
    with ScriptedServer(answering(ANSWER)) as server:
        assert blocking.send_uwsgi_message("localhost", str(server.port), 33, 17, MESSAGE, 10) == "page"


@pytest.mark.parametrize(
    "form", ["{host}:{port}", "tcp:{host}:{port}", "tcp:host={host}:port={port}:timeout=9"]
)
def test_addresses_as_text(form: str) -> None:
    """An address may be written in uWSGI's way or in Twisted's."""
    with ScriptedServer(answering(ANSWER)) as server:
        address = form.format(host="127.0.0.1", port=server.port)
        assert blocking.send_message(address, 33, 17, MESSAGE, 10) == "page"


@pytest.mark.parametrize(("yes", "value"), [(1, True), (0, False)])
def test_a_task_by_the_original_call(yes: int, value: bool) -> None:
    """A task is sent as a vars block; the answer says whether it was accepted."""
    with ScriptedServer(answering(frame(255, yes))) as server:
        assert blocking.send_uwsgi_message("127.0.0.1", server.port, 17, 0, {"key1": "value1"}, 10) is value
    assert server.requests == [frame(17, 0, b"\x04\x00key1\x06\x00value1")]


def test_spool() -> None:
    """The call returns True for an accepted task."""
    with ScriptedServer(answering(frame(255, 1))) as server:
        assert blocking.spool(server.address, {b"k": b"v"}, 10) is True


def test_spool_refused() -> None:
    """A task that the spooler refused raises, with the address."""
    with ScriptedServer(answering(frame(255, 0))) as server:
        with pytest.raises(SpoolRefused, match="refused the task") as caught:
            blocking.spool(server.address, {"k": "v"}, 10)
        assert caught.value.address == server.address


def test_spool_to_something_else() -> None:
    """An answer that is neither yes nor no doesn't count as a stored task."""
    with ScriptedServer(answering(frame(17, 1))) as server, pytest.raises(ProtocolError, match="not a spooler"):
        blocking.spool(server.address, {"k": "v"}, 10)


@pytest.mark.parametrize("payload", [b"", b"a warning"])
def test_ping(payload: bytes) -> None:
    """A ping returns its time in seconds, even if the server has a warning."""
    with ScriptedServer(answering(frame(100, 1, payload))) as server:
        start = time.monotonic()
        seconds = blocking.ping(server.address)
        assert 0 < seconds <= time.monotonic() - start
    assert server.requests == [frame(100, 0)]


def test_ping_of_something_else() -> None:
    """Whatever doesn't answer a ping with a ping is not a uwsgi server."""
    with (
        ScriptedServer(answering(frame(33, 1, b"N"))) as server,
        pytest.raises(ProtocolError, match="not a uwsgi"),
    ):
        blocking.ping(server.address)


def test_an_answer_byte_by_byte() -> None:
    """An answer that comes in pieces of a byte is the same answer."""
    with ScriptedServer(answering(*(ANSWER[place : place + 1] for place in range(len(ANSWER))))) as server:
        assert blocking.send_message(server.address, 33, 17, MESSAGE, 10) == "page"


def test_the_largest_request_and_answer() -> None:
    """The largest payload of a packet travels both ways."""
    message = b"x" * 65530
    with ScriptedServer(echoing) as server:
        assert blocking.send_message(server.address, 33, 0, message, 10) == message


def test_rpc() -> None:
    """A call's result is bytes; an answer of another kind is none."""
    with ScriptedServer(answering(frame(173, 0, b"result"))) as server:
        assert blocking.rpc(server.address, "f", b"a", 17, timeout=10) == b"result"
        with pytest.raises(UnencodableMessage, match="item 1 is empty") as caught:
            blocking.rpc(server.address, "f", b"")
        assert caught.value.address == server.address
    for answer, error, reason in (
        ([frame(33, 0, b"T")], ProtocolError, "not one to an RPC"),
        ([], NoAnswer, "a function that is unknown, or returned nothing"),
    ):
        with ScriptedServer(answering(*answer)) as server, pytest.raises(error, match=reason):
            blocking.rpc(server.address, "f")


def test_a_raw_answer() -> None:
    """An answer without a header is read to the end of the connection."""
    with ScriptedServer(answering(b"HTTP/1.0 200 OK\r\n", b"\r\n", b"x" * 200000)) as server:
        answer = blocking.send_message(server.address, 0, 0, {"PATH_INFO": "/"}, 10)
    assert answer == b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 200000


def test_a_raw_answer_without_end() -> None:
    """A call fails when an endless raw answer reaches the limit."""

    def script(server: ScriptedServer, connection: socket.socket) -> None:
        server.read_request(connection)
        while True:
            connection.sendall(b"x" * 1_000_000)

    with ScriptedServer(script) as server, pytest.raises(PacketTooLarge) as caught:
        blocking.send_message(server.address, 0, 0, {"PATH_INFO": "/"}, 10)
    assert caught.value.limit == 16 * 1024 * 1024


@pytest.mark.parametrize(
    ("pieces", "error", "reason"),
    [
        ([], NoAnswer, "ended without an answer"),
        ([ANSWER[:3]], ConnectionFailed, "in the middle"),
        ([ANSWER[:-1]], ConnectionFailed, "in the middle"),
        ([frame(33, 0, b"junk")], UnsafeObject, "."),
        ([frame(33, 0, marshal.dumps("page", 2) + b"tail")], UnsafeObject, "."),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], ProtocolError, "answers with HTTP"),
    ],
)
def test_bad_answers(pieces: list[bytes], error: type[UwsgiError], reason: str) -> None:
    """Whatever a server does instead of answering raises one of our errors, with its address."""
    with ScriptedServer(answering(*pieces)) as server:
        with pytest.raises(error, match=reason) as caught:
            blocking.send_message(server.address, 33, 0, MESSAGE, 10)
        assert caught.value.address == server.address


def test_a_python2_node() -> None:
    """The text in the answers of a Python 2 node is text with the encoding, and bytes without."""
    with ScriptedServer(answering(frame(33, 0, marshal.dumps([b"ann"], 2)))) as server:
        host, port = server.address
        assert blocking.send_message(server.address, 33, 0, None, 10) == [b"ann"]
        assert blocking.send_message(server.address, 33, 0, None, 10, python2="utf-8") == ["ann"]
        assert blocking.send_uwsgi_message(host, port, 33, 0, None, 10, python2="utf-8") == ["ann"]
        nodes = [(server.address, None)] * 2
        assert blocking.send_multi_uwsgi_message(nodes, 33, 0, 10, python2="utf-8") == (["ann"], ["ann"])
        with pytest.raises(ValueError, match="no text encoding"):
            blocking.send_message(server.address, 33, 0, None, 10, python2="nothing")


def test_a_reset() -> None:
    """A reset says that uWSGI may have found the request too large, if it was."""
    with ScriptedServer(resetting) as server:
        with pytest.raises(NoAnswer, match="reset the connection") as small:
            blocking.send_message(server.address, 33, 0, None, 10)
        with pytest.raises(NoAnswer, match=r"--buffer-size \(4096") as large:
            blocking.send_message(server.address, 33, 0, b"x" * 60000, 10)
    assert "buffer-size" not in str(small.value)
    assert large.value.address == server.address


def test_refused() -> None:
    """Where nobody listens, the error has the address, once, and the system's words."""
    address = ("127.0.0.1", closed_port())
    with pytest.raises(ConnectionFailed) as caught:
        blocking.send_message(address, 33, 0, MESSAGE, 10)
    assert caught.value.address == address
    assert str(caught.value) == f"127.0.0.1:{address[1]}: Connection refused"
    assert not isinstance(caught.value, NoAnswer)


def test_refused_by_every_address_of_a_name() -> None:
    """Where a host is named, the error says which of its addresses were tried."""
    port = closed_port()
    with pytest.raises(ConnectionFailed) as caught:
        blocking.send_message(("localhost", port), 33, 0, MESSAGE, 10)
    assert str(caught.value).startswith(f"localhost:{port}: ")
    assert "Connection refused (127.0.0.1)" in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "30", None, True])
def test_timeouts_are_positive_numbers(timeout: float) -> None:
    """A timeout that is no number of seconds is refused."""
    with pytest.raises(MisuseError, match="a number of seconds above 0"):
        blocking.send_message("127.0.0.1:1", 33, 0, MESSAGE, timeout)


def test_a_huge_timeout() -> None:
    """A timeout beyond the limits of system calls works."""
    with ScriptedServer(answering(ANSWER)) as server:
        assert blocking.send_message(server.address, 33, 0, MESSAGE, 1e15) == "page"


@pytest.mark.parametrize(
    ("message", "error"), [(object(), UnencodableMessage), (b"x" * 65536, MessageTooLarge)]
)
def test_what_can_not_be_sent_is_not_sent(message: object, error: type[UwsgiError]) -> None:
    """A message that plain uwsgi can't carry is refused before anybody is connected to."""
    address = ("127.0.0.1", closed_port())
    with pytest.raises(error) as caught:
        blocking.send_message(address, 33, 0, message, 10)
    assert caught.value.address == address


def test_fan_out() -> None:
    """All nodes are called in parallel, and their answers come in the order of the nodes."""
    barrier = threading.Barrier(5)

    def script(server: ScriptedServer, connection: socket.socket) -> None:
        request = server.read_request(connection)
        barrier.wait(10)  # nobody answers before all were asked
        connection.sendall(request)

    with ScriptedServer(script) as server:
        cluster = [("127.0.0.1", server.port, [place, place + 1]) for place in range(5)]
        answers = blocking.send_multi_uwsgi_message(iter(cluster), 33, 17, 10)
    assert answers == tuple([place, place + 1] for place in range(5))


def test_fan_out_keeps_every_result() -> None:
    """If nodes fail, the error has each one's own answer or failure, and survives pickling."""
    refused = closed_port()
    with ScriptedServer(answering(ANSWER)) as good, ScriptedServer(silent) as slow:
        cluster = [
            ("127.0.0.1", good.port, MESSAGE),
            ("127.0.0.1", refused, MESSAGE),
            ("localhost", slow.port, MESSAGE),
            ("127.0.0.1", good.port, MESSAGE),
        ]
        with pytest.raises(FanOutError, match=r"2 of 4 nodes failed: .*Connection refused") as caught:
            blocking.send_multi_uwsgi_message(cluster, 33, 17, ENOUGH)
    results = caught.value.results
    assert (results[0], results[3]) == ("page", "page")
    assert isinstance(results[1], ConnectionFailed)
    assert isinstance(results[2], RequestTimeout)
    assert caught.value.failures == {1: results[1], 2: results[2]}
    assert caught.value.failures[1].address == ("127.0.0.1", refused)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert [type(result) for result in copy.results] == [type(result) for result in results]


def test_fan_out_to_nobody() -> None:
    """No nodes, no answers."""
    assert blocking.send_multi_uwsgi_message((), 33, 17, 10) == ()


def test_fan_out_to_addresses() -> None:
    """A node's address may be one value, in any of its spellings."""
    with ScriptedServer(answering(ANSWER)) as server:
        host, port = server.address
        cluster = [(host, str(port), MESSAGE), (f"{host}:{port}", MESSAGE), (server.address, MESSAGE)]
        assert blocking.send_multi_uwsgi_message(cluster, 33, 17, 10) == ("page",) * 3


@pytest.mark.parametrize("node", [("127.0.0.1", 1), "127.0.0.1:1", None, ("127.0.0.1", 0, None)])
def test_fan_out_to_no_node(node: object) -> None:
    """An invalid node is refused."""
    with pytest.raises(MisuseError):
        blocking.send_multi_uwsgi_message([node], 33, 17, 10)  # type: ignore[list-item]


def test_fan_out_of_what_can_not_be_sent() -> None:
    """If one message can't be sent, none is."""
    with ScriptedServer(answering(ANSWER)) as server:
        cluster = [("127.0.0.1", server.port, None), ("127.0.0.1", server.port, object())]
        with pytest.raises(UnencodableMessage):
            blocking.send_multi_uwsgi_message(cluster, 33, 17, 10)
    assert server.requests == []


def test_many_threads() -> None:
    """Each of many concurrent calls from threads gets its own answer."""
    answers: dict[int, object] = {}

    def call(number: int, address: tuple[str, int]) -> None:
        answers[number] = blocking.send_message(address, 33, 0, number, 10)

    with ScriptedServer(echoing) as server:
        threads = [threading.Thread(target=call, args=(number, server.address)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert answers == {number: number for number in range(20)}


def test_after_a_fork() -> None:
    """A child that was forked after a call makes its own calls, and so does the parent."""
    code = """
import os, sys
from uwsgitwisted.blocking import send_message
def call(number):
    assert send_message(("127.0.0.1", int(sys.argv[1])), 33, 0, number, 10) == number
call(0)
child = os.fork()
call(child)
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    with ScriptedServer(echoing) as server:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(server.port)],
            check=False,
            capture_output=True,
            text=True,
        )
    assert (result.returncode, result.stderr) == (0, "")
    # The offer of a session, which it echoes, and three requests; the child knows what the parent found out.
    assert len(server.requests) == 4


def test_in_the_reactor_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the thread of a running reactor the call names the Deferred one; in another thread it works."""
    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", reactor)
    assert reactor.running  # by pytest-twisted
    with pytest.raises(MisuseError, match=r"uwsgitwisted\.client\.Client"):
        blocking.send_message("127.0.0.1:1", 33, 0, MESSAGE, 10)
    with pytest.raises(MisuseError, match=r"uwsgitwisted\.client\.Client"):
        blocking.send_multi_uwsgi_message((), 33, 0, 10)
    answers = []
    with ScriptedServer(answering(ANSWER)) as server:
        thread = threading.Thread(
            target=lambda: answers.append(blocking.send_message(server.address, 33, 0, MESSAGE, 10))
        )
        thread.start()
        thread.join(10)
    assert answers == ["page"]


def test_beside_a_reactor_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reactor that was only imported doesn't matter."""

    class Idle:
        running = False

    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", Idle())
    with ScriptedServer(answering(ANSWER)) as server:
        assert blocking.send_message(server.address, 33, 0, MESSAGE, 10) == "page"


@pytest.mark.parametrize(
    "module",
    [
        "uwsgitwisted.blocking",
        "uwsgitwisted.worker.compat.install",
        "uwsgitwisted.worker.handlers.marshal",
        "uwsgitwisted.worker.handlers.spool",
    ],
)
def test_no_twisted(module: str) -> None:
    """Neither a script nor a worker loads Twisted, nor TLS as long as it doesn't use it."""
    code = f"import sys, {module}; print(sorted({{'twisted', 'zope', 'ssl'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
