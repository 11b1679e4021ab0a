"""The engine ``reactor``: handlers run in the reactor's own thread, one after another.

It is for handlers that take microseconds. One that computes holds up every connection meanwhile, and no time
limit ends it: for that there are worker processes.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from uwsgitwisted.engines.worker import HandlerTable, WorkerSpec
from uwsgitwisted.errors import Unavailable, UnknownModifier
from uwsgitwisted.interfaces import IEngine, Request
from uwsgitwisted.wire.failure import describe
from uwsgitwisted.wire.packet import Packet


@implementer(IEngine)
class InlineEngine:
    """Runs handlers in this process.

    :param spec: which handlers.
    :param node: the node's name, for error texts.
    """

    description = "reactor"

    def __init__(self, spec: WorkerSpec, *, node: str = "") -> None:
        self._spec = spec
        self._node = node
        self._handlers: HandlerTable | None = None

    def start(self) -> Deferred[None]:
        """Load the handlers."""
        self._handlers = self._spec.load()
        return succeed(None)

    def stop(self, seconds: float) -> Deferred[None]:
        """Take nothing more; nothing runs between two calls."""
        self._handlers = None
        return succeed(None)

    def submit(self, request: Request) -> Deferred[Packet]:
        """Run the handler."""
        packet = request.packet
        if self._handlers is None:
            return fail(Unavailable("the node is stopping"))
        handler = self._handlers.get(packet.modifier1)
        if handler is None:
            return fail(UnknownModifier(f"no handler for modifier1 {packet.modifier1}"))
        try:
            return succeed(handler(packet))
        except (Exception, SystemExit) as error:
            return fail(describe(error, node=self._node))
