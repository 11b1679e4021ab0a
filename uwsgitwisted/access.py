"""Identifies peers and decides what they may do. A :class:`Peer` travels with each of its requests."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from zope.interface import implementer

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: A host with one IPv6 address usually controls the whole /64, so the limits per peer count by /64.
_IPV6_GROUP = 64
#: The addresses of so many hosts are kept as they were parsed, which takes longer than all else here.
_MOST_KEPT = 1_000


def parse_network(text: str) -> Network:
    """Parse a network such as ``10.0.0.0/8``, or a single address.

    :raises ValueError: if *text* is neither.
    """
    return ipaddress.ip_network(text, strict=False)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@lru_cache(_MOST_KEPT)
def _parse_host(host: str) -> tuple[_Address, str]:
    """Return a host's IP address and its group; an IPv4-mapped IPv6 address becomes IPv4."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip, str(ip)
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped, str(ip.ipv4_mapped)
    return ip, str(ipaddress.ip_network((ip, _IPV6_GROUP), strict=False))


@dataclass(frozen=True)
class Peer:
    """The other end of a connection.

    :param address: the address that the transport reports.
    """

    address: IAddress

    @property
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
        return _parse_host(self.host)[1] if self._is_ip else self.host

    @property
    def _is_ip(self) -> bool:
        return isinstance(self.address, (IPv4Address, IPv6Address))

    def is_allowed(self, networks: Iterable[Network]) -> bool:
        """Whether *networks* contain the peer, or it uses a UNIX socket, whose file has permissions."""
        if isinstance(self.address, UNIXAddress):
            return True
        if not self._is_ip:
            return False
        ip, _ = _parse_host(self.host)
        return any(ip in network for network in networks)

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
