"""Modifier1 101: sends back what it gets, without a header, as uWSGI does."""

from __future__ import annotations

from zope.interface import implementer

from uwsgitwisted.interfaces import IResponder, Request


@implementer(IResponder)
class EchoResponder:
    """Answers with the request's payload."""

    def respond(self, request: Request) -> bytes:
        """Return the answer."""
        return request.packet.payload
