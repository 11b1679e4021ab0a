"""Blocking calls in sessions, against a real server on loopback that follows a script."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.servers import (
    nothing_left_open,  # noqa: F401 - a fixture
    outside_the_reactor,  # noqa: F401 - a fixture
    reset,
)
from tests.unit.speaking import Caller, Speaker, SpeakingServer, echo_all, echo_once
from uwsgitwisted import blocking
from uwsgitwisted.blocking import sessions
from uwsgitwisted.errors import (
    Busy,
    ConnectionBroken,
    ConnectionFailed,
    FanOutError,
    MessageTooLarge,
    NoAnswer,
    ProtocolError,
    RemoteError,
    RequestTimeout,
    Unavailable,
    UwsgiError,
)
from uwsgitwisted.wire.events import PingReceived
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import Terms

#: Short, for tests in which the time does run out.
SHORT = 0.2
PATIENCE = 10
MEGABYTE = 1_000_000

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("outside_the_reactor", "no_memory", "nothing_left_open"),
]


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the tables of known servers, since other tests' servers had the same ports."""
    monkeypatch.setattr(sessions, "_plain_until", {})
    monkeypatch.setattr(sessions, "_ours_until", {})


@pytest.fixture(params=[False, True], ids=["call", "fan-out"])
def call(request: pytest.FixtureRequest) -> Iterator[Caller]:
    """Give a thread that calls; each test is done with single calls and with fan-outs."""
    with Caller(fan_out=request.param) as caller:
        yield caller


@pytest.fixture
def always_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a session before each use, even if the last one was a moment ago."""
    monkeypatch.setattr(sessions, "_FRESH", 0.0, raising=False)


# Cached between calls.


def test_one_session_for_many_calls(call: Caller) -> None:
    """A thread's calls to an address use one connection, and each gets its own answer."""
    with SpeakingServer() as server:
        assert [call(server.address, number) for number in range(20)] == list(range(20))
        assert server.sessions == [list(range(20))]


def test_a_session_a_thread_and_address() -> None:
    """Two threads have a session each, with each of two servers."""
    with SpeakingServer() as one, SpeakingServer() as other, Caller() as first, Caller() as second:
        for round_ in range(3):
            for name, caller in (("first", first), ("second", second)):
                for server in (one, other):
                    assert caller(server.address, [name, round_]) == [name, round_]
        for server in (one, other):
            expected = [[[name, round_] for round_ in range(3)] for name in ("first", "second")]
            assert sorted(server.sessions) == expected


def test_a_thread_that_ends_closes_its_sessions() -> None:
    """A thread's sessions are closed when it ends."""
    closed = threading.Event()

    def turn(speaker: Speaker) -> None:
        echo_once(speaker)
        if not speaker.connection.recv(1):
            closed.set()

    with SpeakingServer(turn) as server:
        with Caller() as caller:
            assert caller(server.address, 1) == 1
            assert not closed.is_set()
        assert closed.wait(PATIENCE)


def test_a_unix_socket(tmp_path: Path) -> None:
    """A session works over a UNIX socket as well."""
    with SpeakingServer(path=str(tmp_path / "socket")) as server, Caller() as caller:
        for number in range(3):
            assert caller(f"unix:{server.address}", number) == number
        assert server.sessions == [[0, 1, 2]]


def test_single_calls_and_fan_outs_share_a_session() -> None:
    """A fan-out uses the sessions that single calls have opened, and vice versa."""
    with SpeakingServer() as one, SpeakingServer() as other, Caller() as caller:
        for number in range(3):
            caller(one.address, number)
            cluster = [(*one.address, "one"), (*other.address, "other")]
            assert caller.run(blocking.send_multi_uwsgi_message, cluster, 33, 0, 10) == ("one", "other")
        assert one.sessions == [[0, "one", 1, "one", 2, "one"]]
        assert other.sessions == [["other"] * 3]


