"""Forwards bundles (35) to the engine of a node or a renderer, and sees to the failures of their objects.

The failure of a single object is an error of its request, which the session logs and sends. That of an object
in a bundle is a part of an answer.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.interfaces import IResponder, Reply, Request, TimedAnswer
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.bundle import change_failures
from uwsgitwisted.wire.failure import decode_failure, encode_failure
from uwsgitwisted.wire.packet import Packet


@implementer(IResponder)
class BundleResponder:
    """Has another responder answer bundles.

    :param responder: forwards them.
    :param tracebacks: whether callers get the tracebacks of handlers' exceptions.
    """

    _log = Logger()

    def __init__(self, responder: IResponder, *, tracebacks: bool) -> None:
        self._responder = responder
        self._tracebacks = tracebacks
        self._reports = Reports(self._log)

    def respond(self, request: Request) -> Reply:
        """Return a Deferred that fires with the outcomes."""
        answer = self._responder.respond(request)
        assert isinstance(answer, Deferred)  # only the reactor answers at once, and it takes no bundles
        return answer.addCallback(self._check, request)

    def _check(self, answer: TimedAnswer | Packet, request: Request) -> TimedAnswer | Packet:
        def check(block: bytes) -> bytes:
            error = decode_failure(block)
            self._reports.failed(Failure(error), request)
            return block if self._tracebacks else encode_failure(error, tracebacks=False)

        if isinstance(answer, TimedAnswer):
            return answer._replace(packet=change_failures(answer.packet, check))
        return change_failures(answer, check)
