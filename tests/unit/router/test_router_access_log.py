"""The router's access log: a line for each request, whatever becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.testing import MemoryReactorClock

from tests.unit.router.world import World
from uwsgitwisted.access_log import Entry, combined
from uwsgitwisted.address import parse_address
from uwsgitwisted.services.router import RouterOptions, RouterService

GET = b'GET /a?b=1 HTTP/1.1\r\nHost: a\r\nUser-Agent: "me"\r\n\r\n'


def logged() -> tuple[World, list[Entry]]:
    """Return a router, and the entries of its log."""
    entries: list[Entry] = []
    return World(log=entries.append), entries


def test_a_request() -> None:
    """It has its line, variable, header, status, size and time."""
    world, entries = logged()
    world.node.answer, world.node.closes = None, False
    client = world.client().send(GET)
    world.advance(1.5)
    assert entries == []
    world.node.requests[0].send(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    world.flush()
    assert client.take().endswith(b"hello")
    (entry,) = entries
    assert (entry.status, entry.size, entry.seconds, entry.worker) == ("200", 5, 1.5, 0)
    line = combined(entry)
    assert line.startswith("192.0.2.7 - - [")
    assert '"GET /a?b=1 HTTP/1.1" 200 5 "-" "\\x22me\\x22" 1.500000 0' in line


def test_requests_that_no_node_gets() -> None:
    """The router's own answers have lines too, also to what is no HTTP."""
    world, entries = logged()
    client = world.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999\r\n\r\n")
    assert [(entry.status, entry.text("REQUEST_METHOD")) for entry in entries] == [("413", "POST")]
    world.client().send(b"nonsense\r\n\r\n")
    assert entries[1].status == "400"
    assert entries[1].text("REMOTE_ADDR") == entries[0].text("REMOTE_ADDR")


def test_clients_that_go() -> None:
    """A client that goes before its answer has status 499; one that goes in the middle has what it got."""
    world, entries = logged()
    world.node.answer, world.node.closes = None, False
    world.client().send(GET).lose()
    assert [(entry.status, entry.size) for entry in entries] == [("499", 0)]
    client = world.client().send(GET)
    world.node.requests[-1].send(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhe", close=False)
    world.flush()
    client.lose()
    assert [(entry.status, entry.size) for entry in entries[1:]] == [("200", 2)]
    world.client().send(b"GET / HT").lose()
    assert len(entries) == 2


def test_the_file(tmp_path: Path) -> None:
    """The service opens it at its start, and again at a reload."""
    reactor: Any = MemoryReactorClock()
    path = tmp_path / "access.log"
    nodes = [parse_address("10.0.0.5:3031")]
    service = RouterService(
        reactor, RouterOptions(listen=["tcp:8080"], nodes=nodes, access_log=str(path), access_log_format="json")
    )
    service.startService()
    entry = Entry({"REQUEST_URI": "/x"}, "200", 1, 0.0, 0, 0.0)
    service._shared.log_access(entry.variables, 200, 1, 0.0)
    path.rename(tmp_path / "old.log")
    service.reload()
    service._shared.log_access(entry.variables, 404, 1, 0.0)
    assert '"status": 200' in (tmp_path / "old.log").read_text()
    assert '"status": 404' in path.read_text()
    service.stopService()
