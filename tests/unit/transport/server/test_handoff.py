"""Connections that a worker hands over: they are served like accepted ones, on every kind of port."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from uwsgitwisted.transport.server.handoff import Handoff

PATIENCE = 5


class Served(Protocol):
    """Sends back what it gets, with its peer's address in front, and closes at a newline."""

    def __init__(self, address: IAddress) -> None:
        self.address = address

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)
        if data.endswith(b"\n"):
            self.transport.loseConnection()


class Serving(Factory):
    """Keeps what was built.

    :param refuses: whether it refuses connections.
    """

    noisy = False

    def __init__(self) -> None:
        self.built: list[Served] = []
        self.refuses = False

    def buildProtocol(self, addr: IAddress | None) -> Served | None:  # type: ignore[override]
        assert addr is not None
        if self.refuses:
            return None
        self.built.append(Served(addr))
        return self.built[-1]


class Bench:
    """Ports whose connections the test accepts, and hands over."""

    def __init__(self, path: Path) -> None:
        self.factory = Serving()
        loop: Any = reactor
        self.tcp = loop.listenTCP(0, self.factory, interface="127.0.0.1")
        self.unix = loop.listenUNIX(str(path), self.factory)
        for port in (self.tcp, self.unix):
            port.stopReading()
        self.handoff = Handoff(loop, [self.tcp, self.unix])
        self.worker = socket.socket(fileno=os.dup(self.handoff.descriptor))
        self._path = path

    def connect(self, *, unix: bool = False) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a connection: a client's, and the one that a worker has accepted."""
        client = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        client.settimeout(PATIENCE)
        port = self.unix if unix else self.tcp
        client.connect(port.socket.getsockname())
        port.socket.setblocking(True)
        accepted, _ = port.socket.accept()
        port.socket.setblocking(False)
        return client, accepted

    def give(self, accepted: socket.socket, data: bytes) -> None:
        """Hand a connection over."""
        with accepted:
            socket.send_fds(self.worker, [b"\0", data], [accepted.fileno()])

    def close(self) -> list[Any]:
        self.handoff.stop()
        self.worker.close()
        return [port.stopListening() for port in (self.tcp, self.unix)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Give ports, and what takes over their connections."""
    made = Bench(tmp_path / "socket")
    yield made
    for closed in made.close():
        if closed is not None:
            pytest_twisted.blockon(closed)


def everything(client: socket.socket) -> Deferred[bytes]:
    return deferToThread(lambda: b"".join(iter(lambda: client.recv(100), b"")))


@pytest.mark.parametrize("unix", [False, True])
@pytest_twisted.inlineCallbacks
def test_taken_over(bench: Bench, unix: bool) -> Any:
    """A connection gets its protocol, with its peer's address, and then its first bytes."""
    bench.handoff.start()
    client, accepted = bench.connect(unix=unix)
    with client:
        bench.give(accepted, b"first ")
        client.sendall(b"second\n")
        assert (yield everything(client)) == b"first second\n"
        (served,) = bench.factory.built
        if unix:
            assert isinstance(served.address, UNIXAddress)
        else:
            assert served.address == IPv4Address("TCP", *client.getsockname())


@pytest_twisted.inlineCallbacks
def test_without_bytes(bench: Bench) -> Any:
    """A connection may come without a byte."""
    bench.handoff.start()
    client, accepted = bench.connect()
    with client:
        bench.give(accepted, b"")
        client.sendall(b"all\n")
        assert (yield everything(client)) == b"all\n"


@pytest_twisted.inlineCallbacks
def test_refused(bench: Bench) -> Any:
    """A connection that the factory refuses is closed."""
    bench.handoff.start()
    bench.factory.refuses = True
    client, accepted = bench.connect()
    with client:
        bench.give(accepted, b"")
        assert (yield everything(client)) == b""


@pytest_twisted.inlineCallbacks
def test_peer_that_has_gone(bench: Bench) -> Any:
    """A connection whose peer has gone meanwhile is closed; the next one is served."""
    client, accepted = bench.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    bench.give(accepted, b"lost")
    client, accepted = bench.connect()
    bench.give(accepted, b"next\n")
    bench.handoff.start()
    with client:
        assert (yield everything(client)) == b"next\n"
    assert len(bench.factory.built) == 1


@pytest_twisted.inlineCallbacks
def test_many(bench: Bench) -> Any:
    """More connections than are taken in one turn are served in the next ones."""
    clients = []
    with contextlib.ExitStack() as opened:
        for number in range(100):
            client, accepted = bench.connect()
            clients.append(opened.enter_context(client))
            bench.give(accepted, b"%d\n" % number)
        bench.handoff.doRead()
        assert len(bench.factory.built) == 64
        bench.handoff.start()
        for number, client in enumerate(clients):
            assert (yield everything(client)) == b"%d\n" % number


def test_unknown_family(bench: Bench) -> None:
    """A connection of a kind that no port has is closed."""
    ours, theirs = socket.socketpair()
    bench.handoff._ports.pop(socket.AF_UNIX)
    with ours, theirs:
        socket.send_fds(bench.worker, [b"\0"], [theirs.fileno()])
        theirs.close()
        bench.handoff.doRead()
        assert ours.recv(1) == b""
    assert bench.factory.built == []


def test_message_without_a_connection(bench: Bench) -> None:
    """A message without a descriptor, as when the system has none left, is dropped."""
    bench.worker.send(b"\0data")
    bench.handoff.doRead()
    assert bench.factory.built == []


def test_largest_message(bench: Bench) -> None:
    """The most that a worker reads of a connection arrives whole."""
    client, accepted = bench.connect()
    data = bytes(4 + 2 * 65_535)
    bench.give(accepted, data)
    bench.handoff.doRead()
    with client:
        (served,) = bench.factory.built
        assert served.transport is not None
        served.transport.loseConnection()


def test_log_prefix(bench: Bench) -> None:
    """Twisted's own log lines about it have a name; the loss of a connection is none of its business."""
    assert bench.handoff.logPrefix() == "Handoff"
    bench.handoff.connectionLost(None)
