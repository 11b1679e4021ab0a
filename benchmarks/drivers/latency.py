"""Drivers that measure small requests during other work, in milliseconds."""

from __future__ import annotations

import threading
from time import perf_counter
from typing import Any

from benchmarks.messages import COMPUTE, ECHO, MAKE, SMALL

_HOST = "127.0.0.1"
_COMPUTE_SECONDS = 0.1
#: The modifier1 to which a node answers with the same bytes.
_ECHO_BYTES = 101
#: The minimum number of calls of a run, whatever its time.
_LEAST = 20


def call(port: int, seconds: float) -> list[float]:
    """Return the times of our blocking calls, one after another."""
    from uwsgitwisted.blocking import send_uwsgi_message

    for _ in range(200):
        send_uwsgi_message(_HOST, port, 33, ECHO, SMALL)
    return _each(lambda: send_uwsgi_message(_HOST, port, 33, ECHO, SMALL), perf_counter() + seconds)


def ping_idle(port: int, seconds: float) -> list[float]:
    """Return the times of pings of an idle node."""
    from uwsgitwisted.blocking import ping

    return _each(lambda: ping((_HOST, port)), perf_counter() + seconds)


def ping_busy(port: int, seconds: float, workers: str) -> list[float]:
    """Return the times of pings while every worker computes and as many requests wait."""
    from uwsgitwisted.blocking import ping, send_uwsgi_message

    end = perf_counter() + seconds
    begin = threading.Barrier(2 * int(workers) + 1)

    def keep_busy() -> None:
        begin.wait()
        while perf_counter() < end + _COMPUTE_SECONDS:
            send_uwsgi_message(_HOST, port, 33, COMPUTE, _COMPUTE_SECONDS)

    threads = [threading.Thread(target=keep_busy) for _ in range(2 * int(workers))]
    for thread in threads:
        thread.start()
    begin.wait()
    samples = _each(lambda: ping((_HOST, port)), end)
    for thread in threads:
        thread.join()
    return samples


def _each(ask: Any, end: float) -> list[float]:
    samples: list[float] = []
    while perf_counter() < end or len(samples) < _LEAST:
        start = perf_counter()
        ask()
        samples.append((perf_counter() - start) * 1000)
    return samples


def fair(port: int, _seconds: float, size: str, number: str) -> list[float]:
    """Return the times of small requests while large answers arrive on the same connection.

    :param size: the size of each large answer, in bytes; 0 for none.
    :param number: the number of large answers.
    """
    return _beside(port, int(number), (33, MAKE, int(size)) if int(size) else None)


def fair_bytes(port: int, _seconds: float, size: str, number: str) -> list[float]:
    """Do the same while bytes are echoed, which neither side loads as an object."""
    return _beside(port, int(number), (_ECHO_BYTES, 0, bytes(int(size))))


def _beside(port: int, number: int, large: tuple[int, int, object] | None) -> list[float]:
    """Return the times of small requests beside *large* ones, given as modifiers and message."""
    from benchmarks.drivers.pace import react
    from uwsgitwisted.client import Client

    async def main(reactor: Any) -> list[float]:
        client = Client(reactor)
        address = (_HOST, port)
        samples: list[float] = []
        for _ in range(100):
            await client.send_message(address, 33, ECHO, SMALL)
        for _ in range(number):
            answer = client.send_message(address, *large) if large else None
            least = len(samples) + _LEAST
            while (answer is not None and not answer.called) or (answer is None and len(samples) < least):
                start = perf_counter()
                await client.send_message(address, 33, ECHO, SMALL)
                samples.append((perf_counter() - start) * 1000)
            if answer is not None:
                await answer
        await client.close()
        return samples

    found: list[float] = react(main)
    return found
