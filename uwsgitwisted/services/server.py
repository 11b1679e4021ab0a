"""What a node, a renderer and a spooler have in common: ports, connections and an engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.engines.descriptions import worker_count
from uwsgitwisted.errors import StartupError, UwsgiError
from uwsgitwisted.interfaces import IEngine, IReloadable, IResponder
from uwsgitwisted.responders.dispatch import Dispatcher
from uwsgitwisted.responders.echo import EchoResponder
from uwsgitwisted.responders.ping import PingResponder
from uwsgitwisted.services.descriptors import allowed_connections
from uwsgitwisted.services.exit import exit_with_failure
from uwsgitwisted.services.listening import Listener, listen, stop_listening
from uwsgitwisted.services.process import prepare_process
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.services.signals import Signals
from uwsgitwisted.transport.server.protocol import Limits, ServerFactory
from uwsgitwisted.wire.packet import ECHO, PING
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.worker.spec import WorkerSpec


class ServerService(Service):
    """A server of the cluster.

    :param reactor: opens the ports, starts the workers, keeps the time.
    :param settings: what the command line says of ports, limits and time.
    :param engine: runs the handlers.
    :param responders: what answers, by modifier1, besides ping and echo.
    :param bodies: the modifiers of packets that a body follows.
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
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._engine = engine
        self._listeners: list[Listener] = []
        self._signals = Signals(reactor)
        self._reloading = DeferredLock()
        dispatcher = Dispatcher({PING: PingResponder(), ECHO: EchoResponder(), **responders})
        self._factory = ServerFactory(
            reactor,  # type: ignore[arg-type]
            dispatcher.respond,
            terms=Terms(max_message=settings.max_message, node=settings.node),
            limits=self._fitting(settings.limits),
            networks=settings.networks,
            tracebacks=settings.tracebacks,
            bodies=bodies,
        )

    def _fitting(self, limits: Limits) -> Limits:
        """Return *limits* with as many connections as there are file descriptors for, besides the workers'."""
        description = self._engine.description
        processes = worker_count(description) if description.startswith("processes:") else 0
        allowed = allowed_connections(limits.max_connections, processes)
        if allowed < limits.max_connections:
            self._log.warn(
                "{allowed} connections may be open, not {wanted}: raise the hard limit of file descriptors "
                "(ulimit -Hn, LimitNOFILE=) for more",
                allowed=allowed,
                wanted=limits.max_connections,
            )
        return replace(limits, max_connections=allowed)

    def privilegedStartService(self) -> None:
        """Open the ports, while this process may still have the rights that low ones need."""
        prepare_process(self._reactor)
        for description in self._settings.listen:
            self._listeners.append(listen(self._reactor, description, self._factory))

    def startService(self) -> None:
        """Start the engine; requests that come before it is ready wait.

        :raises StartupError: if it is known at once that it can't be started.
        """
        super().startService()  # type: ignore[no-untyped-call]
        if not self._listeners:
            self.privilegedStartService()
        self._signals.take(signal.SIGHUP, self.reload)
        begun = self._begin()
        failure = begun.result if begun.called else None
        if isinstance(failure, Failure):  # the reactor doesn't run yet, so that it can't be stopped
            begun.addErrback(lambda _: None)
            failure.raiseException()
        begun.addErrback(self._broken)

    def _begin(self) -> Deferred[None]:
        return self._engine.start().addCallback(self._announce)

    def _announce(self, _: None) -> None:
        where = ", ".join(listener.description for listener in self._listeners)
        self._log.info(
            "{node} takes requests on {where}, engine {engine}",
            node=self._settings.node,
            where=where,
            engine=self._engine.description,
        )

    def _broken(self, failure: Failure) -> None:
        if failure.check(UwsgiError):
            self._log.critical("the service can't start: {reason}", reason=failure.getErrorMessage())
        else:
            self._log.failure("the service can't start", failure)
        exit_with_failure()
        self._reactor.callWhenRunning(self._reactor.stop)  # type: ignore[attr-defined]

    def stopService(self) -> Deferred[None]:
        """Take no new request, finish what was taken, and end.

        :return: fires when everything has ended.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        for number in (signal.SIGTERM, signal.SIGINT):
            self._signals.take(number, self.hurry)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await stop_listening(self._listeners)
        self._listeners = []
        closed = self._factory.finish()
        await self._end()
        overdue = self._reactor.callLater(_LAST_ANSWERS, self._factory.abort)  # type: ignore[attr-defined]
        await closed
        if overdue.active():
            overdue.cancel()
        self._signals.give_back()

    def hurry(self) -> None:
        """End now: a second signal came while the service was finishing its work."""
        self._log.warn("ending without waiting for what runs")
        self._engine.stop(0)
        self._factory.abort()

    def reload(self) -> None:
        """Run the handlers with fresh code: the signal HUP came."""
        if not IReloadable.providedBy(self._engine):
            self._log.warn("engine {engine} can't reload; restart the service", engine=self._engine.description)
            return
        if not self._reloading.waiting:  # one that waits will find all that was changed before it begins
            begun = self._reloading.acquire()
            begun.addCallback(lambda _: Deferred.fromCoroutine(self._reload()))
            begun.addErrback(self._bug)
            begun.addBoth(lambda _: self._reloading.release())

    async def _reload(self) -> None:
        engine: Any = self._engine  # it is reloadable
        self._log.info("replacing the workers one by one")
        if await engine.reload():
            self._log.info("every worker was replaced")
            await self._reloaded()
        else:
            self._log.error(
                "a new worker did not come up, so the old ones stay; mend the handler and try again"
            )

    async def _reloaded(self) -> None:
        """Take what else the fresh code brings."""

    def _bug(self, failure: Failure) -> None:
        self._log.failure("while reloading", failure)

    async def _end(self) -> None:
        """End what this service started, with its work done."""
        await self._engine.stop(self._settings.drain_timeout)


#: Seconds that connections get to take their last answers.
_LAST_ANSWERS = 10.0


def check_handlers(spec: WorkerSpec) -> list[dict[str, Any]]:
    """Find out whether a worker can load its handlers, by loading them in a process of their own.

    :return: the periodic tasks that they register; see :func:`uwsgitwisted.worker.handlers.spool.periodic`.
    :raises StartupError: if it can't; its text says why.
    """
    told = replace(spec, masterpid=os.getpid())
    command: Sequence[str] = [sys.executable, "-m", "uwsgitwisted.worker.main", "--check", told.encode()]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise StartupError(ended.stderr.strip() or f"the handlers can't be loaded: status {ended.returncode}")
    tasks: list[dict[str, Any]] = json.loads(ended.stdout)
    return tasks
