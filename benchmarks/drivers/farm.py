"""Drivers of work that is spread over several nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter
from typing import Any

from benchmarks.drivers.pace import react
from benchmarks.messages import ECHO, PRETEND

_PROCESSES = 2
#: How many tiny items warm up what a contender is made of.
_WARM_UP = 200


def echo(message: object) -> object:
    """Do the same as the node's handler."""
    return message


def _addresses(ports: str) -> list[tuple[str, int]]:
    return [("127.0.0.1", int(port)) for port in ports.split(",")]


def _in_cluster(ports: str, work: Callable[[Any], Any]) -> float:
    """Return how long *work* takes with a cluster whose connections are open."""
    from uwsgitwisted import Cluster

    async def main(reactor: Any) -> float:
        cluster = Cluster(reactor, _addresses(ports))
        async for _ in cluster.map(33, ECHO, range(_WARM_UP)):
            pass
        start = perf_counter()
        await work(cluster)
        taken = perf_counter() - start
        await cluster.close()
        return taken

    seconds: float = react(main)
    return seconds


def cluster(
    _port: int, _seconds: float, ports: str, items: str, victim: str = "", kill_after: str = ""
) -> float:
    """Return how many seconds a map takes.

    :param victim: the process of a node that is killed while the map runs; empty for none.
    :param kill_after: after how many seconds of the map.
    """

    async def work(cluster: Any) -> None:
        from twisted.internet import reactor

        if victim:
            # Only the map is idempotent, so that what comes before it would fail with the node.
            reactor.callLater(float(kill_after), os.kill, int(victim), signal.SIGKILL)
        parts = cluster.map(33, PRETEND, range(int(items)), chunked=True, idempotent=True)
        assert sum([part async for part in parts]) == int(items)

    return _in_cluster(ports, work)


def parts(_port: int, _seconds: float, ports: str, weights: str) -> float:
    """Return how many seconds a single call to each node takes, in parallel, with so many items for each."""
    from uwsgitwisted import Client

    async def main(reactor: Any) -> float:
        client = Client(reactor)
        addresses = _addresses(ports)
        for address in addresses:
            await client.send_message(address, 33, ECHO, None)
        start = perf_counter()
        pairs = zip(addresses, weights.split(","), strict=True)
        nodes = [(address, [0, int(count)]) for address, count in pairs]
        results = await client.send_multi_message(nodes, 33, PRETEND, 300)
        taken = perf_counter() - start
        assert all(success for success, _ in results), results
        await client.close()
        return taken

    seconds: float = react(main)
    return seconds


def tiny(_port: int, _seconds: float, ports: str, items: str) -> float:
    """Return the rate of tiny items through the nodes."""

    async def work(cluster: Any) -> None:
        assert len([value async for value in cluster.map(33, ECHO, range(int(items)))]) == int(items)

    return int(items) / _in_cluster(ports, work)


def dask(_port: int, _seconds: float, items: str) -> float:
    """Return the rate of tiny items of Dask's ``Client.map``."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=_PROCESSES, threads_per_worker=1, dashboard_address=None) as local,
        Client(local) as client,
    ):
        client.gather(client.map(echo, range(_WARM_UP)))
        start = perf_counter()
        results = client.gather(client.map(echo, range(_WARM_UP, _WARM_UP + int(items))))
        taken = perf_counter() - start
        assert len(results) == int(items)
    return int(items) / taken


def pool(_port: int, _seconds: float, items: str) -> float:
    """Return the rate of tiny items of ``ProcessPoolExecutor.map``, one at a time."""
    with ProcessPoolExecutor(_PROCESSES) as executor:
        list(executor.map(echo, range(_WARM_UP), chunksize=1))
        start = perf_counter()
        results = list(executor.map(echo, range(int(items)), chunksize=1))
        taken = perf_counter() - start
        assert len(results) == int(items)
    return int(items) / taken
