"""A renderer: renders the templates in its directories for callers that send a name and variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from uwsgitwisted.interfaces import IProcessReactor, IResponder
from uwsgitwisted.responders.pages import PageResponder
from uwsgitwisted.responders.rpc import BODIES, RpcResponder
from uwsgitwisted.services.server import ServerService, check_handlers, object_responders
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.wire.packet import RPC, WSGI
from uwsgitwisted.worker.spec import Loader

#: How much memory a worker may allocate, in bytes, unless something else is said: a template that loops for
#: ever must not take that of others.
MAX_MEMORY = 1 << 30


def make_renderer(
    reactor: IProcessReactor, settings: ServerSettings, templates: Mapping[str, Any]
) -> ServerService:
    """Make the service of a renderer.

    :param templates: the arguments of :func:`uwsgitwisted.worker.handlers.render.load`, among them
        ``directories``.
    :raises StartupError: if a directory doesn't exist, or whatever else prevents rendering.
    """
    arguments = {**templates, "directories": [os.path.abspath(path) for path in templates["directories"]]}
    if arguments.get("module_directory"):
        arguments["module_directory"] = os.path.abspath(arguments["module_directory"])
    web = settings.engine.startswith("processes")  # other engines have no streams
    arguments["web"] = web
    spec = settings.worker_spec(Loader("uwsgitwisted.worker.handlers.render:load", arguments))
    check_handlers(spec)
    engine = settings.make_engine(reactor, replace(spec, traces=True))
    responders: dict[int, IResponder] = {
        **object_responders(engine, idempotent=True),
        RPC: RpcResponder(engine, idempotent=True),
    }
    if web:
        responders[WSGI] = PageResponder(engine)
    return ServerService(
        reactor,
        settings,
        engine,
        responders,
        # A body reaches a worker together with its variables, so that no slow caller keeps a worker busy.
        bodies=(*BODIES, (WSGI, 0)) if web else BODIES,
    )