def test_the_same_address_twice_in_one_fan_out() -> None:
    """Each call has its own session meanwhile; one of them is cached, the other closed."""
    closed = threading.Semaphore(0)

    def turn(speaker: Speaker) -> None:
        try:
            echo_all(speaker)
        finally:
            closed.release()

    with SpeakingServer(turn) as server, Caller() as caller:
        cluster = [(*server.address, number) for number in range(2)]
        for _ in range(2):
            assert caller.run(blocking.send_multi_uwsgi_message, cluster, 33, 0, 10) == (0, 1)
            assert closed.acquire(timeout=PATIENCE)
        assert caller(server.address, "last") == "last"
        assert not closed.acquire(blocking=False)
        assert len(server.sessions) == 3
        assert sorted(map(str, itertools.chain(*server.sessions))) == ["0", "0", "1", "1", "last"]


def test_every_modifier(call: Caller) -> None:
    """A session also carries tasks, whose answer is True or False."""

    def turn(speaker: Speaker) -> None:
        data = speaker.connection.recv(65_536)
        (event,) = speaker.session.receive(data)
        assert event.packet == Packet(17, 0, b"\x01\x00k\x01\x00v")  # type: ignore[union-attr]
        speaker.session.send_answer(event.id, Packet(255, 1))  # type: ignore[union-attr]
        speaker.flush()

    with SpeakingServer(turn) as server:
        assert call.run(blocking.spool, server.address, {"k": "v"}) is True


# Servers that are silent.


def _hang(speaker: Speaker) -> None:
    speaker.next()
    assert speaker.peer.done.wait(PATIENCE)


def _hang_unread(speaker: Speaker) -> None:
    assert speaker.peer.done.wait(PATIENCE)


