"""Drivers of small calls: one after another, or many in flight."""

from __future__ import annotations

import marshal
import socket
from collections.abc import Callable
from typing import Any

from benchmarks.drivers.pace import in_flight, in_threads, one_after_another, react
from benchmarks.messages import ECHO, SMALL

_HOST = "127.0.0.1"


def blocking(port: int, seconds: float) -> float:
    """Return the rate of our blocking calls per second, in a session."""
    from uwsgitwisted.blocking import send_uwsgi_message

    return one_after_another(lambda: send_uwsgi_message(_HOST, port, 33, ECHO, SMALL), seconds)


def client(port: int, seconds: float) -> float:
    """Return the rate of our Client's requests per second."""
    from uwsgitwisted.client import Client

    async def main(reactor: Any) -> float:
        client = Client(reactor)
        address = (_HOST, port)
        rate = await in_flight(lambda: client.send_message(address, 33, ECHO, SMALL), seconds)
        await client.close()
        return rate

    rate: float = react(main)
    return rate


def uwsgi_rpc(port: int, seconds: float) -> float:
    """Return the rate of a real uWSGI's own calls per second; it has to run in a uWSGI."""
    return one_after_another(_rpc(port), seconds)


def uwsgi_rpc_threads(port: int, seconds: float) -> float:
    """Return the rate of these calls per second from 16 threads."""
    return in_threads(16, lambda: _rpc(port), seconds)


def _rpc(port: int) -> Callable[[], object]:
    import uwsgi

    node = f"{_HOST}:{port}"
    return lambda: marshal.loads(uwsgi.rpc(node, b"echo", marshal.dumps(SMALL)))


def pyro(port: int, seconds: float) -> float:
    """Return the rate of Pyro5's calls per second."""
    proxy = _pyro_proxy(port)
    return one_after_another(lambda: proxy.echo(SMALL), seconds)


def pyro_threads(port: int, seconds: float) -> float:
    """Return the rate of these calls per second from 100 threads, each with its own connection."""

    def make() -> Callable[[], object]:
        proxy = _pyro_proxy(port)
        return lambda: proxy.echo(SMALL)

    return in_threads(100, make, seconds)


def _pyro_proxy(port: int) -> Any:
    import Pyro5.api

    Pyro5.config.SERIALIZER = "marshal"
    return Pyro5.api.Proxy(f"PYRO:echo@{_HOST}:{port}")


def bare(port: int, seconds: float) -> float:
    """Return the rate of objects per second that are sent and received back without any protocol."""
    with socket.create_connection((_HOST, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def call() -> object:
            sock.send(marshal.dumps(SMALL, 2))
            return marshal.loads(sock.recv(65_536))

        return one_after_another(call, seconds)
