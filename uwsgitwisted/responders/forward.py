"""Requests whose handlers run in an engine: marshalled objects (33), of a node or a renderer."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import implementer

from uwsgitwisted.interfaces import IEngine, IResponder, Request
from uwsgitwisted.wire.packet import Packet


@implementer(IResponder)
class ForwardResponder:
    """Passes requests to an engine, unparsed.

    :param engine: runs them.
    :param idempotent: whether every request may be run again if the worker that runs it dies.
    """

    def __init__(self, engine: IEngine, *, idempotent: bool = False) -> None:
        self._engine = engine
        self._idempotent = idempotent

    def respond(self, request: Request) -> Packet | Deferred[Packet]:
        """Return the handler's answer, or a Deferred that fires with it."""
        return self._engine.submit(request._replace(idempotent=True) if self._idempotent else request)
