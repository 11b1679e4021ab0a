"""Messages and answers by modifier, and the plain exchange that carries them."""

from __future__ import annotations

import itertools
import marshal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.servers import frame
from uwsgitwisted.errors import (
    ConnectionFailed,
    MalformedPacket,
    MessageTooLarge,
    MisuseError,
    NoAnswer,
    PacketTooLarge,
    UnencodableMessage,
    UnsafeObject,
)
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.message import answers_raw, decode_answer, encode_request, needs_session
from uwsgitwisted.wire.packet import SPOOL, Packet
from uwsgitwisted.wire.tasks import TaskMessage
from uwsgitwisted.wire.vars import encode_vars

VARS = b"\x01\x00k\x01\x00v"


@pytest.mark.parametrize(
    ("modifier1", "message", "payload"),
    [
        (33, ("a.txt", {"n": [1, 2]}), marshal.dumps(("a.txt", {"n": [1, 2]}), 2)),
        (33, b"bytes", marshal.dumps(b"bytes", 2)),
        (17, {"k": "v"}, VARS),
        (17, VARS, VARS),
        (17, TaskMessage({"k": "v"}), VARS),
        (17, TaskMessage({b"k": b"v"}, b"body"), b"\x0e\x00CONTENT_LENGTH\x01\x004" + VARS + b"body"),
        (0, {"k": b"v"}, VARS),
        (30, b"raw", b"raw"),
        (7, "text é", "text é".encode()),
        (7, [1], marshal.dumps([1], 2)),
        (7, None, marshal.dumps(None, 2)),
        (100, None, b""),
        (101, b"hello", b"hello"),
        (173, ["f", b"x"], b"\x01\x00f\x01\x00x"),
        (173, ("f",), b"\x01\x00f"),
        (173, {"k": "v"}, VARS),
        (173, b"\x01\x00f", b"\x01\x00f"),
    ],
)
def test_how_messages_travel(modifier1: int, message: object, payload: bytes) -> None:
    """Each modifier1 has its own way to carry a message."""
    assert encode_request(modifier1, 5, message) == Packet(modifier1, 5, payload)


@pytest.mark.parametrize(
    ("modifier1", "message", "reason"),
    [
        (17, ["no", "dict"], "a task is a dict, not list"),
        (17, b"\xff", "must be a vars block: the block ends within a length"),
        (17, {"": "v"}, "an empty key"),
        (17, TaskMessage({"": "v"}), "an empty key"),
        (17, TaskMessage({"k": "v"}, "text"), "its body bytes, not dict and str"),  # type: ignore[arg-type]
        (17, TaskMessage(VARS), "a task is a dict, and its body bytes, not bytes and bytes"),  # type: ignore[arg-type]
        (17, TaskMessage({"CONTENT_LENGTH": "4"}, b"body"), "CONTENT_LENGTH is reserved for the size"),
        (33, object(), "object"),
        (7, "\ud800", "no UTF-8 form"),
        (100, "text", "takes bytes or None, not str"),
        (173, "f", "a list of the function's name"),
        (173, ["f", ""], "item 1 is empty"),
    ],
)
def test_what_can_not_travel(modifier1: int, message: object, reason: str) -> None:
    """A message that doesn't fit its modifier1 is refused with the reason."""
    with pytest.raises(UnencodableMessage, match=reason):
        encode_request(modifier1, 0, message)


@pytest.mark.parametrize("modifiers", [(256, 0), (-1, 0), (33, 256), (33, -1), (33, "17"), (33, True)])
def test_modifiers_are_bytes(modifiers: tuple[int, int]) -> None:
    """A modifier that is not a number from 0 to 255 is refused."""
    with pytest.raises(MisuseError, match="is one byte, 0 to 255"):
        encode_request(*modifiers, {})


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (Packet(255, 1), True),
        (Packet(255, 0), False),
        (Packet(255, 1, b"1"), 1),
        (Packet(255, 1, b"9223372036854775807"), 2**63 - 1),
        # What is no id is left alone, as it always was.
        (Packet(255, 0, b"1"), False),
        (Packet(255, 1, b"0"), True),
        (Packet(255, 1, b"-1"), True),
        (Packet(255, 1, b"1\n"), True),
        (Packet(255, 1, b"9" * 20), True),
        (Packet(255, 1, b"\xb2"), True),
        (Packet(33, 9, marshal.dumps([1], 2)), [1]),
        (Packet(173, 0, b"x"), b"x"),
        (Packet(100, 1), b""),
    ],
)
def test_what_answers_mean(answer: Packet, value: object) -> None:
    """255 means yes or no, 33 an object, anything else its bytes."""
    assert decode_answer(answer) == value
    assert type(decode_answer(answer)) is type(value)


