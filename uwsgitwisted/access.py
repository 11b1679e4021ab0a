"""Who is at the other end of a connection, and what it may: a value that travels with its requests."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from zope.interface import implementer

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Whoever has one IPv6 address usually has its /64 as well, so limits for each peer count the /64.
_IPV6_GROUP = 64


def parse_network(text: str) -> Network:
    """Return the network that *text* names, such as ``10.0.0.0/8`` or a single address.

    :raises ValueError: if it names none.
    """
    return ipaddress.ip_network(text, strict=False)


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a connection.

    :param address: as the transport has it.
    """

    address: IAddress

    @cached_property
    def host(self) -> str:
        """The peer without its port: what stays the same from one connection to the next."""
        if isinstance(self.address, (IPv4Address, IPv6Address)):
            return self.address.host
        return "a local socket" if isinstance(self.address, UNIXAddress) else str(self.address)

    @cached_property
    def name(self) -> str:
        """The peer as logs name it: ``host:port``, ``[host]:port`` or ``a local socket``."""
        if isinstance(self.address, IPv4Address):
            return f"{self.host}:{self.address.port}"
        return f"[{self.host}]:{self.address.port}" if isinstance(self.address, IPv6Address) else self.host

    @cached_property
    def group(self) -> str:
        """What limits for each peer count by: the IPv4 address, the IPv6 network of 64 bits, else the host."""
        ip = self._ip
        if isinstance(ip, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((ip, _IPV6_GROUP), strict=False))
        return self.host if ip is None else str(ip)

    @cached_property
    def _ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The IP address; an IPv4 one that arrives in the form of IPv6 is IPv4."""
        if not isinstance(self.address, (IPv4Address, IPv6Address)):
            return None
        ip = ipaddress.ip_address(self.host.partition("%")[0])
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return mapped or ip

    def is_allowed(self, networks: Iterable[Network]) -> bool:
        """Whether one of *networks* has the peer, or it uses a UNIX socket: those have permissions."""
        if isinstance(self.address, UNIXAddress):
            return True
        ip = self._ip
        return ip is not None and any(ip in network for network in networks)

    def __str__(self) -> str:
        return self.name


@implementer(IAddress)
class _NoAddress:
    """What a request has for an address that no connection brought."""

    def __str__(self) -> str:
        return "nobody"


#: Asks for what no connection brought, such as the tasks of a spooler; it may nothing.
NOBODY = Peer(_NoAddress())
