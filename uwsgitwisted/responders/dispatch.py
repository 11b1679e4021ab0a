"""Chooses the responder of a request, and logs what goes wrong."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import UnknownModifier
from uwsgitwisted.interfaces import IResponder, Reply, Request
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.packet import Packet


class Dispatcher:
    """The responders of one server.

    :param responders: by the modifier1 that they answer.
    """

    _log = Logger()

    def __init__(self, responders: Mapping[int, IResponder]) -> None:
        self._responders = dict(responders)
        self._reports = Reports(self._log)

    def respond(self, request: Request) -> Reply:
        """Return the responder's answer, or a Deferred of it; failures are logged on the way.

        :raises UnknownModifier: if no responder has the request's modifier1.
        """
        responder = self._responders.get(request.packet.modifier1)
        try:
            if responder is None:
                raise self._unknown(request.packet.modifier1)
            answer = responder.respond(request)
        except Exception:
            self._log_failure(Failure(), request)
            raise
        if not isinstance(answer, (Packet, bytes)):  # nearly every answer that is there at once is one of these
            answer.addErrback(self._log_failure, request)
        return answer

    def _unknown(self, modifier1: int) -> UnknownModifier:
        known = ", ".join(map(str, sorted(self._responders)))
        return UnknownModifier(
            f"nothing here answers modifier1 {modifier1}; what does is {known}", modifier1=modifier1
        )

    def _log_failure(self, failure: Failure, request: Request) -> Failure:
        self._reports.failed(failure, request)
        return failure
