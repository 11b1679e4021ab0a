"""The array block: the arguments of a call, and what uWSGI would do wrong with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, UnencodableMessage
from uwsgitwisted.wire.array import MAX_ARGUMENTS, decode_array, encode_array

BLOCK = b"\x04\x00name\x01\x001\x02\x00\xc3\xa9"


class TestEncode:
    def test_bytes(self) -> None:
        """A block is each item behind its length."""
        assert encode_array(["name", 1, "\xe9"]) == BLOCK

    @pytest.mark.parametrize("empty", [b"", ""])
    def test_empty_item(self, empty: bytes | str) -> None:
        """An empty argument is refused by its place, since uWSGI would move the others up."""
        with pytest.raises(UnencodableMessage, match="item 1 is empty"):
            encode_array(["name", empty, "x"])

    def test_most_arguments(self) -> None:
        """A name and 254 arguments pass."""
        assert len(decode_array(encode_array(["name"] + ["x"] * MAX_ARGUMENTS))) == 255

    def test_too_many_arguments(self) -> None:
        """One argument more is refused."""
        with pytest.raises(UnencodableMessage, match="255 arguments; uWSGI takes 254"):
            encode_array(["name"] + ["x"] * (MAX_ARGUMENTS + 1))

    def test_too_large(self) -> None:
        """An argument over 65535 bytes is refused, not wrapped."""
        with pytest.raises(MessageTooLarge):
            encode_array(["name", bytes(70000)])

    def test_other_type(self) -> None:
        """An argument of another type is refused."""
        with pytest.raises(UnencodableMessage, match="NoneType"):
            encode_array(["name", None])  # type: ignore[list-item]


class TestDecode:
    def test_bytes(self) -> None:
        """Items come out as bytes."""
        assert decode_array(BLOCK) == [b"name", b"1", b"\xc3\xa9"]

    def test_empty_items(self) -> None:
        """An empty item is kept where it stands."""
        assert decode_array(b"\x01\x00f\x00\x00\x01\x00x") == [b"f", b"", b"x"]

    def test_too_many_arguments(self) -> None:
        """A block of more arguments than uWSGI takes is refused, however small they are."""
        assert decode_array(bytes(2 * 255)) == [b""] * 255
        with pytest.raises(MalformedPacket, match="more than 255 items"):
            decode_array(bytes(2 * 256))

    def test_nothing(self) -> None:
        """An empty block has no items."""
        assert decode_array(b"") == []

    @pytest.mark.parametrize("size", [size for size in range(1, len(BLOCK)) if size not in {6, 9}])
    def test_cut(self, size: int) -> None:
        """A block cut within an item is refused."""
        with pytest.raises(MalformedPacket):
            decode_array(BLOCK[:size])

    def test_tail(self) -> None:
        """A byte behind the last item is refused."""
        with pytest.raises(MalformedPacket, match="ends within a length"):
            decode_array(BLOCK + b"\x00")

    @given(st.lists(st.binary(min_size=1, max_size=300), max_size=20))
    def test_round_trip(self, items: list[bytes]) -> None:
        """Decoding reverses encoding."""
        assert decode_array(encode_array(items)) == items
