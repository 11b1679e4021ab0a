"""Answers web requests (modifiers 0 and 30): forwards them to the engine, and its failures as HTTP.

The applications run in the workers, which write the HTTP answers. What fails before an answer has begun is
answered here.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.errors import RequestCancelled
from uwsgitwisted.interfaces import Answer, IEngine, IResponder, Reply, Request
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.web import status_answer, status_of


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
            return status_answer(status_of(request.refused))
        answer = self._engine.submit(request)
        assert isinstance(answer, Deferred)
        return answer.addErrback(self._answer_failure, request)

    def _answer_failure(self, failure: Failure, request: Request) -> Answer:
        failure.trap(Exception)
        if failure.check(RequestCancelled, CancelledError):
            return b""  # nobody reads it
        self._reports.failed(failure, request)
        assert failure.value is not None
        return status_answer(status_of(failure.value))
