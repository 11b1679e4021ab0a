"""The common base of a node, a renderer and a spooler: ports, connections and an engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.activity import NOTICE, CacheCounts
from uwsgitwisted.engines.descriptions import known_workers, worker_count
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.errors import StartupError, UwsgiError
from uwsgitwisted.interfaces import IEngine, IProcessReactor, IReloadable, IResponder
from uwsgitwisted.responders.dispatch import Dispatcher
from uwsgitwisted.responders.echo import EchoResponder
from uwsgitwisted.responders.forward import ForwardResponder
from uwsgitwisted.responders.ping import PingResponder
from uwsgitwisted.services.descriptors import share_descriptors
from uwsgitwisted.services.exit import exit_with_failure
from uwsgitwisted.services.listening import Listener, listen, stop_listening
from uwsgitwisted.services.process import prepare_process
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.services.shared.service import Shared, SharedSettings
from uwsgitwisted.services.signals import Signals
from uwsgitwisted.services.stats import Stats
from uwsgitwisted.services.touched import TouchedFiles
from uwsgitwisted.transport.server.budget import default_limit
from uwsgitwisted.transport.server.factory import ServerFactory
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.wire.bundle import MAX_BUNDLE
from uwsgitwisted.wire.packet import BUNDLE, ECHO, MARSHAL, PING, SIGNAL
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.worker.spec import WorkerSpec


class ServerService(Service):
    """A server of the cluster.

    :param reactor: opens the ports, starts the workers and runs the timers.
    :param settings: ports, limits and timeouts, from the command line.
    :param engine: runs the handlers.
    :param responders: the responders besides ping and echo, by modifier1.
    :param bodies: the modifiers of packets that are followed by a body.
    :param streamed_bodies: the values of modifier1 whose large bodies are passed on as streams.
    :param ended_by_peer: the values of modifier1 whose requests end when the peer closes its sending side.
    :param shared: what the engine's processes share; None for nothing.
    :param spool: where a spooler keeps its tasks, for the stats; None for other services.
    :param cache: returns the figures of its result cache, for the stats; None if it has none.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: object,
        settings: ServerSettings,
        engine: IEngine,
        responders: Mapping[int, IResponder],
        *,
        bodies: Container[tuple[int, int]] = (),
        streamed_bodies: Container[int] = (),
        ended_by_peer: Container[int] = (),
        shared: Shared | None = None,
        spool: str | None = None,
        cache: Callable[[], CacheCounts] | None = None,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._engine = engine
        self._shared = shared
        self._listeners: list[Listener] = []
        self._stopping = False
        self._signals = Signals(reactor)
        self._reloading = DeferredLock()
        self._touched = TouchedFiles(reactor, settings.touch_reload, self.reload)  # type: ignore[arg-type]
        ping = PingResponder(self._warning)
        signals = {} if shared is None else {SIGNAL: shared.signal_responder}
        dispatcher = Dispatcher({PING: ping, ECHO: EchoResponder(), **signals, **responders})
        self._stats = Stats(reactor, settings, engine, self._listeners, spool, cache)
        self._factory = ServerFactory(
            reactor,  # type: ignore[arg-type]
            self._stats.watch(dispatcher.respond),
            terms=Terms(
                max_message=settings.max_message,
                node=settings.node,
                workers=known_workers(engine.description),
                bundle=MAX_BUNDLE if BUNDLE in responders else 0,
            ),
            limits=self._fit_limits(settings.limits),
            networks=settings.networks,
            tracebacks=settings.tracebacks,
            bodies=bodies,
            streamed_bodies=streamed_bodies,
            ended_by_peer=ended_by_peer,
            max_body=settings.max_body,
        )

    def _fit_limits(self, limits: Limits) -> Limits:
        """Reduce *limits* to what the workers leave: file descriptors, and memory for answers on their way.

        Such an answer counts against the budget once it is whole; see :mod:`uwsgitwisted.engines.transfers`.
        """
        description = self._engine.description
        processes = worker_count(description) if description.startswith("processes:") else 0
        shared = 0
        if self._shared is not None:
            processes += self._shared.mules
            shared = self._shared.wanted_connections
        allowed, shared = share_descriptors(limits.max_connections, processes, shared)
        if self._shared is not None:
            self._shared.limit_connections(shared, processes)
        if allowed < limits.max_connections:
            self._log.warn(
                "{allowed} connections may be open, not {wanted}: raise the hard limit of file descriptors "
                "(ulimit -Hn, LimitNOFILE=) for more",
                allowed=allowed,
                wanted=limits.max_connections,
            )
        buffered = default_limit() if limits.max_buffered is None else limits.max_buffered
        # A message that is put together from its pieces is there twice for a moment.
        reserve = min(2 * self._settings.max_message, buffered // _LARGEST_RESERVE)
        return replace(limits, max_connections=allowed, max_buffered=buffered - reserve)

    def privilegedStartService(self) -> None:
        """Open the ports while this process may still have the privileges that low ports need."""
        prepare_process(self._reactor)
        for description in self._settings.listen:
            self._listeners.append(listen(self._reactor, description, self._factory))
        self._stats.listen()

    def startService(self) -> None:
        """Start the engine; requests that arrive before it is ready wait.

        :raises StartupError: if starting the engine fails immediately.
        """
        super().startService()  # type: ignore[no-untyped-call]
        if not self._listeners:
            self.privilegedStartService()
        self._signals.install(signal.SIGHUP, self.reload)
        if self._shared is not None:
            self._shared.start()
        self._touched.start()
        started = self._start_engine()
        failure = started.result if started.called else None
        if isinstance(failure, Failure):  # the reactor doesn't run yet, so it can't be stopped
            started.addErrback(lambda _: None)
            failure.raiseException()
        started.addErrback(self._fail_startup)

    def _start_engine(self) -> Deferred[None]:
        return self._engine.start().addCallback(self._announce)

    def _announce(self, _: None) -> None:
        where = ", ".join(listener.description for listener in self._listeners)
        self._log.info(
            "{node} takes requests on {where}, engine {engine}",
            node=self._settings.node,
            where=where,
            engine=self._engine.description,
        )

    def _fail_startup(self, failure: Failure) -> None:
        if failure.check(UwsgiError):
            self._log.critical("the service can't start: {reason}", reason=failure.getErrorMessage())
        else:
            self._log.failure("the service can't start", failure)
        exit_with_failure()
        self._reactor.callWhenRunning(self._reactor.stop)  # type: ignore[attr-defined]

    def stopService(self) -> Deferred[None]:
        """Accept no new request, finish those in flight, and stop.

        :return: fires when the service has stopped.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopping = True
        self._touched.stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._signals.install(number, self.stop_at_once)
        return Deferred.fromCoroutine(self._drain_and_stop())

    async def _drain_and_stop(self) -> None:
        await self._stop_listening()
        if self._expects_requests:
            await deferLater(self._reactor, _LAST_REQUESTS)  # type: ignore[arg-type]
        closed = self._factory.finish()
        if self._shared is not None:
            self._shared.stop_signals()
        await self._stop_engine()
        if self._shared is not None:
            await self._shared.stop()
        overdue = self._reactor.callLater(_LAST_ANSWERS, self._factory.abort)  # type: ignore[attr-defined]
        await closed
        if overdue.active():
            overdue.cancel()
        await self._stats.stop()
        self._signals.restore()

    @property
    def _expects_requests(self) -> bool:
        """Whether requests may arrive on connections that were accepted before the ports were closed."""
        return self._factory.expects_requests

    async def _stop_listening(self) -> None:
        """Close the ports."""
        await stop_listening(self._reactor, self._listeners)  # type: ignore[arg-type]
        self._listeners.clear()

    def stop_at_once(self) -> None:
        """Stop without draining, since a second signal arrived."""
        self._log.warn("stopping without waiting for running requests")
        self._engine.stop(0)
        if self._shared is not None:
            self._shared.kill()
        self._factory.abort()

    def reload(self) -> None:
        """Load the handlers' code again, since the signal HUP arrived."""
        self._before_reload()
        if not IReloadable.providedBy(self._engine):
            self._log.warn("engine {engine} can't reload; restart the service", engine=self._engine.description)
            return
        if not self._reloading.waiting:  # a reload that waits will load all changes made before it starts
            reloaded = self._reloading.acquire()
            reloaded.addCallback(lambda _: Deferred.fromCoroutine(self._reload_engine()))
            reloaded.addErrback(self._log_bug)
            reloaded.addBoth(lambda _: self._reloading.release())

    async def _reload_engine(self) -> None:
        engine: Any = self._engine  # it is reloadable
        self._log.info("replacing the workers one by one")
        if await (engine.reload() if self._shared is None else self._shared.reload(engine.reload)):
            self._log.info("every worker was replaced")
            await self._after_reload()
        else:
            self._log.error("a new worker did not start, so the old ones stay; fix the handler and try again")

    def _before_reload(self) -> None:
        """Prepare what the new workers are to have."""

    async def _after_reload(self) -> None:
        """Apply whatever else depends on the new code."""

    def _log_bug(self, failure: Failure) -> None:
        self._log.failure("while reloading", failure)

    def _warning(self) -> bytes:
        """Return the warning that is the answer to a ping; empty for none."""
        if self._stopping:
            return DRAINING
        warnings = [NOTICE.read()]  # of handlers in this process
        if isinstance(self._engine, ProcessEngine):
            warnings.append(self._engine.warning)
        if self._shared is not None:
            warnings.append(self._shared.warning)
        return max(warnings)[1]

    async def _stop_engine(self) -> None:
        """Stop the parts of this service, after they have finished their work."""
        await self._engine.stop(self._settings.drain_timeout)


#: The warning in answers to pings while the service finishes what it has accepted.
DRAINING = b"draining"
#: At most one part in so many of --max-buffered is kept for answers on their way from workers.
_LARGEST_RESERVE = 2
#: Seconds for the requests of connections that were just accepted to arrive.
_LAST_REQUESTS = 0.2
#: Seconds that peers get to read their last answers.
_LAST_ANSWERS = 10.0


def object_responders(engine: IEngine, *, idempotent: bool = False) -> dict[int, IResponder]:
    """Return the responders of objects, by modifier1.

    They take bundles only if the engine says how many workers it has. Otherwise it may have far more of them
    than there are bundles, or it is the reactor, where a handler may return a Deferred.

    :param engine: runs the handlers.
    :param idempotent: whether every request may run again if its worker dies.
    """
    responder = ForwardResponder(engine, idempotent=idempotent)
    bundles = (BUNDLE,) if known_workers(engine.description) else ()
    return dict.fromkeys((MARSHAL, *bundles), responder)


def make_shared(
    reactor: IProcessReactor,
    engine: object,
    spec: WorkerSpec,
    settings: ServerSettings,
    shares: SharedSettings,
) -> Shared | None:
    """Make what the processes of *engine* share; None if it has none.

    :param spec: what they load.
    :param settings: those of the service.
    :param shares: what is shared.
    """
    if not isinstance(engine, ProcessEngine):
        return None
    return Shared(reactor, engine, spec, settings, shares)


def check_handlers(spec: WorkerSpec) -> list[dict[str, Any]]:
    """Check that a worker can load its handlers, by loading them in a separate process.

    :return: the periodic tasks that they register; see :func:`uwsgitwisted.worker.handlers.spool.periodic`.
    :raises StartupError: if loading fails; its text says why.
    """
    told = replace(spec, masterpid=os.getpid())
    command: Sequence[str] = [sys.executable, "-m", "uwsgitwisted.worker.main", "--check", told.encode()]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise StartupError(ended.stderr.strip() or f"the handlers can't be loaded: status {ended.returncode}")
    tasks: list[dict[str, Any]] = json.loads(ended.stdout)
    return tasks
