"""A renderer: renders the templates in its directories for callers that send a name and variables."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from uwsgitwisted.interfaces import IEngine, IProcessReactor, IResponder
from uwsgitwisted.responders.pages import PageResponder
from uwsgitwisted.responders.render import RenderResponder
from uwsgitwisted.responders.rpc import BODIES, RpcResponder
from uwsgitwisted.services.server import ServerService, check_handlers, object_responders
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.wire.packet import MARSHAL, RPC, WSGI
from uwsgitwisted.worker.spec import Loader

#: How much memory a worker may allocate, in bytes, unless something else is said: a template that loops for
#: ever must not take that of others.
MAX_MEMORY = 1 << 30


class RendererService(ServerService):
    """The service of a renderer.

    :param pages: answers from the result cache; None if there is none.
    """

    def __init__(
        self,
        reactor: IProcessReactor,
        settings: ServerSettings,
        engine: IEngine,
        responders: Mapping[int, IResponder],
        *,
        bodies: Container[tuple[int, int]],
        pages: RenderResponder | None = None,
    ) -> None:
        self._pages = pages
        cache = None if pages is None else lambda: pages.statistics
        super().__init__(reactor, settings, engine, responders, bodies=bodies, cache=cache)

    async def _after_reload(self) -> None:
        if self._pages is not None:
            self._pages.clear()

    async def _stop_engine(self) -> None:
        await super()._stop_engine()
        if self._pages is not None:
            self._log.info("result cache: {figures}", figures=self._pages.statistics)


def make_renderer(
    reactor: IProcessReactor, settings: ServerSettings, templates: Mapping[str, Any]
) -> RendererService:
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
    limit = arguments.get("result_cache", 0)
    arguments["max_kept"] = min(limit, settings.max_message)
    spec = settings.worker_spec(Loader("uwsgitwisted.worker.handlers.render:load", arguments))
    check_handlers(spec)
    engine = settings.make_engine(reactor, replace(spec, traces=True))
    pages = None
    if limit:
        pages = RenderResponder(engine, limit, arguments["result_age"], reload=arguments["reload"])
    responders: dict[int, IResponder] = {
        **({MARSHAL: pages} if pages else object_responders(engine, idempotent=True)),
        RPC: RpcResponder(engine, idempotent=True),
    }
    if web:
        responders[WSGI] = PageResponder(engine)
    return RendererService(
        reactor,
        settings,
        engine,
        responders,
        # A body reaches a worker together with its variables, so that no slow caller keeps a worker busy.
        bodies=(*BODIES, (WSGI, 0)) if web else BODIES,
        pages=pages,
    )
