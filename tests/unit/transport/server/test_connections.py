"""How many connections there may be, and which make room for others."""

from __future__ import annotations

from tests.unit.peers import peer_at
from uwsgitwisted.access import Peer
from uwsgitwisted.transport.server.connections import Connections


class FakeConnection:
    """A connection that records its calls."""

    def __init__(self, peer: Peer, idle_since: float | None = None) -> None:
        self.peer = peer
        self.idle_since = idle_since
        self.calls: list[str] = []

    def evict(self) -> None:
        self.calls.append("evict")

    def finish(self) -> None:
        self.calls.append("finish")

    def abort(self) -> None:
        self.calls.append("abort")


class Bench:
    def __init__(self, limit: int, peer_limit: int) -> None:
        self.connections = Connections(limit, peer_limit)
        self.added: list[FakeConnection] = []

    def connect(self, host: str, idle_since: float | None = None) -> str | None:
        """Open a connection, and return None, or the reason why it can't be opened."""
        peer = peer_at(host)
        refusal = self.connections.refusal(peer)
        if refusal is None:
            self.added.append(FakeConnection(peer, idle_since))
            self.connections.add(self.added[-1])
        return refusal

    @property
    def evicted(self) -> list[int]:
        return [number for number, connection in enumerate(self.added) if "evict" in connection.calls]


def test_limits() -> None:
    """Busy connections are kept: what would be one too many is refused, of a peer and of all."""
    bench = Bench(limit=4, peer_limit=2)
    assert [bench.connect("10.0.0.1") for _ in range(3)] == [
        None,
        None,
        "2 connections from its address are already open",
    ]
    assert [bench.connect(host) for host in ("10.0.0.2", "fd00::1", "fd00:0:0:1::1")] == [
        None,
        None,
        "4 connections are already open",
    ]
    bench.connections.remove(bench.added[0])
    assert bench.connect("10.0.0.1") is None
    assert bench.evicted == []


def test_a_peer_makes_room_with_its_own() -> None:
    """Over its own limit, a peer loses its own longest idle connection, and nobody else's."""
    bench = Bench(limit=100, peer_limit=3)
    bench.connect("10.0.0.2", idle_since=0.0)
    for since in (3.0, 1.0, None):
        bench.connect("10.0.0.1", since)
    assert bench.connect("10.0.0.1") is None
    assert bench.evicted == [2]
    assert bench.connect("10.0.0.1") is None
    assert bench.evicted == [1, 2]
    assert bench.connect("10.0.0.1") == "3 connections from its address are already open"


def test_one_ipv6_network_is_one_peer() -> None:
    """Addresses of one /64 count together."""
    bench = Bench(limit=100, peer_limit=2)
    assert [bench.connect(f"fd00::{number}") for number in (1, 2)] == [None, None]
    assert bench.connect("fd00::3") is not None
    assert bench.connect("fd00:0:0:1::3") is None


def test_all_make_room_for_a_newcomer() -> None:
    """Where all are too many, the longest idle one goes, whosever it is."""
    bench = Bench(limit=3, peer_limit=3)
    for host, since in (("10.0.0.1", 2.0), ("10.0.0.2", 1.0), ("10.0.0.3", None)):
        bench.connect(host, since)
    assert bench.connect("10.0.0.4") is None
    assert bench.evicted == [1]


def test_whoever_has_most_makes_room() -> None:
    """Of busy connections, the oldest one of the peer with most goes, for a peer with far fewer."""
    bench = Bench(limit=7, peer_limit=6)
    for host in ("10.0.0.1", *["10.0.0.2"] * 6):
        bench.connect(host)
    assert bench.connect("10.0.0.3") is None
    assert bench.connect("10.0.0.1") is None
    bench.connections.remove(bench.added[1])
    assert bench.evicted == [1, 2]
    assert bench.added[2].calls == ["evict", "abort"]
    assert bench.connect("10.0.0.1") == "7 connections are already open"
    assert sum(bool(connection.calls) for connection in bench.added) == 2


def test_nobody_loses_to_whoever_has_more() -> None:
    """An idle connection of a peer with few is not closed for a peer with many."""
    bench = Bench(limit=4, peer_limit=4)
    bench.connect("10.0.0.1", idle_since=0.0)
    for _ in range(3):
        bench.connect("10.0.0.2")
    assert bench.connect("10.0.0.2") == "4 connections are already open"
    assert bench.evicted == []


def test_one_look_frees_many() -> None:
    """A look at all connections closes a part of them, so that a flood does not cause many looks."""
    bench = Bench(limit=320, peer_limit=320)
    for number in range(320):
        bench.connect("10.0.0.1", float(number))
    assert bench.connect("10.0.0.2") is None
    assert bench.evicted == list(range(20))


def test_no_look_for_a_while() -> None:
    """Where nothing was idle, some are refused before the next look."""
    bench = Bench(limit=40, peer_limit=40)
    for _ in range(40):
        bench.connect("10.0.0.1")
    assert bench.connect("10.0.0.1") is not None
    bench.added[0].idle_since = 0.0
    for _ in range(2):
        assert bench.connect("10.0.0.1") is not None
    assert bench.connect("10.0.0.1") is None
    assert bench.evicted == [0]


def test_evicted_ones_that_stay() -> None:
    """Evicted connections count until they are closed: with many of them, only a peer with few gets room."""
    bench = Bench(limit=80, peer_limit=80)
    for number in range(80):
        bench.connect("10.0.0.1", float(number))
    assert [bench.connect("10.0.0.1") for _ in range(5)] == [None] * 5
    assert bench.evicted == list(range(5))
    assert bench.connect("10.0.0.1") == "80 connections from its address are already open"
    assert bench.connect("10.0.0.2") is None
    assert bench.evicted == list(range(7))
    cut_off = [number for number, connection in enumerate(bench.added) if "abort" in connection.calls]
    assert cut_off == [0, 1]
    assert set(bench.connections) == set(bench.added)
    for connection in bench.added[:7]:
        bench.connections.remove(connection)
    assert bench.connect("10.0.0.1") is None


def test_the_end() -> None:
    """It is known when all are closed, the evicted ones too."""
    bench = Bench(limit=1, peer_limit=1)
    for number in range(2):
        bench.connect("10.0.0.1", float(number))
    emptied: list[None] = []
    bench.connections.emptied().addCallback(emptied.append)
    for connection in bench.added:
        assert emptied == []
        bench.connections.remove(connection)
    assert emptied == [None]
