"""The stats server: says what a service does, in the JSON of uWSGI's, for ``uwsgitop`` and other tools.

Whoever connects gets the JSON, and the end of the connection.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from uwsgitwisted import __version__
from uwsgitwisted.access import Network, Peer
from uwsgitwisted.activity import CacheCounts, open_slots
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.engines.statistics import WorkerReport, figures
from uwsgitwisted.interfaces import IEngine, Reply, Request, StreamedAnswer, TimedAnswer
from uwsgitwisted.memory import memory_of
from uwsgitwisted.responders.manage import LOOPBACK
from uwsgitwisted.services.backlog import Backlog, read_backlog
from uwsgitwisted.services.listening import Listener, listen, opened_port, place_of, stop_listening, write_place
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.wire.packet import ECHO, PING, Packet

#: How many connections may be open at once; further ones are closed.
MAX_CONNECTIONS = 32
#: For how many seconds the JSON is given again instead of a new one, so that many connections cost little.
_FRESH = 0.1


class Stats:
    """The statistics of a service, and the ports where they are given.

    :param reactor: opens the ports and keeps the time.
    :param settings: those of the service.
    :param engine: the service's engine.
    :param listeners: the service's ports.
    :param spool: where a spooler keeps its tasks; None for other services.
    :param cache: returns the figures of a renderer's result cache in this process; None if it has none.
    """

    def __init__(
        self,
        reactor: Any,
        settings: ServerSettings,
        engine: IEngine,
        listeners: Sequence[Listener],
        spool: str | None = None,
        cache: Callable[[], CacheCounts] | None = None,
    ) -> None:
        self._cache = cache
        self._reactor = reactor
        self._settings = settings
        self._engine = engine
        self._listeners = listeners
        self._spool = spool
        self._ports: list[Listener] = []
        self._tally = Tally(reactor)
        networks = settings.networks and (*LOOPBACK, *settings.networks)
        self._factory = StatsFactory(reactor, self._encode, networks, settings.limits.write_timeout)

    def listen(self) -> None:
        """Open the ports.

        :raises StartupError: if that isn't possible; its text says what to do.
        """
        for description in self._settings.stats:
            self._ports.append(listen(self._reactor, description, self._factory, "--stats"))

    async def stop(self) -> None:
        """Close the ports."""
        await stop_listening(self._reactor, self._ports)
        self._factory.abort()

    def watch(self, respond: Callable[[Request], Reply]) -> Callable[[Request], Reply]:
        """Return *respond*, or if nobody else counts its requests, what counts and calls it."""
        if not self._settings.stats or isinstance(self._engine, ProcessEngine):
            return respond
        return self._tally.watch(respond)

    def load(self) -> int:
        """Return how many connections and requests wait."""
        return self._load(self._backlogs())

    def _backlogs(self) -> list[tuple[str, Backlog | None]]:
        ports = [(listener.description, opened_port(listener)) for listener in self._listeners]
        return [(_name(description, port), read_backlog(port.socket)) for description, port in ports if port]

    def _workers(self) -> list[WorkerReport]:
        return self._engine.reports() if isinstance(self._engine, ProcessEngine) else [self._tally.report()]

    def _load(self, backlogs: list[tuple[str, Backlog | None]]) -> int:
        connections = [backlog.waiting for _, backlog in backlogs if backlog is not None]
        requests = self._engine.waiting if isinstance(self._engine, ProcessEngine) else 0
        return max(connections, default=0) + requests

    def _encode(self) -> bytes:
        backlogs = self._backlogs()
        load = self._load(backlogs)
        reports = self._workers()
        stats = {
            "version": __version__,
            "listen_queue": load,
            "listen_queue_errors": 0,
            "signal_queue": 0,
            "load": load,
            "pid": os.getpid(),
            "uid": os.getuid(),
            "gid": os.getgid(),
            "cwd": os.getcwd(),
            "locks": [],
            "sockets": [_socket(name, found) for name, found in backlogs],
            "workers": list(map(_worker, reports)),
            **({} if self._spool is None else {"spoolers": [_spooler(self._spool, reports)]}),
            **({} if self._cache is None else {"caches": _caches(self._cache(), reports)}),
        }
        return json.dumps(stats, indent="\t").encode()


class Tally:
    """Counts requests where there are no worker processes that do. The reactor's process then counts as one.

    :param clock: keeps the time.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        (self._slot,) = open_slots()
        self._in_flight = 0
        self._started = int(time.time())

    def report(self) -> WorkerReport:
        """Return what was counted, as that of a worker."""
        return WorkerReport(
            id=1,
            pid=os.getpid(),
            threads=[self._slot.counts],
            since_start=self._slot.counts.requests,
            in_flight=self._in_flight,
            starts=1,
            last_start=self._started,
        )

    def watch(self, respond: Callable[[Request], Reply]) -> Callable[[Request], Reply]:
        """Return what calls *respond*, and counts."""

        def watched(request: Request) -> Reply:
            if request.packet.modifier1 in (PING, ECHO):  # uWSGI doesn't count them either
                return respond(request)
            began = self._clock.seconds()
            try:
                answer = respond(request)
            except Exception:
                self._count(began, failed=True)
                raise
            if isinstance(answer, (Packet, bytes)):
                self._count(began, sent=_size(answer))
                return answer
            self._in_flight += 1
            return answer.addBoth(self._end, began)

        return watched

    def _end(self, answer: Any, began: float) -> Any:
        self._in_flight -= 1
        failed = isinstance(answer, Failure)
        self._count(began, failed=failed, sent=0 if failed else _size(answer))
        return answer

    def _count(self, began: float, *, failed: bool = False, sent: int = 0) -> None:
        self._slot.count(self._clock.seconds() - began, failed, sent)


