"""Attacks on the log: whatever peers cause at a high rate is one line a second for each kind."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

import pytest

from tests.integration.handlers import FAULTS
from tests.integration.services import Launcher, Service, marshal_packet, script
from uwsgitwisted import blocking
from uwsgitwisted.wire.packet import MARSHAL, PING, SESSION, Packet, encode_packet
from uwsgitwisted.wire.terms import Terms

pytestmark = pytest.mark.integration

TIMES = 1_500
#: What is logged by a service that is only started, and how much each second may add, in bytes.
START, EACH_SECOND = 3_000, 3_000


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _send(service: Service, data: bytes) -> None:
    with service.connect() as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1_000)


OFFER = encode_packet(Packet(PING, 0, Terms().encode()))
#: By name, what a peer sends again and again.
CAUSES = {
    "no object": encode_packet(Packet(MARSHAL, 17, b"garbage")),
    "an object that isn't allowed": encode_packet(Packet(MARSHAL, 17, b"c" + bytes(50))),
    "an unknown modifier": encode_packet(Packet(77, 0, b"x")),
    "a breach of a session": OFFER + encode_packet(Packet(5, 5)),
    "frames of nothing": OFFER + encode_packet(Packet(SESSION, 1, b"x")),
    "a handler that raises": marshal_packet(("raise", "on purpose")),
    "too large a packet": struct.pack("<BHB", MARSHAL, 60_000, 0),
}


@pytest.fixture(scope="module")
def node(shared: Launcher) -> Service:
    return shared.start(
        *("uwsgi-node", "--engine", "processes:2", "--header-timeout", "0.2", "--body-timeout", "0.2"),
        handler=FAULTS,
    )


@pytest.mark.parametrize("data", CAUSES.values(), ids=CAUSES.keys())
def test_repeated(node: Service, data: bytes) -> None:
    """Hundreds of the same are a few lines, and none of them blames the handler for what it never saw."""
    before, began = len(node.log), time.monotonic()
    for _ in range(TIMES):
        _send(node, data)
    took = time.monotonic() - began
    added = node.log[before:]
    assert len(added) < EACH_SECOND * (took + 2)
    if data != CAUSES["a handler that raises"]:
        assert "Traceback" not in added
        assert "the handler of modifier1" not in added
    assert node.ask(("echo", "here")) == "here"


def test_late_headers(node: Service) -> None:
    """So are connections that send nothing, and those that are reset."""
    before, began = len(node.log), time.monotonic()
    for _ in range(10):
        with contextlib.ExitStack() as stack:
            for number in range(100):
                connection = stack.enter_context(node.connect())
                if number % 2:
                    _reset(connection)
                else:
                    connection.settimeout(5)
                    stack.callback(connection.recv, 1)
    assert len(node.log) - before < EACH_SECOND * (time.monotonic() - began + 2)


def test_refused_connections(launch: Launcher) -> None:
    """So are connections over the limit."""
    node = launch.start("uwsgi-node", "--max-connections", "5", handler=FAULTS)
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        for _ in range(500):
            stack.enter_context(node.connect())
        node.wait_for("connections from its address are already open")
        assert len(node.log) < START + EACH_SECOND * (time.monotonic() - began + 2)


TASKS = """
import uwsgi

def run(task):
    if task[b"do"] == b"large":
        return bytes(2_000_000)
    raise KeyError(task[b"do"])

uwsgi.spooler = run
"""


@pytest.mark.parametrize("do", ["fail", "large"])
def test_tasks_that_fail_alike(launch: Launcher, do: str) -> None:
    """So are tasks that fail, and results that are too large to be kept."""
    options = ("--engine", "processes:2", "--spool", "sqlite:spool.db", "--max-attempts", "1")
    spooler = launch.start("uwsgi-spooler", *options, handler=TASKS)
    began = time.monotonic()
    ids = script(blocking.enqueue_many, spooler.address, [{"do": do, "number": n} for n in range(500)])
    script(blocking.wait, spooler.address, ids[-1], 60)
    assert len(spooler.log) < START + EACH_SECOND * (time.monotonic() - began + 2)
