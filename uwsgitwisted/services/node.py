"""A node: answers objects and RPC with its handler module's functions, and web requests with applications.

Those are WSGI applications and static files, or a resource of twisted.web.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from uwsgitwisted.engines.descriptions import worker_count
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.engines.shared_ports import SharedPorts, can_share
from uwsgitwisted.errors import StartupError
from uwsgitwisted.interfaces import IEngine, IProcessReactor, IResponder
from uwsgitwisted.responders.rpc import BODIES, RpcResponder
from uwsgitwisted.responders.web import WebResponder
from uwsgitwisted.services.access_logs import ServiceAccessLog
from uwsgitwisted.services.listening import hold_no_connections, opened_port, refuse_new_connections
from uwsgitwisted.services.server import ServerService, check_handlers, make_shared, object_responders
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.services.shared.service import Shared, SharedSettings
from uwsgitwisted.services.subscription import Announcer, RouterAddress, find_place
from uwsgitwisted.transport.server.budget import default_limit
from uwsgitwisted.transport.server.handoff import Handoff
from uwsgitwisted.wire.message import WSGI_STRIPPED
from uwsgitwisted.wire.packet import RPC, WSGI
from uwsgitwisted.wire.rpc import RPC_HTTP
from uwsgitwisted.wire.subscription import Subscription
from uwsgitwisted.worker.spec import ACCESS_LOG_FD, Accepting, Loader

#: Seconds for something to arrive on connections that the system holds back until then. It follows at once,
#: unless the peer's machine is busy.
_HELD_CONNECTIONS = 0.25
#: Seconds for connections to be made that have begun before the ports are closed.
_LAST_CONNECTIONS = 0.05
#: The modifiers of web requests.
WEB = (WSGI, WSGI_STRIPPED)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node runs.

    :param handler: the handler module's name; empty for none.
    :param applications: the targets of WSGI applications by the paths at which they are mounted, as
        :func:`uwsgitwisted.worker.handlers.wsgi.load` takes them.
    :param static: the directories whose files workers send, by the paths at which they are mounted.
    :param chdir: the directory in which the applications run; empty for this one.
    :param env_file: a file with environment variables for them; empty for none.
    :param resource: the name of a twisted.web resource that answers web requests in their place, as
        :func:`uwsgitwisted.engines.resource.target.load_resource` takes it; empty for none.
    :param threads: how many requests each worker runs at a time; beyond 1, in threads.
    :param shared: what its processes share, and its mules.
    :param access_log: where a line is written for each web request: a path, or ``-`` for the standard output;
        empty for nowhere.
    :param access_log_format: the name of one of :data:`uwsgitwisted.access_log.FORMATS`.
    :param python2: the encoding of the text of Python 2 callers; empty to leave it bytes.
    :param subscribe: the uWSGI routers to which the node is announced.
    """

    handler: str = ""
    applications: Mapping[str, str] = field(default_factory=dict)
    static: Mapping[str, str] = field(default_factory=dict)
    chdir: str = ""
    env_file: str = ""
    resource: str = ""
    threads: int = 1
    access_log: str = ""
    access_log_format: str = "combined"
    python2: str = ""
    subscribe: Sequence[RouterAddress] = ()
    shared: SharedSettings = field(default_factory=SharedSettings)

    @property
    def has_web_workers(self) -> bool:
        """Whether workers answer web requests."""
        return bool(self.applications or self.static)

    @property
    def loaders(self) -> list[Loader]:
        """What loads it in a worker."""
        loaders = []
        if self.has_web_workers:
            arguments = {
                "applications": dict(self.applications),
                "static": dict(self.static),
                "chdir": self.chdir,
                "env_file": self.env_file,
                "access_log": self.access_log_format if self.access_log else "",
                "multithread": self.threads > 1,
            }
            loaders.append(Loader("uwsgitwisted.worker.handlers.wsgi:load", arguments))
        if self.handler:
            objects = {"module": self.handler, "python2": self.python2}
            loaders.append(Loader("uwsgitwisted.worker.handlers.rpc:load_with_objects", objects))
        return loaders


