"""The packet codec: whole, byte by byte, cut anywhere, with a tail, and with more than it may take."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import MessageTooLarge, PacketTooLarge
from uwsgitwisted.wire.packet import (
    ANSWER,
    HEADER_SIZE,
    MAX_PAYLOAD,
    NO,
    PING,
    SPOOL,
    YES,
    Packet,
    PacketDecoder,
    ReceiveBuffer,
    encode_packet,
)

CASES = [
    pytest.param(b"\x64\x00\x00\x00", Packet(PING, 0), id="empty"),
    pytest.param(b"\xff\x00\x00\x01", YES, id="yes"),
    pytest.param(b"\xff\x00\x00\x00", NO, id="no"),
    pytest.param(b"\x11\x04\x00\x07\x01\x00a\x00", Packet(SPOOL, 7, b"\x01\x00a\x00"), id="payload"),
    pytest.param(b"\x21\x04\x01\x02" + bytes(260), Packet(33, 2, bytes(260)), id="size-is-little-endian"),
    pytest.param(b"\x21\xff\xff\x00" + b"x" * 65535, Packet(33, 0, b"x" * 65535), id="largest"),
]

packets = st.builds(Packet, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=40))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut *data* at *places*, of which those past the end count for the end."""
    bounds = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


class TestEncode:
    @pytest.mark.parametrize(("data", "packet"), CASES)
    def test_bytes(self, data: bytes, packet: Packet) -> None:
        """A packet is its header and its payload."""
        assert encode_packet(packet) == data

    def test_too_large(self) -> None:
        """A payload over 65535 bytes is refused with its size, not wrapped."""
        with pytest.raises(MessageTooLarge) as caught:
            encode_packet(Packet(33, 0, bytes(MAX_PAYLOAD + 1)))
        assert (caught.value.size, caught.value.limit) == (65536, 65535)


class TestDecode:
    @pytest.mark.parametrize(("data", "packet"), CASES)
    def test_whole(self, data: bytes, packet: Packet) -> None:
        """A packet that arrives at once comes out at once."""
        decoder = PacketDecoder()
        assert decoder.receive(data) == [packet]
        assert decoder.empty

    @pytest.mark.parametrize(("data", "packet"), CASES)
    def test_byte_by_byte(self, data: bytes, packet: Packet) -> None:
        """A packet that arrives in single bytes comes out with the last one."""
        decoder = PacketDecoder()
        received = [decoder.receive(data[at : at + 1]) for at in range(len(data))]
        assert received == [[]] * (len(data) - 1) + [[packet]]

    @pytest.mark.parametrize(("data", "packet"), CASES)
    def test_tail(self, data: bytes, packet: Packet) -> None:
        """The beginning of the next packet waits for the rest of it."""
        decoder = PacketDecoder()
        assert decoder.receive(data + b"\x64\x00") == [packet]
        assert not decoder.empty
        assert decoder.receive(b"\x00\x00") == [Packet(PING, 0)]

    def test_nothing(self) -> None:
        """No bytes give no packet, and leave nothing."""
        decoder = PacketDecoder()
        assert decoder.receive(b"") == []
        assert decoder.empty

    @given(st.lists(packets, max_size=5), st.lists(st.integers(0, 250), max_size=12))
    def test_any_cut(self, sent: list[Packet], places: list[int]) -> None:
        """However the stream is cut, the same packets come out in the same order."""
        decoder = PacketDecoder()
        chunks = cut(b"".join(map(encode_packet, sent)), places)
        assert [packet for chunk in chunks for packet in decoder.receive(chunk)] == sent
        assert decoder.empty

    @given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5), st.integers(0, 200))
    def test_junk(self, junk: bytes, places: list[int], limit: int) -> None:
        """Junk gives packets within the limit, or our error, and loses no byte before it."""
        decoder = PacketDecoder(limit=limit)
        received: list[Packet] = []
        try:
            for chunk in cut(junk, places):
                received += decoder.receive(chunk)
        except PacketTooLarge as error:
            assert error.size > error.limit == limit  # noqa: PT017 - most junk raises nothing
            return
        assert all(len(packet.payload) <= limit for packet in received)
        assert b"".join(map(encode_packet, received)) + decoder.rest() == junk

    def test_work_is_linear(self) -> None:
        """The largest packet in single bytes is joined twice, at its header and its end, and takes little."""
        buffer = ReceiveBuffer()
        data = encode_packet(Packet(33, 0, bytes(MAX_PAYLOAD)))
        joined = []
        for at in range(len(data)):
            whole, _ = buffer.take(data[at : at + 1])
            assert len(buffer._chunks) < 100
            if whole:
                joined.append(len(whole))
                buffer.keep(whole, 0, len(data))
        assert joined == [HEADER_SIZE, len(data)]

    def test_a_rest_keeps_nothing_before_it(self) -> None:
        """Only the bytes of the unfinished packet are kept."""
        buffer = ReceiveBuffer()
        buffer.keep(bytes(100_000) + b"rest", 100_000, 5)
        assert buffer._chunks == [b"rest"]
        assert buffer.take(b"!") == (b"rest!", 0)

    def test_more_behind_what_is_not_read(self) -> None:
        """New bytes follow the unread ones."""
        buffer = ReceiveBuffer()
        buffer.keep(b"read, not read", 6, HEADER_SIZE)
        assert buffer.take(b", new") == (b"not read, new", 0)

    def test_many_in_one_piece(self) -> None:
        """Many packets in one piece are cut in one go."""
        decoder = PacketDecoder()
        assert decoder.receive(encode_packet(YES) * 10_000) == [YES] * 10_000