def _size(answer: object) -> int:
    if isinstance(answer, (TimedAnswer, StreamedAnswer)):
        answer = answer.packet
    return (
        len(answer.payload) if isinstance(answer, Packet) else len(answer) if isinstance(answer, bytes) else 0
    )


def _name(description: str, port: Any) -> str:
    """Return an address as uWSGI writes it, or the endpoint's description."""
    place = place_of(port)
    return write_place(place) if place else description


def _socket(name: str, backlog: Backlog | None) -> dict[str, object]:
    queue, limit = backlog or (0, 0)
    return {"name": name, "proto": "uwsgi", "queue": queue, "max_queue": limit, "shared": 0, "can_offload": 0}


def _spooler(place: str, reports: Sequence[WorkerReport]) -> dict[str, object]:
    """Return what is said of a spooler that keeps its tasks at *place*."""
    return {
        "dir": place,
        "pid": os.getpid(),
        "tasks": sum(counts.requests for report in reports for counts in report.threads),
        "respawns": 0,
        "running": sum(report.in_flight for report in reports),
    }


def _caches(own: CacheCounts, reports: Sequence[WorkerReport]) -> list[dict[str, object]]:
    """Return what is said of result caches: that in this process, and those of the workers together."""
    together = CacheCounts()
    for report in reports:
        together = together.plus(report.cache)
    return [_cache("objects", own), _cache("HTTP and RPC", together)]


def _cache(name: str, counts: CacheCounts) -> dict[str, object]:
    return {
        "name": name,
        "items": counts.pages,
        "hits": counts.hits,
        "miss": counts.misses,
        "full": 0,
        "bytes": counts.size,
    }


def _worker(report: WorkerReport) -> dict[str, object]:
    resident, virtual = memory_of(report.pid)
    return {
        **figures(report),
        "accepting": int(report.pid > 0),
        "harakiri_count": report.timeouts,
        "signal_queue": 0,
        "rss": resident,
        "vsz": virtual,
        "apps": [],
        "cores": [_core(number, report) for number in range(len(report.threads))],
    }


def _core(number: int, report: WorkerReport) -> dict[str, object]:
    """Return what is said of a thread. The first ones have the requests: it isn't known which have them."""
    return {
        "id": number,
        "requests": report.threads[number].requests,
        "static_requests": 0,
        "routed_requests": 0,
        "offloaded_requests": 0,
        "write_errors": 0,
        "read_errors": 0,
        "in_request": int(number < report.in_flight),
        "vars": [],
        "req_info": {},
    }


class StatsProtocol(Protocol):
    """A connection of somebody who wants the statistics."""

    def __init__(self, factory: StatsFactory) -> None:
        self._factory = factory
        self._timer = Timer(factory.clock, self.abort)

    def connectionMade(self) -> None:
        """Send them, and close the connection."""
        assert self.transport is not None
        if not self._factory.open(self):
            self.abort()
            return
        self._timer.set(self._factory.write_timeout)
        self.transport.write(self._factory.stats())
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close the connection, whose peer doesn't read, or can't have the statistics."""
        self._timer.clear()
        self.transport.abortConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection."""
        self._timer.clear()
        self._factory.connections.discard(self)


class StatsFactory(Factory):
    """Makes the connections.

    :param clock: for the time limit.
    :param encode: returns the statistics.
    :param networks: who may have them; None for everybody.
    :param write_timeout: seconds that a peer may take to read them.
    """

    noisy = False

    def __init__(
        self, clock: Any, encode: Callable[[], bytes], networks: Sequence[Network] | None, write_timeout: float
    ) -> None:
        self.clock = clock
        self.write_timeout = write_timeout
        self.connections: set[StatsProtocol] = set()
        self._encode = encode
        self._networks = networks
        self._last = b""
        self._fresh_until = 0.0

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Return a connection's protocol, or None, which closes it."""
        assert addr is not None
        if self._networks is not None and not Peer(addr).is_allowed(self._networks):
            return None
        return StatsProtocol(self)

    def open(self, connection: StatsProtocol) -> bool:
        """Note a connection; return whether it may stay."""
        if len(self.connections) >= MAX_CONNECTIONS:
            return False
        self.connections.add(connection)
        return True

    def stats(self) -> bytes:
        """Return the statistics."""
        now = self.clock.seconds()
        if not self._last or now >= self._fresh_until:
            self._last = self._encode()
            self._fresh_until = now + _FRESH
        return self._last

    def abort(self) -> None:
        """Close all connections."""
        for connection in list(self.connections):
            connection.abort()