class NodeService(ServerService):
    """The service of a node.

    :param engine: runs the handlers and applications; None if there are none.
    :param node: what the node runs.
    :param shared: what the engine's processes share; None for nothing.
    :raises StartupError: if its resource can't be loaded.
    """

    def __init__(
        self,
        reactor: IProcessReactor,
        settings: ServerSettings,
        engine: IEngine | None,
        node: NodeSettings,
        shared: Shared | None = None,
    ) -> None:
        self._node = node
        self._announcer: Announcer | None = None
        self._access_log = ServiceAccessLog(node.access_log, node.access_log_format)
        self._resources = self._make_resources(reactor, settings) if node.resource else None
        responders: dict[int, IResponder] = {}
        if node.handler:
            assert engine is not None
            responders |= {**object_responders(engine, settings), RPC: RpcResponder(engine)}
        web = self._resources or (engine if node.has_web_workers else None)
        if web is not None:
            responders |= dict.fromkeys(WEB, WebResponder(web, self._access_log.write))
        engine = engine or self._resources
        assert engine is not None
        super().__init__(
            reactor,
            settings,
            engine,
            responders,
            bodies=BODIES if node.handler else (),
            streamed_bodies=WEB if web else (),
            ended_by_peer=WEB if self._resources else (),
            shared=shared,
        )

    def _make_resources(self, reactor: IProcessReactor, settings: ServerSettings) -> IEngine:
        """Make the engine of the resource.

        Large forms may take half as much memory as all the rest, since each is there several times while it is
        parsed.
        """
        # Imported late: twisted.web takes as long as a worker's start, and most nodes need none of it.
        from uwsgitwisted.engines.resource.engine import ResourceEngine
        from uwsgitwisted.engines.resource.target import load_resource

        buffered = settings.limits.max_buffered
        return ResourceEngine(
            reactor,
            load_resource(self._node.resource),
            name=self._node.resource,
            timeout=settings.timeout,
            max_queue=settings.max_queue,
            max_form=settings.max_message,
            max_forms=(default_limit() if buffered is None else buffered) // 2,
            log=self._access_log.write if self._node.access_log else None,
        )

    def stop_at_once(self) -> None:
        """Stop without draining, since a second signal arrived."""
        if self._resources is not None:
            self._resources.stop(0)
        super().stop_at_once()

    async def _stop_engine(self) -> None:
        drained = self._resources.stop(self._settings.drain_timeout) if self._resources else None
        if self._engine is not self._resources:
            await super()._stop_engine()
        if drained is not None:
            await drained

    def privilegedStartService(self) -> None:
        """Open the ports, and the access log, which may be another user's."""
        super().privilegedStartService()
        self._open_access_log()

    def _start_engine(self) -> Deferred[None]:
        if self._node.has_web_workers:
            self._share_ports()
        return super()._start_engine()

    def _share_ports(self) -> None:
        """Let the workers accept connections on the ports that they can: those of sockets, without TLS."""
        reactor: Any = self._reactor
        ports = [port for port in map(opened_port, self._listeners) if port and port.factory is self._factory]
        if ports and isinstance(self._engine, ProcessEngine) and can_share():
            networks = self._settings.networks
            accepting = Accepting(
                ports=len(ports),
                networks=None if networks is None else tuple(map(str, networks)),
                max_body=self._settings.max_body,
                write_timeout=self._settings.limits.write_timeout,
            )
            self._engine.share(SharedPorts(reactor, Handoff(reactor, ports), ports, accepting))

    @property
    def _expects_requests(self) -> bool:
        """The same; a worker may just have accepted a connection, which it will answer or hand over."""
        return self._node.has_web_workers or super()._expects_requests

    def _announce(self, _: None) -> None:
        """Log that the node takes requests, and announce it to the routers."""
        super()._announce(_)
        if self._node.subscribe and self.running and self._announcer is None:
            self._announcer = self._make_announcer()
            self._announcer.start()

    def _make_announcer(self) -> Announcer:
        """Make what announces the node.

        :raises StartupError: if a router could not connect to any of its ports.
        """
        here = find_place(self._listeners)
        if here is None and not all(router.address for router in self._node.subscribe):
            raise StartupError("--subscribe: uWSGI's routers speak no TLS; add --listen tcp:PORT")
        has_web = self._node.has_web_workers or self._node.resource
        # Without web applications, requests of HTTP can call functions.
        modifiers = (WSGI, 0) if has_web else (RPC, RPC_HTTP)
        cores = worker_count(self._settings.engine) * self._node.threads
        subscription = Subscription("", "", *modifiers, cores=cores)
        reactor: Any = self._reactor
        return Announcer(reactor, self._node.subscribe, subscription, here, self._stats.load)

    async def _stop_listening(self) -> None:
        """Leave the routers, have the workers leave the ports to the front, and close the ports.

        The front takes what waits there.
        """
        if self._announcer is not None:
            await self._announcer.leave()
        if isinstance(self._engine, ProcessEngine) and self._node.has_web_workers:
            sockets = [port.socket for port in filter(None, map(opened_port, self._listeners))]
            may_be_held = [hold_no_connections(each) for each in sockets]
            if any(may_be_held):
                await deferLater(self._reactor, _HELD_CONNECTIONS)  # type: ignore[arg-type]
            for each in sockets:
                refuse_new_connections(each)
            await deferLater(self._reactor, _LAST_CONNECTIONS)  # type: ignore[arg-type]
            self._engine.stop_accepting()
        await super()._stop_listening()

    def _before_reload(self) -> None:
        """Open the access log again, as its file may have been renamed."""
        self._open_access_log()

    def _open_access_log(self) -> None:
        """Open the access log for the front, and for the workers that start from now on.

        :raises StartupError: if that is not possible, and it isn't open yet.
        """
        if self._access_log.open() and isinstance(self._engine, ProcessEngine):
            self._engine.lend(ACCESS_LOG_FD, self._access_log.descriptor)


def make_node(reactor: IProcessReactor, settings: ServerSettings, node: NodeSettings) -> NodeService:
    """Make the service of a node.

    :param node: what it runs.
    :raises StartupError: if that can't be loaded.
    """
    engine = shared = None
    if node.loaders:
        if node.threads > 1 and not can_share():
            raise StartupError("--wsgi-threads: several threads in a worker need Linux")
        spec = replace(settings.worker_spec(*node.loaders), threads=node.threads)
        check_handlers(spec)
        engine = settings.make_engine(reactor, spec)
        shared = make_shared(reactor, engine, spec, settings, node.shared)
    return NodeService(reactor, settings, engine, node, shared)
