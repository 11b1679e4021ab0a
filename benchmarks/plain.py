"""Plain uwsgi, a connection a request, beside a real uWSGI: ``python -m benchmarks.plain``.

uWSGI answers no marshalled objects any more, so its RPC stands against them: both call a Python function with
the same object, marshalled. A ping calls nothing on either side. The same generator loads both.

The generator needs about as much of a core as a server does. So the servers' own processor time is taken, too:
what one core would do if nothing but the server ran on it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from benchmarks.harness import Contender, Scale, Table, compare, main
from benchmarks.processes import Server, Servers


class _Run:
    """Loads one server with one kind of request, and keeps what its processor time says."""

    def __init__(self, servers: Servers, server: Callable[[], Server], kind: str, seconds: float) -> None:
        self._servers = servers
        self._server = server
        self._kind = kind
        self._seconds = seconds
        self._busy: list[float] = []

    def rate(self) -> float:
        """Return how many requests were answered a second."""
        server = self._server()
        before = server.processor_seconds
        rate, number = self._servers.drive("plain:run", server.port, self._seconds, self._kind)
        self._busy.append(number / (server.processor_seconds - before))
        return rate

    def busy_rate(self) -> float:
        """Return how many were answered in a second of the server's own time, in the next of those runs."""
        if not self._busy:
            self.rate()
        return self._busy.pop(0)


def _tables(title: str, runs: list[tuple[str, _Run, str]], rounds: int) -> list[Table]:
    by_clock = [Contender(name, each.rate, wanted) for name, each, wanted in runs]
    by_processor = [Contender(name, each.busy_rate) for name, each, _ in runs]
    return [
        compare(title, "requests/s", by_clock, rounds),
        compare(f"{title}, by the server's own time", "requests/processor-s", by_processor, rounds),
    ]


def run(scale: Scale) -> list[Table]:
    """Make the comparisons."""
    with Servers() as servers:
        ours = servers.node("reactor")
        bare = servers.peer("bare_plain")
        uwsgi = cache(servers.uwsgi)

        def runs_of(server: Callable[[], Server], kind: str) -> _Run:
            return _Run(servers, server, kind, scale.seconds)

        calls = [
            ("ours: an object (33), engine `reactor`", runs_of(lambda: ours, "object"), ""),
            ("uWSGI: RPC (173) with the object", runs_of(uwsgi, "rpc"), "0.5 or more"),
            ("the floor: a bare Twisted server", runs_of(lambda: bare, "object"), ""),
        ]
        pings = [
            ("ours: ping (100)", runs_of(lambda: ours, "ping"), ""),
            ("uWSGI: ping (100)", runs_of(uwsgi, "ping"), ""),
            ("ours: echo (101)", runs_of(lambda: ours, "echo"), ""),
        ]
        return [
            *_tables("A Python function called, a connection a request", calls, scale.rounds),
            *_tables("No Python function called, a connection a request", pings, scale.rounds),
        ]


if __name__ == "__main__":
    main(__doc__, run)
