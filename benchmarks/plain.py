"""Compares plain uwsgi, one connection per request, with a real uWSGI: ``python -m benchmarks.plain``.

uWSGI no longer answers marshalled objects, so they are compared with its RPC: both call a Python function with
the same marshalled object. A ping calls no function on either side. The same load generator drives both.

The generator needs about as much of a core as a server does. So the servers' processor time is measured too: it
tells how many requests one core would serve if only the server ran on it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from benchmarks.harness import Contender, Scale, Table, compare, main
from benchmarks.processes import Server, Servers


class _Run:
    """Drives one server with one kind of request, and records the rates by its processor time."""

    def __init__(self, servers: Servers, server: Callable[[], Server], kind: str, seconds: float) -> None:
        self._servers = servers
        self._server = server
        self._kind = kind
        self._seconds = seconds
        self._busy: list[float] = []

    def rate(self) -> float:
        """Return the answered requests per second."""
        server = self._server()
        before = server.processor_seconds
        rate, number = self._servers.drive("plain:run", server.port, self._seconds, self._kind)
        self._busy.append(number / (server.processor_seconds - before))
        return rate

    def busy_rate(self) -> float:
        """Return the answered requests per second of the server's processor time, of the next of those runs."""
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
    """Run the comparisons."""
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
