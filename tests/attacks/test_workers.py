"""Attacks through handlers and the processes that they leave behind, and on the workers' descriptors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest

from tests.attacks.hostile import frames
from tests.attacks.hostile.peer import Peer
from tests.attacks.witness import watching
from tests.integration.services import TWISTD, Launcher, Service, is_alive, kill_if_alive, script, until
from uwsgitwisted import blocking
from uwsgitwisted.errors import NoAnswer, RemoteError, RequestTimeout, UwsgiError, WorkerDied
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import MARSHAL, PING, Packet, encode_packet
from uwsgitwisted.wire.terms import Terms

pytestmark = pytest.mark.integration

HANDLER = """
import os, resource, signal, subprocess, sys, time, uwsgi

def daemon():
    # As daemons do: an orphan with a session of its own.
    reader, writer = os.pipe()
    if not os.fork():
        os.setsid()
        child = os.fork()
        if child:
            os.write(writer, str(child).encode())
            os._exit(0)
        os.execvp("sleep", ["sleep", "600"])
    os.wait()
    return int(os.read(reader, 20))

START = {
    "plain": lambda: subprocess.Popen(["sleep", "600"]).pid,
    "session": lambda: subprocess.Popen(["sleep", "600"], start_new_session=True).pid,
    "daemon": daemon,
    "deaf": lambda: subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
    ).pid,
}

def loop():
    while True:
        pass

DO = {
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "group": lambda: os.killpg(0, signal.SIGKILL),
    "loop": loop,
    "hold": lambda: len(bytearray(1 << 31)),
    "grow": lambda: [bytes(1 << 20) for _ in range(1 << 11)],
    "echo": lambda: "here",
    "slow": lambda: time.sleep(0.1),
    "descriptors": lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
}

def handle(message, modifier2):
    started = {kind: START[kind]() for kind in message[1:]}
    if started:
        with open("started.new", "w") as file:
            file.write(repr(started))
        os.rename("started.new", "started")
    return DO[message[0]]()

uwsgi.message_manager_marshal = handle
"""
#: Starts a service that may have few descriptors, of which it can't have more; or could have more.
FEW = ("sh", "-c", 'ulimit -n 128; exec "$@"', "sh", *TWISTD)
FEW_AT_FIRST = ("sh", "-c", 'ulimit -Sn 128; exec "$@"', "sh", *TWISTD)


def call(service: Service, *message: str) -> object:
    return script(blocking.send_message, service.address, MARSHAL, 17, message)


#: The processes that a handler may start.
KINDS = ("plain", "session", "daemon", "deaf")


def started(service: Service) -> list[int]:
    """Return the processes that a handler has started, once it has."""
    path = service.directory / "started"
    until(path.exists, "the handler's processes")
    pids: dict[str, int] = eval(path.read_text())
    return list(pids.values())


def assert_gone(pids: list[int]) -> None:
    """Assert that processes end."""
    try:
        until(lambda: not any(map(is_alive, pids)), f"the end of {pids}")
    finally:
        for pid in pids:
            kill_if_alive(pid)


@pytest.mark.parametrize("how", ["crash", "kill", "exit", "group"])
def test_children_of_a_worker_that_dies(launch: Launcher, how: str) -> None:
    """However a worker ends, the processes of its handler end with it, in whatever session they are."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", handler=HANDLER)
    with pytest.raises((WorkerDied, NoAnswer)):
        call(node, how, *KINDS)
    assert_gone(started(node))
    assert call(node, "echo") == "here"


def test_children_of_a_worker_over_its_time(launch: Launcher) -> None:
    """So do they if the worker is killed at the time limit."""
    # The time limit includes the start of the processes.
    node = launch.start("uwsgi-node", "--engine", "processes:1", "--timeout", "3", handler=HANDLER)
    with pytest.raises(RequestTimeout):
        call(node, "loop", *KINDS)
    assert_gone(started(node))
    assert call(node, "echo") == "here"


