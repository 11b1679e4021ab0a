"""Drivers that enqueue and run tasks in a spooler and in Huey, also while a million others wait."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.drivers.pace import in_flight, one_after_another, react
from benchmarks.messages import MARKS
from benchmarks.processes import HOST

_IN_FLIGHT = 100
_PATIENCE = 50.0
_TASK = {"job": "cleanup", "number": "12"}
_TOMORROW = 86_400.0


def enqueue(port: int, seconds: float) -> float:
    """Return the rate of acknowledged tasks per second with 100 in flight; no task runs."""
    from uwsgitwisted.client import Client

    async def main(reactor: Any) -> float:
        client = Client(reactor)
        task = {**_TASK, "at": str(time.time() + _TOMORROW)}
        rate = await in_flight(lambda: client.spool((HOST, port), task), seconds, _IN_FLIGHT)
        await client.close()
        return rate

    rate: float = react(main)
    return rate


def huey_enqueue(_port: int, seconds: float) -> float:
    """Return the rate of tasks per second written to Huey's file, one after another; no task runs."""
    from benchmarks.huey_tasks import run

    return one_after_another(lambda: run("cleanup"), seconds)


def enqueue_and_run(port: int, _seconds: float, number: str) -> float:
    """Return the rate of finished tasks per second, from the first enqueue to the end of the last task."""
    from twisted.internet.defer import Deferred, gatherResults
    from twisted.internet.task import deferLater

    from uwsgitwisted.client import Client

    async def main(reactor: Any) -> float:
        client = Client(reactor)
        await client.ping((HOST, port))
        left = iter(range(int(number)))

        async def keep_enqueueing() -> None:
            for _ in left:
                await client.spool((HOST, port), _TASK)

        marks, start = _marks(), perf_counter()
        await gatherResults([Deferred.fromCoroutine(keep_enqueueing()) for _ in range(_IN_FLIGHT)])
        while _marks() < marks + int(number):
            assert perf_counter() < start + _PATIENCE, "not all tasks ran"
            await deferLater(reactor, 0.002)
        rate = int(number) / (perf_counter() - start)
        await client.close()
        return rate

    rate: float = react(main)
    return rate


def huey_enqueue_and_run(_port: int, _seconds: float, number: str) -> float:
    """Return the same for Huey, whose consumer is already running."""
    from benchmarks.huey_tasks import run

    marks, start = _marks(), perf_counter()
    for _ in range(int(number)):
        run("cleanup")
    while _marks() < marks + int(number):
        assert perf_counter() < start + _PATIENCE, "not all tasks ran"
        time.sleep(0.002)
    return int(number) / (perf_counter() - start)


def _marks() -> int:
    return Path(MARKS).stat().st_size if Path(MARKS).exists() else 0


def among(_port: int, seconds: float, waiting: str) -> list[float]:
    """Return the figures of an empty SQLite store, and of one in which that many tasks wait.

    :return: enqueued tasks per second, claimed and finished tasks per second, and the memory in bytes: of the
        empty store, then of the full one.
    """
    from uwsgitwisted.spool.stores.sqlite.store import SqliteStore

    with tempfile.TemporaryDirectory(dir=os.getcwd()) as directory:
        store = SqliteStore(f"{directory}/spool.sqlite", keep=0.0)
        store.open(lambda: None)
        empty = _rates(store, seconds)
        tasks = iter(range(int(waiting)))
        while batch := len(list(islice(tasks, 10_000))):
            store.add([_task(priority=9)] * batch)
        full = _rates(store, seconds)
        store.close()
    return [*empty, *full]


def _rates(store: Any, seconds: float) -> list[float]:
    """Return a store's figures with batches of 100, as 100 requests in flight make them."""
    from uwsgitwisted.spool.retry import Action, Decision
    from uwsgitwisted.spool.stores.interface import Settlement, Want

    batch = [_task(priority=1)] * _IN_FLIGHT
    added, start = 0, perf_counter()
    while (elapsed := perf_counter() - start) < seconds:
        added += len(store.add(batch))
    enqueued = added / elapsed
    settlements: list[Settlement] = []
    done, start = 0, perf_counter()
    while done < added:
        cycle = store.advance(settlements, {None: Want(min(_IN_FLIGHT, added - done))}, time.time())
        settlements = [Settlement(task.id, Decision(Action.FINISH, 1, 0)) for task in cycle.claimed]
        done += len(settlements)
    claimed = done / (perf_counter() - start)
    store.advance(settlements, {None: Want(0)}, time.time())
    return [enqueued, claimed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0]


def _task(priority: int) -> Any:
    from uwsgitwisted.spool.task import Task
    from uwsgitwisted.wire.vars import encode_vars

    return Task(encode_vars(_TASK), at=0.0, created=time.time(), priority=priority)
