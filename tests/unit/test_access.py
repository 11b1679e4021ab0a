"""Who is at the other end: names, groups and networks."""

from __future__ import annotations

import pytest
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from uwsgitwisted.access import NOBODY, Peer, parse_network
from uwsgitwisted.responders.manage import LOOPBACK

V4 = IPv4Address("TCP", "10.1.2.3", 4_000)
V6 = IPv6Address("TCP", "fd00::5", 4_000)
LINK_LOCAL = IPv6Address("TCP", "fe80::1%eth0", 4_000)
MAPPED = IPv6Address("TCP", "::ffff:10.1.2.3", 4_000)
UNIX = UNIXAddress("/run/node.sock")
OTHER = HostnameAddress(b"h", 1)


@pytest.mark.parametrize(
    ("address", "name", "host", "group"),
    [
        (V4, "10.1.2.3:4000", "10.1.2.3", "10.1.2.3"),
        (V6, "[fd00::5]:4000", "fd00::5", "fd00::/64"),
        (LINK_LOCAL, "[fe80::1%eth0]:4000", "fe80::1%eth0", "fe80::/64"),
        (MAPPED, "[::ffff:10.1.2.3]:4000", "::ffff:10.1.2.3", "10.1.2.3"),
        (UNIX, "a local socket", "a local socket", "a local socket"),
        (OTHER, str(OTHER), str(OTHER), str(OTHER)),
    ],
)
def test_names(address: IAddress, name: str, host: str, group: str) -> None:
    """A peer is named with its port for the log, and counted by its address, or its IPv6 network."""
    peer = Peer(address)
    assert (str(peer), peer.name, peer.host, peer.group) == (name, name, host, group)


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
        (OTHER, ["0.0.0.0/0", "::/0"], False),
    ],
)
def test_networks(address: IAddress, networks: list[str], allowed: bool) -> None:
    """A peer is allowed if one of the networks has it; an IPv4 address in IPv6 form counts as IPv4."""
    assert Peer(address).is_allowed([parse_network(network) for network in networks]) is allowed


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        (Peer(IPv4Address("TCP", "127.0.0.1", 1)), True),
        (Peer(IPv4Address("TCP", "127.8.9.1", 1)), True),
        (Peer(IPv6Address("TCP", "::1", 1)), True),
        (Peer(IPv6Address("TCP", "::ffff:127.0.0.1", 1)), True),
        (Peer(UNIXAddress(None)), True),
        (Peer(IPv4Address("TCP", "10.0.0.7", 1)), False),
        (Peer(IPv6Address("TCP", "::2", 1)), False),
        (Peer(IPv6Address("TCP", "::ffff:10.0.0.7", 1)), False),
        (Peer(IPv6Address("TCP", "fe80::1%lo", 1)), False),
        (Peer(IPv6Address("TCP", "fe80::1%127.0.0.1", 1)), False),
        (Peer(OTHER), False),
        (NOBODY, False),
    ],
)
def test_who_is_on_this_machine(peer: Peer, here: bool) -> None:
    """Who is on this machine is told by the peer's address, in whatever form it has."""
    assert peer.is_allowed(LOOPBACK) is here


def test_nobody() -> None:
    """Who asks for what no connection brought has a name and belongs to no network."""
    assert (NOBODY.name, NOBODY.group) == ("nobody", "nobody")


@pytest.mark.parametrize("text", ["", "host.example", "10.0.0.0/33", "10.0.0"])
def test_no_network(text: str) -> None:
    """What names no network is refused."""
    with pytest.raises(ValueError, match="does not appear"):
        parse_network(text)
