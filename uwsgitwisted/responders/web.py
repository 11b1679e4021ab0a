"""Answers web requests (modifiers 0 and 30): forwards them to the engine, and its failures as HTTP.

The applications run in the workers, which write the HTTP answers. What fails before an answer has begun is
answered here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.access_log import Entry
from uwsgitwisted.errors import RemoteError, RequestCancelled
from uwsgitwisted.interfaces import Answer, IEngine, IResponder, Reply, Request
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.vars import text_variables
from uwsgitwisted.wire.web_status import Statuses, status_answer, status_of


@implementer(IResponder)
class WebResponder:
    """Forwards web requests to an engine.

    :param engine: runs the applications.
    :param log: gets a line for each request that no application has answered; None for no lines.
    :param statuses: the statuses of failures that differ from those of web applications.
    :param idempotent: whether a request may run again if its worker dies.
    """

    _log = Logger()

    def __init__(
        self,
        engine: IEngine,
        log: Callable[[Entry], None] | None = None,
        *,
        statuses: Statuses = (),
        idempotent: bool = False,
    ) -> None:
        self._engine = engine
        self._log_access = log
        self._statuses = statuses
        self._idempotent = idempotent
        self._reports = Reports(self._log)

    def respond(self, request: Request) -> Reply:
        """Return the HTTP answer, or a Deferred that fires with it; it may be a stream."""
        if request.refused is not None:
            return self._refuse(request, request.refused)
        if self._idempotent and request.body is None:
            request = request.as_idempotent()
        answer: Reply = self._engine.submit(request)
        return answer.addErrback(self._answer_failure, request) if isinstance(answer, Deferred) else answer

    def _answer_failure(self, failure: Failure, request: Request) -> Answer:
        failure.trap(Exception)
        if failure.check(RequestCancelled, CancelledError):
            return b""  # nobody reads it
        self._reports.failed(failure, request)
        assert failure.value is not None
        return self._refuse(request, failure.value)

    def explain(self, error: BaseException) -> tuple[HTTPStatus, str]:
        """Return the status of a request that failed with *error*, and a text for its caller, or none."""
        return status_of(error, self._statuses), ""

    def _refuse(self, request: Request, error: BaseException) -> bytes:
        status, text = self.explain(error)
        answer = status_answer(status, text)
        # A worker logs what an application has answered, and its failures.
        if self._log_access is not None and not isinstance(error, RemoteError):
            size = len(answer.partition(b"\r\n\r\n")[2])
            variables = text_variables(request.packet.payload)
            self._log_access(Entry(variables, str(status.value), size, 0.0, 0, time.time()))
        return answer
