"""The vars block: what goes in comes out, and broken lengths are found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, UnencodableMessage
from uwsgitwisted.wire.vars import (
    body_size,
    decode_items,
    decode_vars,
    encode_item,
    encode_vars,
    may_announce_body,
    split_vars,
    to_bytes,
)

BLOCK = b"\x03\x00key\x05\x00value\x05\x00empty\x00\x00"


class TestToBytes:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (b"\xff\x00", b"\xff\x00"),
            ("caf\xe9", b"caf\xc3\xa9"),
            (17, b"17"),
            (-1, b"-1"),
            (1.5, b"1.5"),
            ("", b""),
        ],
    )
    def test_value(self, value: bytes | str | float, expected: bytes) -> None:
        """Bytes stay, text becomes UTF-8, and numbers their digits."""
        assert to_bytes(value) == expected

    @pytest.mark.parametrize("value", [None, [], bytearray(b"x"), 1j])
    def test_other_types(self, value: object) -> None:
        """Anything else is refused by the name of its type."""
        with pytest.raises(UnencodableMessage, match=f"of type {type(value).__name__}"):
            to_bytes(value)  # type: ignore[arg-type]

    def test_lone_surrogate(self) -> None:
        """Text without a UTF-8 form is refused."""
        with pytest.raises(UnencodableMessage, match="no UTF-8 form"):
            to_bytes("\ud800")


class TestItems:
    def test_largest(self) -> None:
        """An item may have 65535 bytes."""
        assert decode_items(encode_item(b"x" * 65535)) == [b"x" * 65535]

    def test_too_large(self) -> None:
        """One byte more is refused with its size, not wrapped."""
        with pytest.raises(MessageTooLarge) as caught:
            encode_item(bytes(65536))
        assert (caught.value.size, caught.value.limit) == (65536, 65535)

    @given(st.lists(st.binary(max_size=300)))
    def test_round_trip(self, items: list[bytes]) -> None:
        """Decoding reverses encoding."""
        assert decode_items(b"".join(map(encode_item, items))) == items

    @given(st.binary(max_size=200))
    def test_junk(self, junk: bytes) -> None:
        """Junk is either exactly a row of items or our error."""
        try:
            items = decode_items(junk)
        except MalformedPacket:
            return
        assert b"".join(map(encode_item, items)) == junk


class TestEncode:
    def test_bytes(self) -> None:
        """A block is each key and value behind its length, in order."""
        assert encode_vars({"key": "value", b"empty": b""}) == BLOCK

    def test_pairs(self) -> None:
        """Pairs do as well as a mapping, and may repeat a key."""
        assert encode_vars([("k", 1), ("k", 2)]) == b"\x01\x00k\x01\x001\x01\x00k\x01\x002"

    def test_empty_key(self) -> None:
        """An empty key is refused, as uWSGI would."""
        with pytest.raises(UnencodableMessage, match="empty key"):
            encode_vars({"": "value"})

    @pytest.mark.parametrize("pair", [("k" * 65536, "v"), ("k", "v" * 65536)])
    def test_too_large(self, pair: tuple[str, str]) -> None:
        """A key or a value over 65535 bytes is refused."""
        with pytest.raises(MessageTooLarge):
            encode_vars([pair])


class TestDecode:
    def test_bytes(self) -> None:
        """Keys and values come out as bytes."""
        assert decode_vars(BLOCK) == {b"key": b"value", b"empty": b""}

    def test_no_variables(self) -> None:
        """An empty block has none."""
        assert decode_vars(b"") == {}

    def test_last_of_a_repeated_key(self) -> None:
        """Of a key that stands there twice the last value counts."""
        assert decode_vars(encode_vars([("k", 1), ("j", 0), ("k", 2)])) == {b"k": b"2", b"j": b"0"}

    def test_empty_key(self) -> None:
        """A key of length 0 is refused."""
        with pytest.raises(MalformedPacket, match="length 0"):
            decode_vars(b"\x00\x00\x01\x00v")

    @pytest.mark.parametrize("size", [size for size in range(1, len(BLOCK)) if size != 12])
    def test_cut(self, size: int) -> None:
        """A block cut anywhere but after a value is refused."""
        with pytest.raises(MalformedPacket):
            decode_vars(BLOCK[:size])

    @pytest.mark.parametrize(
        ("tail", "text"),
        [
            (b"\x01", "ends within a length"),
            (b"\x02\x00x", "announces 2 bytes where 1 are left"),
            (b"\x01\x00x", "has no value"),
        ],
    )
    def test_tail(self, tail: bytes, text: str) -> None:
        """Trailing bytes are refused with the reason."""
        with pytest.raises(MalformedPacket, match=text):
            decode_vars(BLOCK + tail)

    @given(st.dictionaries(st.binary(min_size=1, max_size=50), st.binary(max_size=300)))
    def test_round_trip(self, variables: dict[bytes, bytes]) -> None:
        """Decoding reverses encoding, and keeps the order."""
        assert list(decode_vars(encode_vars(list(variables.items()))).items()) == list(variables.items())

    @given(st.binary(max_size=100))
    def test_junk(self, junk: bytes) -> None:
        """Junk gives variables with names, or our error."""
        try:
            variables = decode_vars(junk)
        except MalformedPacket:
            return
        assert all(variables)


SIZE = encode_vars({"CONTENT_LENGTH": 3})
OTHER = encode_vars({"to": "ann"})


class TestBodySize:
    @pytest.mark.parametrize(
        ("variables", "size"),
        [
            ({}, 0),
            ({"to": "ann"}, 0),
            ({"CONTENT_LENGTH": ""}, 0),
            ({"CONTENT_LENGTH": "0"}, 0),
            ({"CONTENT_LENGTH": "007"}, 7),
            ({"CONTENT_LENGTH": "9" * 20}, 10**20 - 1),
            ({"content_length": "5"}, 0),
        ],
    )
    def test_size(self, variables: dict[str, str], size: int) -> None:
        """The size is the number under CONTENT_LENGTH, and none if that is absent or empty."""
        assert body_size(encode_vars(variables)) == size

    @pytest.mark.parametrize("value", ["-1", "+1", " 1", "1_0", "0x1", "1.0", "\u0661", "9" * 21])
    def test_no_number(self, value: str) -> None:
        """Both functions refuse anything but decimal digits, without parsing it."""
        block = encode_vars({"CONTENT_LENGTH": value})
        for function in (body_size, split_vars):
            with pytest.raises(MalformedPacket, match="must be a number of bytes"):
                function(block)

    def test_no_block(self) -> None:
        """Where there is no vars block there is no size."""
        with pytest.raises(MalformedPacket):
            body_size(SIZE + b"abc")


class TestSplit:
    @pytest.mark.parametrize(
        ("block", "body", "missing"),
        [
            (b"", b"", 0),
            (OTHER, b"", 0),
            (SIZE, b"abc", 0),
            (SIZE + OTHER, b"abc", 0),
            (OTHER + SIZE, b"abc", 0),
            (SIZE, b"", 3),
            (OTHER + SIZE + OTHER, b"", 3),
            (encode_vars({"CONTENT_LENGTH": 0, "a": "b"}), b"", 0),
            (encode_vars({"CONTENT_LENGTH": "", "a": "b"}), b"", 0),
            (encode_vars({"CONTENT_LENGTH": len(OTHER), "a": "b"}), OTHER, 0),
            (encode_vars({"CONTENT_LENGTH": len(SIZE)}), SIZE, 0),
            (encode_vars({"XONTENT_LENGTH": 3, "a": "CONTENT_LENGTH"}), b"", 0),
            (encode_vars({"CONTENT_LENGTHS": 3, "CONTENT_LENGT": 3}), b"", 0),
        ],
    )
    def test_split(self, block: bytes, body: bytes, missing: int) -> None:
        """The body follows the block, whatever it looks like and wherever its size is."""
        assert split_vars(block + body) == (block, body, missing)

    @pytest.mark.parametrize(
        ("message", "text"),
        [
            (SIZE + OTHER + SIZE + b"abc", "occurs twice in the vars block"),
            (SIZE + SIZE, "occurs twice in the vars block"),
            (SIZE + b"ab", "ends within a key"),
            (SIZE + b"a", "ends within a length"),
            (SIZE + b"abcd", "ends within a key"),
            (OTHER + b"abc", "ends within a key"),
            (b"\x01\x00k\x01\x00", "announces 1 bytes where 0 are left"),
            (b"\x01\x00k", "length of its value"),
        ],
    )
    def test_no_split(self, message: bytes, text: str) -> None:
        """A message that ends elsewhere than its lengths say is refused, as is one with two sizes."""
        with pytest.raises(MalformedPacket, match=text):
            split_vars(message)

    @pytest.mark.parametrize(("room", "fits"), [(0, True), (1, False)])
    def test_largest_block(self, room: int, fits: bool) -> None:
        """A block may have 65535 bytes and not one more, so that no more is ever walked."""
        value = b"x" * (65_535 - len(SIZE) - 5 + room)
        block = SIZE + encode_vars({"k": value})
        assert len(block) == 65_535 + room
        if fits:
            assert split_vars(block + b"abc") == (block, b"abc", 0)
        else:
            with pytest.raises(MessageTooLarge) as caught:
                split_vars(block + b"abc")
            assert (caught.value.size, caught.value.limit) == (65_536, 65_535)

    @given(
        st.dictionaries(st.text(min_size=1, max_size=20), st.binary(max_size=50)),
        st.binary(max_size=200),
        st.integers(0, 20),
    )
    def test_round_trip(self, variables: dict[str, bytes], body: bytes, place: int) -> None:
        """Wherever among the variables the size stands, the cut is behind the last of them."""
        pairs: list[tuple[str | int, bytes | int]] = [*variables.items()]
        pairs.insert(place, ("CONTENT_LENGTH", len(body)))
        block = encode_vars(pairs)
        assert split_vars(block + body) == (block, body, 0)

    @given(st.binary(max_size=60), st.binary(max_size=60))
    def test_junk(self, before: bytes, behind: bytes) -> None:
        """Junk is cut into pieces that make it up, or is our error."""
        junk = before + SIZE + behind
        try:
            block, body, missing = split_vars(junk)
        except MalformedPacket:
            return
        assert block + body == junk
        assert len(body) + missing in (0, 3)


@given(
    st.dictionaries(
        st.sampled_from([b"CONTENT_LENGTH", b"A", b"HTTP_X"]),
        st.sampled_from([b"", b"0", b"17", b"\x0e\x00CONTENT_LENGTH\x00\x00"]),
    )
)
def test_quick_look_for_a_body(variables: dict[bytes, bytes]) -> None:
    """No block that announces a body is taken for one that doesn't, whatever its values hold."""
    block = encode_vars(variables)
    try:
        size = body_size(block)
    except MalformedPacket:
        size = 1
    assert may_announce_body(block) or size == 0


def test_no_quick_body() -> None:
    """What nginx sends with a GET announces no body at first sight."""
    assert not may_announce_body(encode_vars({b"A": b"b"}))
    assert not may_announce_body(encode_vars({b"CONTENT_LENGTH": b"", b"A": b"b"}))
    assert may_announce_body(encode_vars({b"CONTENT_LENGTH": b"5"}))
