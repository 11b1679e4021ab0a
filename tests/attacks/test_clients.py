"""Hostile servers: whatever one sends, or doesn't, its callers time out in time, and other calls work."""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.attacks.witness import TRIES
from tests.unit.servers import ScriptedServer, answering, echoing, frame
from tests.unit.speaking import Caller, Speaker, SpeakingServer
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import FanOutError, MalformedPacket, RequestTimeout, UwsgiError
from uwsgitwisted.wire.frame import ANSWER, CANCEL, MORE, SHUTDOWN
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import MARSHAL, PING, SESSION, Packet, encode_packet

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
#: Seconds that a call is given, how much longer it may take on a busy machine, and how many bytes it may cost.
TIMEOUT, LATE, MEMORY = 1.0, 2.0, 64 * MIB


def packet(modifier1: int, modifier2: int, payload: bytes = b"") -> bytes:
    return encode_packet(Packet(modifier1, modifier2, payload))


#: By name, what a server repeats for ever in a session.
FLOODS = {
    "pings": packet(PING, 0),
    "pongs": packet(PING, 1),
    "shutdowns": packet(SESSION, SHUTDOWN),
    "cancels": packet(SESSION, CANCEL, bytes(4)),
    "pieces of nothing": packet(SESSION, MORE, b"\xff" * 4),
    "answers to nothing": packet(SESSION, ANSWER, b"\xff" * 4 + bytes(10)),
}
#: What a call fails with whose server sends what only a client may.
BROKEN = MalformedPacket
flooding = pytest.mark.parametrize("data", FLOODS.values(), ids=FLOODS.keys())


