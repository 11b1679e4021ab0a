"""One plain request on a connection of its own."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from tests.unit.transports import Link, ScriptedServer
from uwsgitwisted.errors import ConnectionBroken, ConnectionFailed, MalformedPacket, NoAnswer, UwsgiError
from uwsgitwisted.transport.client.plain import PlainProtocol
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.packet import ECHO, RPC, Packet, encode_packet

ASK = Packet(33, 5, b"ask")
TOLD = encode_packet(Packet(33, 5, b"told"))


def ask(server: Protocol, packet: Packet = ASK) -> tuple[PlainProtocol, list[object], Link]:
    """Send *packet* to *server*; what became of it is put in the list that is returned."""
    protocol = PlainProtocol(PlainExchange(packet))
    results: list[object] = []
    protocol.finished.addBoth(results.append)
    link = Link(protocol, server)
    link.flush()
    return protocol, results, link


def error(results: list[object]) -> BaseException | None:
    [failure] = results
    assert isinstance(failure, Failure)
    return failure.value


def test_answer() -> None:
    """The request goes out, and the answer ends the connection, also if the server keeps it open."""
    server = ScriptedServer(TOLD, close=False)
    protocol, results, link = ask(server)
    assert server.received == encode_packet(ASK)
    [exchange] = results
    assert isinstance(exchange, PlainExchange)
    assert exchange.answer == Packet(33, 5, b"told")
    assert server.lost
    assert protocol.lost.called
    assert link.client.nodelay


def test_raw_answer() -> None:
    """An answer without a header ends with the connection."""
    _, results, _ = ask(ScriptedServer(b"ask"), Packet(ECHO, 0, b"ask"))
    assert results[0].answer == Packet(ECHO, 0, b"ask")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (ScriptedServer(), NoAnswer),
        (ScriptedServer(TOLD[:5]), ConnectionBroken),
    ],
)
def test_eof(server: ScriptedServer, expected: type[UwsgiError]) -> None:
    """A connection that ends before the answer does is an error."""
    _, results, _ = ask(server)
    assert type(error(results)) is expected


def test_broken_connection() -> None:
    """A connection that breaks is an error, even if what came could be a whole answer without a header."""
    server = ScriptedServer(b"half an answ", close=False)
    protocol, results, link = ask(server, Packet(ECHO, 0, b"half an answer"))
    assert results == []
    link.cut()
    assert type(error(results)) is ConnectionBroken
    assert protocol.lost.called


def test_malformed_answer() -> None:
    """An answer that can't be read is an error, and the connection is closed."""
    server = ScriptedServer(encode_packet(Packet(RPC, 5, b"\xff\xff")), close=False)
    _, results, _ = ask(server, Packet(RPC, 0, b""))
    assert type(error(results)) is MalformedPacket
    assert server.lost


def test_cancel() -> None:
    """Cancelling closes the connection."""
    server = ScriptedServer(close=False)
    protocol, results, link = ask(server)
    protocol.finished.cancel()
    link.flush()
    assert isinstance(error(results), CancelledError)
    assert server.lost


def test_close() -> None:
    """A client that is closed gives up its request."""
    server = ScriptedServer(close=False)
    protocol, results, link = ask(server)
    protocol.close()
    link.flush()
    assert type(error(results)) is ConnectionFailed
    assert server.lost
    assert isinstance(protocol.lost, Deferred)
    assert protocol.lost.called
