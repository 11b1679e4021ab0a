"""A node: answers objects with its handler module's function, and web requests with WSGI applications."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from uwsgitwisted.interfaces import IProcessReactor, IResponder
from uwsgitwisted.responders.forward import ForwardResponder
from uwsgitwisted.responders.web import WebResponder
from uwsgitwisted.services.server import ServerService, check_handlers
from uwsgitwisted.services.settings import ServerSettings
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
    """

    handler: str = ""
    applications: Mapping[str, str] = field(default_factory=dict)
    chdir: str = ""
    env_file: str = ""

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


def make_node(reactor: IProcessReactor, settings: ServerSettings, node: NodeSettings) -> ServerService:
    """Make the service of a node.

    :param node: what it runs.
    :raises StartupError: if that can't be loaded.
    """
    spec = settings.worker_spec(*node.loaders)
    check_handlers(spec)
    engine = settings.make_engine(reactor, spec)
    responders: dict[int, IResponder] = {}
    if node.handler:
        responders[MARSHAL] = ForwardResponder(engine)
    if node.applications:
        responders |= dict.fromkeys(WEB, WebResponder(engine))
    has_web = bool(node.applications)
    return ServerService(
        reactor, settings, engine, responders, streamed_bodies=WEB if has_web else (), share_ports=has_web
    )
