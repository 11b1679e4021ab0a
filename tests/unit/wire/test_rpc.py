"""RPC: calls and their results in the three forms, and what uWSGI would do wrong with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, ProtocolError, UnencodableMessage
from uwsgitwisted.wire.array import encode_array
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.message import answer_encoder, decode_answer, encode_request
from uwsgitwisted.wire.packet import RPC, Packet
from uwsgitwisted.wire.rpc import (
    NO_RESULT,
    RPC_FRAMED,
    RPC_HTTP,
    RPC_RAW,
    FunctionCall,
    decode_call,
    encode_call,
    encode_plain,
    encode_result,
    read_result,
)
from uwsgitwisted.wire.vars import encode_vars

CALL = encode_array(["f", "a", "b"])


def http_request(path: str, **variables: str) -> Packet:
    """Return a web server's call."""
    return Packet(RPC, RPC_HTTP, encode_vars({"PATH_INFO": path, **variables}))


def test_request() -> None:
    """A call is the array block of the name and the arguments."""
    assert encode_request(RPC, 0, ("f", b"a", "b")) == Packet(RPC, 0, CALL)


@pytest.mark.parametrize("name", [b"", "", b"a\0b", "\xe9" * 128])
def test_names(name: bytes | str) -> None:
    """A name that uWSGI would cut, or write over its memory, is refused."""
    with pytest.raises(UnencodableMessage, match="can't be a function's name: it has 1 to 255 bytes"):
        encode_call([name, "x"])


def test_longest_name() -> None:
    """A name may have 255 bytes."""
    assert decode_call(Packet(RPC, 0, encode_call(["f" * 255]))).name == b"f" * 255


def test_no_name() -> None:
    """A call without a name is refused."""
    with pytest.raises(UnencodableMessage, match="without a function's name"):
        encode_call([])


def test_large_argument() -> None:
    """An argument over 65535 bytes is refused, not wrapped."""
    with pytest.raises(MessageTooLarge):
        encode_call(["f", bytes(65_536)])


@pytest.mark.parametrize("modifier2", [RPC_FRAMED, RPC_RAW])
def test_call(modifier2: int) -> None:
    """An array block is a name and arguments, of which any may be empty."""
    block = encode_array(["f", "a"]) + b"\0\0" + encode_array(["b"])
    assert decode_call(Packet(RPC, modifier2, block)) == FunctionCall(b"f", (b"a", b"", b"b"))


@pytest.mark.parametrize("path", ["/f/a/b", "f/a/b", "//f//a/b/"])
@pytest.mark.parametrize("body", [b"", b"body"])
def test_path(path: str, body: bytes) -> None:
    """So is a path, whatever the number of its slashes; a body behind the variables means nothing."""
    request = http_request(path, CONTENT_LENGTH=str(len(body)))
    assert decode_call(request._replace(payload=request.payload + body)) == (b"f", (b"a", b"b"))


@pytest.mark.parametrize(
    ("request_packet", "reason"),
    [
        (Packet(RPC, 0), "names no function"),
        (Packet(RPC, 0, b"\0\0\1\0x"), "names no function"),
        (Packet(RPC, 0, b"\xff\xff"), "announces 65535 bytes"),
        (http_request("/"), "names no function"),
        (Packet(RPC, RPC_HTTP), "names no function"),
        (Packet(RPC, RPC_HTTP, b"\xff"), "ends within a length"),
        (Packet(RPC, 3, CALL), "modifier2 3; known are 0, 1"),
    ],
)
def test_malformed(request_packet: Packet, reason: str) -> None:
    """Anything else is no call."""
    with pytest.raises(MalformedPacket, match=reason):
        decode_call(request_packet)


@pytest.mark.parametrize(("result", "data"), [(b"x", b"x"), ("\xe9", b"\xc3\xa9"), (b"", b""), ("", b"")])
@pytest.mark.parametrize("modifier2", [RPC_FRAMED, RPC_RAW])
def test_result(result: object, data: bytes, modifier2: int) -> None:
    """A result is bytes, or text as UTF-8."""
    answer = encode_result(Packet(RPC, modifier2, CALL), result)
    assert answer == Packet(RPC, modifier2, data)
    assert decode_answer(answer) == data


