"""Maps over real nodes, which are killed and frozen meanwhile.

It takes a few seconds. To run it for half a minute, with nodes that stay frozen until the keep-alive notices:

    FARM_SECONDS=30 python -m pytest -s tests/integration/test_cluster.py

``FARM_SEED`` is the number from which the moments and the victims are chosen.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.integration.services import Launcher, Service
from uwsgitwisted import Cluster
from uwsgitwisted.errors import RemoteError, WorkerDied
from uwsgitwisted.planner.progress import Progress
from uwsgitwisted.wire.terms import KEEPALIVE

pytestmark = pytest.mark.integration

SECONDS = float(os.environ.get("FARM_SECONDS", "3"))
SEED = int(os.environ.get("FARM_SEED", "0"))
NODES = 3 if SECONDS < 20 else 5
#: Seconds between two kills or freezes, and for which a node is frozen.
PAUSES = (0.2, 0.8)
FROZEN = (0.2, 1.0) if SECONDS < 20 else (1.0, 15.0)

HANDLER = """
import os, time, uwsgi

def handle(message, modifier2):
    if isinstance(message, list):
        return [2 * number for number in range(*message)]
    if message < 0:
        raise ValueError(message)
    if message == 1_000_000:
        os._exit(1)
    if modifier2 == 0:
        time.sleep(0.002)
    return 2 * message

uwsgi.message_manager_marshal = handle
"""


class Chaos:
    """Kills and freezes nodes at random; at least one is always well.

    :param launch: starts the nodes.
    """

    def __init__(self, launch: Launcher) -> None:
        self._launch = launch
        self._random = random.Random(SEED)
        self.nodes = [self._start() for _ in range(NODES)]
        self.killed = self.frozen = 0
        self.stopping = False

    def _start(self, before: Service | None = None) -> Service:
        directory = before.directory if before else None
        options = ("--engine", "processes:1")
        return self._launch.start("uwsgi-node", *options, handler=HANDLER, directory=directory)

    async def run(self) -> None:
        """Go on until :attr:`stopping` is set."""
        while not self.stopping:
            await deferLater(reactor, self._random.uniform(*PAUSES))
            place = self._random.randrange(1, NODES)
            node = self.nodes[place]
            if self._random.random() < 0.5:
                self.killed += 1
                await deferToThread(node.kill)
                self.nodes[place] = await deferToThread(self._start, node)
            else:
                self.frozen += 1
                os.kill(node.pid, signal.SIGSTOP)
                await deferLater(reactor, self._random.uniform(*FROZEN))
                os.kill(node.pid, signal.SIGCONT)


@pytest_twisted.ensureDeferred
async def test_kills_and_freezes(launch: Launcher) -> None:
    """Every item is answered once, though nodes are killed and frozen meanwhile."""
    chaos = Chaos(launch)
    cluster = Cluster(reactor, [node.address for node in chaos.nodes])
    going = Deferred.fromCoroutine(chaos.run())
    end = time.monotonic() + SECONDS
    maps, longest = 0, 0.0
    while time.monotonic() < end:
        began = time.monotonic()
        modifier2, count = (maps % 2, 1_000 if maps % 2 == 0 else 10_000)  # the others are tiny, and bundled
        values = [value async for value in cluster.map(33, modifier2, range(count), idempotent=True)]
        assert values == [2 * number for number in range(count)]
        longest = max(longest, time.monotonic() - began)
        maps += 1
    chaos.stopping = True
    await going
    await cluster.close()
    assert chaos.killed + chaos.frozen
    # A frozen node holds up a map at most until its silence is noticed.
    assert longest < 2 * KEEPALIVE + 5
    print({"maps": maps, "killed": chaos.killed, "frozen": chaos.frozen, "longest": round(longest, 2)})


async def check_bundles(cluster: Cluster) -> None:
    """An item of a bundle that raises fails alone; so does one that kills, if they may run twice."""
    items = [*range(3_000), -1, *range(3_000)]
    values = [value async for value in cluster.map(33, 1, items, on_error="return")]
    assert isinstance(values.pop(3_000), RemoteError)
    assert values == [2 * number for number in range(3_000)] * 2
    items[100] = 1_000_000
    for idempotent, lost in ((False, 20), (True, 1)):
        mapped = cluster.map(33, 1, items[:200], chunk=20, idempotent=idempotent, on_error="return")
        values = [value async for value in mapped]
        assert sum(isinstance(value, WorkerDied) for value in values) == lost


@pytest_twisted.ensureDeferred
async def test_real_nodes(launch: Launcher) -> None:
    """With real nodes: single calls, chunks of a range, errors, and numbers of the progress."""
    nodes = [launch.start("uwsgi-node", "--engine", "processes:2", handler=HANDLER) for _ in range(2)]
    cluster = Cluster(reactor, [node.address for node in nodes])
    assert await cluster.send_message(33, 0, 4) == 8
    reports: list[Progress] = []
    parts = [part async for part in cluster.map(33, 0, range(20_000), chunked=True, on_progress=reports.append)]
    assert [number for part in parts for number in part] == list(range(0, 40_000, 2))
    assert len(parts) > 4
    assert (reports[-1].done, reports[-1].failed, reports[-1].total) == (20_000, 0, 20_000)
    assert sum(node.done for node in reports[-1].nodes) == 20_000
    results = [result async for result in cluster.as_completed(33, 0, [1, -1, 2])]
    assert sorted(result.value for result in results if not result.error) == [2, 4]
    [error] = [result.error for result in results if result.error]
    assert isinstance(error, RemoteError)
    assert error.type == "ValueError"
    await check_bundles(cluster)
    async for value in cluster.map(33, 0, range(1_000_000)):
        if value == 200:
            break
    assert await cluster.send_message(33, 0, 5) == 10
    await cluster.close()
