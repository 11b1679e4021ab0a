"""A node: answers objects with its handler module's function, and web requests with applications.

Those are WSGI applications, or a resource of twisted.web.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uwsgitwisted.engines.resource.engine import ResourceEngine
from uwsgitwisted.engines.resource.target import load_resource
from uwsgitwisted.interfaces import IProcessReactor, IResponder
from uwsgitwisted.responders.forward import ForwardResponder
from uwsgitwisted.responders.web import WebResponder
from uwsgitwisted.services.server import ServerService, check_handlers
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.transport.server.budget import default_limit
from uwsgitwisted.wire.message import WSGI_STRIPPED
from uwsgitwisted.wire.packet import MARSHAL, WSGI
from uwsgitwisted.worker.spec import Loader

#: The modifiers of web requests.
WEB = (WSGI, WSGI_STRIPPED)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node runs.

    :param handler: the handler module's name; empty for none.
    :param applications: the targets of WSGI applications by the paths at which they are mounted, as
        :func:`uwsgitwisted.worker.handlers.wsgi.load` takes them.
    :param chdir: the directory in which the applications run; empty for this one.
    :param env_file: a file with environment variables for them; empty for none.
    :param resource: the name of a twisted.web resource that answers web requests in their place, as
        :func:`uwsgitwisted.engines.resource.target.load_resource` takes it; empty for none.
    """

    handler: str = ""
    applications: Mapping[str, str] = field(default_factory=dict)
    chdir: str = ""
    env_file: str = ""
    resource: str = ""

    @property
    def loaders(self) -> list[Loader]:
        """What loads it in a worker."""
        loaders = []
        if self.applications:
            arguments = {
                "applications": dict(self.applications),
                "chdir": self.chdir,
                "env_file": self.env_file,
            }
            loaders.append(Loader("uwsgitwisted.worker.handlers.wsgi:load", arguments))
        if self.handler:
            loaders.append(Loader("uwsgitwisted.worker.handlers.marshal:load", {"module": self.handler}))
        return loaders


class _NodeWithResource(ServerService):
    """A node with a resource beside the engine of its handlers.

    :param resources: runs the resource.
    """

    def __init__(self, resources: ResourceEngine, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._resources = resources

    def stop_at_once(self) -> None:
        """Stop without draining, since a second signal arrived."""
        self._resources.stop(0)
        super().stop_at_once()

    async def _stop_engine(self) -> None:
        drained = self._resources.stop(self._settings.drain_timeout)
        await super()._stop_engine()
        await drained


def make_node(reactor: IProcessReactor, settings: ServerSettings, node: NodeSettings) -> ServerService:
    """Make the service of a node.

    :param node: what it runs.
    :raises StartupError: if that can't be loaded.
    """
    responders: dict[int, IResponder] = {}
    keywords: dict[str, Any] = {}
    resources = None
    if node.resource:
        resources = _resource_engine(reactor, settings, node.resource)
        responders |= dict.fromkeys(WEB, WebResponder(resources))
        keywords = {"streamed_bodies": WEB, "ended_by_peer": WEB}
        if not node.handler:
            return ServerService(reactor, settings, resources, responders, **keywords)
    spec = settings.worker_spec(*node.loaders)
    check_handlers(spec)
    engine = settings.make_engine(reactor, spec)
    if node.handler:
        responders[MARSHAL] = ForwardResponder(engine)
    if resources is not None:
        return _NodeWithResource(resources, reactor, settings, engine, responders, **keywords)
    if node.applications:
        responders |= dict.fromkeys(WEB, WebResponder(engine))
        keywords = {"streamed_bodies": WEB, "share_ports": True}
    return ServerService(reactor, settings, engine, responders, **keywords)


def _resource_engine(reactor: IProcessReactor, settings: ServerSettings, target: str) -> ResourceEngine:
    """Make the engine of a resource.

    Large forms may take half as much memory as everything else: twisted.web holds them several times.
    """
    buffered = settings.limits.max_buffered
    return ResourceEngine(
        reactor,
        load_resource(target),
        name=target,
        timeout=settings.timeout,
        max_queue=settings.max_queue,
        max_form=settings.max_message,
        max_forms=(default_limit() if buffered is None else buffered) // 2,
    )
