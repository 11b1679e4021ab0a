"""Who is at the other end: its name for logs, and whether it may talk to us."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_network(text: str) -> Network:
    """Return the network that *text* names, such as ``10.0.0.0/8`` or a single address.

    :raises ValueError: if it names none.
    """
    return ipaddress.ip_network(text, strict=False)


def peer_host(address: IAddress) -> str:
    """Return the peer without its port: what stays the same from one connection to the next."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        return address.host
    return "a local socket" if isinstance(address, UNIXAddress) else str(address)


def peer_name(address: IAddress) -> str:
    """Return the peer as logs name it."""
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    return peer_host(address)


def is_allowed(address: IAddress, networks: Iterable[Network]) -> bool:
    """Whether a peer is within one of *networks*; one on a UNIX socket is ruled by that file's permissions."""
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return True
    host = ipaddress.ip_address(address.host.partition("%")[0])
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return any((mapped or host) in network for network in networks)


class Once:
    """Says of each thing whether it is the first time, so that a log isn't filled with one peer's mistake.

    :param limit: how many things to remember; the oldest is forgotten first.
    """

    def __init__(self, limit: int = 1_000) -> None:
        self._limit = limit
        self._seen: dict[Hashable, None] = {}

    def is_first(self, thing: Hashable) -> bool:
        """Whether *thing* is new; from now on it is not."""
        if thing in self._seen:
            return False
        if len(self._seen) >= self._limit:
            del self._seen[next(iter(self._seen))]
        self._seen[thing] = None
        return True
