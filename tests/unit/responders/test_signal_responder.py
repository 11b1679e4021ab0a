"""Peers that raise uWSGI's signals."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress

from uwsgitwisted.access import Peer, parse_network
from uwsgitwisted.interfaces import Request
from uwsgitwisted.responders.signals import SignalResponder
from uwsgitwisted.wire.packet import NO, SIGNAL, YES, Packet

NEAR, FAR = Peer(IPv4Address("TCP", "10.0.0.5", 1)), Peer(IPv4Address("TCP", "10.1.0.5", 1))
LOCAL = Peer(UNIXAddress("socket"))


@pytest.mark.parametrize(
    ("networks", "peer", "answer", "fired"),
    [
        ((), NEAR, NO, []),
        ((), LOCAL, NO, []),
        (("10.0.0.0/24",), NEAR, YES, [(17, NEAR)]),
        (("10.0.0.0/24",), LOCAL, YES, [(17, LOCAL)]),
        (("10.0.0.0/24",), FAR, NO, []),
    ],
)
def test_who_may(networks: tuple[str, ...], peer: Peer, answer: Packet, fired: list[tuple[int, Peer]]) -> None:
    """Only peers of the networks that were named may raise a signal, and by default nobody."""
    found: list[tuple[int, Peer]] = []

    def fire(number: int, peer: Peer) -> bool:
        found.append((number, peer))
        return True

    responder = SignalResponder(map(parse_network, networks), fire)
    assert responder.respond(Request(Packet(SIGNAL, 17, b"ignored"), peer)) == answer
    assert found == fired


def test_not_taken() -> None:
    """The answer is no if the service can't take the signal."""
    responder = SignalResponder([parse_network("10.0.0.0/24")], lambda *_: False)
    assert responder.respond(Request(Packet(SIGNAL, 17), NEAR)) == NO
