"""The front's side of a thread's connection for shared state, and its watches of files."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.services.shared.channel import Channel, SharedProtocol
from uwsgitwisted.services.shared.files import FileWatches
from uwsgitwisted.shared.facts import Facts
from uwsgitwisted.shared.state import SharedState
from uwsgitwisted.wire.calls import FAILED, MAX_ANSWER, OK, Frame, FrameDecoder, encode_frame


class Thread:
    """A thread's connection."""

    def __init__(self, state: SharedState) -> None:
        self.transport = StringTransport()
        self.protocol = SharedProtocol(state, state.connect(1))
        self.protocol.makeConnection(self.transport)  # type: ignore[no-untyped-call]
        self._decoder = FrameDecoder(MAX_ANSWER)

    def send(self, sequence: int, *items: bytes) -> list[Frame]:
        """Send a call and return the answers that are there."""
        self.protocol.dataReceived(encode_frame(sequence, OK, items))
        return self.answers()

    def answers(self) -> list[Frame]:
        """Return the answers that have come."""
        data = self.transport.value()
        self.transport.clear()
        return self._decoder.receive(data)


@pytest.fixture
def state() -> SharedState:
    return SharedState(float)


def test_calls(state: SharedState) -> None:
    """A call gets its answer, or an error's text; one that has to wait gets it later."""
    one, two = Thread(state), Thread(state)
    assert one.send(7, b"lock", b"0") == [Frame(7, OK, ())]
    assert one.send(8, b"lock", b"999")[0].status == FAILED
    assert two.send(9, b"lock", b"0") == []
    one.protocol.connectionLost(Failure(ConnectionDone()))
    assert two.answers() == [Frame(9, OK, ())]


def test_questions() -> None:
    """A thread learns what all workers have done, and how large the log is."""
    workers = [{"id": 1, "requests": 3}, {"id": 2, "requests": 4}]
    thread = Thread(SharedState(float, facts=Facts(lambda: workers, lambda: 99, float)))
    (answer,) = thread.send(1, b"workers")
    assert json.loads(answer.items[0]) == workers
    assert thread.send(2, b"total_requests") == [Frame(2, OK, (b"7",))]
    assert thread.send(3, b"log_size") == [Frame(3, OK, (b"99",))]
    assert thread.send(4, b"log_size", b"surplus")[0].status == FAILED


@pytest.mark.parametrize(("takes", "lasts"), [(2**-10, 20 * 2**-10), (1.0, 0.1)])
def test_questions_without_end(takes: float, lasts: float) -> None:
    """Who asks again and again takes a twentieth of the front's time: an answer is told again for a while."""
    clock = Clock()
    found = 0

    def find() -> list[dict[str, int]]:
        nonlocal found
        found += 1
        clock.advance(takes)
        return [{"requests": found}]

    thread = Thread(SharedState(float, facts=Facts(find, int, clock.seconds)))

    def total() -> int:
        return int(thread.send(1, b"total_requests")[0].items[0])

    assert (total(), total()) == (1, 1)
    assert json.loads(thread.send(2, b"workers")[0].items[0]) == [{"requests": 1}]
    clock.advance(lasts * 0.99)
    assert total() == 1
    clock.advance(lasts * 0.02)
    assert (total(), total()) == (2, 2)


def test_a_call_that_is_cut_off(state: SharedState) -> None:
    """A thread whose process dies in the middle of a call costs nobody else anything."""
    one, two = Thread(state), Thread(state)
    assert one.send(1, b"lock", b"3") == [Frame(1, OK, ())]
    one.protocol.dataReceived(encode_frame(2, OK, [b"cache_set", b"key", bytes(1_000), b"0", b""])[:500])
    one.protocol.connectionLost(Failure(ConnectionDone()))
    assert two.send(1, b"cache_get", b"key", b"") == [Frame(1, OK, ())]
    assert two.send(2, b"lock", b"3") == [Frame(2, OK, ())]


@pytest.mark.parametrize("data", [b"\xff" * 9, 3 * encode_frame(1, OK, [b"is_locked", b"0"])])
def test_what_ends_a_connection(state: SharedState, data: bytes) -> None:
    """Bytes that are no calls, and more calls than a thread makes at once, end the connection."""
    thread = Thread(state)
    thread.protocol.dataReceived(data)
    assert thread.transport.disconnected
    assert not thread.transport.value()