def test_an_unsafe_answer() -> None:
    """An answer that is not plain marshalled data is not loaded."""
    with pytest.raises(UnsafeObject):
        decode_answer(Packet(33, 0, b"junk"))


@pytest.mark.parametrize("size", [65_531, 70_000])
def test_a_large_task(size: int) -> None:
    """A task's variables fit one packet, as a spool file has it; its body may be larger."""
    assert len(encode_request(17, 2, TaskMessage({}, bytes(size))).payload) == size + 4 + 14 + 5
    with pytest.raises(MessageTooLarge, match="Put large data in the body") as caught:
        encode_request(17, 2, TaskMessage({"k": bytes(33_000), "l": bytes(33_000)}))
    assert caught.value.limit == 65_535


@pytest.mark.parametrize(
    ("packet", "needed"),
    [
        (encode_request(17, 2, TaskMessage({"k": "v"}, b"body")), True),
        (encode_request(17, 2, TaskMessage({"k": "v"})), False),
        (encode_request(17, 0, {"CONTENT_LENGTH": "v"}), False),
        (encode_request(33, 2, b""), False),
    ],
)
def test_what_needs_a_session(packet: Packet, needed: bool) -> None:
    """A task with a body must not go to a spooler that would take the body for something else."""
    assert needs_session(packet) is needed


def test_which_answers_are_raw() -> None:
    """Web answers, echoes and the two RPC kinds that are made for it have no header."""
    raw = {(one, two) for one in range(256) for two in range(4) if answers_raw(one, two)}
    expected = {(one, two) for one in (0, 30, 101) for two in range(4)} | {(173, 1), (173, 2)}
    assert raw == expected


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut *data* at *places*."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


LONG = b"x" * 70000
LONG_ANSWER = frame(173, 5, b"\x0e\x00CONTENT_LENGTH\x05\x0070000") + LONG

