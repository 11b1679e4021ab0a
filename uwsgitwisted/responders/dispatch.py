"""Chooses the responder of a request, and logs failures."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import UnknownModifier
from uwsgitwisted.interfaces import IResponder, Reply, Request
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.packet import Packet


class Dispatcher:
    """Passes each request of a server to its responder.

    :param responders: the responders, by modifier1.
    """

    _log = Logger()

    def __init__(self, responders: Mapping[int, IResponder]) -> None:
        self._responders = dict(responders)
        self._reports = Reports(self._log)

    def respond(self, request: Request) -> Reply:
        """Return the responder's answer, or a Deferred of it; log a failure.

        :raises UnknownModifier: if there is no responder for the request's modifier1.
        """
        responder = self._responders.get(request.packet.modifier1)
        try:
            if responder is None:
                raise self._unknown_modifier(request.packet.modifier1)
            answer = responder.respond(request)
        except Exception:
            self._log_failure(Failure(), request)
            raise
        if not isinstance(answer, (Packet, bytes)):  # these are the types of immediate answers
            answer.addErrback(self._log_failure, request)
        return answer

    def _unknown_modifier(self, modifier1: int) -> UnknownModifier:
        known = ", ".join(map(str, sorted(self._responders)))
        return UnknownModifier(
            f"nothing here answers modifier1 {modifier1}; the known ones are {known}", modifier1=modifier1
        )

    def _log_failure(self, failure: Failure, request: Request) -> Failure:
        self._reports.failed(failure, request)
        return failure
