"""Writing immediately: to a socket that accepts the data, to a full one, and to a broken one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.unit.transports import CLIENT, SERVER, MemoryTransport
from uwsgitwisted.transport.batch import Batch
from uwsgitwisted.transport.writer import (
    RECEIVE_BUFFER,
    UNSENT,
    Writer,
    bound_buffer,
    set_keepalive,
    set_nodelay,
)


class IdleReactor(Clock):
    """Remembers what a transport wants to be told of, and tells it nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)


class Pipe:
    """A writer on one end of a socketpair; the test reads the other."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.far.setblocking(False)
        self.reactor = IdleReactor()
        self.lost: list[Failure] = []
        protocol = Protocol()
        protocol.connectionLost = self.lost.append  # type: ignore[method-assign,assignment]
        self.transport = Connection(near, protocol, self.reactor)
        self.transport.connected = 1
        self.drained = 0
        self.writer = Writer(self.transport, self._count)

    def _count(self) -> None:
        self.drained += 1

    def read(self) -> bytes:
        """Return what is in the socket."""
        data = b""
        while True:
            try:
                chunk = self.far.recv(1 << 20)
            except BlockingIOError:
                return data
            if not chunk:
                return data
            data += chunk

    def turn(self) -> None:
        """Do what the reactor does in a turn in which the socket can be written."""
        self.reactor.advance(0)
        if self.transport in self.reactor.writers and (reason := self.transport.doWrite()):
            self.transport.connectionLost(Failure(reason))


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.far.close()
    if not pipe.lost:
        pipe.transport.connectionLost(Failure(ConnectionError()))


class TestEager:
    def test_at_once(self, pipe: Pipe) -> None:
        """What the socket takes is out before the reactor's next turn."""
        pipe.writer.write(b"now")
        assert pipe.read() == b"now"
        assert not pipe.writer.waiting
        assert not pipe.reactor.writers

    def test_partly(self, pipe: Pipe) -> None:
        """The data that a full socket refuses follows in order, and on_drained is called once."""
        data = bytes(range(256)) * 20_000
        pipe.writer.write(data)
        assert pipe.writer.waiting
        assert pipe.drained == 0
        pipe.writer.write(b"the end")
        received = b""
        for _ in range(1_000):
            received += pipe.read()
            pipe.turn()
        assert received == data + b"the end"
        assert not pipe.writer.waiting
        assert pipe.drained == 1
        pipe.writer.write(b"more")
        assert pipe.read() == b"more"

    @pytest.mark.parametrize("size", [3, 5_000_000])
    def test_half_close(self, pipe: Pipe, size: int) -> None:
        """The peer gets all that was written and then the end, and may still write."""
        pipe.writer.write(bytes(size))
        pipe.writer.half_close()
        received = b""
        for _ in range(1_000):
            pipe.turn()
            received += pipe.read()
        assert received == bytes(size)
        assert pipe.far.recv(1) == b""
        pipe.far.send(b"still here")
        assert pipe.lost == []

    def test_broken(self, pipe: Pipe) -> None:
        """Writing to a broken connection raises nothing; its loss is reported as always."""
        pipe.far.close()
        pipe.writer.write(b"into the void")
        pipe.writer.write(b"again")
        pipe.turn()
        assert len(pipe.lost) == 1

    def test_close(self, pipe: Pipe) -> None:
        """A connection with nothing waiting is closed in the reactor's next turn."""
        pipe.writer.write(b"last")
        assert pipe.writer.close()
        assert pipe.writer.close()
        assert pipe.lost == []
        pipe.writer.abort()  # it is closed already, so this does nothing
        pipe.turn()
        assert [failure.type for failure in pipe.lost] == [ConnectionDone]
        assert pipe.read() == b"last"

    def test_abort(self, pipe: Pipe) -> None:
        """A connection is closed whatever waits."""
        pipe.writer.write(bytes(5_000_000))
        pipe.writer.abort()
        pipe.turn()
        assert [failure.type for failure in pipe.lost] == [ConnectionAborted]

    def test_close_with_bytes_waiting(self, pipe: Pipe) -> None:
        """All that was written goes out before the connection is closed."""
        data = bytes(5_000_000)
        pipe.writer.write(data)
        assert not pipe.writer.close()
        received = b""
        for _ in range(1_000):
            received += pipe.read()
            pipe.turn()
        assert len(received + pipe.read()) == len(data)
        assert len(pipe.lost) == 1

    def test_not_under_tls(self, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
        """A connection that has begun TLS is not written around its encryption."""
        monkeypatch.setattr(pipe.transport, "registerProducer", lambda *_: None)  # the protocol's, with TLS
        pipe.transport.TLS = True  # type: ignore[assignment]
        writer = Writer(pipe.transport)
        pipe.transport.TLS = False  # type: ignore[assignment]
        writer.write(b"later")
        assert pipe.read() == b""
        pipe.turn()
        assert pipe.read() == b"later"


class TestOthers:
    def test_back_pressure(self) -> None:
        """Another transport says itself when it is full and when it is empty."""
        transport = MemoryTransport(Protocol(), CLIENT, SERVER)
        drained: list[None] = []
        writer = Writer(transport, lambda: drained.append(None))  # type: ignore[arg-type]
        writer.write(bytes(10))
        assert not writer.waiting
        transport.take(None)
        assert not drained
        writer.write(bytes(100_000))
        assert writer.waiting
        transport.take(50_000)
        assert writer.waiting
        transport.take(None)
        assert not writer.waiting
        assert len(drained) == 1
        writer.stopProducing()
        writer.close()
        writer.close()
        assert transport.disconnecting
        assert transport.producer is None

    def test_drained_is_optional(self) -> None:
        """Who doesn't want to know needs to say nothing."""
        transport = MemoryTransport(Protocol(), CLIENT, SERVER)
        writer = Writer(transport)  # type: ignore[arg-type]
        writer.write(bytes(100_000))
        transport.take(None)
        assert not writer.waiting


class TestOptions:
    def test_tcp(self) -> None:
        """TCP_NODELAY and probes are set on TCP."""
        transport = MemoryTransport(Protocol(), CLIENT, SERVER)
        set_nodelay(transport)
        set_keepalive(transport)
        assert (transport.nodelay, transport.keepalive) == (True, True)

    def test_bounded_buffers(self) -> None:
        """The kernel takes little ahead of what is read, and of what it can't send yet."""
        with socket.socket() as connection:
            transport = Connection(connection, Protocol(), IdleReactor())
            set_nodelay(transport)
            bound_buffer(transport)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * RECEIVE_BUFFER
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT

    def test_probes(self) -> None:
        """The probes of a real socket come after a minute, not after hours."""
        with socket.socket() as connection:
            transport = Connection(connection, Protocol(), IdleReactor())
            set_keepalive(transport)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_KEEPIDLE"):
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60

    def test_others(self) -> None:
        """A transport that has no such option is left alone."""
        set_nodelay(object())
        bound_buffer(object())
        set_keepalive(object())


class TestTurn:
    def test_outside(self) -> None:
        """Outside of a turn a call is made at once."""
        calls: list[int] = []
        Batch().at_end(lambda: calls.append(1))
        assert calls == [1]

    def test_inside(self) -> None:
        """Within one it is made once, at the end of the outermost."""
        turn = Batch()
        calls: list[int] = []

        def call() -> None:
            calls.append(1)

        with turn:
            with turn:
                turn.at_end(call)
                turn.at_end(call)
            assert calls == []
        assert calls == [1]

    def test_chain(self) -> None:
        """What such a call puts off is done in the same turn."""
        turn = Batch()
        calls: list[str] = []

        def first() -> None:
            calls.append("first")
            turn.at_end(second)
            assert calls == ["first"]

        def second() -> None:
            calls.append("second")

        with turn:
            turn.at_end(first)
        assert calls == ["first", "second"]

    def test_a_call_that_raises(self) -> None:
        """One connection's fault is logged and holds up no other, in this turn or a later one."""
        turn = Batch()
        calls: list[int] = []

        def broken() -> None:
            raise KeyError("x")

        with capturedLogs() as logs, turn:
            turn.at_end(broken)
            turn.at_end(lambda: calls.append(1))
        assert calls == [1]
        assert logs[0]["log_failure"].check(KeyError)
        turn.at_end(lambda: calls.append(2))
        assert calls == [1, 2]

    def test_an_error_within(self) -> None:
        """What raises within a turn is passed on when the calls are made."""
        turn = Batch()
        calls: list[int] = []

        def work() -> None:
            with turn:
                turn.at_end(lambda: calls.append(1))
                raise KeyError("x")

        with pytest.raises(KeyError):
            work()
        assert calls == [1]
