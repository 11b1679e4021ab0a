"""Nodes that front an engine which exists already: process pools and a Dask cluster, through a real service."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from tests.integration.services import TERMINATED, TWISTD, Launcher, children_of, eventually, run_to_end, until
from uwsgitwisted.client import Client
from uwsgitwisted.cluster import Cluster
from uwsgitwisted.errors import RemoteError, RequestTimeout, WorkerDied

pytestmark = pytest.mark.integration

#: Each run is noted in a file with one write, as the proof that it happened once.
ACTIONS = """
import os, signal, time, uwsgi

def note(key):
    notes = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(notes, f"{key}\\n".encode())
    os.close(notes)

def handle(message, modifier2):
    key, action, *arguments = message
    note(key)
    if action == "raise":
        raise ValueError(key)
    if action == "sleep":
        time.sleep(*arguments)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return [key, os.getpid()]

uwsgi.message_manager_marshal = handle
"""

PROCESSES = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

def make():
    # Not forked: the service has threads. The processes end with the service, which they are children of.
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
"""

DASK = """
import os
from concurrent.futures import Executor

from distributed import Client, LocalCluster


class Dask(Executor):
    '''The executor of a cluster that belongs to this node: it begins and ends with it.

    A node is told to stop by a signal and ends by that signal, so that nothing that was left to `atexit` would
    be done. What it does call, when its work is done, is the executor's `shutdown`: that is the place for
    closing what `__init__` opened. A node that only uses a cluster of others needs none of this:

        def make():
            return Client("tcp://scheduler:8786").get_executor(pure=False)
    '''

    def __init__(self):
        # Workers in this process are enough for a test; a real one has processes, or other machines.
        self._cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
        self._client = Client(self._cluster)
        # pure=False: each request is to be run, also one that is equal to another.
        self._executor = self._client.get_executor(pure=False)

    def submit(self, function, /, *arguments, **keywords):
        return self._executor.submit(function, *arguments, **keywords)

    def shutdown(self, wait=True, *, cancel_futures=False):
        self._executor.shutdown(wait=wait)
        self._client.close()
        self._cluster.close()
        open("closed", "w").close()
"""

#: As the class above, but of the executor as Dask makes it, which takes equal calls for one.
BARE = """
from distributed import Client, LocalCluster

def make():
    global client
    client = Client(LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None))
    return client.get_executor()
"""


def _notes(directory: Path) -> list[str]:
    return (directory / "notes").read_text().split()


@pytest_twisted.ensureDeferred
async def test_a_process_pool(launch: Launcher, client: Client) -> None:
    """Requests run in the pool's processes; exceptions and time limits are told; it ends with the service."""
    node = launch.start(
        "uwsgi-node", "--engine", "executor:my_handler:make", "--timeout", "30", handler=ACTIONS + PROCESSES
    )
    asked = [client.send_message(node.address, 33, 17, [f"r{number}", "echo"]) for number in range(50)]
    answers = await gatherResults(asked)
    assert [key for key, _ in answers] == [f"r{number}" for number in range(50)]
    pids = {pid for _, pid in answers}
    assert pids <= set(children_of(node.pid))
    assert sorted(_notes(node.directory)) == sorted(f"r{number}" for number in range(50))
    with pytest.raises(RemoteError) as caught:
        await client.send_message(node.address, 33, 17, ["fails", "raise"])
    assert (caught.value.type, caught.value.message) == ("ValueError", "fails")
    with pytest.raises(RequestTimeout):
        await client.send_message(node.address, 33, 17, ["slow", "sleep", 2], timeout=0.1)
    assert (await client.send_message(node.address, 33, 17, ["next", "echo"]))[0] == "next"
    await client.close()
    assert node.terminate() == TERMINATED
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the end of the pool's processes")


@pytest_twisted.ensureDeferred
async def test_a_process_pool_that_breaks(launch: Launcher, client: Client) -> None:
    """A request that kills a process of the pool fails, saying so; the next ones run in another pool."""
    node = launch.start("uwsgi-node", "--engine", "executor:my_handler:make", handler=ACTIONS + PROCESSES)
    with pytest.raises(WorkerDied, match="BrokenProcessPool"):
        await client.send_message(node.address, 33, 17, ["killing", "kill"])
    for number in range(3):
        answer = await client.send_message(node.address, 33, 17, [f"next {number}", "echo"])
        assert answer[0] == f"next {number}"
    assert node.log.count("replacing it") == 1
    assert await client.ping(node.address) > 0
    assert node.terminate() == TERMINATED


def test_an_executor_that_can_not_be_made(tmp_path: Path) -> None:
    """The service doesn't start, and says which option is to blame."""
    (tmp_path / "my_handler.py").write_text(
        ACTIONS + "\ndef make():\n    raise OSError('no scheduler there')\n"
    )
    line = [*TWISTD, "-n", "--pidfile=", "uwsgi-node", "--listen", f"unix:{tmp_path}/socket"]
    line += ["--handler", "my_handler", "--engine", "executor:my_handler:make"]
    ended = run_to_end(line, tmp_path)
    assert ended.returncode == 1
    assert "--engine executor:my_handler:make: OSError: no scheduler there" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest_twisted.ensureDeferred
async def test_dask(launch: Launcher, client: Client) -> None:
    """A node in front of Dask runs each request once, also those of a map, and closes the cluster."""
    node = launch.start("uwsgi-node", "--engine", "executor:my_handler:Dask", handler=ACTIONS + DASK)
    asked = [client.send_message(node.address, 33, 17, [f"r{number}", "echo"]) for number in range(20)]
    assert [key for key, _ in await gatherResults(asked)] == [f"r{number}" for number in range(20)]
    cluster = Cluster(reactor, [node.address])
    values = [value async for value in cluster.map(33, 17, [[f"m{number}", "echo"] for number in range(10)])]
    assert [key for key, _ in values] == [f"m{number}" for number in range(10)]
    await cluster.close()
    equal = [client.send_message(node.address, 33, 17, ["equal", "echo"]) for _ in range(5)]
    await gatherResults(equal)
    assert sorted(_notes(node.directory)) == sorted(
        [*(f"r{n}" for n in range(20)), *(f"m{n}" for n in range(10)), *["equal"] * 5]
    )
    with pytest.raises(RemoteError) as caught:
        await client.send_message(node.address, 33, 17, ["fails", "raise"])
    assert (caught.value.type, caught.value.message) == ("ValueError", "fails")
    os.kill(node.pid, signal.SIGTERM)
    await eventually(lambda: node.process.poll() is not None, "the node's end")
    assert node.process.returncode == TERMINATED
    assert (node.directory / "closed").exists()
    assert "Traceback" not in node.log.partition("Received SIGTERM")[2]


@pytest_twisted.ensureDeferred
async def test_a_bare_dask_executor(launch: Launcher, client: Client) -> None:
    """What Client.get_executor() returns can be used as it is: equal requests are each run."""
    node = launch.start("uwsgi-node", "--engine", "executor:my_handler:make", handler=ACTIONS + BARE)
    await gatherResults([client.send_message(node.address, 33, 17, ["equal", "sleep", 0.05]) for _ in range(4)])
    assert _notes(node.directory) == ["equal"] * 4
    os.kill(node.pid, signal.SIGTERM)
    await eventually(lambda: node.process.poll() is not None, "the node's end")
    assert node.process.returncode == TERMINATED
    assert "Unhandled" not in node.log
