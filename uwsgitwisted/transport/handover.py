"""Hands a connection over to the session that was negotiated on it."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.protocol import Protocol as TwistedProtocol


class TakesData(Protocol):
    """What goes on with a connection."""

    def data_received(self, data: bytes) -> None:
        """Take what the connection brings."""


def hand_over(protocol: TwistedProtocol, session: TakesData, rest: bytes) -> None:
    """Have *session* take what the connection of *protocol* brings from now on, without a call between them.

    :param rest: what has come behind the negotiation.
    """
    protocol.dataReceived = session.data_received  # type: ignore[method-assign]
    if rest:
        session.data_received(rest)
