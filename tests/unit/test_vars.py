"""The vars block: what goes in comes out, and broken lengths are found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, UnencodableMessage
from uwsgitwisted.wire.vars import decode_items, decode_vars, encode_item, encode_vars, to_bytes

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
        """What was encoded is decoded."""
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
        """What follows the last value is refused with the reason."""
        with pytest.raises(MalformedPacket, match=text):
            decode_vars(BLOCK + tail)

    @given(st.dictionaries(st.binary(min_size=1, max_size=50), st.binary(max_size=300)))
    def test_round_trip(self, variables: dict[bytes, bytes]) -> None:
        """What was encoded is decoded, in the same order."""
        assert list(decode_vars(encode_vars(list(variables.items()))).items()) == list(variables.items())

    @given(st.binary(max_size=100))
    def test_junk(self, junk: bytes) -> None:
        """Junk gives variables with names, or our error."""
        try:
            variables = decode_vars(junk)
        except MalformedPacket:
            return
        assert all(variables)
