"""Forwards requests to the engine of a node or a renderer: objects (33), and what else it handles."""

from __future__ import annotations

from zope.interface import implementer

from uwsgitwisted.interfaces import IEngine, IResponder, Reply, Request


@implementer(IResponder)
class ForwardResponder:
    """Forwards requests to an engine, unparsed.

    :param engine: runs them.
    :param idempotent: whether every request may run again if its worker dies.
    """

    def __init__(self, engine: IEngine, *, idempotent: bool = False) -> None:
        self._engine = engine
        self._idempotent = idempotent

    def respond(self, request: Request) -> Reply:
        """Return the handler's answer, or a Deferred that fires with it."""
        answer: Reply = self._engine.submit(request.as_idempotent() if self._idempotent else request)
        return answer
