"""Chooses the responder of a request."""

from __future__ import annotations

from collections.abc import Mapping

from uwsgitwisted.errors import UnknownModifier
from uwsgitwisted.interfaces import IResponder, Reply, Request


class Dispatcher:
    """Passes each request of a server to its responder.

    :param responders: the responders, by modifier1.
    """

    def __init__(self, responders: Mapping[int, IResponder]) -> None:
        self._responders = dict(responders)

    def respond(self, request: Request) -> Reply:
        """Return the responder's answer, or a Deferred of it.

        :raises UnknownModifier: if there is no responder for the request's modifier1.
        """
        modifier1 = request.packet.modifier1
        responder = self._responders.get(modifier1)
        if responder is None:
            known = ", ".join(map(str, sorted(self._responders)))
            raise UnknownModifier(
                f"nothing here answers modifier1 {modifier1}; the known ones are {known}", modifier1=modifier1
            )
        return responder.respond(request)
