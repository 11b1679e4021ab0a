"""What the processes of one service share, in its front: the state, its connections, signals and mules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.access import Network, Peer, named_peer
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.engines.statistics import figures
from uwsgitwisted.interfaces import IProcessReactor, Request
from uwsgitwisted.responders.signals import SignalResponder
from uwsgitwisted.services.log_file import log_size
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.services.shared.channel import SPARE_CONNECTIONS, Channel
from uwsgitwisted.services.shared.files import FileWatches
from uwsgitwisted.services.shared.mules import Mules
from uwsgitwisted.shared.facts import Facts
from uwsgitwisted.shared.state import Events, SharedLimits, SharedState
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.packet import SIGNAL, Packet
from uwsgitwisted.worker.spec import SHARED_FD, WorkerSpec


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """What a service's processes share.

    :param limits: what may be kept.
    :param mules: the programs of the mules; empty texts for those that only get messages and signals.
    :param has_spooler: whether the workers are those of a spooler.
    :param signal_networks: the networks whose peers may raise signals.
    """

    limits: SharedLimits = field(default_factory=SharedLimits)
    mules: Sequence[str] = ()
    has_spooler: bool = False
    signal_networks: Sequence[Network] = ()


class Shared:
    """The shared state of a service with worker processes.

    :param reactor: keeps the time, and reads the sockets.
    :param engine: runs the signals.
    :param spec: what the workers load, and so the mules.
    :param settings: those of the service.
    :param shares: what is shared.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IProcessReactor,
        engine: ProcessEngine,
        spec: WorkerSpec,
        settings: ServerSettings,
        shares: SharedSettings,
    ) -> None:
        self._engine = engine
        self._reports = Reports(self._log)
        self._files = FileWatches(reactor)
        self._mules = Mules(reactor, spec, shares.mules, settings.node)
        #: How many mules there are.
        self.mules = len(shares.mules)
        #: How many connections for shared state each process should be able to have.
        self.wanted_connections = spec.threads + SPARE_CONNECTIONS
        self._events = events = Events(
            reactor,
            self._deliver_own,
            self._files.watch,
            self._report,
            workers=spec.numproc,
            mules=len(shares.mules),
            has_spooler=shares.has_spooler,
        )
        facts = Facts(
            lambda: list(map(figures, engine.reports())), lambda: log_size(settings.log_file), monotonic
        )
        self._state = SharedState(reactor.seconds, shares.limits, self._report, events, facts)
        self._channel = Channel(reactor, self._state, self._report)
        #: Answers peers that raise signals.
        self.signal_responder = SignalResponder(shares.signal_networks, self._fire_for_peer)

    def limit_connections(self, each: int, processes: int) -> None:
        """Bound the connections for shared state.

        :param each: how many each process may have.
        :param processes: how many workers and mules there are.
        """
        self._channel.max_each = each
        self._channel.max_connections = each * (processes + 1)  # one of them may be about to be replaced

    def start(self) -> None:
        """Accept calls, and start the mules; call this before the engine starts."""
        descriptor = self._channel.start()
        self._engine.lend(SHARED_FD, descriptor)
        self._mules.start(descriptor)

    async def reload(self, reload_workers: Callable[[], Deferred[bool]]) -> bool:
        """Restart workers and mules with fresh code, and forget what only the old code has registered.

        :param reload_workers: replaces the workers.
        :return: whether that succeeded. Otherwise what only the new code has registered is forgotten.
        """
        self._state.begin_reload()
        succeeded = await reload_workers() and await self._mules.reload()
        self._state.end_reload(succeeded)
        return succeeded

    @property
    def warning(self) -> tuple[float, bytes]:
        """When a mule has set a warning, and the warning, which is empty if there is none."""
        return self._mules.warning

    def stop_signals(self) -> None:
        """End timers, cron jobs and file monitors."""
        self._state.stop()
        self._files.stop()

    def kill(self) -> None:
        """Kill the mules, since a second signal arrived."""
        self._mules.kill()

    async def stop(self) -> None:
        """End the mules, and close the connections."""
        await self._mules.stop()
        self._channel.stop()

    def _fire_for_peer(self, number: int, peer: Peer) -> bool:
        return self._events.signals.fire_for_peer(number, partial(self._deliver, peer))

    def _deliver_own(self, worker: int, number: int, on_end: Callable[[], None]) -> bool:
        # Each signal takes its turn as a peer does, so that one that is raised without end holds up no other.
        return self._deliver(named_peer(f"signal {number}"), worker, number, on_end)

    def _deliver(self, peer: Peer, worker: int, number: int, on_end: Callable[[], None]) -> bool:
        """Queue a signal as a request of *peer*; return whether there was room for it."""
        answer = self._engine.submit(Request(Packet(SIGNAL, number), peer), worker)
        taken = not (answer.called and isinstance(answer.result, Failure))
        answer.addErrback(partial(self._note_failure, number)).addBoth(lambda _: on_end())
        return taken

    def _note_failure(self, number: int, failure: Failure) -> None:
        self._reports.report(
            ("signal", number), "signal {number}: {reason}", number=number, reason=failure.getErrorMessage()
        )

    def _report(self, line: str) -> None:
        self._reports.report(line, "{text}", text=line)
