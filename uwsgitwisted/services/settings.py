"""The settings of every service, from its command line."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from uwsgitwisted.access import Network
from uwsgitwisted.engines.descriptions import DEFAULT, EngineSettings, parse_engine, worker_count
from uwsgitwisted.interfaces import IEngine, IProcessReactor
from uwsgitwisted.services.descriptors import soft_limit
from uwsgitwisted.transport.server.bodies import MAX_BODY
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.wire.terms import MAX_MESSAGE
from uwsgitwisted.worker.spec import Loader, OptionValues, WorkerSpec


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings that every service has.

    :param listen: endpoint descriptions.
    :param engine: where handlers run; see :mod:`uwsgitwisted.engines.descriptions`.
    :param timeout: seconds that a request may run.
    :param drain_timeout: seconds that running requests get to finish when the service stops.
    :param max_queue: how many requests may wait for a worker.
    :param max_requests: the number of requests after which a worker process is replaced; None for never.
    :param max_memory: how much memory a worker process may allocate, in bytes; None for no limit.
    :param reload_on_rss: the resident memory in bytes above which a worker process is replaced, after its
        request; None for no limit.
    :param max_worker_lifetime: seconds after which a worker process is replaced, after a request; None for
        never.
    :param touch_reload: files that have the service reloaded when they are touched.
    :param max_message: the largest message in a session, in bytes.
    :param max_body: the largest body of a web request, in bytes.
    :param networks: the networks that may connect; None for all.
    :param tracebacks: whether callers get the tracebacks of handlers' exceptions.
    :param stats: endpoint descriptions of the stats server.
    :param node: this node's name, for logs and error texts.
    :param limits: the limits of connections.
    :param log_file: where twistd writes the log; see :func:`uwsgitwisted.services.log_file.find_log_file`.
    :param options: the options that were given, for ``uwsgi.opt``, without secrets.
    """

    listen: tuple[str, ...]
    engine: str = DEFAULT
    timeout: float = 60.0
    drain_timeout: float = 30.0
    max_queue: int = 1_000
    max_message: int = MAX_MESSAGE
    max_body: int = MAX_BODY
    max_requests: int | None = None
    max_memory: int | None = None
    reload_on_rss: int | None = None
    max_worker_lifetime: float | None = None
    touch_reload: tuple[str, ...] = ()
    networks: tuple[Network, ...] | None = None
    tracebacks: bool = True
    stats: tuple[str, ...] = ()
    node: str = field(default_factory=socket.gethostname)
    limits: Limits = field(default_factory=Limits)
    log_file: str | None = ""
    options: OptionValues = field(default_factory=dict)

    def worker_spec(self, *loaders: Loader) -> WorkerSpec:
        """Build the spec of a worker that runs the handlers of *loaders*."""
        return WorkerSpec(
            loaders,
            max_message=self.max_message,
            max_requests=self.max_requests,
            max_memory=self.max_memory,
            reload_on_rss=self.reload_on_rss,
            max_lifetime=self.max_worker_lifetime,
            descriptors=soft_limit(),
            options=self.options,
            numproc=worker_count(self.engine),
        )

    def make_engine(self, reactor: IProcessReactor, spec: WorkerSpec) -> IEngine:
        """Make the engine that runs the handlers of *spec*."""
        return parse_engine(self.engine)(
            EngineSettings(
                reactor=reactor, spec=spec, timeout=self.timeout, max_queue=self.max_queue, node=self.node
            )
        )
