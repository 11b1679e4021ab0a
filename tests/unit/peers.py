"""Peers for the tests that need one."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address

from uwsgitwisted.access import Peer


def peer_at(host: str, port: int = 5_000) -> Peer:
    """Return the peer with a connection from *host*, an IPv4 or IPv6 address."""
    return Peer((IPv6Address if ":" in host else IPv4Address)("TCP", host, port))