@pytest.mark.parametrize("message", ["small", bytes(8 * MEGABYTE)], ids=["small", "large"])
def test_a_server_that_hangs(call: Caller, message: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call to a server that neither answers nor reads fails long before its timeout."""
    monkeypatch.setattr(sessions, "KEEPALIVE", SHORT)
    with SpeakingServer(_hang_unread if message != "small" else _hang) as server:
        began = time.monotonic()
        with pytest.raises(NoAnswer, match=r"has sent nothing for .* not even the answer to a ping"):
            call(server.address, message, 60)
        assert time.monotonic() - began < PATIENCE
        server.done.set()


def test_a_server_that_is_busy(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call waits for a server that answers pings while it works on the request."""
    monkeypatch.setattr(sessions, "KEEPALIVE", SHORT)
    send_ping = Session.send_ping

    def ping(session: Session) -> None:
        """Ping after a short silence, but give the server's thread time for its answer."""
        monkeypatch.setattr(sessions, "KEEPALIVE", PATIENCE)
        send_ping(session)

    monkeypatch.setattr(Session, "send_ping", ping)

    def work(speaker: Speaker) -> None:
        request = speaker.next()
        for _ in range(4):
            (event,) = speaker.session.receive(speaker.connection.recv(65_536))
            assert isinstance(event, PingReceived)
            monkeypatch.setattr(sessions, "KEEPALIVE", SHORT)
            speaker.flush()
        speaker.answer(request, "done")

    with SpeakingServer(work) as server:
        assert call(server.address, "work", 30) == "done"


def test_a_server_without_room(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call also waits for a server that stops reading for a while but sends keep-alives."""
    monkeypatch.setattr(sessions, "KEEPALIVE", SHORT)
    pause = threading.Event()
    read_pending = sessions.CachedSession._read_pending

    def wait_and_read(session: sessions.CachedSession) -> bytes:
        """Look for a keep-alive after a short while, but give the server's thread time for it."""
        select.select([session._sock], [], [], PATIENCE)
        return read_pending(session)

    monkeypatch.setattr(sessions.CachedSession, "_read_pending", wait_and_read)

    def work(speaker: Speaker) -> None:
        for _ in range(3):
            pause.wait(3 * SHORT)  # so that the call has to see each
            speaker.session.send_pong()
            speaker.flush()
        monkeypatch.setattr(sessions, "KEEPALIVE", PATIENCE)
        echo_all(speaker)

    with SpeakingServer(work) as server:
        message = bytes(8 * MEGABYTE)
        assert call(server.address, message, 30) == message


def test_a_timeout_while_a_server_is_silent(call: Caller) -> None:
    """A call with a timeout shorter than the keep-alive times out on time."""
    with SpeakingServer(_hang) as server:
        with pytest.raises(RequestTimeout):
            call(server.address, "small", SHORT)
        server.done.set()


# Closed by the peer between two calls.


def _close(speaker: Speaker) -> None:
    pass


def _reset(speaker: Speaker) -> None:
    reset(speaker.connection)


def _announce_shutdown(speaker: Speaker) -> None:
    speaker.announce_shutdown()


def _strange_packet(speaker: Speaker) -> None:
    speaker.connection.sendall(b"\x21\x01\x00\x00N")


def _stay(speaker: Speaker) -> None:
    request = speaker.next()
    raise AssertionError(f"{request!r} came after the shutdown notice")


@pytest.mark.usefixtures("always_looking")
@pytest.mark.parametrize(
    ("end", "stays"),
    [
        (_close, False),
        (_reset, False),
        (_announce_shutdown, False),
        (_announce_shutdown, True),
        (_strange_packet, False),
        (_strange_packet, True),
    ],
)
def test_a_stale_session(call: Caller, end: Callable[[Speaker], None], stays: bool) -> None:
    """A call notices what the peer did while the session was idle, and opens a new session before it sends."""
    answered, left = threading.Event(), threading.Event()

    def turn(speaker: Speaker) -> None:
        echo_once(speaker)
        assert answered.wait(PATIENCE)
        end(speaker)
        if stays:
            left.set()
            _stay(speaker)
        else:
            speaker.connection.close()
            left.set()

    with SpeakingServer(turn, echo_all) as server:
        assert call(server.address, "first") == "first"
        answered.set()
        assert left.wait(PATIENCE)
        assert call(server.address, "second") == "second"
        assert call(server.address, "third") == "third"
        assert server.sessions == [["first"], ["second", "third"]]


@pytest.mark.usefixtures("always_looking")
def test_a_stale_session_of_a_server_that_is_gone(call: Caller) -> None:
    """If no new session can be opened, the call fails."""
    with SpeakingServer(echo_once) as server:
        assert call(server.address, 1) == 1
    with pytest.raises(ConnectionFailed, match="refused"):
        call(server.address, 2)


def test_shutdown_behind_an_answer(call: Caller) -> None:
    """A session whose peer sends its shutdown notice with its answer is not cached."""

    def turn(speaker: Speaker) -> None:
        request = speaker.next()
        speaker.session.send_shutdown()
        speaker.answer(request, "answer")
        _stay(speaker)

    with SpeakingServer(turn, echo_all) as server:
        assert call(server.address, "first") == "answer"
        assert call(server.address, "second") == "second"
        assert server.sessions == [["first"], ["second"]]


def _shutdown() -> bytes:
    session = Session(Role.SERVER, Terms(), Terms())
    session.send_shutdown()
    return session.data_to_send()


def test_shutdown_behind_the_terms(call: Caller) -> None:
    """Frames behind the grant count: a request that races with the shutdown notice is sent again."""

    def refuse(speaker: Speaker) -> None:
        speaker.fail(speaker.next(), Unavailable("the node is stopping"))
        _stay(speaker)

    with SpeakingServer(refuse, echo_all, behind=_shutdown()) as server:
        assert call(server.address, "asked") == "asked"
        assert server.sessions[-1] == ["asked"]


# Lost in the middle of a request.


def _half_an_answer(speaker: Speaker) -> None:
    speaker.session.send_answer(1, Packet(MARSHAL, 0, b"x" * 100))
    speaker.connection.sendall(speaker.bytes_to_send()[:50])


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (_close, NoAnswer),
        (_reset, (NoAnswer, ConnectionBroken)),
        (_half_an_answer, NoAnswer),
        (_announce_shutdown, NoAnswer),
        (_strange_packet, ProtocolError),
    ],
)
def test_a_session_that_is_lost_in_a_request(
    call: Caller, end: Callable[[Speaker], None], error: type[UwsgiError] | tuple[type[UwsgiError], ...]
) -> None:
    """The request fails and is not sent again, since it may have run. The next one gets a new session.

    The error says so too: none is one after which a request may always be sent to another node.
    """

    def turn(speaker: Speaker) -> None:
        echo_once(speaker)
        speaker.next()
        end(speaker)

    with SpeakingServer(turn, echo_all) as server:
        assert call(server.address, "first") == "first"
        with pytest.raises(error) as caught:
            call(server.address, "lost")
        assert caught.value.address == server.address
        assert call(server.address, "next") == "next"
        assert server.sessions == [["first", "lost"], ["next"]]


