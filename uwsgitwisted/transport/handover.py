"""Hands a connection over to the session that was negotiated on it."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.protocol import Protocol as TwistedProtocol


class DataReceiver(Protocol):
    """Takes over a connection."""

    def data_received(self, data: bytes) -> None:
        """Handle bytes from the connection."""


def hand_over(protocol: TwistedProtocol, session: DataReceiver, rest: bytes) -> None:
    """Pass all further bytes of *protocol*'s connection to *session*, without a call between them.

    :param rest: the bytes that have come after the negotiation.
    """
    protocol.dataReceived = session.data_received  # type: ignore[method-assign]
    if rest:
        session.data_received(rest)
