"""Objects whose keys were chosen to collide: refused at once by whoever gets them."""

from __future__ import annotations

import marshal
import struct
import time
from collections.abc import Callable

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.attacks.witness import assert_within
from tests.integration.handlers import FAULTS
from tests.integration.services import Launcher, script
from tests.unit.servers import ScriptedServer, answering, frame
from tests.unit.speaking import Speaker, SpeakingServer
from uwsgitwisted import blocking
from uwsgitwisted.address import parse_address
from uwsgitwisted.blocking.sessions import call_fast
from uwsgitwisted.blocking.sockets import Deadline
from uwsgitwisted.client import Client
from uwsgitwisted.errors import RemoteError, UnsafeObject
from uwsgitwisted.wire.packet import MARSHAL, Packet

pytestmark = pytest.mark.integration

_PRIME = (1 << 61) - 1
#: How long it may take to refuse one, in seconds, for each 100 KB. Those below took between 2.5 and 11 s.
LIMIT = 0.3


def _ints() -> bytes:
    """A dict of 20,000 ints of equal hash, in 327 KB."""
    keys = (marshal.dumps(number * _PRIME, 2) + b"N" for number in range(20_000))
    return b"{" + b"".join(keys) + b"0"


def _trees() -> bytes:
    """A set of 312 tuples of equal hash, whose comparison walks a tree of 2**12 leaves, in under 32 KB."""
    tree = b"\xa9\x02" * 11 + b"\xa9\x02" + b"i\0\0\0\0" * 2
    tree += b"".join(b"r" + struct.pack("<I", level) for level in range(11, 0, -1))
    members = [b")\x02r\0\0\0\0" + marshal.dumps(number * _PRIME, 2) for number in range(312)]
    return b"[\x02\0\0\0" + tree + b"<" + struct.pack("<I", len(members)) + b"".join(members)


OBJECTS = pytest.mark.parametrize("data", [_ints(), _trees()], ids=["ints", "trees"])


def limit(data: bytes) -> float:
    """Return how long it may take to refuse *data*, in seconds."""
    return LIMIT * max(1.0, len(data) / 100_000)


def _seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(UnsafeObject):
        call()
    return time.monotonic() - began


def _hostile(data: bytes) -> SpeakingServer:
    """Return a node of ours that answers every request of a session with *data*."""

    def answer(speaker: Speaker) -> None:
        while True:
            request = speaker.next()
            speaker.session.send_answer(request.id, Packet(MARSHAL, 17, data))
            speaker.flush()

    return SpeakingServer(answer)


@OBJECTS
def test_answers_to_blocking_calls(data: bytes) -> None:
    """A blocking call refuses such an answer in a moment, and the next call works."""
    with _hostile(data) as server:
        assert_within(
            limit(data),
            lambda: _seconds(lambda: script(blocking.send_message, server.address, 33, 17, "x", 30)),
            "refusing an answer",
        )


def test_plain_answers_to_blocking_calls() -> None:
    """So does one whose answer came in plain uwsgi."""
    data = _trees()
    with ScriptedServer(answering(frame(33, 17, data))) as server:
        blocking.declare_plain(server.address)
        assert_within(
            limit(data),
            lambda: _seconds(lambda: script(blocking.send_message, server.address, 33, 17, "x", 30)),
            "refusing a plain answer",
        )


@OBJECTS
@pytest_twisted.ensureDeferred
async def test_answers_to_a_client(data: bytes, client: Client) -> None:
    """The reactor of a client whose server answers so isn't blocked."""
    from twisted.internet import reactor, task

    with _hostile(data) as server:
        worst = []
        for _ in range(3):
            gaps: list[float] = []
            last = [time.monotonic()]

            def tick(gaps: list[float] = gaps, last: list[float] = last) -> None:
                now = time.monotonic()
                gaps.append(now - last[0])
                last[0] = now

            ticking = task.LoopingCall(tick)
            ticking.clock = reactor
            ticking.start(0.005)
            asked: Deferred[object] = client.send_message(server.address, 33, 17, "x", timeout=30)
            with pytest.raises(UnsafeObject):
                await asked
            ticking.stop()
            worst.append(max(gaps))
        assert min(worst) <= limit(data)
        await client.close()


@OBJECTS
def test_requests_to_a_node(data: bytes, launch: Launcher) -> None:
    """A node's only worker refuses such requests, and keeps answering others."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", handler=FAULTS, tcp=True)
    assert_within(limit(data), lambda: _refusal(node.address, data), "refusing a request")
    assert node.ask(("echo", "here")) == "here"


def _refusal(address: tuple[str, int], data: bytes) -> float:
    """Send *data* as an object, and return how long it took until it was refused."""
    began = time.monotonic()
    with pytest.raises((UnsafeObject, RemoteError)):
        script(call_fast, parse_address(address), Packet(MARSHAL, 17, data), Deadline.after(30))
    return time.monotonic() - began
