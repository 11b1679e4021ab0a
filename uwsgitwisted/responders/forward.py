"""Forwards marshalled objects (modifier1 33) to the engine of a node or a renderer."""

from __future__ import annotations

from zope.interface import implementer

from uwsgitwisted.interfaces import IEngine, IResponder, Reply, Request


@implementer(IResponder)
class ForwardResponder:
    """Passes requests to an engine, unparsed.

    :param engine: runs the requests.
    :param idempotent: whether each request may run again if its worker dies.
    """

    def __init__(self, engine: IEngine, *, idempotent: bool = False) -> None:
        self._engine = engine
        self._idempotent = idempotent

    def respond(self, request: Request) -> Reply:
        """Return the handler's answer, or a Deferred that fires with it."""
        return self._engine.submit(request._replace(idempotent=True) if self._idempotent else request)
