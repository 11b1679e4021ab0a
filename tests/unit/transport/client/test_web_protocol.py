"""One web request on a connection of its own, streaming both ways."""

from __future__ import annotations

import socket
import struct
from contextlib import closing

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.python.failure import Failure

from uwsgitwisted.errors import ConnectionFailed, MalformedAnswer, NoAnswer, RequestTimeout, UwsgiError
from uwsgitwisted.transport.client import web
from uwsgitwisted.transport.client.web import WebProtocol
from uwsgitwisted.wire.http import AnswerHead

TIMEOUT = 60.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
UNSIZED = b"HTTP/1.1 200 OK\r\n\r\n"


class Receiver:
    """Keeps what happens to a request."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.data = b""
        self.error: UwsgiError | None = None

    def body_wanted(self, wanted: bool) -> None:
        self.events.append("wanted" if wanted else "not wanted")

    def answer_began(self, head: AnswerHead) -> None:
        self.events.append(f"began {head.status}")

    def answer_received(self, data: bytes) -> None:
        self.data += data

    def answer_ended(self) -> None:
        self.events.append("ended")

    def answer_failed(self, error: UwsgiError) -> None:
        self.events.append("failed")
        self.error = error


class Request:
    """A request on a connection in memory."""

    def __init__(self, method: bytes = b"GET") -> None:
        self.clock = Clock()
        self.receiver = Receiver()
        self.protocol = WebProtocol(self.clock, b"packet", method, self.receiver, TIMEOUT)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    @property
    def events(self) -> list[str]:
        return self.receiver.events

    def lose(self, error: Exception | None = None) -> None:
        """End the connection."""
        self.protocol.connectionLost(Failure(error or ConnectionDone()))

    @property
    def timers(self) -> list[float]:
        """Seconds until each timer."""
        return [call.getTime() - self.clock.seconds() for call in self.clock.getDelayedCalls()]


def test_an_answer_with_a_length() -> None:
    """It ends with its last byte; what follows is dropped, and the server gets a moment to close."""
    request = Request()
    assert request.transport.value() == b"packet"
    request.protocol.sent()
    request.protocol.dataReceived(HEAD + b"an")
    assert request.events == ["began 200"]
    request.protocol.dataReceived(b"swer and more")
    assert request.receiver.data == b"answ"
    request.protocol.dataReceived(b"and more")
    assert request.events == ["began 200", "ended"]
    assert not request.transport.disconnected
    assert request.timers == [1.0]
    request.lose()
    assert request.events == ["began 200", "ended"]
    assert request.timers == []


def test_a_server_that_does_not_close() -> None:
    """Its connection is closed after a moment."""
    request = Request()
    request.protocol.dataReceived(HEAD + b"answ")
    request.clock.advance(1)
    assert request.transport.disconnected
    assert request.events == ["began 200", "ended"]


def test_an_answer_without_a_length() -> None:
    """It ends with the connection."""
    request = Request()
    request.protocol.sent()
    for byte in UNSIZED + b"answer":
        request.protocol.dataReceived(bytes([byte]))
    assert request.events == ["began 200"]
    request.lose()
    assert request.events == ["began 200", "ended"]
    assert request.receiver.data == b"answer"


def test_an_answer_to_head() -> None:
    """It ends with its head, whatever follows."""
    request = Request(b"HEAD")
    request.protocol.dataReceived(HEAD + b"body")
    assert request.events == ["began 200", "ended"]
    assert request.receiver.data == b""


@pytest.mark.parametrize(
    ("data", "error", "kind"),
    [
        (b"", ConnectionDone(), NoAnswer),
        (b"", ConnectionLost(), NoAnswer),
        (b"HTTP", ConnectionDone(), ConnectionFailed),
        (HEAD + b"ans", ConnectionDone(), ConnectionFailed),
        (UNSIZED + b"answ", ConnectionLost(), ConnectionFailed),
    ],
)
def test_a_connection_that_ends_early(data: bytes, error: Exception, kind: type[UwsgiError]) -> None:
    """An answer that is not whole is an error; no answer at all is another one."""
    request = Request()
    if data:
        request.protocol.dataReceived(data)
    request.lose(error)
    assert request.events[-1] == "failed"
    assert type(request.receiver.error) is kind


def test_what_is_no_answer() -> None:
    """An answer that is not HTTP closes the connection."""
    request = Request()
    request.protocol.dataReceived(b"\x64\0\0\1....\r\n\r\n")
    assert request.transport.disconnected
    assert isinstance(request.receiver.error, MalformedAnswer)
    request.lose()
    request.protocol.dataReceived(b"more")
    assert request.events == ["failed"]


def test_the_body() -> None:
    """It goes as far as the transport takes it."""
    request = Request()
    request.protocol.send(b"one")
    request.transport.producer.pauseProducing()
    request.transport.producer.resumeProducing()
    assert request.events == ["not wanted", "wanted"]
    assert request.transport.value() == b"packetone"
    request.protocol.dataReceived(HEAD + b"answ")
    request.protocol.send(b"late")
    request.transport.producer.pauseProducing()
    request.transport.producer.stopProducing()
    assert request.events == ["not wanted", "wanted", "began 200", "ended"]
    assert request.transport.value() == b"packetone"


def test_back_pressure() -> None:
    """A receiver that takes no more makes the server wait, and the time doesn't run meanwhile."""
    request = Request()
    request.protocol.sent()
    request.protocol.dataReceived(HEAD + b"a")
    request.protocol.pauseProducing()
    assert request.transport.producerState == "paused"
    assert request.timers == []
    request.protocol.resumeProducing()
    assert request.transport.producerState == "producing"
    assert request.timers == [TIMEOUT]


