"""Parses what a list of nodes may contain: addresses, and names in the DNS that stand for several nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from uwsgitwisted.address import Address, AddressLike, parse_address, split_description
from uwsgitwisted.errors import InvalidAddress, MisuseError

#: The forms of names, for errors and help.
NAME_FORMS = "'dns:host:port' or 'srv:_service._tcp.domain'"

_SERVICE = re.compile(r"_[A-Za-z0-9-]{1,62}\._tcp(\.[A-Za-z0-9_-]{1,63})+\.?", re.ASCII)
#: The longest name in the DNS, in bytes (RFC 1035, 2.3.4).
_LONGEST_NAME = 253


class HostName(NamedTuple):
    """A host name each of whose IP addresses is a node: ``dns:host:port``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"dns:{self.host}:{self.port}"


class ServiceName(NamedTuple):
    """A name whose SRV records are nodes: ``srv:_service._tcp.domain``."""

    name: str

    def __str__(self) -> str:
        return f"srv:{self.name}"


#: A name that has to be looked up.
Name = HostName | ServiceName


class ServiceRecord(NamedTuple):
    """What we use of an SRV record (RFC 2782)."""

    priority: int
    host: str
    port: int


def parse_node(node: AddressLike) -> Address | Name:
    """Parse one node of a list.

    :param node: an address, ``dns:host:port`` or ``srv:_service._tcp.domain``.
    :raises InvalidAddress: if it is none of these.
    """
    if isinstance(node, str):
        kind, colon, rest = node.partition(":")
        if colon and kind.lower() == "dns":
            return _host_name(node)
        if colon and kind.lower() == "srv":
            if not _SERVICE.fullmatch(rest) or len(rest) > _LONGEST_NAME:
                raise InvalidAddress(
                    "not a name of SRV records; write 'srv:_service._tcp.domain'", address=node
                )
            return ServiceName(rest.rstrip("."))
    try:
        return parse_address(node)
    except InvalidAddress as error:
        raise InvalidAddress(f"{error.text}; or {NAME_FORMS}", address=node) from None


def _host_name(text: str) -> HostName:
    try:
        positional, options = split_description(text)
        if len(positional) == 3 and not options:
            address = parse_address((positional[1], positional[2]))
            return HostName(address.host, address.port)
    except ValueError:  # an InvalidAddress is one, too
        pass
    raise InvalidAddress("not a name with a port from 1 to 65535; write 'dns:host:port'", address=text)


def read_lines(text: str) -> list[Address | Name]:
    """Parse the text of a file of nodes: one node a line, blank lines, and comments that begin with ``#``.

    :raises MisuseError: if a line is no node, or there is no node at all; the text says which line.
    """
    found: list[Address | Name] = []
    for number, line in enumerate(text.splitlines(), 1):
        node = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if not node:
            continue
        try:
            found.append(parse_node(node))
        except InvalidAddress as error:
            raise MisuseError(f"line {number}: {error}") from None
    if not found:
        raise MisuseError("it names no node")
    return found


def one_family(addresses: Sequence[tuple[int, str]]) -> list[str]:
    """Return the IP addresses of the family that the resolver prefers.

    A machine with an IPv4 and an IPv6 address is one node, not two.

    :param addresses: families and IP addresses, in the resolver's order.
    """
    return list(dict.fromkeys(host for family, host in addresses if family == addresses[0][0]))


def best_records(records: Iterable[ServiceRecord]) -> list[Address]:
    """Return the nodes of a service.

    Only the records of the best priority count: the others are for when all of those fail. Weights are ignored,
    since a cluster measures how fast its nodes are.

    :raises InvalidAddress: if a record names what can't be a host.
    """
    # The host "." says that there is no such service.
    usable = [record for record in records if record.host.rstrip(".") and record.port]
    best = min((record.priority for record in usable), default=0)
    nodes = [record for record in usable if record.priority == best]
    return list(dict.fromkeys(parse_address((record.host.rstrip("."), record.port)) for record in nodes))
