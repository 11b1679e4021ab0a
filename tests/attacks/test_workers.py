"""Attacks by what handlers are given to do, and on the workers' descriptors."""

from __future__ import annotations

import contextlib

import pytest

from tests.attacks.witness import watching
from tests.integration.services import TWISTD, Launcher, Service, script, until
from uwsgitwisted import blocking
from uwsgitwisted.errors import RemoteError, RequestTimeout, UwsgiError, WorkerDied
from uwsgitwisted.wire.packet import MARSHAL, PING, Packet, encode_packet
from uwsgitwisted.wire.terms import Terms

pytestmark = pytest.mark.integration

HANDLER = """
import os, resource, signal, uwsgi

def loop():
    while True:
        pass

DO = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "loop": loop,
    "hold": lambda: len(bytearray(1 << 31)),
    "grow": lambda: [bytes(1 << 20) for _ in range(1 << 11)],
    "echo": lambda: "here",
    "descriptors": lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
}

def handle(message, modifier2):
    return DO[message[0]]()

uwsgi.message_manager_marshal = handle
"""
#: Starts a service that may have few descriptors, of which it can't have more; or could have more.
FEW = ("sh", "-c", 'ulimit -n 128; exec "$@"', "sh", *TWISTD)
FEW_AT_FIRST = ("sh", "-c", 'ulimit -Sn 128; exec "$@"', "sh", *TWISTD)


def call(service: Service, *message: str) -> object:
    return script(blocking.send_message, service.address, MARSHAL, 17, message)


@pytest.mark.parametrize(
    ("harm", "error"),
    [("loop", RequestTimeout), ("hold", RemoteError), ("grow", RemoteError), ("kill", WorkerDied)],
)
def test_harm_is_the_callers_own(launch: Launcher, harm: str, error: type[UwsgiError]) -> None:
    """A request that loops, takes memory or kills its worker fails; no call beside it does."""
    node = launch.start(
        *("uwsgi-node", "--engine", "processes:3", "--timeout", "0.5", "--max-memory", "256M"), handler=HANDLER
    )
    memory = node.memory()
    with watching(lambda: blocking.send_message(node.address, MARSHAL, 17, ("echo",))) as witness:
        for _ in range(6):
            with pytest.raises(error):
                call(node, harm)
    assert witness.errors == []
    assert witness.percentile(0.5) < 1.0
    assert node.memory() < memory + (32 << 20)
    with contextlib.suppress(UwsgiError):
        blocking.close()


def test_few_descriptors(launch: Launcher) -> None:
    """A peer that opens all the connections it can leaves descriptors for a worker to be replaced."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", handler=HANDLER, twistd=FEW)
    assert "connections may be open, not 10000: raise the hard limit" in node.log
    with contextlib.ExitStack() as stack:
        for _ in range(120):
            connection = stack.enter_context(node.connect())
            with contextlib.suppress(OSError):
                connection.sendall(encode_packet(Packet(PING, 0, Terms().encode())))
        for _ in range(3):
            with contextlib.suppress(UwsgiError):
                call(node, "kill")
        until(lambda: _answers(node), "an answer of a worker that was replaced")
    assert "did not come up" not in node.log


def _answers(node: Service) -> bool:
    with contextlib.suppress(UwsgiError):
        return call(node, "echo") == "here"
    return False


def test_a_low_soft_limit(launch: Launcher) -> None:
    """A service raises a soft limit that is too low for its connections; its workers keep what there was."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", handler=HANDLER, twistd=FEW_AT_FIRST)
    assert "connections may be open, not" not in node.log
    assert call(node, "descriptors") == 128