def test_a_paused_connection_is_read_to_its_end() -> None:
    """A pause that comes with the last byte doesn't keep the server's close from being seen."""
    request = Request()
    request.receiver.answer_received = lambda data: request.protocol.pauseProducing()  # type: ignore[method-assign]
    request.protocol.dataReceived(HEAD + b"answ")
    assert request.events == ["began 200", "ended"]
    assert request.transport.producerState == "producing"


def test_the_time_of_the_server() -> None:
    """It runs while the server has to take some of the body, or to answer; each step starts it again."""
    request = Request(b"POST")
    assert request.timers == []  # the client has to send its body
    request.transport.producer.pauseProducing()
    assert request.timers == [TIMEOUT]
    request.transport.producer.resumeProducing()
    assert request.timers == []
    request.protocol.sent()
    request.clock.advance(TIMEOUT - 1)
    request.protocol.dataReceived(UNSIZED)
    request.clock.advance(TIMEOUT - 1)
    request.protocol.dataReceived(b"a")
    assert request.timers == [TIMEOUT]
    request.clock.advance(TIMEOUT)
    assert request.transport.disconnected
    assert isinstance(request.receiver.error, RequestTimeout)
    assert request.receiver.error.seconds == TIMEOUT


def test_a_receiver_that_leaves() -> None:
    """After an abort, nothing more happens."""
    request = Request()
    request.receiver.answer_began = lambda head: request.protocol.stopProducing()  # type: ignore[method-assign]
    request.protocol.dataReceived(HEAD + b"answ")
    assert request.transport.disconnected
    request.protocol.abort()
    request.lose()
    assert request.events == []
    assert request.receiver.data == b""
    assert request.timers == []


@pytest.mark.parametrize(
    ("answer", "events", "data"),
    [
        (HEAD + b"answ", ["began 200", "ended"], b"answ"),
        (HEAD + b"an", ["began 200", "failed"], b"an"),
        (UNSIZED + b"answ", ["began 200", "failed"], b"answ"),
        (b"", ["failed"], b""),
    ],
)
def test_an_answer_before_a_reset(answer: bytes, events: list[str], data: bytes) -> None:
    """An answer that has arrived is read, although the rest of the body can't be sent any more."""
    receiver = Receiver()
    protocol = WebProtocol(Clock(), b"packet", b"POST", receiver, TIMEOUT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport = Connection(socket.create_connection(listener.getsockname()), protocol, MemoryReactor())
        transport.connected = 1
        protocol.makeConnection(transport)  # type: ignore[no-untyped-call]
        with closing(listener.accept()[0]) as server:
            server.sendall(answer)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    error = transport.doWrite()
    assert isinstance(error, ConnectionLost)
    transport.connectionLost(Failure(error))
    assert receiver.events == events
    assert receiver.data == data


def test_a_server_that_sends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is not read for ever when it is lost, as when this process ends."""
    monkeypatch.setattr(web, "read_unread", lambda _: b"more")
    request = Request()
    request.protocol.dataReceived(UNSIZED)
    request.protocol.read_rest()
    assert 100 <= len(request.receiver.data) < 10_000
