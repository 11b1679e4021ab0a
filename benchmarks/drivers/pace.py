"""Loops that call for a while, and count."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

_WARM_UP = 200
#: The minimum time with many requests in flight before counting starts, since sessions and pools still grow.
_WARM_UP_SECONDS = 0.3
_BATCH = 20


def one_after_another(call: Callable[[], object], seconds: float) -> float:
    """Return the rate of *call* per second."""
    for _ in range(min(_WARM_UP, max(1, int(_WARM_UP * 10 * seconds)))):
        call()
    done = 0
    start = perf_counter()
    while (elapsed := perf_counter() - start) < seconds:
        for _ in range(_BATCH):
            call()
        done += _BATCH
    return done / elapsed


def in_threads(number: int, make: Callable[[], Callable[[], object]], seconds: float) -> float:
    """Return the rate of calls per second of *number* threads together.

    :param make: called first in each thread; returns the function that the thread calls.
    """
    counts: list[int] = []
    begin = threading.Barrier(number + 1)

    def work() -> None:
        call = make()
        call()
        begin.wait()
        done = 0
        end = perf_counter() + seconds
        while perf_counter() < end:
            call()
            done += 1
        counts.append(done)

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    begin.wait()
    start = perf_counter()
    for thread in threads:
        thread.join()
    return sum(counts) / (perf_counter() - start)


async def in_flight(ask: Callable[[], Awaitable[object]], seconds: float, number: int = 100) -> float:
    """Return the rate of answered requests per second with *number* always in flight."""
    from twisted.internet.defer import Deferred, gatherResults

    done = 0

    async def keep_asking(end: float) -> None:
        nonlocal done
        while perf_counter() < end:
            await ask()
            done += 1

    for duration in (min(_WARM_UP_SECONDS, 10 * seconds), seconds):
        done = 0
        start = perf_counter()
        chains = [Deferred.fromCoroutine(keep_asking(start + duration)) for _ in range(number)]
        await gatherResults(chains)
    return done / (perf_counter() - start)


def react(function: Callable[[Any], Awaitable[Any]]) -> Any:
    """Run the coroutine that *function* makes from the reactor, and return its result."""
    from twisted.internet.defer import ensureDeferred
    from twisted.internet.task import react as twisted_react

    results: list[Any] = []

    async def run(reactor: Any) -> None:
        results.append(await function(reactor))

    try:
        twisted_react(lambda reactor: ensureDeferred(run(reactor)))
    except SystemExit as end:
        if end.code:
            raise
    return results[0]
