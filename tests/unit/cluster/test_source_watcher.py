"""Following files and names with Deferreds."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.names import dns

from tests.unit.blocking.test_lookups import (
    SERVICE,
    name_server,  # noqa: F401 - a fixture
)
from uwsgitwisted.address import Address, parse_address
from uwsgitwisted.cluster import Cluster
from uwsgitwisted.cluster import sources as watching
from uwsgitwisted.cluster.sources import SourceWatcher, may_change, read_records
from uwsgitwisted.errors import ConnectionFailed, MisuseError
from uwsgitwisted.sources.names import HostName, Name
from uwsgitwisted.sources.sources import FILE_INTERVAL, LOOK_UP_TIMEOUT, NAME_INTERVAL

A, B = (parse_address(f"10.0.0.{number}:3033") for number in range(1, 3))
FARM = HostName("farm", 3033)


class World:
    """A watcher with a clock, whose look-ups the test answers."""

    def __init__(self, *nodes: str) -> None:
        self.clock = Clock()
        self.asked: list[tuple[Name, Deferred[list[Address]]]] = []
        self.seen: list[list[Address]] = []
        self.watcher = SourceWatcher(self.clock, nodes, self.seen.append, self.look_up)
        self.watcher.start()

    def look_up(self, name: Name) -> Deferred[list[Address]]:
        found: Deferred[list[Address]] = Deferred()
        self.asked.append((name, found))
        return found


def test_names() -> None:
    """A name is looked up at once and again, and changes are handed on."""
    world = World("10.0.0.1:3033", "dns:farm:3033")
    settled: list[None] = []
    world.watcher.when_settled().addCallback(settled.append)
    assert (world.seen, [name for name, _ in world.asked], settled) == ([[A]], [FARM], [])
    world.asked[0][1].callback([B])
    assert (world.seen[-1], settled) == ([A, B], [None])
    world.clock.advance(NAME_INTERVAL)
    world.asked[1][1].callback([B])
    assert len(world.seen) == 2  # nothing has changed
    world.clock.advance(NAME_INTERVAL)
    world.asked[2][1].errback(ConnectionFailed("no server"))
    world.clock.advance(NAME_INTERVAL)
    world.asked[3][1].callback([A])
    assert world.seen[2:] == [[A]]
    world.watcher.stop()
    assert world.clock.getDelayedCalls() == []


def test_a_name_that_takes_too_long() -> None:
    """A look-up that never ends is given up, and tried again later."""
    world = World("dns:farm:3033")
    settled: list[None] = []
    world.watcher.when_settled().addCallback(settled.append)
    world.clock.advance(LOOK_UP_TIMEOUT)
    assert settled == [None]
    world.clock.advance(NAME_INTERVAL)
    world.asked[1][1].callback([A])
    assert world.seen == [[], [A]]
    world.watcher.stop()


def test_stopped_meanwhile() -> None:
    """What a stopped watcher has looked up doesn't count, and nobody waits for it."""
    world = World("dns:farm:3033")
    settled: list[None] = []
    world.watcher.when_settled().addCallback(settled.append)
    world.watcher.stop()
    assert (settled, world.seen) == ([None], [[]])
    assert world.clock.getDelayedCalls() == []


def test_files(tmp_path: Path) -> None:
    """A file is read again when it changes."""
    path = tmp_path / "nodes.txt"
    path.write_text("10.0.0.1:3033\n")
    world = World(f"@{path}")
    path.write_text("10.0.0.1:3033\n10.0.0.2:3033\n")
    world.clock.advance(FILE_INTERVAL)
    assert world.seen == [[A], [A, B]]
    world.watcher.stop()


def test_what_may_change() -> None:
    """Addresses need nobody who follows them."""
    assert not may_change(["10.0.0.1:3033", ("10.0.0.1", 3033)])
    assert may_change("@nodes.txt")
    assert may_change(["10.0.0.1:3033", "srv:_uwsgi._tcp.example.com"])
    with pytest.raises(MisuseError):
        may_change("nowhere")


def test_other_records() -> None:
    """Only SRV records count in an answer."""
    payload = dns.Record_SRV(1, 0, 3033, "a")
    answers = [dns.RRHeader(type=dns.SRV, payload=payload), dns.RRHeader(type=dns.A, payload=dns.Record_A())]
    assert read_records(answers) == [parse_address("a:3033")]


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("# ours\nnameserver 10.0.0.9\nsearch x\nnameserver\nnameserver ::1\n", ["10.0.0.9", "::1"]),
        ("", ["127.0.0.1"]),
        (None, ["127.0.0.1"]),
    ],
)
def test_servers(text: str | None, servers: list[str], tmp_path: Path) -> None:
    """The name servers are those of the system; without any, it is this machine."""
    path = tmp_path / "resolv.conf"
    if text is not None:
        path.write_text(text)
    assert watching.read_servers(str(path)) == [(server, 53) for server in servers]


@pytest_twisted.ensureDeferred
async def test_cluster(port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cluster has the nodes that its names and files stand for."""
    monkeypatch.setattr(watching, "read_servers", lambda: [("127.0.0.1", port)])
    (tmp_path / "nodes.txt").write_text("10.0.0.1:3033\n")
    cluster = Cluster(reactor, [f"@{tmp_path}/nodes.txt", str(SERVICE), "dns:127.0.0.1:3035"])
    watcher = cluster._watcher
    assert watcher is not None
    await watcher.when_settled()
    assert sorted(map(str, cluster.nodes)) == [
        "10.0.0.1:3033",
        "127.0.0.1:3035",
        "a.example.com:3033",
        "b.example.com:3034",
    ]
    await cluster.close()
