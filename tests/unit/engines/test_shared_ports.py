"""Ports that idle workers serve: the front leaves them alone, and accepts only if nobody else does."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import pytest
from twisted.internet.task import Clock

from uwsgitwisted.engines.shared_ports import INTERVAL, SharedPorts, can_share
from uwsgitwisted.worker.spec import HANDOFF_FD, LISTENER_FD, MAX_PORTS, Accepting

ACCEPTING = Accepting(ports=0, networks=("10.0.0.0/8",), max_body=1_000, write_timeout=5.0)


class FakePort:
    """A port of the front, with a real socket."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.reading = self.connected = True
        self.accepted: list[socket.socket] = []

    def stopReading(self) -> None:
        self.reading = False

    def doRead(self) -> None:
        self.accepted.append(self.socket.accept()[0])


class FakeHandoff:
    """Records whether it runs."""

    descriptor = 99

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")


class Bench:
    """Two shared ports."""

    def __init__(self, ports: int = 2) -> None:
        self.clock = Clock()
        self.ports = [FakePort() for _ in range(ports)]
        self.handoff = FakeHandoff()
        self.shared = SharedPorts(self.clock, self.handoff, self.ports, ACCEPTING)  # type: ignore[arg-type]
        self.busy = False
        self.looks = 0
        self._clients: list[socket.socket] = []

    def start(self) -> None:
        def look() -> bool:
            self.looks += 1
            return self.busy

        self.shared.start(look)

    def connect(self, number: int) -> None:
        client = socket.create_connection(self.ports[number].socket.getsockname())
        client.sendall(b"x")  # until something arrives, the kernel holds the connection
        self._clients.append(client)

    def look(self) -> list[int]:
        """Let the next look happen; return how many connections each port's front has accepted."""
        self.clock.advance(INTERVAL)
        return [len(port.accepted) for port in self.ports]

    def close(self) -> None:
        for port in self.ports:
            for each in (port.socket, *port.accepted):
                each.close()
        for client in self._clients:
            client.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Make shared ports."""
    with contextlib.ExitStack() as made:

        def make(ports: int = 2) -> Bench:
            each = Bench(ports)
            made.callback(each.close)
            return each

        yield make


def test_left_to_the_workers(bench: Callable[..., Bench]) -> None:
    """The front doesn't read the ports, but looks often, and takes what workers hand over."""
    made = bench()
    made.start()
    assert [port.reading for port in made.ports] == [False, False]
    assert made.handoff.calls == ["start"]
    made.connect(0)
    assert [made.look() for _ in range(3)] == [[0, 0]] * 3
    assert made.looks == 3


def test_busy_workers(bench: Callable[..., Bench]) -> None:
    """While all workers are busy, the front accepts what waits, on the port on which it does."""
    made = bench()
    made.start()
    made.busy = True
    assert made.look() == [0, 0]
    made.connect(1)
    assert made.look() == [0, 1]
    assert made.look() == [0, 1]
    made.busy = False
    made.connect(0)
    assert made.look() == [0, 1]


def test_closed_port(bench: Callable[..., Bench]) -> None:
    """A port that was closed is left alone, also if its descriptor has another use now."""
    made = bench()
    made.start()
    made.busy = True
    made.connect(0)
    made.ports[0].connected = False
    assert made.look() == [0, 0]


def test_stop(bench: Callable[..., Bench]) -> None:
    """After the stop, it looks no more."""
    made = bench()
    made.start()
    made.shared.stop()
    made.busy = True
    made.connect(0)
    assert made.look() == [0, 0]
    assert made.looks == 0
    assert made.handoff.calls == ["start", "stop"]
    assert not made.clock.getDelayedCalls()


def test_what_workers_get(bench: Callable[..., Bench]) -> None:
    """A worker gets the ports and the way to the front under numbers that it knows."""
    made = bench(3)
    descriptors = [port.socket.fileno() for port in made.ports]
    assert made.shared.descriptors == {
        HANDOFF_FD: 99,
        LISTENER_FD: descriptors[0],
        LISTENER_FD + 1: descriptors[1],
        LISTENER_FD + 2: descriptors[2],
    }
    assert made.shared.accepting == Accepting(
        ports=3, networks=("10.0.0.0/8",), max_body=1_000, write_timeout=5.0
    )


def test_many_ports(bench: Callable[..., Bench]) -> None:
    """The front keeps the ports beyond what workers take."""
    made = bench(MAX_PORTS + 1)
    made.start()
    assert made.shared.accepting.ports == MAX_PORTS
    assert [port.reading for port in made.ports] == [False] * MAX_PORTS + [True]


def test_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports are shared where the system has what that needs."""
    assert can_share() == hasattr(os, "memfd_create")
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert not can_share()
