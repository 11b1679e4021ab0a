"""A spooler: keeps tasks on disk until the function in its module's ``uwsgi.spooler`` has run them."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from uwsgitwisted.errors import SpoolError, StartupError
from uwsgitwisted.interfaces import IEngine, IProcessReactor
from uwsgitwisted.responders.spool import SpoolResponder
from uwsgitwisted.services.cluster import ClusterService, check_handlers
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.spool.descriptions import make_store
from uwsgitwisted.spool.retry import RetryPolicy
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.spool.stores import ISpoolStore
from uwsgitwisted.wire.packet import SPOOL


class SpoolerService(ClusterService):
    """A server whose engine works off a queue of tasks.

    :param spooler: the queue; it owns the engine.
    """

    def __init__(
        self, reactor: IProcessReactor, settings: ServerSettings, engine: IEngine, spooler: Spooler
    ) -> None:
        super().__init__(reactor, settings, engine, {SPOOL: SpoolResponder(spooler)})
        self._spooler = spooler

    def _begin(self) -> Deferred[None]:
        return self._spooler.start().addCallback(self._announce)

    async def _end(self) -> None:
        await self._spooler.stop(self._settings.drain_timeout)


def make_spooler(
    reactor: IProcessReactor,
    settings: ServerSettings,
    module: str,
    spool: str,
    *,
    policy: RetryPolicy | None = None,
    workers: int = 1,
    text: bool = False,
    return_codes: str = "2.0",
) -> SpoolerService:
    """Return the service of a spooler.

    :param module: the handler module's name.
    :param spool: where the tasks are kept, such as ``sqlite:PATH``.
    :param policy: how often a task is tried.
    :param workers: how many tasks run at once.
    :param text: whether the function gets text instead of bytes.
    :param return_codes: which uWSGI's numbers the function returns.
    :raises StartupError: if the module can't be loaded or the spool can't be opened.
    """
    spec = settings.worker_spec(
        "uwsgitwisted.handlers.spool:load", module=module, text=text, return_codes=return_codes
    )
    check_handlers(spec)
    store = make_store(spool)
    check_store(store)
    engine = settings.make_engine(reactor, spec)
    return SpoolerService(reactor, settings, engine, Spooler(reactor, store, engine, policy, workers=workers))


def check_store(store: ISpoolStore) -> None:
    """Find out whether a store can be opened, by opening and closing it.

    :raises StartupError: if it can't; its text says why.
    """
    try:
        store.open()
        store.close()
    except SpoolError as error:
        raise StartupError(str(error)) from error
