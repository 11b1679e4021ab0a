"""Answers web requests (modifiers 0 and 30): forwards them to the engine, and its failures as HTTP.

The applications run in the workers, which write the HTTP answers. What fails before an answer has begun is
answered here.
"""

from __future__ import annotations

from http import HTTPStatus

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.errors import (
    Busy,
    MessageTooLarge,
    ProtocolError,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    Unavailable,
    WorkerDied,
)
from uwsgitwisted.interfaces import Answer, IEngine, IResponder, Reply, Request
from uwsgitwisted.transport.reports import Reports

#: Seconds after which a client should try again.
RETRY_AFTER = 5
#: The statuses of failures; the first class that fits counts. Only the status is sent: the texts of the errors
#: could reveal to strangers what the application is made of.
_STATUSES: tuple[tuple[type[BaseException], HTTPStatus], ...] = (
    (RemoteError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (Busy, HTTPStatus.SERVICE_UNAVAILABLE),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (RequestTimeout, HTTPStatus.GATEWAY_TIMEOUT),
    (WorkerDied, HTTPStatus.BAD_GATEWAY),
    (MessageTooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (ProtocolError, HTTPStatus.BAD_REQUEST),
    (BaseException, HTTPStatus.INTERNAL_SERVER_ERROR),
)


@implementer(IResponder)
class WebResponder:
    """Forwards web requests to an engine.

    :param engine: runs the applications.
    """

    _log = Logger()

    def __init__(self, engine: IEngine) -> None:
        self._engine = engine
        self._reports = Reports(self._log)

    def respond(self, request: Request) -> Reply:
        """Return a Deferred that fires with the HTTP answer, which may be a stream."""
        if request.refused is not None:
            return refused_answer(request.refused)
        answer = self._engine.submit(request)
        assert isinstance(answer, Deferred)
        return answer.addErrback(self._answer_failure, request)

    def _answer_failure(self, failure: Failure, request: Request) -> Answer:
        failure.trap(Exception)
        if failure.check(RequestCancelled, CancelledError):
            return b""  # nobody reads it
        self._reports.failed(failure, request)
        assert failure.value is not None
        return refused_answer(failure.value)


def refused_answer(error: BaseException) -> bytes:
    """Return the HTTP answer to a request that has failed with *error*."""
    status = next(status for kind, status in _STATUSES if isinstance(error, kind))
    return status_answer(status)


def status_answer(status: HTTPStatus) -> bytes:
    """Return an HTTP answer that has only its status to say, in the form that nginx reads."""
    body = f"{status.value} {status.phrase}\n".encode()
    retry = f"Retry-After: {RETRY_AFTER}\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else ""
    head = (
        f"HTTP/1.0 {status.value} {status.phrase}\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n{retry}\r\n"
    )
    return head.encode() + body
