"""Attacks on the front's memory: large requests, unfinished ones, and answers that nobody reads."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.attacks.witness import Witness, watching
from tests.integration.handlers import TASKS
from tests.integration.services import Launcher, RawSession, Service, marshal_packet, script, until
from uwsgitwisted import blocking
from uwsgitwisted.errors import Busy
from uwsgitwisted.wire.events import AnswerReceived, ErrorReceived
from uwsgitwisted.wire.frame import MORE, REQUEST
from uwsgitwisted.wire.packet import MARSHAL, MAX_PAYLOAD, SESSION, SPOOL, Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
#: The budget in these tests, and the most that the front may grow beside it, in bytes.
BUDGET, BESIDE = 256 * MIB, 64 * MIB
#: Bytes of a large message.
LARGE = 60 * MIB
#: Seconds that an attack goes on at most, and that what has to be refused may take.
ATTACK_TIME, PATIENCE = 5.0, 30.0

#: A request of modifier2 1 waits for the file ``go``; one of modifier2 2 is answered with so many bytes.
HANDLER = """
import os, time, uwsgi

def handle(message, modifier2):
    while modifier2 == 1 and not os.path.exists("go"):
        time.sleep(0.01)
    return bytes(message) if modifier2 == 2 else len(message)

uwsgi.message_manager_marshal = handle
"""


def frames(request: int, size: int, *, modifier2: int = 1, missing: int = 0) -> Iterator[bytes]:
    """Yield the frames of a request of a *size*, but for the *missing* bytes at its end."""
    payload = memoryview(b"s" + struct.pack("<I", size - 5) + bytes(size - 5))[: size - missing]
    begin = struct.pack("<IBBII", request, MARSHAL, modifier2, size, 0)
    first = MAX_PAYLOAD - len(begin)
    yield encode_packet(Packet(SESSION, REQUEST, begin + payload[:first]))
    for start in range(first, len(payload), MAX_PAYLOAD - 4):
        piece = struct.pack("<I", request) + payload[start : start + MAX_PAYLOAD - 4]
        yield encode_packet(Packet(SESSION, MORE, piece))


def send(connection: socket.socket, data: Iterator[bytes], deadline: float) -> bool:
    """Send *data* until the *deadline*; return whether all was taken."""
    connection.settimeout(0.5)
    for chunk in data:
        rest = memoryview(chunk)
        while rest:
            if time.monotonic() > deadline:
                return False
            with contextlib.suppress(TimeoutError):
                rest = rest[connection.send(rest) :]
    return True


@contextlib.contextmanager
def sessions(service: Service, number: int) -> Iterator[list[RawSession]]:
    with contextlib.ExitStack() as stack:
        opened = [RawSession(service) for _ in range(number)]
        for session in opened:
            stack.callback(session.close)
        yield opened


class Growth:
    """How much the front of a service has grown since this was made."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._before = service.memory()
        self.most = 0

    def look(self) -> None:
        """Measure."""
        self.most = max(self.most, self._service.memory() - self._before)


def caller(service: Service, size: int = 1_000) -> Callable[[], object]:
    """Return a call with *size* bytes, as the good caller beside an attack makes it."""
    message = b"x" * size
    return lambda: blocking.send_message(service.address, MARSHAL, 17, message, 30)


def start(launch: Launcher, processes: int, *options: str) -> Service:
    return launch.start(
        *("uwsgi-node", "--engine", f"processes:{processes}", "--max-buffered", str(BUDGET), *options),
        handler=HANDLER,
        tcp=True,
    )


def assert_unharmed(witness: Witness, growth: Growth) -> None:
    growth.look()
    assert witness.errors == []
    assert growth.most < BUDGET + BESIDE


def test_large_requests_for_a_busy_worker(launch: Launcher) -> None:
    """Forty large requests don't fill the memory, and beside them small requests are answered."""
    node = start(launch, 1)
    growth = Growth(node)
    deadline = time.monotonic() + ATTACK_TIME
    with sessions(node, 8) as hostile, watching(lambda: blocking.ping(node.address)) as witness:
        for request in range(1, 6):
            for session in hostile:
                send(session.connection, frames(request, LARGE), deadline)
                growth.look()
        (node.directory / "go").touch()
        for session in hostile:
            session.close()
        assert script(caller(node)) == 1_000
    assert_unharmed(witness, growth)


