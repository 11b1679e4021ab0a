"""Answers that a script reads as they arrive, from a real server on loopback that follows a script."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.blocking.test_calls_tls import KEY, NODE
from tests.unit.servers import (
    ENOUGH,
    ScriptedServer,
    answering,
    frame,
    nothing_left_open,  # noqa: F401 - a fixture
    outside_the_reactor,  # noqa: F401 - a fixture
    plain_peers,  # noqa: F401 - a fixture
)
from tests.unit.speaking import Speaker, SpeakingServer
from uwsgitwisted import blocking
from uwsgitwisted.blocking import sessions
from uwsgitwisted.blocking.streams import AnswerStream
from uwsgitwisted.errors import (
    Busy,
    ConnectionBroken,
    MessageTooLarge,
    MisuseError,
    ProtocolError,
    RequestCancelled,
    RequestTimeout,
    Unavailable,
    UwsgiError,
    WorkerDied,
)
from uwsgitwisted.wire.events import RequestReceived, WindowGranted
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import ECHO, MARSHAL, Packet
from uwsgitwisted.wire.terms import STREAM_WINDOW, Terms

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("outside_the_reactor", "nothing_left_open")]


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing that other tests have learned about a port count here."""
    monkeypatch.setattr(sessions, "_plain_until", {})
    monkeypatch.setattr(sessions, "_ours_until", {})


def begin(speaker: Speaker, head: bytes = b"head ") -> RequestReceived:
    """Begin to answer the next request with a stream."""
    request = speaker.next()
    speaker.session.send_streamed_answer(request.id, Packet(MARSHAL, 3, head))
    speaker.flush()
    return request


def write(speaker: Speaker, data: bytes) -> None:
    speaker.session.streams.send(1, data)
    speaker.flush()


def end(speaker: Speaker) -> None:
    speaker.session.streams.send_end(1)
    speaker.flush()


def read_to_end(speaker: Speaker) -> None:
    """Read until the client closes."""
    with contextlib.suppress(OSError):
        while speaker.connection.recv(65_536):
            pass


def ask(server: ScriptedServer, timeout: float = 10) -> AnswerStream:
    return blocking.stream(server.address, MARSHAL, 0, "page", timeout)


def failure(answer: AnswerStream) -> UwsgiError:
    """Read to the error that the answer ends with."""
    with pytest.raises(UwsgiError) as caught:
        list(answer)
    with pytest.raises(type(caught.value)):  # it is no end afterwards either
        answer.read()
    return caught.value


def test_as_it_comes() -> None:
    """The parts arrive while the server has more to send; other calls go on meanwhile."""
    go_on = threading.Event()

    def script(speaker: Speaker) -> None:
        begin(speaker)
        write(speaker, b"one")
        assert go_on.wait(10)
        write(speaker, b"two")
        end(speaker)

    def echo(speaker: Speaker) -> None:
        speaker.answer(speaker.next(), speaker.asked[-1])

    with SpeakingServer(script, echo) as server, ask(server) as answer:
        assert (answer.modifier1, answer.modifier2) == (MARSHAL, 3)
        assert answer.read() == b"head "
        assert answer.read() == b"one"
        assert blocking.send_message(server.address, MARSHAL, 0, "other", 10) == "other"
        go_on.set()
        assert list(answer) == [b"two"]
        assert answer.read() == b""
        assert server.sessions == [["page"], ["other"]]
        blocking.close()


@pytest.mark.parametrize("secured", [False, True], ids=["tcp", "tls"])
def test_window(secured: bool) -> None:
    """The server sends no more ahead than a window; what is read lets it go on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if secured else None
    if context is not None:
        context.load_cert_chain(NODE, KEY)
    content = bytes(range(256)) * 8_000
    ahead: list[int] = []

    def script(speaker: Speaker) -> None:
        begin(speaker, b"")
        sent = 0
        while sent < len(content):
            size = min(speaker.session.streams.credit(1), len(content) - sent)
            ahead.append(size)
            write(speaker, content[sent : sent + size])
            sent += size
            while sent < len(content) and not speaker.session.streams.credit(1):
                events = speaker.session.receive(speaker.connection.recv(65_536))
                assert set(events) <= {WindowGranted(1)}
        end(speaker)
        read_to_end(speaker)  # closing before that would reset the connection

    with SpeakingServer(script, context=context) as server:
        address = f"tls:localhost:{server.port}:trustRoots={NODE.parent}" if secured else server.address
        assert b"".join(blocking.stream(address, MARSHAL, 0, "page", 10)) == content
    assert max(ahead) == STREAM_WINDOW


@pytest.mark.parametrize("message", ["", "whole"])
def test_whole(message: str) -> None:
    """An answer that is no stream is one part."""

    def script(speaker: Speaker) -> None:
        speaker.answer(speaker.next(), message)

    with SpeakingServer(script) as server:
        assert list(ask(server)) == [dumps(message)]


@pytest.mark.parametrize("payload", [b"", b"plain"])
@pytest.mark.usefixtures("plain_peers")
def test_plain_server(payload: bytes) -> None:
    """So is that of a server that grants no session."""
    with ScriptedServer(answering(frame(MARSHAL, 0, payload))) as server:
        assert list(ask(server)) == ([payload] if payload else [])


def test_failure() -> None:
    """The server's error is raised behind the parts that came before it, and has the address."""

    def script(speaker: Speaker) -> None:
        request = begin(speaker)
        write(speaker, b"part")
        speaker.fail(request, WorkerDied("killed"))
        speaker.peer.stopping.wait(10)

    with SpeakingServer(script) as server:
        answer = ask(server)
        assert answer.read() + answer.read() == b"head part"
        error = failure(answer)
        assert isinstance(error, WorkerDied)
        assert error.address == server.address


