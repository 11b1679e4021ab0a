"""A renderer: renders the Mako templates in its directories for callers that send a name and variables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from uwsgitwisted.interfaces import IProcessReactor, IResponder
from uwsgitwisted.responders.forward import ForwardResponder
from uwsgitwisted.responders.pages import PageResponder
from uwsgitwisted.responders.rpc import BODIES, RpcResponder
from uwsgitwisted.services.server import ServerService, check_handlers
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.wire.packet import MARSHAL, RPC, WSGI
from uwsgitwisted.worker.spec import Loader


def make_renderer(
    reactor: IProcessReactor,
    settings: ServerSettings,
    directories: Sequence[str],
    *,
    filters: Sequence[str] = (),
    strict: bool = False,
    debug: bool = False,
) -> ServerService:
    """Make the service of a renderer.

    :param directories: the directories of its templates.
    :param filters: Mako's filters for every expression, such as ``h`` for HTML.
    :param strict: whether a name that the caller didn't send is an error.
    :param debug: whether web requests get a page about a template that failed; not for strangers.
    :raises StartupError: if a directory doesn't exist.
    """
    web = settings.engine.startswith("processes")  # other engines have no streams
    loader = Loader(
        "uwsgitwisted.worker.handlers.render:load",
        {
            "directories": [os.path.abspath(directory) for directory in directories],
            "filters": list(filters),
            "strict": strict,
            "web": web,
            "debug": debug,
        },
    )
    spec = settings.worker_spec(loader)
    check_handlers(spec)
    engine = settings.make_engine(reactor, spec)
    responders: dict[int, IResponder] = {
        MARSHAL: ForwardResponder(engine, idempotent=True),
        RPC: RpcResponder(engine),
    }
    if web:
        responders[WSGI] = PageResponder(engine)
    return ServerService(
        reactor,
        replace(settings, max_body=settings.max_message),  # it is parsed in memory
        engine,
        responders,
        bodies=BODIES,
        streamed_bodies=(WSGI,) if web else (),
    )
