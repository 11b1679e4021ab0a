"""How a node is announced to uWSGI's routers."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from uwsgitwisted.address import Address, parse_address
from uwsgitwisted.services.listening import Place, place_of, write_place
from uwsgitwisted.services.subscription import (
    INTERVAL,
    LEAVE_TIME,
    Announcer,
    RouterAddress,
    parse_subscription,
    send_datagram,
)
from uwsgitwisted.wire.packet import PacketDecoder
from uwsgitwisted.wire.subscription import ANNOUNCE, LEAVE, Subscription
from uwsgitwisted.wire.vars import decode_vars

ROUTER = RouterAddress(parse_address("10.0.0.1:2626"), "example.com")


class Sender:
    """Records what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, str, int]] = []
        self.answer: Any = lambda: succeed(None)

    def __call__(self, router: Address, what: Subscription, kind: int, here: Place | None) -> Deferred[None]:
        self.sent.append((str(router), kind, what.key, what.load))
        answer: Deferred[None] = self.answer()
        return answer


def make(clock: Clock, sender: Sender) -> Announcer:
    return Announcer(clock, [ROUTER], Subscription("", ""), ("127.0.0.1", 3031), lambda: 7, sender)


def test_parsing() -> None:
    """A router's address and a key, and maybe the node's own address."""
    assert parse_subscription("10.0.0.1:2626,example.com") == ROUTER
    assert str(ROUTER) == "10.0.0.1:2626,example.com"
    given = parse_subscription("/run/router,example.com:8080,10.0.0.5:3031")
    assert (given.router.path, given.key, given.address) == ("/run/router", "example.com:8080", "10.0.0.5:3031")


@pytest.mark.parametrize(
    "text", ["", "example.com", "10.0.0.1:2626", "10.0.0.1:2626,", ",k", f"h:1,{'k' * 256}", "h:1,k,nowhere"]
)
def test_parsing_errors(text: str) -> None:
    """What has another form is refused, with an example."""
    with pytest.raises(ValueError, match=r"10\.0\.0\.1:2626,example\.com"):
        parse_subscription(text)
    with pytest.raises(ValueError, match="datagrams"):
        parse_subscription("tls:h:1,k")


def test_again_and_again() -> None:
    """The node is announced every 10 seconds, and not after it has left."""
    clock, sender = Clock(), Sender()
    announcer = make(clock, sender)
    announcer.start()
    clock.pump([INTERVAL, INTERVAL])
    assert sender.sent == [("10.0.0.1:2626", ANNOUNCE, "example.com", 7)] * 3
    left: list[None] = []
    announcer.leave().addCallback(left.append)
    assert sender.sent.pop()[1] == LEAVE
    assert not left
    clock.advance(LEAVE_TIME)
    assert left
    clock.pump([INTERVAL] * 2)
    assert len(sender.sent) == 3


def test_slow_lookups() -> None:
    """While a router is looked up, announcements don't pile up, and the node's end doesn't wait for long."""
    clock, sender = Clock(), Sender()
    sender.answer = Deferred
    announcer = make(clock, sender)
    announcer.start()
    clock.pump([INTERVAL, INTERVAL])
    assert len(sender.sent) == 1
    left: list[None] = []
    announcer.leave().addCallback(left.append)
    clock.pump([2.0, LEAVE_TIME])
    assert left
    assert len(sender.sent) == 1


def test_failures() -> None:
    """A router that can't be reached doesn't stop the announcements."""
    clock, sender = Clock(), Sender()
    sender.answer = lambda: fail(OSError("down"))
    announcer = make(clock, sender)
    announcer.start()
    clock.advance(INTERVAL)
    assert announcer._failing == {ROUTER}
    sender.answer = lambda: succeed(None)
    clock.advance(INTERVAL)
    assert not announcer._failing
    assert len(sender.sent) == 3


@pytest.mark.parametrize(
    ("here", "given", "announced"),
    [
        (("10.0.0.5", 3031), "", b"10.0.0.5:3031"),
        (("0.0.0.0", 3031), "", b"127.0.0.1:3031"),
        (("::1", 3031), "", b"[::1]:3031"),
        ("/run/node", "", b"/run/node"),
        ("/run/node", "10.0.0.5:3031", b"10.0.0.5:3031"),
    ],
)
def test_addresses(here: Place, given: str, announced: bytes) -> None:
    """The address is where the node listens, as the router can reach it, or the given one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as router:
        router.bind(("127.0.0.1", 0))
        router.settimeout(20)
        address = parse_address(router.getsockname())
        send_datagram(address, Subscription("k", given, 173, 2, 4), ANNOUNCE, here)
        (packet,) = PacketDecoder().receive(router.recv(4096))
    assert packet[:2] == (224, 0)
    expected = {b"key": b"k", b"modifier1": b"173", b"modifier2": b"2", b"cores": b"4", b"load": b"0"}
    assert decode_vars(packet.payload) == {**expected, b"weight": b"1", b"address": announced}


def test_unix_sockets(tmp_path: Path) -> None:
    """A router may take announcements on a UNIX socket; every interface of the node is then loopback."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as router:
        router.bind(f"{tmp_path}/router")
        router.settimeout(20)
        address = parse_address(f"{tmp_path}/router")
        send_datagram(address, Subscription("k", ""), LEAVE, ("0.0.0.0", 3031))
        (packet,) = PacketDecoder().receive(router.recv(4096))
    assert packet[:2] == (224, 1)
    assert decode_vars(packet.payload)[b"address"] == b"127.0.0.1:3031"


@pytest.mark.parametrize(
    ("family", "name", "written"),
    [
        (socket.AF_INET, ("127.0.0.1", 0), r"127\.0\.0\.1:[0-9]+"),
        (socket.AF_INET6, ("::1", 0), r"\[::1\]:[0-9]+"),
        (socket.AF_UNIX, f"\0uwsgitwisted-test-{os.getpid()}", f"@uwsgitwisted-test-{os.getpid()}"),
    ],
)
def test_places(family: int, name: Any, written: str) -> None:
    """A port's place is written as uWSGI writes addresses."""

    class Port:
        socket: Any

    port = Port()
    with socket.socket(family) as port.socket:
        port.socket.bind(name)
        assert re.fullmatch(written, write_place(place_of(port)))
