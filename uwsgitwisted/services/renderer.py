"""A renderer: renders the Mako templates in its directories for callers that send a name and variables."""

from __future__ import annotations

import os
from collections.abc import Sequence

from uwsgitwisted.interfaces import IProcessReactor
from uwsgitwisted.responders.forward import ForwardResponder
from uwsgitwisted.services.server import ServerService, check_handlers
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.wire.packet import MARSHAL
from uwsgitwisted.worker.spec import Loader


def make_renderer(
    reactor: IProcessReactor,
    settings: ServerSettings,
    directories: Sequence[str],
    *,
    filters: Sequence[str] = (),
    strict: bool = False,
) -> ServerService:
    """Make the service of a renderer.

    :param directories: the directories of its templates.
    :param filters: Mako's filters for every expression, such as ``h`` for HTML.
    :param strict: whether a name that the caller didn't send is an error.
    :raises StartupError: if a directory doesn't exist.
    """
    loader = Loader(
        "uwsgitwisted.worker.handlers.render:load",
        {
            "directories": [os.path.abspath(directory) for directory in directories],
            "filters": list(filters),
            "strict": strict,
        },
    )
    spec = settings.worker_spec(loader)
    check_handlers(spec)
    engine = settings.make_engine(reactor, spec)
    return ServerService(reactor, settings, engine, {MARSHAL: ForwardResponder(engine, idempotent=True)})
