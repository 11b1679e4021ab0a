"""Blocking calls to peers that grant no session, and sessions over TLS."""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.servers import (
    ENOUGH,
    Script,
    ScriptedServer,
    answering,
    closed_port,
    echoing,
    frame,
    nothing_left_open,  # noqa: F401 - a fixture
    outside_the_reactor,  # noqa: F401 - a fixture
    resetting,
)
from tests.unit.speaking import Caller, Speaker, SpeakingServer, echo_all, echo_once
from uwsgitwisted import blocking
from uwsgitwisted.address import parse_address
from uwsgitwisted.blocking import sessions
from uwsgitwisted.errors import ConnectionFailed, RequestTimeout
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.terms import PLAIN_FOR, SILENT_FOR, Terms, encode_offer

OFFER = encode_offer(Terms())
CERTIFICATES = Path(__file__).parents[1] / "tls"
#: Seconds: enough for a server that answers, short for one that doesn't.
SHORT = 0.2
PATIENCE = 10

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("outside_the_reactor", "known", "nothing_left_open"),
]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[object, float]:
    """Clear the table of known peers."""
    table: dict[object, float] = {}
    monkeypatch.setattr(sessions, "_plain_until", table)
    return table


@pytest.fixture(params=[False, True], ids=["call", "fan-out"])
def call(request: pytest.FixtureRequest) -> Iterator[Caller]:
    """Give a thread that calls; each test is done with single calls and with fan-outs."""
    with Caller(fan_out=request.param) as caller:
        yield caller


def _request(message: object) -> bytes:
    return frame(33, 0, dumps(message))


def _plain_server(to_offer: Script) -> Script:
    """Echo requests, and do *to_offer* on the connection on which a session is offered."""

    def script(server: ScriptedServer, connection: socket.socket) -> None:
        if connection.recv(1, socket.MSG_PEEK) == b"\x64":
            to_offer(server, connection)
        else:
            echoing(server, connection)

    return script


