"""The uwsgi packet: four bytes of header, then at most 65535 bytes of payload.

The header is ``<BHB``: modifier1, the payload's size, modifier2 (https://uwsgi-docs.readthedocs.io, "The uwsgi
protocol"). The other modules of this folder interpret payloads.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

from uwsgitwisted.errors import MessageTooLarge, PacketTooLarge

HEADER_SIZE = 4
#: The size field is a u16.
MAX_PAYLOAD = 0xFFFF

_HEADER = struct.Struct("<BHB")
_pack_header = _HEADER.pack
#: Called with a buffer and a position; returns modifier1, the payload's size and modifier2.
unpack_header = _HEADER.unpack_from

# The modifiers that this package speaks.
WSGI = 0
SPOOL = 17
MARSHAL = 33
SESSION = 34
BUNDLE = 35
PING = 100
ECHO = 101
SIGNAL = 110
RPC = 173
ANSWER = 255


#: The most chunks to keep unjoined: each takes some 40 bytes in addition to its data.
_MAX_CHUNKS = 64
#: More bytes than will ever arrive.
_NEVER = sys.maxsize


#: Makes a named tuple from a tuple of its values, in half the time of a call of its class. It is for the tuples
#: that are made for each message.
new_tuple = tuple.__new__


class Packet(NamedTuple):
    """One request or one answer.

    It is a tuple because one is made for every message, and making a frozen dataclass costs three times as
    much. On the wire its payload is at most 65535 bytes; in a session it may be longer.
    """

    modifier1: int
    modifier2: int
    payload: bytes = b""


YES = Packet(ANSWER, 1)
NO = Packet(ANSWER, 0)


def encode_packet(packet: Packet) -> bytes:
    """Return the bytes of *packet*.

    :raises MessageTooLarge: if the payload is over 65535 bytes; sizes are never wrapped.
    """
    modifier1, modifier2, payload = packet
    size = len(payload)
    if size > MAX_PAYLOAD:
        raise MessageTooLarge(
            f"{size} bytes don't fit one uwsgi packet, which holds {MAX_PAYLOAD}",
            size=size,
            limit=MAX_PAYLOAD,
        )
    return _pack_header(modifier1, size, modifier2) + payload


class ReceiveBuffer:
    """The received bytes that are not read yet.

    As long as there are too few to go on, the chunks are kept as they came. They are joined when there are
    enough, so that the work is linear in the bytes, however they are cut.
    """

    __slots__ = ("_chunks", "_position", "needed", "size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._position = 0
        #: How many bytes there are.
        self.size = 0
        #: How many bytes the reader needs to go on.
        self.needed = HEADER_SIZE

    def take(self, data: bytes) -> tuple[bytes, int]:
        """Add *data*; remove and return all bytes, and the position of the first unread one.

        As long as there are too few, it keeps the bytes and returns none.
        """
        chunks = self._chunks
        if data:
            chunks.append(data)
            self.size += len(data)
        if self.size < self.needed:
            if len(chunks) > _MAX_CHUNKS:
                self._chunks = [b"".join(chunks)]
            return b"", 0
        position = self._position
        if len(chunks) > 1:
            chunks[0] = chunks[0][position:]
            position = 0
        whole = b"".join(chunks)
        self._chunks = []
        self._position = self.size = 0
        self.needed = HEADER_SIZE
        return whole, position

    def keep(self, data: bytes, position: int, needed: int) -> None:
        """Keep the bytes of *data* from *position* on.

        :param needed: how many bytes the reader needs to go on.
        """
        self.needed = needed
        self.size = len(data) - position
        if self.size < needed:  # they may be kept for long, and must not keep the bytes before them in memory
            data, position = data[position:], 0
        self._chunks = [data]
        self._position = position


class PacketDecoder:
    """Cuts a stream of bytes into packets.

    It keeps at most one unfinished packet and takes time linear in the bytes, however they are cut.

    :param limit: the largest payload to accept, in bytes. A header that announces more raises immediately.
    :param count: how many packets to cut; None for all. Later bytes are left alone, as plain uwsgi needs it,
        where raw bytes may follow the only packet.
    """

    __slots__ = ("_buffer", "_limit", "_remaining")

    def __init__(self, *, limit: int = MAX_PAYLOAD, count: int | None = None) -> None:
        self._limit = limit
        self._remaining = -1 if count is None else count
        self._buffer = ReceiveBuffer()
        if not self._remaining:
            self._buffer.needed = _NEVER

    @property
    def header_seen(self) -> bool:
        """Whether the header of the unfinished packet has arrived."""
        return HEADER_SIZE < self._buffer.needed < _NEVER

    @property
    def empty(self) -> bool:
        """Whether it keeps no bytes."""
        return not self._buffer.size

    def receive(self, data: bytes) -> list[Packet]:
        """Add *data*; return the packets that it completes.

        :raises PacketTooLarge: if a header announces more than the limit. Don't use the decoder after that.
        """
        buffer, position = self._buffer.take(data)
        if not buffer:
            return []
        packets: list[Packet] = []
        available = len(buffer)
        needed = HEADER_SIZE
        while self._remaining and available - position >= HEADER_SIZE:
            modifier1, size, modifier2 = unpack_header(buffer, position)
            if size > self._limit:
                raise PacketTooLarge(
                    f"a packet announces {size} bytes, {self._limit} are accepted",
                    size=size,
                    limit=self._limit,
                )
            end = position + HEADER_SIZE + size
            if end > available:
                needed = HEADER_SIZE + size
                break
            packets.append(Packet(modifier1, modifier2, buffer[position + HEADER_SIZE : end]))
            self._remaining -= 1
            position = end
        if not self._remaining:
            self._buffer.keep(buffer, position, _NEVER)
        elif position < available:
            self._buffer.keep(buffer, position, needed)
        return packets

    def rest(self) -> bytes:
        """Remove and return the bytes that belong to no packet."""
        self._buffer.needed = 0
        rest, position = self._buffer.take(b"")
        return rest[position:]
