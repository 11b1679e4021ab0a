"""Modifier1 100: answers pings.

The reactor's thread answers, so that callers can tell a node with busy workers from a dead one.
"""

from __future__ import annotations

from zope.interface import implementer

from uwsgitwisted.interfaces import IResponder, Request
from uwsgitwisted.wire.packet import PING, Packet


@implementer(IResponder)
class PingResponder:
    """Answers each ping with ``{100, 0, 1}``, whatever its payload, as uWSGI does."""

    def respond(self, request: Request) -> Packet:
        """Return the answer."""
        return Packet(PING, 1)
