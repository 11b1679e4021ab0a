"""Drivers of round trips of large objects, one after another, in megabytes per second of one direction."""

from __future__ import annotations

import marshal
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any

from benchmarks.drivers.framing import receive, send
from benchmarks.drivers.pace import react
from benchmarks.messages import ECHO, large

_HOST = "127.0.0.1"
_LEAST = 2


def _rate(call: Callable[[], object], size: int, seconds: float) -> float:
    call()
    done = 0
    start = perf_counter()
    while (elapsed := perf_counter() - start) < seconds or done < _LEAST:
        call()
        done += 1
    return done * size / elapsed / 1e6


def blocking(port: int, seconds: float, kind: str, size: str) -> float:
    """Return the rate of our blocking calls."""
    from uwsgitwisted.blocking import send_uwsgi_message

    message = large(kind, int(size))
    return _rate(lambda: send_uwsgi_message(_HOST, port, 33, ECHO, message), int(size), seconds)


def client(port: int, seconds: float, kind: str, size: str) -> float:
    """Return the rate of our Client."""
    from uwsgitwisted.client import Client

    message = large(kind, int(size))

    async def main(reactor: Any) -> float:
        client = Client(reactor)
        await client.send_message((_HOST, port), 33, ECHO, message)
        done = 0
        start = perf_counter()
        while (elapsed := perf_counter() - start) < seconds or done < _LEAST:
            await client.send_message((_HOST, port), 33, ECHO, message)
            done += 1
        await client.close()
        return done * int(size) / elapsed / 1e6

    rate: float = react(main)
    return rate


def bare(port: int, seconds: float, kind: str, size: str) -> float:
    """Return the rate of marshal and a blocking socket on both sides."""
    message: Any = large(kind, int(size))
    with socket.create_connection((_HOST, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def call() -> object:
            send(sock, marshal.dumps(message, 2))
            data = receive(sock)
            assert data is not None
            return marshal.loads(data)

        return _rate(call, int(size), seconds)
