"""A node: runs the function that its handler module sets as ``uwsgi.message_manager_marshal``."""

from __future__ import annotations

from uwsgitwisted.interfaces import IProcessReactor
from uwsgitwisted.responders.forward import ForwardResponder
from uwsgitwisted.services.server import ServerService, check_handlers
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.wire.packet import MARSHAL
from uwsgitwisted.worker.spec import Loader


def make_node(reactor: IProcessReactor, settings: ServerSettings, module: str) -> ServerService:
    """Make the service of a node.

    :param module: the handler module's name.
    :raises StartupError: if the module can't be loaded.
    """
    spec = settings.worker_spec(Loader("uwsgitwisted.worker.handlers.marshal:load", {"module": module}))
    check_handlers(spec)
    engine = settings.make_engine(reactor, spec)
    return ServerService(reactor, settings, engine, {MARSHAL: ForwardResponder(engine)})
