"""RPC (modifier1 173): forwards calls to the engine, and its failures to web servers as HTTP."""

from __future__ import annotations

from http import HTTPStatus

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.errors import ProtocolError, RequestCancelled, UnknownFunction
from uwsgitwisted.interfaces import IEngine, IResponder, Reply, Request
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.packet import RPC
from uwsgitwisted.wire.rpc import RPC_HTTP
from uwsgitwisted.wire.web_status import status_answer, status_of

#: The modifiers of packets that a web request's body may follow. As in uWSGI, no function gets it.
BODIES = ((RPC, RPC_HTTP),)

#: The statuses that uWSGI answers: for a function that it doesn't have, and for a path that names none.
STATUSES: tuple[tuple[type[BaseException], HTTPStatus], ...] = (
    (UnknownFunction, HTTPStatus.NOT_FOUND),
    (ProtocolError, HTTPStatus.INTERNAL_SERVER_ERROR),
)


@implementer(IResponder)
class RpcResponder:
    """Forwards calls to an engine.

    :param engine: runs the functions.
    """

    _log = Logger()

    def __init__(self, engine: IEngine) -> None:
        self._engine = engine
        self._reports = Reports(self._log)

    def respond(self, request: Request) -> Reply:
        """Return the function's answer, or a Deferred that fires with it."""
        if request.refused is not None:
            return _failed(request.refused)
        answer: Reply = self._engine.submit(request)
        if request.packet.modifier2 == RPC_HTTP and isinstance(answer, Deferred):
            answer.addErrback(self._answer_failure, request)
        return answer

    def _answer_failure(self, failure: Failure, request: Request) -> bytes:
        failure.trap(Exception)
        if failure.check(RequestCancelled, CancelledError):
            return b""  # nobody reads it
        self._reports.failed(failure, request)
        assert failure.value is not None
        return _failed(failure.value)


def _failed(error: BaseException) -> bytes:
    """Return the HTTP answer to a call that failed."""
    known = (status for kind, status in STATUSES if isinstance(error, kind))
    return status_answer(next(known, None) or status_of(error))
