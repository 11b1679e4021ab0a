"""Identifies peers and decides what they may do. A :class:`Peer` travels with each of its requests."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from zope.interface import implementer

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: A host with one IPv6 address usually controls the whole /64, so the limits per peer count by /64.
_IPV6_GROUP = 64


def parse_network(text: str) -> Network:
    """Parse a network such as ``10.0.0.0/8``, or a single address.

    :raises ValueError: if *text* is neither.
    """
    return ipaddress.ip_network(text, strict=False)


@dataclass(frozen=True)
class Peer:
    """The other end of a connection.

    :param address: the address that the transport reports.
    """

    address: IAddress

    @cached_property
    def host(self) -> str:
        """The address without the port, which changes from one connection to the next."""
        if isinstance(self.address, (IPv4Address, IPv6Address)):
            return self.address.host
        return "a local socket" if isinstance(self.address, UNIXAddress) else str(self.address)

    @cached_property
    def name(self) -> str:
        """The peer's name in logs: ``host:port``, ``[host]:port`` or ``a local socket``."""
        if isinstance(self.address, IPv4Address):
            return f"{self.host}:{self.address.port}"
        return f"[{self.host}]:{self.address.port}" if isinstance(self.address, IPv6Address) else self.host

    @cached_property
    def group(self) -> str:
        """The key that the limits per peer count by: the IPv4 address, the IPv6 /64, or else the host."""
        ip = self._ip
        if isinstance(ip, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((ip, _IPV6_GROUP), strict=False))
        return self.host if ip is None else str(ip)

    @cached_property
    def _ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The IP address; an IPv4-mapped IPv6 address becomes IPv4."""
        if not isinstance(self.address, (IPv4Address, IPv6Address)):
            return None
        ip = ipaddress.ip_address(self.host.partition("%")[0])
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return mapped or ip

    def is_allowed(self, networks: Iterable[Network]) -> bool:
        """Whether *networks* contain the peer, or it uses a UNIX socket, whose file has permissions."""
        if isinstance(self.address, UNIXAddress):
            return True
        ip = self._ip
        return ip is not None and any(ip in network for network in networks)

    def __str__(self) -> str:
        return self.name


@implementer(IAddress)
@dataclass(frozen=True)
class _Name:
    """What is known of a peer in place of an address."""

    name: str

    def __str__(self) -> str:
        return self.name


def named_peer(name: str) -> Peer:
    """Return a peer of which only the name in logs is known. It has no permissions."""
    return Peer(_Name(name))


#: The peer of requests that didn't arrive on a connection, such as a spooler's tasks. It has no permissions.
NOBODY = named_peer("nobody")
