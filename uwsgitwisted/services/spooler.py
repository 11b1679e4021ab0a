"""The service of a spooler, which stores tasks on disk until its handler module has run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from uwsgitwisted.access import Network
from uwsgitwisted.errors import SpoolError, StartupError
from uwsgitwisted.interfaces import IProcessReactor, IResponder
from uwsgitwisted.responders.manage import LOOPBACK, ManageResponder
from uwsgitwisted.responders.spool import BODIES, HTTP_VARS, SpoolResponder
from uwsgitwisted.services.listening import own_address
from uwsgitwisted.services.server import ServerService, check_handlers, make_shared
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.services.shared.service import Shared, SharedSettings
from uwsgitwisted.spool.periodic import Cron, Interval, PeriodicScheduler, PeriodicTask
from uwsgitwisted.spool.retry import RetryPolicy
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.spool.stores.bounds import NO_BOUNDS, Bounds, add_all
from uwsgitwisted.spool.stores.factory import make_store
from uwsgitwisted.spool.stores.interface import KEEP_RESULTS, ISpoolStore
from uwsgitwisted.spool.task import Task
from uwsgitwisted.spool.uwsgi.directory import SpoolDirectory
from uwsgitwisted.spool.uwsgi.drain import DirectoryDrain
from uwsgitwisted.spool.worker_slots import MAX_PREFETCH
from uwsgitwisted.wire.packet import MARSHAL, SPOOL
from uwsgitwisted.wire.vars import encode_vars
from uwsgitwisted.worker.spec import Loader


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """The settings that only a spooler has.

    :param spool: the store of the tasks, such as ``sqlite:PATH``.
    :param policy: when to retry a task, and how often.
    :param workers: how many tasks of the queues without workers of their own run at once.
    :param queues: how many tasks run at once of each queue with workers of its own.
    :param keep_results: how long to keep a finished task, in seconds.
    :param bounds: the limits of the queue.
    :param periodic: tasks to enqueue periodically.
    :param drain: a real uWSGI's spool directory, whose tasks are moved into the spool; None for none.
    :param managers: the networks whose peers may manage the queue.
    :param http_vars: the variables of a web request that its task gets.
    :param text: whether the function gets text instead of bytes.
    :param signal_networks: the networks whose peers may raise signals.
    :param return_codes: the version of uWSGI whose return codes the function uses.
    """

    spool: str
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    workers: int = 1
    queues: Mapping[str, int] = field(default_factory=dict)
    keep_results: float = KEEP_RESULTS
    bounds: Bounds = NO_BOUNDS
    periodic: Sequence[PeriodicTask] = ()
    drain: str | None = None
    managers: Sequence[Network] = LOOPBACK
    http_vars: Sequence[str] = HTTP_VARS
    text: bool = False
    signal_networks: Sequence[Network] = ()
    return_codes: str = "2.0"


class SpoolerService(ServerService):
    """A server whose engine runs the tasks of a queue.

    :param spooler: the queue; it owns the engine.
    :param periodic: enqueues periodic tasks.
    :param renew: makes the scheduler of periodic tasks for new code; it blocks, since it loads the handlers.
    :param drain: enqueues the tasks of a real uWSGI's spool directory.
    :param place: where the tasks are kept, without a password.
    :param shared: what the engine's processes share; None for nothing.
    """

    def __init__(
        self,
        reactor: IProcessReactor,
        settings: ServerSettings,
        spooler: Spooler,
        responders: Mapping[int, IResponder],
        periodic: PeriodicScheduler,
        renew: Callable[[], PeriodicScheduler],
        drain: DirectoryDrain | None,
        place: str = "",
        shared: Shared | None = None,
    ) -> None:
        super().__init__(
            reactor, settings, spooler.engine, responders, bodies=BODIES, shared=shared, spool=place
        )
        self._spooler = spooler
        self._periodic = periodic
        self._renew = renew
        self._drain = drain

    def _start_engine(self) -> Deferred[None]:
        return self._spooler.start().addCallback(self._start_sources).addCallback(self._announce)

    def _start_sources(self, _: None) -> None:
        """Start to enqueue periodic tasks, and the tasks of a spool directory."""
        self._periodic.start()
        if self._drain is not None:
            self._drain.start()

    async def _after_reload(self) -> None:
        await deferToThread(self._renew).addCallback(self._replace_periodic).addErrback(self._keep_periodic)

    def _replace_periodic(self, new: PeriodicScheduler) -> None:
        old, self._periodic = self._periodic, new
        if old.running:  # otherwise this service has not started yet, or has stopped
            old.stop()
            new.start()
            self._log.info("the periodic tasks are those of the new code")

    def _keep_periodic(self, failure: Failure) -> None:
        self._log.error(
            "the periodic tasks of the new code can't be used, so the old ones stay: {reason}",
            reason=failure.getErrorMessage(),
        )

    async def _stop_engine(self) -> None:
        self._periodic.stop()
        if self._drain is not None:
            await self._drain.stop()
        await self._spooler.stop(self._settings.drain_timeout)


def make_spooler(
    reactor: IProcessReactor, settings: ServerSettings, module: str, spooling: SpoolSettings
) -> SpoolerService:
    """Make the service of a spooler.

    :param module: the handler module's name.
    :raises StartupError: if the module can't be loaded or the spool can't be opened.
    """
    arguments = {"module": module, "text": spooling.text, "return_codes": spooling.return_codes}
    spec = replace(
        settings.worker_spec(Loader("uwsgitwisted.worker.handlers.spool:load", arguments)),
        spooler=own_address(settings.listen),
    )
    store = make_store(spooling.spool, spooling.keep_results, spooling.bounds)
    spooler = Spooler(
        reactor,
        store,
        settings.make_engine(reactor, spec),
        spooling.policy,
        workers=spooling.workers,
        queues=spooling.queues,
        # Prefetched tasks must leave room in the engine's queue.
        max_prefetch=min(MAX_PREFETCH, settings.max_queue // (2 * (1 + len(spooling.queues)))),
    )

    def renew() -> PeriodicScheduler:
        decorated = (_decorated(**task) for task in check_handlers(spec))
        return PeriodicScheduler(reactor, [*spooling.periodic, *decorated], spooler.call_store)

    periodic = renew()
    check_store(store)
    responders: dict[int, IResponder] = {
        SPOOL: SpoolResponder(spooler, http_vars=spooling.http_vars),
        MARSHAL: ManageResponder(reactor, spooler, managers=spooling.managers),
    }
    drain = None if spooling.drain is None else _make_drain(reactor, spooling.drain, spooler)
    place = str(settings.options.get("spool", ""))
    shares = SharedSettings(has_spooler=True, signal_networks=spooling.signal_networks)
    shared = make_shared(reactor, spooler.engine, spec, settings, shares)
    return SpoolerService(reactor, settings, spooler, responders, periodic, renew, drain, place, shared)


def _make_drain(reactor: IProcessReactor, path: str, spooler: Spooler) -> DirectoryDrain:
    def store(tasks: list[Task]) -> Deferred[list[int]]:
        return spooler.call_store(lambda store: add_all(store, tasks))

    directory = SpoolDirectory(path)
    try:
        directory.check()
    except SpoolError as error:
        raise StartupError(str(error)) from error
    return DirectoryDrain(reactor, directory, store)


def _decorated(name: str, cron: str = "", seconds: float = 0.0) -> PeriodicTask:
    """Make the periodic task that the handler module has registered with ``uwsgidecorators``."""
    schedule = Cron(cron) if cron else Interval(seconds)
    return PeriodicTask(name, schedule, encode_vars({"ud_spool_func": name}))


def check_store(store: ISpoolStore) -> None:
    """Open and close a store to check that this works.

    :raises StartupError: if the store can't be opened; its text says why.
    """
    try:
        store.open(lambda: None)
        store.close()
    except SpoolError as error:
        raise StartupError(str(error)) from error
