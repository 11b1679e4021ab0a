"""Modifier1 101: echoes the payload without a header, as uWSGI does."""

from __future__ import annotations

from zope.interface import implementer

from uwsgitwisted.interfaces import IResponder, Request


@implementer(IResponder)
class EchoResponder:
    """Answers with the request's payload."""

    def respond(self, request: Request) -> bytes:
        """Return the payload."""
        return request.packet.payload