EXCHANGES = [
    (Packet(33, 5), frame(33, 5, marshal.dumps([1], 2)), [1], False),
    (Packet(17, 0, VARS), frame(255, 1), True, False),
    (Packet(173, 0, VARS), frame(173, 0, b"x"), b"x", False),
    (Packet(173, 0, VARS), LONG_ANSWER, LONG, False),
    (Packet(101, 0, b"hi"), b"hi", b"hi", True),
    (Packet(0, 0, VARS), b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n", True),
    (Packet(173, 1, VARS), b"raw", b"raw", True),
]


# Sampled, not parametrized: pytest-twisted and Hypothesis don't get on with both at one test.
@given(
    case=st.sampled_from(EXCHANGES),
    tail=st.sampled_from([b"", b"tail"]),
    places=st.lists(st.integers(0, 80000), max_size=5),
)
def test_exchange(case: tuple[Packet, bytes, object, bool], tail: bytes, places: list[int]) -> None:
    """However the answer is cut, the exchange ends with it, and ignores what follows a framed one."""
    request_packet, data, result, ended_by_eof = case
    exchange = PlainExchange(request_packet)
    assert exchange.outgoing == frame(*request_packet)
    for piece in cut(data, places):
        assert not exchange.done
        exchange.receive(piece)
        assert exchange.begun
    assert exchange.done is not ended_by_eof
    if exchange.done:
        exchange.receive(tail)
    exchange.receive_eof()
    assert exchange.done
    assert exchange.result() == result


@pytest.mark.parametrize(("request_packet", "data", "result", "ended_by_eof"), EXCHANGES)
def test_exchange_byte_by_byte(request_packet: Packet, data: bytes, result: object, ended_by_eof: bool) -> None:
    """An answer that comes byte by byte is the same answer, and a framed one ends with its last byte."""
    exchange = PlainExchange(request_packet)
    for place in range(len(data)):
        assert not exchange.done
        exchange.receive(data[place : place + 1])
    assert exchange.done is not ended_by_eof
    exchange.receive_eof()
    assert exchange.result() == result


@pytest.mark.parametrize(
    "tail", [frame(33, 0, b"N")[:-1], frame(33, 0)[:3], LONG_ANSWER[:-1], LONG_ANSWER[: -len(LONG)]]
)
def test_an_answer_that_breaks_off(tail: bytes) -> None:
    """An answer that ends early is a broken connection, not an answer and not the lack of one."""
    exchange = PlainExchange(Packet(173, 0))
    exchange.receive(tail)
    with pytest.raises(ConnectionFailed, match="in the middle of the answer") as caught:
        exchange.receive_eof()
    assert not isinstance(caught.value, NoAnswer)


@pytest.mark.parametrize("request_packet", [Packet(33, 0), Packet(0, 0), Packet(101, 0, b"x"), Packet(173, 1)])
def test_no_answer(request_packet: Packet) -> None:
    """A connection that ends without a byte is how plain uwsgi reports a failure."""
    exchange = PlainExchange(request_packet)
    assert not exchange.begun
    with pytest.raises(NoAnswer, match="the server's log says why"):
        exchange.receive_eof()


def test_nothing_echoed() -> None:
    """The echo of nothing is nothing, not a failure."""
    exchange = PlainExchange(Packet(101, 0))
    exchange.receive_eof()
    assert exchange.result() == b""


def test_raw_answers_are_bounded() -> None:
    """A raw answer over the limit is given up when it gets there, and one of just that size is not."""
    exchange = PlainExchange(Packet(0, 0), limit=10)
    exchange.receive(b"x" * 10)
    with pytest.raises(PacketTooLarge, match="10 are accepted") as caught:
        exchange.receive(b"x")
    assert (caught.value.size, caught.value.limit) == (11, 10)


def test_long_answers_are_bounded() -> None:
    """A long answer over the limit is given up when it is announced."""
    exchange = PlainExchange(Packet(173, 0), limit=69999)
    with pytest.raises(PacketTooLarge, match="70000 bytes, 69999 are accepted"):
        exchange.receive(LONG_ANSWER[: -len(LONG)])


@pytest.mark.parametrize("size", [b"", b"-5", b"1e5", b"9" * 21])
def test_a_long_answer_of_no_size(size: bytes) -> None:
    """A long answer whose size can't be read is malformed."""
    exchange = PlainExchange(Packet(173, 0))
    block = b"\x0e\x00CONTENT_LENGTH" + len(size).to_bytes(2, "little") + size
    with pytest.raises(MalformedPacket, match="CONTENT_LENGTH"):
        exchange.receive(frame(173, 5, block))


def test_modifier2_5_is_only_special_in_rpc() -> None:
    """An object that comes back with the request's own modifier2 of 5 is an ordinary answer."""
    exchange = PlainExchange(Packet(33, 5))
    exchange.receive(frame(33, 5, b"N"))
    assert exchange.result() is None


def test_a_request_too_large_for_plain_uwsgi() -> None:
    """A request over 65535 bytes is refused before there is anything to send."""
    assert len(PlainExchange(Packet(33, 0, b"x" * 65535)).outgoing) == 65539
    with pytest.raises(MessageTooLarge):
        PlainExchange(Packet(33, 0, b"x" * 65536))


@pytest.mark.parametrize("task", [{"x": "x" * 65_535}, encode_vars({"x": "x" * 65_535})])
def test_task_of_too_many_variables(task: object) -> None:
    """A task whose variables fit no packet is refused; the error says where large data goes."""
    with pytest.raises(MessageTooLarge, match="put large data in the body") as raised:
        encode_request(SPOOL, 0, task)
    assert (raised.value.size, raised.value.limit) == (65_540, 65_535)
    fits = encode_request(SPOOL, 0, {"x": "x" * 65_530})
    assert len(fits.payload) == 65_535
