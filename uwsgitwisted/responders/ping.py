"""Modifier1 100: answers pings.

The reactor's thread answers, so that callers can tell a node with busy workers from a dead one.
"""

from __future__ import annotations

from collections.abc import Callable

from zope.interface import implementer

from uwsgitwisted.interfaces import IResponder, Request
from uwsgitwisted.wire.packet import PING, Packet


@implementer(IResponder)
class PingResponder:
    """Answers each ping as uWSGI does, whatever its payload: with ``{100, 0, 1}``, or with a warning.

    :param warning: returns the warning; empty for none.
    """

    def __init__(self, warning: Callable[[], bytes] = bytes) -> None:
        self._warning = warning

    def respond(self, request: Request) -> Packet:
        """Return the answer."""
        return Packet(PING, 1, self._warning())