def test_refused_after_a_shutdown(call: Caller) -> None:
    """A request that raced with the peer's shutdown notice did not run, so it is sent again."""

    def turn(speaker: Speaker) -> None:
        echo_once(speaker)
        request = speaker.next()
        speaker.session.send_shutdown()
        speaker.fail(request, Unavailable("the node is stopping"))
        _stay(speaker)

    with SpeakingServer(turn, echo_all) as server:
        assert call(server.address, "first") == "first"
        assert call(server.address, "crossing") == "crossing"
        assert server.sessions == [["first", "crossing"], ["crossing"]]


@pytest.mark.parametrize("error", [Unavailable("the node is starting"), Busy("many wait")])
def test_refused_without_a_shutdown(call: Caller, error: UwsgiError) -> None:
    """A call to a busy node, or one that stops without a shutdown notice, isn't repeated."""

    def turn(speaker: Speaker) -> None:
        speaker.fail(speaker.next(), error)
        echo_all(speaker)

    with SpeakingServer(turn) as server:
        with pytest.raises(type(error), match=error.text):
            call(server.address, "refused")
        assert call(server.address, "next") == "next"
        assert server.sessions == [["refused", "next"]]


# Answers.


def test_errors(call: Caller) -> None:
    """A handler's exception arrives with all its facts; the session stays cached."""

    def turn(speaker: Speaker) -> None:
        request = speaker.next()
        speaker.fail(
            request, RemoteError(type="KeyError", message="'x'", traceback="at line 1", node="n1 worker 2")
        )
        echo_all(speaker)

    with SpeakingServer(turn) as server:
        with pytest.raises(RemoteError, match="KeyError: 'x'") as caught:
            call(server.address, "fails")
        error = caught.value
        assert (error.type, error.message, error.traceback, error.node) == (
            "KeyError",
            "'x'",
            "at line 1",
            "n1 worker 2",
        )
        assert error.address == server.address
        assert call(server.address, "next") == "next"
        assert server.sessions == [["fails", "next"]]


def test_an_answer_in_pieces(call: Caller) -> None:
    """An answer may come byte by byte."""

    def turn(speaker: Speaker) -> None:
        request = speaker.next()
        speaker.session.send_answer(request.id, Packet(MARSHAL, 0, b"i\x07\x00\x00\x00"))
        for byte in speaker.bytes_to_send():
            speaker.connection.sendall(bytes([byte]))
        echo_all(speaker)

    with SpeakingServer(turn) as server:
        assert call(server.address, "first") == 7
        assert call(server.address, "second") == "second"
        assert len(server.sessions) == 1


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("other_first", [True, False])
def test_an_answer_to_another_id(call: Caller, together: bool, other_first: bool) -> None:
    """Only the answer with the request's id is returned."""

    def turn(speaker: Speaker) -> None:
        request = speaker.next()
        for own in (not other_first, other_first):
            packet = Packet(MARSHAL, 0, b"T" if own else b"F")
            speaker.session.send_answer(request.id if own else request.id + 1_000, packet)
            if not together:
                speaker.flush()
        speaker.flush()
        echo_all(speaker)

    with SpeakingServer(turn) as server:
        assert call(server.address, "first") is True
        assert call(server.address, "second") == "second"


