"""Compares small calls with uWSGI's own, Pyro5 and AMP: ``python -m benchmarks.calls``.

There are three cases. In the first, calls run one after another, with both processes on one core, so a call
costs what its code costs. In the second, they use all cores, so a call costs the wake-up of the other process,
whatever the code. In the third, many calls are in flight.
"""

from __future__ import annotations

from functools import cache

from benchmarks.harness import Contender, Scale, Table, compare, main
from benchmarks.processes import Server, Servers, a_core, require

_UNIT = "calls/s"


class _Runs:
    """Makes runs. It starts a server when it is first needed, since a peer may not be installed."""

    def __init__(self, servers: Servers, scale: Scale) -> None:
        self._servers = servers
        self.scale = scale
        self._node = cache(lambda: servers.node("reactor"))
        self._uwsgi = cache(servers.uwsgi)
        self._peer = cache(servers.peer)

    def ours(self, driver: str) -> float:
        """Run a driver against our node."""
        return self._drive(driver, self._node())

    def peer(self, driver: str, server: str) -> float:
        """Run a driver against a server of :mod:`benchmarks.serve`."""
        if server.startswith("pyro"):
            require("Pyro5")
        return self._drive(driver, self._peer(server))

    def rpc(self, driver: str) -> float:
        """Run a driver within one real uWSGI against another."""
        return self._servers.drive_in_uwsgi(driver, self._uwsgi().port, self.scale.seconds)[0]

    def _drive(self, driver: str, server: Server) -> float:
        return self._servers.drive(driver, server.port, self.scale.seconds)[0]


def _one_after_another(title: str, runs: _Runs, *, wanted: tuple[str, str]) -> Table:
    of_uwsgi, of_pyro = wanted
    contenders = [
        Contender("ours: `blocking`, session, engine `reactor`", lambda: runs.ours("calls:blocking")),
        Contender("uWSGI's `uwsgi.rpc`, a connection a call", lambda: runs.rpc("calls:uwsgi_rpc"), of_uwsgi),
        Contender("Pyro5, marshal, thread server", lambda: runs.peer("calls:pyro", "pyro_thread"), of_pyro),
        Contender(
            "the floor: a socket with marshal, a bare Twisted echo", lambda: runs.peer("calls:bare", "bare")
        ),
    ]
    return compare(title, _UNIT, contenders, runs.scale.rounds)


def _in_flight(runs: _Runs) -> Table:
    contenders = [
        Contender("ours: `Client`, session, engine `reactor`", lambda: runs.ours("calls:client")),
        Contender("AMP, marshalled bytes", lambda: runs.peer("amp:run", "amp"), "3 or more"),
        Contender(
            "Pyro5, marshal, multiplex server, 100 threads",
            lambda: runs.peer("calls:pyro_threads", "pyro_multiplex"),
            "over 1",
        ),
        Contender("uWSGI's `uwsgi.rpc`, 16 threads", lambda: runs.rpc("calls:uwsgi_rpc_threads"), "over 1"),
    ]
    return compare("100 calls in flight", _UNIT, contenders, runs.scale.rounds)


def run(scale: Scale) -> list[Table]:
    """Run the three comparisons."""
    with Servers(a_core()) as servers:
        runs = _Runs(servers, scale)
        title = "Calls one after another, both processes on one core"
        on_one_core = _one_after_another(title, runs, wanted=("0.9 or more", "1.5 or more"))
    with Servers() as servers:
        runs = _Runs(servers, scale)
        on_all_cores = _one_after_another("The same, free on all cores", runs, wanted=("", ""))
        return [on_one_core, on_all_cores, _in_flight(runs)]


if __name__ == "__main__":
    main(__doc__, run)
