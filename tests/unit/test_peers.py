"""Who is at the other end: names, networks, and what is logged once."""

from __future__ import annotations

import pytest
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from uwsgitwisted.transport.peers import Once, is_allowed, parse_network, peer_host, peer_name

V4 = IPv4Address("TCP", "10.1.2.3", 4_000)
V6 = IPv6Address("TCP", "fd00::5", 4_000)
LINK_LOCAL = IPv6Address("TCP", "fe80::1%eth0", 4_000)
MAPPED = IPv6Address("TCP", "::ffff:10.1.2.3", 4_000)
UNIX = UNIXAddress("/run/node.sock")


@pytest.mark.parametrize(
    ("address", "name", "host"),
    [
        (V4, "10.1.2.3:4000", "10.1.2.3"),
        (V6, "[fd00::5]:4000", "fd00::5"),
        (UNIX, "a local socket", "a local socket"),
        (HostnameAddress(b"h", 1), str(HostnameAddress(b"h", 1)), str(HostnameAddress(b"h", 1))),
    ],
)
def test_names(address: IAddress, name: str, host: str) -> None:
    """A peer is named with its port for the log, and without it to know it again."""
    assert (peer_name(address), peer_host(address)) == (name, host)


@pytest.mark.parametrize(
    ("address", "networks", "allowed"),
    [
        (V4, ["10.0.0.0/8"], True),
        (V4, ["10.1.2.3"], True),
        (V4, ["10.1.2.4/24"], True),
        (V4, ["192.168.0.0/16", "10.1.0.0/16"], True),
        (V4, ["192.168.0.0/16", "::/0"], False),
        (V4, [], False),
        (V6, ["fd00::/8"], True),
        (V6, ["0.0.0.0/0"], False),
        (LINK_LOCAL, ["fe80::/10"], True),
        (MAPPED, ["10.0.0.0/8"], True),
        (MAPPED, ["11.0.0.0/8"], False),
        (UNIX, [], True),
    ],
)
def test_networks(address: IAddress, networks: list[str], allowed: bool) -> None:
    """An address is allowed if one of the networks has it; an IPv4 one in IPv6 clothes counts as IPv4."""
    assert is_allowed(address, [parse_network(network) for network in networks]) is allowed


@pytest.mark.parametrize("text", ["", "host.example", "10.0.0.0/33", "10.0.0"])
def test_no_network(text: str) -> None:
    """What names no network is refused."""
    with pytest.raises(ValueError, match="does not appear"):
        parse_network(text)


def test_once() -> None:
    """A thing is new once; with too many to remember, the oldest is forgotten."""
    once = Once(limit=2)
    assert [once.is_first(thing) for thing in "aabab"] == [True, False, True, False, False]
    assert once.is_first("c")
    assert not once.is_first("b")
    assert once.is_first("a")
