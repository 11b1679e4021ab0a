"""Signals between servers: ours and a real uWSGI raise each other's. And what both know of their workers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.real_uwsgi import UWSGI, RealUwsgi, real_uwsgi
from tests.integration.services import PATIENCE, Launcher, Service, free_port, run_to_end, script, until
from uwsgitwisted import blocking
from uwsgitwisted.errors import RemoteError
from uwsgitwisted.wire.packet import NO, SIGNAL, YES, Packet, encode_packet

pytestmark = [pytest.mark.integration, pytest.mark.needs("uwsgi")]

TYPES = """
def types(worker):
    return {key: type(value).__name__ for key, value in worker.items()}
"""
HANDLER = f"""
{TYPES}
import uwsgi
from uwsgidecorators import signal

@signal(17, target="workers")
def told(number):
    print("signal", number, "in worker", uwsgi.worker_id(), flush=True)

def answer(message, modifier2):
    return [types(worker) for worker in uwsgi.workers()] if message == "workers" else uwsgi.signal(*message)

uwsgi.message_manager_marshal = answer
"""
THEIRS = f"""
{TYPES}
def told(number):
    note(signal=number)

def tell(number, node):
    try:
        return repr(uwsgi.signal(int(number), node.decode())).encode()
    except (OSError, ValueError) as error:
        return type(error).__name__.encode()

uwsgi.register_signal(18, "worker", told)
uwsgi.register_rpc("tell", tell)
uwsgi.register_rpc("workers", lambda: json.dumps([types(worker) for worker in uwsgi.workers()]).encode())
"""


@pytest.fixture(scope="module")
def node(shared: Launcher) -> Service:
    return shared.start(
        *("uwsgi-node", "--engine", "processes:2", "--signals-from", "127.0.0.1"), handler=HANDLER, tcp=True
    )


def raise_in(node: Service, signal: tuple[object, ...]) -> Any:
    """Have a handler of a node call ``uwsgi.signal``."""
    return script(blocking.send_message, node.address, 33, 0, signal)


def _place(address: Any) -> str:
    host, port = address
    return f"{host}:{port}"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealUwsgi, str]]:
    place = f"127.0.0.1:{free_port()}"
    directory: Path = tmp_path_factory.mktemp("real")
    with real_uwsgi(directory, THEIRS, "--socket", place) as running:
        until(lambda: "spawned uWSGI worker 1" in running.log, "the worker")
        yield running, place


def test_from_ours(node: Service, real: tuple[RealUwsgi, str]) -> None:
    """A handler of ours raises a signal in a real uWSGI; a server that isn't there is an error."""
    running, place = real
    assert raise_in(node, (18, place)) is None
    assert running.wait_for_runs(1)[0]["signal"] == 18
    with pytest.raises(RemoteError, match="ConnectionFailed"):
        raise_in(node, (18, f"127.0.0.1:{free_port()}"))


def test_from_theirs(node: Service, real: tuple[RealUwsgi, str]) -> None:
    """A real uWSGI's handler, and its command, raise signals of ours; a no is a ValueError there."""
    _, place = real
    ours = _place(node.address)
    before = node.log.count("signal 17 in worker")
    assert script(blocking.rpc, place, "tell", "17", ours) == b"None"
    ended = run_to_end((str(UWSGI), "--signal", f"{ours},17"), node.directory)
    assert (ended.returncode, "signal 17 delivered to node" in ended.stderr) == (0, True)
    until(lambda: node.log.count("signal 17 in worker") == before + 4, "both signals in both workers")
    assert "signal 17 in worker 1" in node.log
    assert "signal 17 in worker 2" in node.log
    assert script(blocking.rpc, place, "tell", "99", ours) == b"ValueError"
    node.wait_for("signal 99 was raised, and nothing has registered it")


def test_between_ours(node: Service) -> None:
    """Two of ours do the same over their session; what isn't registered there is refused."""
    ours = _place(node.address)
    before = node.log.count("signal 17 in worker")
    assert raise_in(node, (17, ours)) is None
    until(lambda: node.log.count("signal 17 in worker") == before + 2, "the signal in both workers")
    with pytest.raises(RemoteError, match=r"SignalRefused: .*the node has refused signal 99; its log says why"):
        raise_in(node, (99, ours))


def test_workers(node: Service, real: tuple[RealUwsgi, str]) -> None:
    """``uwsgi.workers()`` has the same keys here and there, with values of the same types."""
    theirs = json.loads(script(blocking.rpc, real[1], "workers"))
    assert script(blocking.send_message, node.address, 33, 0, "workers") == theirs * 2


def test_refused(node: Service) -> None:
    """A peer of another network gets a no, and the log says why."""
    signal = encode_packet(Packet(SIGNAL, 17))
    before = node.log.count("signal 17 in worker")
    for source, answer in (("127.0.0.2", NO), ("127.0.0.1", YES)):
        with socket.create_connection(node.address, PATIENCE, (source, 0)) as connection:
            connection.sendall(signal)
            assert connection.recv(100) == encode_packet(answer)
    node.wait_for("signal 17 is refused; --signals-from says who may raise signals")
    until(lambda: node.log.count("signal 17 in worker") == before + 2, "the other one's signal, and no more")
