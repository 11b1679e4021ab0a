"""Drivers of tiny tasks in two worker processes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from time import perf_counter
from typing import Any

from benchmarks.drivers.pace import in_flight, react
from benchmarks.messages import ECHO, SMALL

_PROCESSES = 2
_IN_FLIGHT = 100
#: How many tasks to give a pool, which gets all tasks at once, per second of the run.
_TASKS_A_SECOND = 60_000


def echo(message: object) -> object:
    """Do the same as the node's handler."""
    return message


def ours(_port: int, seconds: float) -> float:
    """Return the rate of tasks per second of our engine, without a node."""
    from uwsgitwisted.engines.processes import ProcessEngine
    from uwsgitwisted.interfaces import Request
    from uwsgitwisted.memory import keep_large_blocks
    from uwsgitwisted.wire.message import decode_answer, encode_request
    from uwsgitwisted.worker.spec import Loader, WorkerSpec

    async def main(reactor: Any) -> float:
        keep_large_blocks()  # as the service does whose engine this is
        loader = Loader("uwsgitwisted.worker.handlers.marshal:load", {"module": "benchmarks.handlers"})
        spec = WorkerSpec((loader,))
        engine = ProcessEngine(reactor, spec, processes=_PROCESSES, timeout=60)
        await engine.start()

        def ask() -> Any:
            answer = engine.submit(Request(encode_request(33, ECHO, SMALL)))
            return answer.addCallback(lambda answer: decode_answer(answer.packet))

        rate = await in_flight(ask, seconds, _IN_FLIGHT)
        await engine.stop(10)
        return rate

    rate: float = react(main)
    return rate


def imap(_port: int, seconds: float) -> float:
    """Return the rate of tasks per second of ``multiprocessing.Pool.imap``, one per message."""
    number = int(_TASKS_A_SECOND * seconds)
    with multiprocessing.Pool(_PROCESSES) as pool:
        deque(pool.imap(echo, repeat(SMALL, 200), chunksize=1), maxlen=0)
        start = perf_counter()
        deque(pool.imap(echo, repeat(SMALL, number), chunksize=1), maxlen=0)
        return number / (perf_counter() - start)


def apply_async(_port: int, seconds: float) -> float:
    """Return the rate of tasks per second of ``Pool.apply_async``, with 100 in flight."""
    with multiprocessing.Pool(_PROCESSES) as pool:
        return _window(lambda: pool.apply_async(echo, (SMALL,)).get, seconds)


def executor(_port: int, seconds: float) -> float:
    """Return the rate of tasks per second of a ``ProcessPoolExecutor``, with 100 in flight."""
    with ProcessPoolExecutor(_PROCESSES) as pool:
        return _window(lambda: pool.submit(echo, SMALL).result, seconds)


def _window(submit: Callable[[], Callable[[], object]], seconds: float) -> float:
    """Return the rate of results per second, waiting for the oldest one whenever 100 tasks are in flight."""
    waiting = deque(submit() for _ in range(_IN_FLIGHT))
    done = 0
    start = perf_counter()
    while (elapsed := perf_counter() - start) < seconds:
        waiting.popleft()()
        waiting.append(submit())
        done += 1
    for result in waiting:
        result()
    return done / elapsed