def test_a_late_answer(call: Caller) -> None:
    """After a timeout the session is closed, so that the next call can't get the late answer."""
    go_on = threading.Event()

    def turn(speaker: Speaker) -> None:
        echo_once(speaker)
        request = speaker.next()
        go_on.wait(PATIENCE)
        speaker.answer(request, "late")
        with pytest.raises(ConnectionError):
            speaker.next()
        speaker.note_done()

    with SpeakingServer(turn, echo_all) as server:
        assert call(server.address, "first") == "first"
        with pytest.raises(RequestTimeout, match=f"within {SHORT:g} seconds") as caught:
            call(server.address, "slow", SHORT)
        assert caught.value.seconds == SHORT
        go_on.set()
        assert call(server.address, "next") == "next"
        assert server.done.wait(PATIENCE)
        assert server.sessions == [["first", "slow"], ["next"]]


def test_the_deadline_travels(call: Caller) -> None:
    """The request carries the time that the caller will wait."""
    told: list[float | None] = []

    def turn(speaker: Speaker) -> None:
        while True:
            request = speaker.next()
            told.append(request.seconds)
            speaker.answer(request, None)

    with SpeakingServer(turn) as server:
        call(server.address, "first", 700)
        call(server.address, "second", 300)
    assert told[0] is not None
    assert told[1] is not None
    assert 600 < told[0] <= 700
    assert 200 < told[1] <= 300


# Sizes.


def test_large_messages(call: Caller) -> None:
    """Five megabytes travel both ways in pieces, then small messages, all in one session."""
    large = {"bytes": b"x" * 5 * MEGABYTE}
    with SpeakingServer() as server:
        for message in (large, "small", large, "small"):
            assert call(server.address, message) == message
        assert len(server.sessions) == 1


def test_more_than_the_peer_takes(call: Caller) -> None:
    """A message over the peer's limit is refused before anything is sent; the session stays usable."""
    with SpeakingServer(terms=Terms(max_message=100_000)) as server:
        for message in ("first", b"x" * 100_000, "second"):
            if isinstance(message, bytes):
                with pytest.raises(MessageTooLarge) as caught:
                    call(server.address, message)
                assert (caught.value.size, caught.value.limit) == (100_005, 100_000)
                assert caught.value.address == server.address
            else:
                assert call(server.address, message) == message
        assert server.sessions == [["first", "second"]]


def test_a_large_request_that_is_refused_early(call: Caller) -> None:
    """An error that arrives while the request is being sent is the answer, even if the peer closes then."""

    def turn(speaker: Speaker) -> None:
        while not speaker.asked:  # a first piece is enough
            head = speaker.connection.recv(65_536)
            request = int.from_bytes(head[4:8], "little")
            speaker.session.send_error(request, _busy())
            speaker.flush()
            break
        _drain(speaker)

    with SpeakingServer(turn) as server, pytest.raises(Busy):
        call(server.address, b"x" * 5 * MEGABYTE)


def _busy() -> bytes:
    from uwsgitwisted.wire.failure import encode_failure

    return encode_failure(Busy("no room"))


def _drain(speaker: Speaker) -> None:
    while speaker.connection.recv(65_536):
        pass


# Forks and signals.

_FORK = """
import os, sys
from uwsgitwisted.blocking import send_message

def call(message):
    assert send_message(("127.0.0.1", int(sys.argv[1])), 33, 0, message, 10) == message

call("before")
child = os.fork()
if not child:
    call("child")
    call("child again")
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
call("parent")
"""


