"""Chooses the responder of a request, and logs what goes wrong."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.access import Once
from uwsgitwisted.errors import RemoteError, UnknownModifier
from uwsgitwisted.interfaces import IResponder, Reply, Request
from uwsgitwisted.responders.failures import Failures
from uwsgitwisted.wire.packet import Packet


class Dispatcher:
    """The responders of one server.

    :param responders: by the modifier1 that they answer.
    """

    _log = Logger()

    def __init__(self, responders: Mapping[int, IResponder]) -> None:
        self._responders = dict(responders)
        self._unknown = Once()
        self._failures = Failures()

    def respond(self, request: Request) -> Reply:
        """Return the responder's answer, or a Deferred of it; failures are logged on the way.

        :raises UnknownModifier: if no responder has the request's modifier1.
        """
        responder = self._responders.get(request.packet.modifier1)
        if responder is None:
            raise self._refuse(request)
        try:
            answer = responder.respond(request)
        except Exception:
            self._log_failure(Failure(), request)
            raise
        if not isinstance(answer, (Packet, bytes)):  # nearly every answer that is there at once is one of these
            answer.addErrback(self._log_failure, request)
        return answer

    def _refuse(self, request: Request) -> UnknownModifier:
        modifier1 = request.packet.modifier1
        known = ", ".join(map(str, sorted(self._responders)))
        error = UnknownModifier(
            f"nothing here answers modifier1 {modifier1}; what does is {known}", modifier1=modifier1
        )
        if self._unknown.is_first((request.peer.host, modifier1)):
            self._log.warn("{peer}: {error}", peer=request.peer, error=error)
        return error

    def _log_failure(self, failure: Failure, request: Request) -> Failure:
        error = failure.value
        if isinstance(error, RemoteError):
            self._log.error(
                "{peer}: the handler of modifier1 {modifier1} raised {error}\n{traceback}",
                peer=request.peer,
                modifier1=request.packet.modifier1,
                error=error,
                traceback=error.traceback,
            )
        else:
            self._failures.log(failure, request)
        return failure