def test_unread_answers_stop_the_reading(state: SharedState) -> None:
    """While a thread doesn't read its answers, its calls are not read."""
    thread = Thread(state)
    assert thread.transport.producer is thread.protocol
    thread.protocol.pauseProducing()
    assert thread.transport.producerState == "paused"
    thread.protocol.resumeProducing()
    assert thread.transport.producerState == "producing"


class Readers(Clock):
    """A reactor that only notes who reads."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[object] = []

    def addReader(self, reader: object) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: object) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def removeWriter(self, writer: object) -> None:
        """Do nothing."""


class Handover:
    """A channel, and the end of its socket that workers have."""

    def __init__(self, state: SharedState) -> None:
        self.reactor = Readers()
        self.log: list[str] = []
        self.channel = Channel(self.reactor, state, self.log.append)  # type: ignore[arg-type]
        self._worker = socket.socket(fileno=os.dup(self.channel.start()))

    def connect(self, hello: bytes) -> socket.socket:
        """Return a thread's end of a new connection."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._worker, [hello], [theirs.fileno()])
        self.channel.doRead()
        ours.setblocking(False)
        return ours

    def stop(self) -> None:
        """Close everything."""
        self.channel.stop()
        self._worker.close()
        self.reactor.advance(0)


@pytest.fixture
def handover(state: SharedState) -> Iterator[Handover]:
    made = Handover(state)
    yield made
    made.stop()
    assert not made.reactor.readers


def test_each_process_has_only_so_many_connections(handover: Handover) -> None:
    """A process that leaks threads is refused one more; others are served, and so is its successor."""
    handover.channel.max_each, handover.channel.max_connections = 2, 10
    with handover.connect(b"1 0 71") as _, handover.connect(b"1 0 71"):
        with handover.connect(b"1 0 71") as refused:
            assert refused.recv(1) == b""
        (line,) = handover.log
        assert "worker 1 gets no further connection" in line
        assert "its threads have 2, and those of all 2" in line
        for other in (b"1 0 72", b"2 0 73", b"0 1 74"):
            with handover.connect(other) as served, pytest.raises(BlockingIOError):
                served.recv(1)
        lost: Any = handover.reactor.readers[1]
        lost.connectionLost(Failure(ConnectionDone()))
        with handover.connect(b"1 0 71") as third, pytest.raises(BlockingIOError):
            third.recv(1)


def test_all_have_only_so_many_connections(handover: Handover) -> None:
    """All processes together never take more descriptors than are reserved for them."""
    handover.channel.max_each, handover.channel.max_connections = 2, 2
    with (
        handover.connect(b"1 0 71") as _,
        handover.connect(b"0 2 72"),
        handover.connect(b"0 3 73") as refused,
    ):
        assert refused.recv(1) == b""
        assert "mule 3 gets no further connection" in handover.log[0]


@pytest.mark.parametrize("hello", [b"", b"1", b"1 2", b"1 2 3 4", b"-1 0 5", b"a b c"])
def test_a_connection_says_whose_it_is(handover: Handover, hello: bytes) -> None:
    """A connection that doesn't give the numbers of its worker and its mule is closed."""
    with handover.connect(hello) as refused:
        assert refused.recv(1) == b""


def test_file_watches(tmp_path: Path) -> None:
    """A file is watched by its name, also when it is made or replaced; a directory with all that is in it."""
    reactor = Readers()
    watches = FileWatches(reactor)
    changed: list[str] = []
    one = tmp_path / "one"
    end_one = watches.watch(str(one), lambda: changed.append("one"))
    end_all = watches.watch(str(tmp_path), lambda: changed.append("all"))

    def changes() -> set[str]:
        reader = reactor.readers[0]
        reader.doRead()  # type: ignore[attr-defined]
        found = set(changed)
        changed.clear()
        return found

    one.write_text("1")
    assert changes() == {"one", "all"}
    (tmp_path / "two").write_text("2")
    assert changes() == {"all"}
    (tmp_path / "two").rename(one)
    assert changes() == {"one", "all"}
    end_all()
    one.write_text("3")
    assert changes() == {"one"}
    below = tmp_path / "below"
    below.mkdir()
    changes()
    end_below = watches.watch(str(below), lambda: changed.append("below"))
    below.rmdir()
    assert "below" in changes()
    end_below()
    one.write_text("4")
    assert changes() == {"one"}
    end_one()
    with pytest.raises(MisuseError, match="there is no directory"):
        watches.watch(str(tmp_path / "none" / "file"), lambda: None)
    watches.stop()
    assert not reactor.readers