def _run(code: str, server: SpeakingServer) -> None:
    command = [sys.executable, "-W", "error", "-c", code, str(server.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_fork() -> None:
    """A child opens its own session, and its end leaves the parent's session alone."""
    with SpeakingServer() as server:
        _run(_FORK, server)
    assert server.sessions == [["before", "parent"], ["child", "child again"]]


_SIGNAL = """
import os, signal, sys
from uwsgitwisted.blocking import send_message
address = ("127.0.0.1", int(sys.argv[1]))
inner = []

def handler(number, frame):
    if not inner:  # the signal comes again until something is seen of it
        inner.append("begun")
        inner[0] = send_message(address, 33, 0, "inner", 10)

signal.signal(signal.SIGUSR1, handler)
assert send_message(address, 33, 0, "before", 10) == "before"
assert send_message(address, 33, 0, ["outer", os.getpid()], 10) == "outer's"
assert inner == ["inner"]
assert send_message(address, 33, 0, "after", 10) == "after"
"""


def _interrupt(process: int, has_noticed: Callable[[], object]) -> None:
    """Signal a process that waits; one signal that comes just before it begins to wait doesn't interrupt it."""
    for _ in range(100 * PATIENCE):
        os.kill(process, signal.SIGUSR1)
        time.sleep(0.01)
        if has_noticed():
            return
    raise AssertionError("it has not noticed the signals")


def test_a_call_from_a_signal_handler() -> None:
    """A call that interrupts another of the same thread uses another session; each gets its own answer."""
    inner_answered = threading.Event()

    def outer(speaker: Speaker) -> None:
        echo_once(speaker)
        request = speaker.next()
        _interrupt(speaker.asked[-1][1], inner_answered.is_set)
        speaker.answer(request, "outer's")
        echo_all(speaker)

    def inner(speaker: Speaker) -> None:
        echo_once(speaker)
        inner_answered.set()
        echo_all(speaker)

    with SpeakingServer(outer, inner) as server:
        _run(_SIGNAL, server)
    assert len(server.sessions) == 2
    assert [server.sessions[0][0], server.sessions[1][0]] == ["before", "inner"]


def test_an_exception_from_a_signal_handler() -> None:
    """A signal handler that ends a call closes its session, so that the next call can't get the answer."""
    code = """
import os, signal, sys
from uwsgitwisted.blocking import send_message
address = ("127.0.0.1", int(sys.argv[1]))
seen = []

def handler(number, frame):
    seen.append(number)
    if len(seen) == 1:  # the signal comes again until something is seen of it
        raise KeyError("interrupted")

signal.signal(signal.SIGUSR1, handler)
try:
    send_message(address, 33, 0, os.getpid(), 10)
except KeyError:
    assert send_message(address, 33, 0, "after", 10) == "after"
else:
    sys.exit("not interrupted")
"""

    def turn(speaker: Speaker) -> None:
        request = speaker.next()
        _interrupt(speaker.asked[-1], lambda: select.select([speaker.connection], [], [], 0)[0])
        _drain(speaker)
        speaker.answer(request, "late")

    with SpeakingServer(turn, echo_all) as server:
        _run(code, server)
    assert len(server.sessions) == 2
    assert server.sessions[1] == ["after"]


def test_a_fan_out_of_sessions_with_failures() -> None:
    """The error has each node's result, and the sessions with the nodes that answered stay cached."""

    def failing(speaker: Speaker) -> None:
        speaker.fail(speaker.next(), RemoteError(type="ValueError", message="no"))
        echo_all(speaker)

    def leaving(speaker: Speaker) -> None:
        speaker.next()

    with (
        SpeakingServer() as good,
        SpeakingServer(failing) as bad,
        SpeakingServer(leaving) as lost,
        Caller() as caller,
    ):
        cluster = [(*server.address, place) for place, server in enumerate((good, bad, lost))]
        with pytest.raises(FanOutError) as caught:
            caller.run(blocking.send_multi_uwsgi_message, cluster, 33, 0, 10)
        results = caught.value.results
        assert [type(result) for result in results] == [int, RemoteError, NoAnswer]
        assert caller(good.address, "again") == "again"
        assert caller(bad.address, "again") == "again"
        assert (good.sessions, bad.sessions) == ([[0, "again"]], [[1, "again"]])