def test_children_of_a_worker_that_is_replaced(launch: Launcher) -> None:
    """So do they when the worker reaches --max-requests, and not before."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", "--max-requests", "2", handler=HANDLER)
    assert call(node, "echo", *KINDS) == "here"
    pids = started(node)
    assert all(map(is_alive, pids))
    call(node, "echo")
    assert_gone(pids)


@pytest.mark.parametrize("end", [Service.kill, Service.terminate])
def test_children_of_a_front_that_ends(launch: Launcher, end: Callable[[Service], object]) -> None:
    """So do they when the front ends, even by SIGKILL."""
    node = launch.start("uwsgi-node", "--engine", "processes:2", handler=HANDLER)
    assert call(node, "echo", *KINDS) == "here"
    pids = started(node)
    assert all(map(is_alive, pids))
    end(node)
    assert_gone(pids)


def test_children_of_a_module(launch: Launcher) -> None:
    """A module that starts a process at import neither delays the start nor leaves the process behind."""
    lines = "\nwith open('all', 'a') as file:\n    print(*(start() for start in START.values()), file=file)\n"
    node = launch.start("uwsgi-node", "--engine", "processes:1", handler=HANDLER + lines)
    checked, running = (
        [int(pid) for pid in line.split()] for line in (node.directory / "all").read_text().splitlines()
    )
    assert_gone(checked)
    assert all(map(is_alive, running))
    node.terminate()
    assert_gone(running)


def test_a_queue_that_one_peer_fills(launch: Launcher) -> None:
    """A peer that fills the queue delays another's call by one of its own requests, and blocks nobody."""
    node = launch.start(
        "uwsgi-node", "--engine", "processes:1", "--max-queue", "200", handler=HANDLER, tcp=True
    )
    requests = b"".join(frames.begin(number, dumps(("slow",))) for number in range(60))
    hostile = Peer("node", node.address, "127.0.0.2", 0)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(hostile.session()).sendall(requests)
        until(lambda: "requests from your address are already waiting" in node.log, "a full queue")
        began = time.monotonic()
        for _ in range(3):
            assert call(node, "echo") == "here"
        assert time.monotonic() - began < 5  # each waits for one of 0.1 s; there are 150


@pytest.mark.parametrize(
    ("harm", "error"),
    [("loop", RequestTimeout), ("hold", RemoteError), ("grow", RemoteError), ("kill", WorkerDied)],
)
def test_harm_is_the_callers_own(launch: Launcher, harm: str, error: type[UwsgiError]) -> None:
    """A request that loops, takes memory or kills its worker fails; no call beside it does."""
    node = launch.start(
        *("uwsgi-node", "--engine", "processes:3", "--timeout", "1.5", "--max-memory", "256M"), handler=HANDLER
    )
    memory = node.memory()
    with watching(lambda: blocking.send_message(node.address, MARSHAL, 17, ("echo",))) as witness:
        for _ in range(3):
            with pytest.raises(error):
                call(node, harm)
    assert witness.errors == []
    assert witness.percentile(0.5) < 1.0
    assert node.memory() < memory + (32 << 20)
    with contextlib.suppress(UwsgiError):
        blocking.close()


def test_few_descriptors(launch: Launcher) -> None:
    """A peer that opens all connections it can leaves enough descriptors to replace a worker."""
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
    assert "failed to start" not in node.log


def _answers(node: Service) -> bool:
    with contextlib.suppress(UwsgiError):
        return call(node, "echo") == "here"
    return False


def test_a_low_soft_limit(launch: Launcher) -> None:
    """A service raises a soft limit that is too low for its connections; its workers keep the old one."""
    node = launch.start("uwsgi-node", "--engine", "processes:1", handler=HANDLER, twistd=FEW_AT_FIRST)
    assert "connections may be open, not" not in node.log
    assert call(node, "descriptors") == 128
