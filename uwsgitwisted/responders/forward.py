"""Forwards requests to the engine of a node or a renderer: objects (33), and what else it handles."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import implementer

from uwsgitwisted.interfaces import IEngine, IResponder, Reply, Request, TimedAnswer
from uwsgitwisted.wire.message import answers_raw
from uwsgitwisted.wire.packet import Packet


def _payload(answer: Packet | TimedAnswer) -> bytes:
    return answer.packet.payload if isinstance(answer, TimedAnswer) else answer.payload


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
        """Return the handler's answer, or a Deferred that fires with it.

        Where a plain peer reads the answer up to the end of the connection, it is the payload's bytes.
        """
        packet = request.packet
        answer = self._engine.submit(request._replace(idempotent=True) if self._idempotent else request)
        if not answers_raw(packet.modifier1, packet.modifier2):
            return answer
        return answer.addCallback(_payload) if isinstance(answer, Deferred) else _payload(answer)