def pour(connection: socket.socket, data: bytes) -> None:
    """Send *data* again and again until the other end closes, or for a bounded time."""
    connection.settimeout(5)
    end = time.monotonic() + 15
    with contextlib.suppress(OSError):
        while time.monotonic() < end:
            connection.sendall(data * (MIB // len(data) + 1))


def pouring(data: bytes, *, answers: bool) -> Callable[[Speaker], None]:
    """Return what a session's server does that answers first, or never, and then floods."""

    def turn(speaker: Speaker) -> None:
        request = speaker.next()
        if answers:
            speaker.answer(request, "answer")
        pour(speaker.connection, data)

    return turn


def memory() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def in_time(limit: float = TIMEOUT + LATE) -> Iterator[None]:
    """Assert that the block takes no longer than *limit* seconds, and little memory."""
    before, began = memory(), time.monotonic()
    yield
    assert time.monotonic() - began < limit
    assert memory() - before < MEMORY


@flooding
@pytest.mark.parametrize("fan_out", [False, True], ids=["call", "fan-out"])
def test_floods_instead_of_an_answer(data: bytes, fan_out: bool) -> None:
    """A blocking call, also one of a fan-out, ends in time whatever comes instead of its answer."""
    with SpeakingServer(pouring(data, answers=False)) as server, Caller(fan_out=fan_out) as call:  # noqa: SIM117
        with in_time(), pytest.raises(BROKEN if data is FLOODS["cancels"] else RequestTimeout):
            call(server.address, "x", TIMEOUT)


@flooding
def test_floods_behind_an_answer(data: bytes) -> None:
    """An answer is an answer, whatever follows it; the next call is made in time, or fails in time."""
    with SpeakingServer(pouring(data, answers=True)) as server, Caller() as call, in_time():
        for allowed in (BROKEN if data is FLOODS["cancels"] else (), UwsgiError):
            with contextlib.suppress(allowed):
                assert call(server.address, "x", TIMEOUT) == "answer"


@pytest.mark.parametrize("plain", [False, True], ids=["session", "plain"])
def test_the_others_of_a_fan_out(plain: bool) -> None:
    """Beside a node that floods, the others' answers are there."""
    hostile = SpeakingServer(pouring(FLOODS["pings"], answers=False))
    good = [ScriptedServer(echoing) if plain else SpeakingServer() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(server) for server in (good[0], hostile, *good[1:])]
        call = stack.enter_context(Caller())
        stack.enter_context(in_time(2 * TIMEOUT + LATE))
        if plain:
            for server in good:
                blocking.declare_plain(server.address)
        cluster = [(*node.address, "x") for node in nodes]
        with pytest.raises(FanOutError) as caught:
            call.run(blocking.send_multi_uwsgi_message, cluster, MARSHAL, 0, TIMEOUT)
    first, flooded, *others = caught.value.results
    assert (first, others) == ("x", ["x", "x"])
    assert isinstance(flooded, RequestTimeout)


def _drip(server: ScriptedServer, connection: socket.socket) -> None:
    """Send an answer that never ends, a byte at a time."""
    server.read_request(connection)
    end = time.monotonic() + 15
    with contextlib.suppress(OSError):
        connection.sendall(frame(MARSHAL, 0, bytes(60_000))[:10])
        while time.monotonic() < end and not server.stopping.wait(0.01):
            connection.sendall(b"\0")


def _raw(server: ScriptedServer, connection: socket.socket) -> None:
    """Send nothing but what could be a raw answer without an end."""
    server.read_request(connection)
    pour(connection, b"x")


@pytest.mark.parametrize("script", [_drip, _raw], ids=["a byte at a time", "without an end"])
@pytest.mark.parametrize("declared", [True, False], ids=["plain", "offered a session"])
@pytest.mark.parametrize("modifier1", [MARSHAL, 0], ids=["packet", "raw"])
def test_plain_answers_that_never_end(
    script: Callable[[ScriptedServer, socket.socket], None], declared: bool, modifier1: int
) -> None:
    """A plain answer has its caller's time, and not too many bytes, whatever these are taken for."""
    with ScriptedServer(script) as server, Caller() as call, in_time():
        if declared:
            blocking.declare_plain(server.address)
        with contextlib.suppress(UwsgiError):
            call.run(blocking.send_message, server.address, modifier1, 0, b"", TIMEOUT)


@pytest.mark.parametrize("timeout", [3e6, 1e300, sys.float_info.max])
def test_very_long_timeouts(timeout: float) -> None:
    """A timeout may be longer than the system's waits, in the first call of a session and in the next."""
    with SpeakingServer() as server, Caller() as call:
        assert [call(server.address, "x", timeout) for _ in range(3)] == ["x"] * 3


@pytest.mark.parametrize("timeout", [3e6, 1e300, sys.float_info.max])
@pytest_twisted.ensureDeferred
async def test_very_long_timeouts_of_the_client(timeout: float) -> None:
    """So it may be in Twisted's client."""
    from twisted.internet import reactor

    with SpeakingServer() as server, ScriptedServer(answering(frame(MARSHAL, 0, dumps("y")))) as plain:
        client = Client(reactor, plain=[plain.address])
        for _ in range(2):
            assert await client.send_message(server.address, MARSHAL, 0, "x", timeout) == "x"
        assert await client.send_message(plain.address, MARSHAL, 0, "x", timeout) == "y"
        await client.close()


@flooding
@pytest.mark.parametrize("answers", [True, False], ids=["behind an answer", "instead of an answer"])
@pytest_twisted.ensureDeferred
async def test_a_client_beside_a_flood(data: bytes, answers: bool, client: Client) -> None:
    """Twisted's client keeps working: calls to another node are answered at once, and timeouts are on time."""
    most: list[float] = []
    while not most or (most[-1] >= 0.1 and len(most) < TRIES):
        with SpeakingServer(pouring(data, answers=answers)) as hostile, SpeakingServer() as good, in_time(6):
            flooded: Deferred[object] = client.send_message(hostile.address, MARSHAL, 0, "x", TIMEOUT)
            flooded.addErrback(lambda failure: failure.type)
            durations = []
            while not durations or sum(durations) < TIMEOUT + 0.2:
                began = time.monotonic()
                assert await client.send_message(good.address, MARSHAL, 0, "y", 5) == "y"
                durations.append(time.monotonic() - began)
            assert await flooded in ("answer", RequestTimeout, BROKEN)
            most.append(sorted(durations)[len(durations) * 9 // 10])
    await client.close()
    assert min(most) < 0.1