def test_failure_before_the_answer() -> None:
    """A request that fails has no answer."""

    def script(speaker: Speaker) -> None:
        speaker.fail(speaker.next(), Busy("full"))

    with SpeakingServer(script) as server, pytest.raises(Busy):
        ask(server)


def test_lost_connection() -> None:
    """A connection that ends in the middle is an error there, never the end of the answer."""

    def script(speaker: Speaker) -> None:
        begin(speaker)
        write(speaker, b"part")

    with SpeakingServer(script) as server:
        answer = ask(server)
        assert answer.read() + answer.read() == b"head part"
        assert isinstance(failure(answer), ConnectionBroken)


def test_violation() -> None:
    """So is one whose server breaks the rules."""

    def script(speaker: Speaker) -> None:
        begin(speaker)
        speaker.connection.sendall(frame(34, 10, bytes(4)))  # a piece without a byte
        speaker.peer.stopping.wait(10)

    with SpeakingServer(script) as server, pytest.raises(ProtocolError):
        list(ask(server))


def test_second_answer() -> None:
    """A whole answer in the middle of a streamed one is not its end."""

    def script(speaker: Speaker) -> None:
        request = begin(speaker)
        speaker.answer(request, "whole")
        read_to_end(speaker)

    with SpeakingServer(script) as server:
        assert isinstance(failure(ask(server)), ProtocolError)


def test_timeout() -> None:
    """A part that doesn't come in time ends the answer."""

    def script(speaker: Speaker) -> None:
        begin(speaker)
        assert not speaker.connection.recv(1)
        speaker.note_done()

    with SpeakingServer(script) as server:
        assert isinstance(failure(ask(server, ENOUGH)), RequestTimeout)
        assert server.done.wait(10)


def test_frozen_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers no ping has hung, however long a part may take."""
    monkeypatch.setattr(sessions, "KEEPALIVE", ENOUGH)

    def script(speaker: Speaker) -> None:
        begin(speaker)
        speaker.peer.stopping.wait(10)

    with SpeakingServer(script) as server:
        error = failure(ask(server, 60))
    assert isinstance(error, ConnectionBroken)
    assert "in the middle of the answer" in str(error)


@pytest.mark.parametrize("way", ["with", "close"])
def test_left_early(way: str) -> None:
    """Leaving it tells the server that nobody wants the rest."""

    def script(speaker: Speaker) -> None:
        begin(speaker)
        write(speaker, bytes(STREAM_WINDOW))
        read_to_end(speaker)
        speaker.note_done()

    with SpeakingServer(script) as server:
        if way == "with":
            with ask(server) as answer:
                for _ in answer:
                    break
        else:
            answer = ask(server)
            answer.close()
        with pytest.raises(RequestCancelled):
            answer.read()
        assert server.done.wait(10)


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a signal handler, say, ends it, and what follows is not taken for its end."""

    def script(speaker: Speaker) -> None:
        begin(speaker, b"")
        assert not speaker.connection.recv(1)

    def interrupt(*_: object) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    with SpeakingServer(script) as server:
        answer = ask(server)
        monkeypatch.setattr(sessions.CachedSession, "_receive_or_ping", interrupt)
        with pytest.raises(KeyboardInterrupt):
            answer.read()
        with pytest.raises(RequestCancelled):
            answer.read()


def test_raced_with_a_shutdown() -> None:
    """A request that the server has refused because it drains is sent again."""

    def drain(speaker: Speaker) -> None:
        request = speaker.next()
        speaker.session.send_shutdown()
        speaker.fail(request, Unavailable("stopping"))

    def script(speaker: Speaker) -> None:
        begin(speaker)
        speaker.announce_shutdown()
        end(speaker)

    with SpeakingServer(drain, script) as server:
        assert list(ask(server)) == [b"head "]


def test_too_large() -> None:
    """A message that the server doesn't accept is refused, and nothing stays open."""
    with SpeakingServer(terms=Terms(max_message=2)) as server, pytest.raises(MessageTooLarge):
        blocking.stream(server.address, ECHO, 0, b"abc", 10)


def test_misuse() -> None:
    """A message that can't be encoded is refused before anything is sent."""
    with pytest.raises(MisuseError):
        blocking.stream(("127.0.0.1", 1), ECHO, 0, 17)