@pytest.mark.parametrize("modifier2", [RPC_FRAMED, RPC_RAW])
def test_no_result(modifier2: int) -> None:
    """None is told from an empty result."""
    answer = encode_result(Packet(RPC, modifier2, CALL), None)
    assert answer == Packet(RPC, NO_RESULT)
    assert decode_answer(answer) is None
    assert decode_answer(answer._replace(payload=b"x")) == b"x"


@pytest.mark.parametrize("result", [1, [b"x"], bytearray(b"x"), object()])
def test_other_results(result: object) -> None:
    """Any other result is refused by its type."""
    with pytest.raises(UnencodableMessage, match=f"returned {type(result).__name__}; it must return bytes"):
        encode_result(Packet(RPC, 0, CALL), result)


@pytest.mark.parametrize(
    ("variables", "head"),
    [
        ({}, "HTTP/1.0 200 OK|application/binary"),
        ({"SERVER_PROTOCOL": "HTTP/1.1"}, "HTTP/1.1 200 OK|application/binary"),
        ({"SERVER_PROTOCOL": "HTTP/1.1\r\nX: y"}, "HTTP/1.0 200 OK|application/binary"),
        ({"HTTP_ACCEPT": "*/*"}, "HTTP/1.0 200 OK|application/binary"),
        ({"HTTP_ACCEPT": "*"}, "HTTP/1.0 200 OK|application/binary"),
        ({"HTTP_ACCEPT": "text/html, */*"}, "HTTP/1.0 200 OK|text/html, */*"),
        ({"HTTP_ACCEPT": "text/html\r\nX: y"}, "HTTP/1.0 200 OK|application/binary"),
        ({"HTTP_ACCEPT": "text/html\n"}, "HTTP/1.0 200 OK|application/binary"),
    ],
)
def test_http_result(variables: dict[str, str], head: str) -> None:
    """A web server gets HTTP of the type that it accepts, into which it can put no line."""
    answer = encode_result(http_request("/f", **variables), b"abc")
    status, kind = head.split("|")
    assert answer.payload.decode() == f"{status}\r\nContent-Length: 3\r\nContent-Type: {kind}\r\n\r\nabc"


@pytest.mark.parametrize("result", [None, b"", ""])
def test_no_http_result(result: object) -> None:
    """An empty result is a 404, as in uWSGI."""
    assert encode_result(http_request("/f"), result).payload.startswith(b"HTTP/1.0 404 Not Found\r\n")


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 1 << 20])
def test_plain_answers(size: int) -> None:
    """A plain client reads an answer of any size."""
    exchange = PlainExchange(Packet(RPC, 0, CALL))
    data = encode_plain(Packet(RPC, 0, b"x" * size))
    assert data[:1] == b"\xad"
    assert data[3] == (5 if size > 65_535 else 0)
    exchange.receive(data)
    assert exchange.result() == b"x" * size


@pytest.mark.parametrize("answer", [Packet(RPC, 0), Packet(RPC, NO_RESULT)])
def test_empty_plain_answers(answer: Packet) -> None:
    """In plain uwsgi an empty result is the end of the connection."""
    assert encode_plain(answer) == b""


def test_encoders() -> None:
    """Which form an answer has is decided by the request."""
    large = Packet(RPC, 0, bytes(65_536))
    assert answer_encoder(RPC, RPC_RAW)(large) == answer_encoder(RPC, RPC_HTTP)(large) == large.payload
    assert answer_encoder(RPC, RPC_FRAMED)(large) == encode_plain(large)
    with pytest.raises(MessageTooLarge):
        answer_encoder(33, 0)(large)


def test_read_result() -> None:
    """Bytes and None are results; an answer of another kind is not."""
    assert read_result(b"x") == b"x"
    assert read_result(None) is None
    with pytest.raises(ProtocolError, match="here: the server's answer is not one to an RPC"):
        read_result([1], "here")


@given(st.lists(st.binary(min_size=1, max_size=300).filter(lambda item: b"\0" not in item), min_size=1))
def test_round_trip(items: list[bytes]) -> None:
    """Decoding reverses encoding."""
    items[0] = items[0][:255]
    name, arguments = decode_call(Packet(RPC, 0, encode_call(items)))
    assert [name, *arguments] == items
