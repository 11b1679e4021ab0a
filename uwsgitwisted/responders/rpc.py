"""RPC (modifier1 173): forwards calls to the engine, those of web servers as web requests."""

from __future__ import annotations

from http import HTTPStatus

from zope.interface import implementer

from uwsgitwisted.errors import ProtocolError, UnknownFunction
from uwsgitwisted.interfaces import IEngine, IResponder, Reply, Request
from uwsgitwisted.responders.forward import ForwardResponder
from uwsgitwisted.responders.web import WebResponder
from uwsgitwisted.wire.packet import RPC
from uwsgitwisted.wire.rpc import RPC_HTTP
from uwsgitwisted.wire.web_status import Statuses

#: The modifiers of packets that a web request's body may follow. As in uWSGI, no function gets it.
BODIES = ((RPC, RPC_HTTP),)

#: The statuses that uWSGI answers: for a function that it doesn't have, and for a path that names none.
STATUSES: Statuses = (
    (UnknownFunction, HTTPStatus.NOT_FOUND),
    (ProtocolError, HTTPStatus.INTERNAL_SERVER_ERROR),
)


@implementer(IResponder)
class RpcResponder:
    """Forwards calls to an engine.

    :param engine: runs the functions.
    :param idempotent: whether a call may run again if its worker dies.
    """

    def __init__(self, engine: IEngine, *, idempotent: bool = False) -> None:
        self._plain = ForwardResponder(engine, idempotent=idempotent)
        self._over_http = WebResponder(engine, statuses=STATUSES, idempotent=idempotent)

    def respond(self, request: Request) -> Reply:
        """Return the function's answer, or a Deferred that fires with it."""
        responder = self._over_http if request.packet.modifier2 == RPC_HTTP else self._plain
        return responder.respond(request)