def _silent(server: ScriptedServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.recv(1)


def _cut_off(server: ScriptedServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(b"\x64\x50")


def _resetting(server: ScriptedServer, connection: socket.socket) -> None:
    server.requests.append(connection.recv(len(OFFER), socket.MSG_PEEK))
    resetting(server, connection)


@pytest.mark.parametrize(
    ("to_offer", "remembered"),
    [
        (answering(frame(100, 1)), PLAIN_FOR),
        (answering(frame(100, 1, b"a warning for the administrator")), PLAIN_FOR),
        (answering(frame(100, 1, b"\x0d\x00uwsgi-session\x01\x002")), PLAIN_FOR),
        (answering(frame(33, 1, dumps("?"))), PLAIN_FOR),
        (echoing, PLAIN_FOR),
        (answering(), SILENT_FOR),
        (answering(b"HTTP/1.0 400 Bad Request\r\n\r\n"), SILENT_FOR),
        (_cut_off, SILENT_FOR),
        (_resetting, SILENT_FOR),
        (_silent, SILENT_FOR),
    ],
    ids=["pong", "warning", "future", "packet", "echo", "eof", "http", "cut-off", "reset", "silent"],
)
def test_a_plain_peer(
    call: Caller,
    known: dict[object, float],
    monkeypatch: pytest.MonkeyPatch,
    to_offer: Script,
    remembered: float,
) -> None:
    """A peer that grants no session gets each request once, on its own connection, and only one offer."""
    if to_offer is _silent:
        monkeypatch.setattr(sessions, "OFFER_TIMEOUT", SHORT)
    with ScriptedServer(_plain_server(to_offer)) as server:
        start = time.monotonic()
        for number in range(3):
            assert call(server.address, number) == number
        end = time.monotonic()
        (until,) = known.values()
        assert start + remembered <= until <= end + remembered
        # After that time, it is found out again.
        known[parse_address(server.address)] = time.monotonic() - 1
        assert call(server.address, 3) == 3
        assert call(server.address, 4) == 4
    # Sorted: the silent one may read the offer after the request, for which it has another thread.
    assert sorted(server.requests) == sorted([OFFER, OFFER, *map(_request, range(5))])


def test_a_plain_peer_that_was_replaced(call: Caller, known: dict[object, float]) -> None:
    """After that time, one of our nodes at the same address gets sessions."""
    with SpeakingServer() as server:
        known[parse_address(server.address)] = time.monotonic() - 1
        for number in range(3):
            assert call(server.address, number) == number
        assert server.sessions == [[0, 1, 2]]


def test_one_timeout_for_both(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of an unanswered offer counts against the request's timeout; after it nothing is sent."""
    monkeypatch.setattr(sessions, "OFFER_TIMEOUT", 60.0)
    with ScriptedServer(_plain_server(_silent)) as server:
        start = time.monotonic()
        with pytest.raises(RequestTimeout, match=f"within {ENOUGH:g} seconds"):
            call(server.address, "late", ENOUGH)
        assert ENOUGH <= time.monotonic() - start < PATIENCE
    assert server.requests == [OFFER]


def test_nobody_there(call: Caller, known: dict[object, float]) -> None:
    """A refused connection doesn't mark the peer as plain."""
    with pytest.raises(ConnectionFailed, match="refused"):
        call(("127.0.0.1", closed_port()), 1)
    assert known == {}


def test_declared_plain(call: Caller, known: dict[object, float]) -> None:
    """An address that was declared plain is never offered a session."""
    with ScriptedServer(echoing) as server:
        blocking.declare_plain(server.address)
        assert list(known.values()) == [math.inf]
        for number in range(3):
            assert call(server.address, number) == number
        assert server.requests == list(map(_request, range(3)))


def test_threads_share_what_is_known() -> None:
    """Threads share the knowledge of which peers are plain."""
    with ScriptedServer(_plain_server(answering(frame(100, 1)))) as server:
        for number in range(2):
            with Caller() as caller:
                assert caller(server.address, number) == number
        assert server.requests == [OFFER, _request(0), _request(1)]


def test_a_ping_takes_no_session() -> None:
    """A ping uses its own connection, so that it tests the node and not a session."""
    with ScriptedServer(answering(frame(100, 1))) as server, Caller() as caller:
        assert caller.run(blocking.ping, server.address) > 0
        assert server.requests == [frame(100, 0)]


# TLS.


@pytest.fixture
def tls() -> ssl.SSLContext:
    """Give a server's settings."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "roots" / "node.pem", CERTIFICATES / "key.pem")
    return context


def _tls_address(server: ScriptedServer) -> str:
    return f"tls:localhost:{server.port}:trustRoots={CERTIFICATES}/roots"


def test_a_session_over_tls(tls: ssl.SSLContext) -> None:
    """All calls, of any size, share one connection and one handshake."""
    with SpeakingServer(context=tls) as server, Caller() as caller:
        messages = ["first", b"x" * 1_000_000, "small", [b"y" * 20_000], "last"]
        for message in messages:
            assert caller(_tls_address(server), message) == message
        assert server.sessions == [messages]


def test_several_frames_in_one_tls_record(tls: ssl.SSLContext) -> None:
    """A call doesn't wait for bytes that TLS has read ahead."""

    def turn(speaker: Speaker) -> None:
        echo_once(speaker)
        request = speaker.next()
        for number in range(3):
            speaker.session.send_error(request.id + 10 + number, b"")
        speaker.answer(request, "second")
        echo_all(speaker)

    with SpeakingServer(turn, context=tls) as server, Caller() as caller:
        for message in ("first", "second", "third"):
            assert caller(_tls_address(server), message) == message


@pytest.mark.parametrize("shutdown", [False, True])
def test_a_stale_session_over_tls(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, shutdown: bool) -> None:
    """It is noticed before a request goes out, also when the peer only closed the connection."""
    monkeypatch.setattr(sessions, "_FRESH", 0.0, raising=False)
    answered, left = threading.Event(), threading.Event()

    def turn(speaker: Speaker) -> None:
        echo_once(speaker)
        answered.wait(PATIENCE)
        if shutdown:
            speaker.announce_shutdown()
        speaker.connection.shutdown(socket.SHUT_RDWR)
        left.set()

    with SpeakingServer(turn, echo_all, context=tls) as server, Caller() as caller:
        assert caller(_tls_address(server), "first") == "first"
        answered.set()
        assert left.wait(PATIENCE)
        assert caller(_tls_address(server), "second") == "second"
        assert caller(_tls_address(server), "third") == "third"
        assert server.sessions == [["first"], ["second", "third"]]


def test_a_late_answer_over_tls(tls: ssl.SSLContext) -> None:
    """After a timeout the session is closed here as well."""

    def turn(speaker: Speaker) -> None:
        echo_once(speaker)
        speaker.next()
        speaker.next()

    with SpeakingServer(turn, echo_all, context=tls) as server, Caller() as caller:
        assert caller(_tls_address(server), "first") == "first"
        with pytest.raises(RequestTimeout):
            caller(_tls_address(server), "slow", SHORT)
        assert caller(_tls_address(server), "next") == "next"
    assert server.sessions == [["first", "slow"], ["next"]]
