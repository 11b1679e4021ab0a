"""Modifier1 100: says that the server lives.

It is answered in the reactor, so that a node whose workers are all busy can be told from a dead one.
"""

from __future__ import annotations

from zope.interface import implementer

from uwsgitwisted.interfaces import IResponder, Request
from uwsgitwisted.wire.packet import PING, Packet


@implementer(IResponder)
class PingResponder:
    """Answers ``{100, 0, 1}``, whatever the ping's payload, as uWSGI does."""

    def respond(self, request: Request) -> Packet:
        """Return the answer."""
        return Packet(PING, 1)