def test_unfinished_requests(launch: Launcher) -> None:
    """Messages that miss their last bytes hold what one peer may hold; another caller has its room."""
    node = start(launch, 2)
    growth = Growth(node)
    deadline = time.monotonic() + PATIENCE
    with sessions(node, 10) as hostile, watching(caller(node)) as witness:
        for session in hostile:
            send(session.connection, frames(1, LARGE, modifier2=17, missing=5_000), deadline)
            growth.look()
        refused = []
        for session in hostile:
            session.connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                refused += session.events()
    assert all(isinstance(event, ErrorReceived) and isinstance(event.error, Busy) for event in refused)
    assert len(refused) >= 7
    assert_unharmed(witness, growth)


def ask_for_large_answers(hostile: list[RawSession], number: int, growth: Growth) -> None:
    """Ask for *number* large answers in each session, read none, and watch the memory meanwhile."""
    for session in hostile:
        for request in range(1, number + 1):
            session.session.send_request(request, Packet(MARSHAL, 2, marshal_packet(LARGE)[4:]))
        session.flush()
    deadline = time.monotonic() + ATTACK_TIME
    while time.monotonic() < deadline:
        growth.look()
        time.sleep(0.005)


def test_answers_that_nobody_takes(launch: Launcher) -> None:
    """Large answers that are asked for and not read don't fill the memory either."""
    # Both workers may have an answer that nobody reads, which the good call has to wait for.
    node = start(launch, 2, "--write-timeout", str(ATTACK_TIME + 1))
    growth = Growth(node)
    with sessions(node, 20) as hostile, watching(caller(node)) as witness:
        ask_for_large_answers(hostile, 3, growth)
    assert_unharmed(witness, growth)
    until(lambda: script(caller(node, MIB)) == MIB, "room for a large message")


def test_large_answers_of_many_workers(launch: Launcher) -> None:
    """Large answers that eight workers send at once don't fill the memory while they arrive."""
    node = start(launch, 8)
    growth = Growth(node)
    with sessions(node, 8) as hostile, watching(lambda: blocking.ping(node.address)) as witness:
        ask_for_large_answers(hostile, 2, growth)
    assert_unharmed(witness, growth)
    until(lambda: script(caller(node, MIB)) == MIB, "room for a large message")


def test_a_heavy_caller_within_its_share(launch: Launcher) -> None:
    """Requests that are together larger than one peer's share are read one after another, and all answered."""
    node = start(launch, 1)
    growth = Growth(node)
    with sessions(node, 1) as (session,):
        answered = []
        deadline = time.monotonic() + 30
        for request in range(1, 11):
            assert send(session.connection, frames(request, LARGE // 2, modifier2=17), deadline)
            growth.look()
        session.connection.settimeout(20)
        while len(answered) < 10:
            answered += [
                event for event in session.events() if isinstance(event, (AnswerReceived, ErrorReceived))
            ]
    assert [type(event) for event in answered] == [AnswerReceived] * 10
    assert growth.most < BUDGET + BESIDE


def test_bodies_of_plain_requests(launch: Launcher) -> None:
    """Endless bodies are refused when the budget is used up; beside them tasks are accepted."""
    spooler = launch.start(
        *("uwsgi-spooler", "--spool", "sqlite:spool.db", "--max-buffered", str(BUDGET)), handler=TASKS, tcp=True
    )
    growth = Growth(spooler)

    def enqueue() -> object:
        return blocking.send_message(spooler.address, SPOOL, 2, {"at": str(time.time() + 3_600)})

    head = encode_packet(Packet(SPOOL, 1, encode_vars({"CONTENT_LENGTH": LARGE, "REQUEST_METHOD": "POST"})))
    deadline = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as stack, watching(enqueue) as witness:
        hostile = [stack.enter_context(spooler.connect()) for _ in range(10)]
        for connection in hostile:
            send(connection, iter([head, *[bytes(MIB)] * 59]), deadline)
            growth.look()
        refused = 0
        for connection in hostile:
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                refused += connection.recv(1_000).startswith(b"HTTP/1.0 503")
    assert refused >= 7
    assert_unharmed(witness, growth)