class TestLimit:
    def test_header_is_enough(self) -> None:
        """A header that announces too much raises before any payload came."""
        decoder = PacketDecoder(limit=10)
        with pytest.raises(PacketTooLarge) as caught:
            decoder.receive(b"\x21\x0b\x00\x00")
        assert (caught.value.size, caught.value.limit) == (11, 10)

    def test_exactly_the_limit(self) -> None:
        """A payload as large as the limit is taken."""
        assert PacketDecoder(limit=2).receive(b"\x21\x02\x00\x00ab") == [Packet(33, 0, b"ab")]


class TestCount:
    def test_raw_bytes_after_the_only_packet(self) -> None:
        """After as many packets as were asked for, bytes are left alone, whatever they look like."""
        decoder = PacketDecoder(limit=10, count=1)
        assert decoder.receive(encode_packet(YES) + encode_packet(NO)) == [YES]
        assert decoder.receive(b"\x00\xff\xff\x00raw") == []
        assert decoder.rest() == encode_packet(NO) + b"\x00\xff\xff\x00raw"
        assert decoder.empty

    def test_none(self) -> None:
        """A count of 0 cuts nothing."""
        decoder = PacketDecoder(count=0)
        assert decoder.receive(encode_packet(YES)) == []
        assert decoder.rest() == encode_packet(YES)


class TestProgress:
    def test_header_seen(self) -> None:
        """Whether the header is there can be told while the payload is on its way."""
        decoder = PacketDecoder()
        seen = []
        for byte in (b"\x11", b"\x02", b"\x00", b"\x00", b"a", b"b"):
            decoder.receive(byte)
            seen.append(decoder.header_seen)
        assert seen == [False, False, False, True, True, False]

    def test_rest_starts_anew(self) -> None:
        """What belonged to no packet is given up, and the decoder begins again."""
        decoder = PacketDecoder()
        decoder.receive(b"\x11\x05\x00\x00ab")
        assert decoder.rest() == b"\x11\x05\x00\x00ab"
        assert (decoder.empty, decoder.header_seen) == (True, False)
        assert decoder.receive(encode_packet(Packet(ANSWER, 1))) == [YES]
