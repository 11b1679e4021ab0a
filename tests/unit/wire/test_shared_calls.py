"""The frames of calls for shared state."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge
from uwsgitwisted.wire.calls import (
    FAILED,
    MAX_CALL,
    OK,
    Frame,
    FrameDecoder,
    decode_number,
    encode_frame,
    encode_number,
)

FRAMES = st.lists(
    st.builds(
        Frame,
        st.integers(0, 2**32 - 1),
        st.sampled_from([OK, FAILED]),
        st.lists(st.binary(max_size=50)).map(tuple),
    ),
    max_size=5,
)


@given(FRAMES, st.data())
def test_round_trip(frames: list[Frame], data: st.DataObject) -> None:
    """Frames come out as they went in, however their bytes are split."""
    stream = b"".join(encode_frame(*frame) for frame in frames)
    decoder = FrameDecoder()
    received = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += decoder.receive(stream[:size])
        stream = stream[size:]
    assert received == frames


@given(st.binary(max_size=200))
def test_junk(data: bytes) -> None:
    """Other bytes give our error, or wait for more."""
    decoder = FrameDecoder(1_000)
    with contextlib.suppress(MalformedPacket):
        decoder.receive(data)


def test_limits() -> None:
    """Neither side accepts a frame that is too large, and the receiver does not wait for its bytes."""
    with pytest.raises(MessageTooLarge):
        encode_frame(1, OK, [bytes(MAX_CALL)])
    head = encode_frame(1, OK, [bytes(MAX_CALL)], 2 * MAX_CALL)[:9]
    with pytest.raises(MalformedPacket, match="a frame of 1048580 bytes; 1048576 is the most"):
        FrameDecoder().receive(head)


@pytest.mark.parametrize("block", [b"\x01", b"\x05\0\0\0abc"])
def test_broken_items(block: bytes) -> None:
    """Items that don't end where their frame ends are refused."""
    with pytest.raises(MalformedPacket, match="a frame ends within"):
        FrameDecoder().receive(bytes([len(block), 0, 0, 0, 1, 0, 0, 0, 0]) + block)


@pytest.mark.parametrize("number", [0, -1, 2**63, -(2**63)])
def test_numbers(number: int) -> None:
    """Numbers of 64 bits are items."""
    assert decode_number(encode_number(number)) == number


@pytest.mark.parametrize("item", [b"", b"-", b"x", b"1.5", b"--1", b"1" * 21])
def test_no_numbers(item: bytes) -> None:
    """Other items are no numbers."""
    with pytest.raises(MalformedPacket):
        decode_number(item)
