"""What one connection, one peer, and all of them together may use of a server."""

from __future__ import annotations

from dataclasses import dataclass

from uwsgitwisted.wire.packet import MAX_PAYLOAD


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one connection, of one peer, and of all peers together.

    :param header_timeout: seconds for the header of a connection's first packet; uWSGI allows 4.
    :param body_timeout: seconds for the rest of that packet, at whatever pace; for each further 65535 bytes of
        a body behind it; and, in a session, for each further piece of a large message.
    :param write_timeout: seconds for a peer to read its plain answer; in a session, the longest time for which
        a peer may read nothing while data waits for it.
    :param idle_timeout: seconds that a session may be silent.
    :param max_connections: how many connections may be open at once. One more closes the longest idle one; if
        none is idle, the new one is closed.
    :param max_peer_connections: how many of them one peer may have; None for three quarters.
    :param max_packet: the largest plain payload, in bytes.
    :param max_ignored: how many unexpected bytes may follow a plain request.
    :param max_buffered: how many bytes to hold for all peers together; None for a quarter of the memory. See
        :mod:`uwsgitwisted.transport.server.budget`.
    """

    header_timeout: float = 4.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    idle_timeout: float = 3_600.0
    max_connections: int = 10_000
    max_peer_connections: int | None = None
    max_packet: int = MAX_PAYLOAD
    max_ignored: int = 1_048_576
    max_buffered: int | None = None

    @property
    def peer_connections(self) -> int:
        """How many connections one peer may have."""
        if self.max_peer_connections is not None:
            return self.max_peer_connections
        return max(1, self.max_connections * 3 // 4)
