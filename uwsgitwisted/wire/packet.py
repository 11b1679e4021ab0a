"""The uwsgi packet: four bytes of header, then at most 65535 bytes of payload.

The header is ``<BHB``: modifier1, the payload's size, modifier2 (https://uwsgi-docs.readthedocs.io, "The uwsgi
protocol"). What a payload means is the business of the modules beside this one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from uwsgitwisted.errors import MessageTooLarge, PacketTooLarge

HEADER_SIZE = 4
#: The size field is a u16.
MAX_PAYLOAD = 0xFFFF

_HEADER = struct.Struct("<BHB")
_pack_header = _HEADER.pack
_unpack_header = _HEADER.unpack_from

# The modifiers that this package speaks.
WSGI = 0
SPOOL = 17
MARSHAL = 33
SESSION = 34
PING = 100
ECHO = 101
ANSWER = 255


class Packet(NamedTuple):
    """One request or one answer.

    A tuple, because one is made for every message and a frozen dataclass costs three times as much to make.
    On the wire its payload is at most 65535 bytes; within a session it may be longer.
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
            f"{size} bytes don't fit one uwsgi packet, which takes {MAX_PAYLOAD}",
            size=size,
            limit=MAX_PAYLOAD,
        )
    return _pack_header(modifier1, size, modifier2) + payload


class PacketDecoder:
    """Cuts a stream of bytes into packets.

    It keeps at most one unfinished packet and takes time linear in the bytes, however they are cut.

    :param limit: the largest payload to accept, in bytes. A header that announces more raises at once.
    :param count: how many packets to cut before leaving the bytes alone, as a plain request needs, where raw
        bytes may follow the only packet; None for all.
    """

    __slots__ = ("_chunks", "_have", "_limit", "_need", "_remaining")

    def __init__(self, *, limit: int = MAX_PAYLOAD, count: int | None = None) -> None:
        self._limit = limit
        self._remaining = -1 if count is None else count
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = HEADER_SIZE

    @property
    def header_seen(self) -> bool:
        """Whether the packet that is under way has its header."""
        return self._need > HEADER_SIZE

    @property
    def empty(self) -> bool:
        """Whether no byte is waiting here."""
        return not self._have

    def receive(self, data: bytes) -> list[Packet]:
        """Take *data* and return the packets that it completes.

        :raises PacketTooLarge: if a header announces more than the limit. The decoder is of no use then.
        """
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need or not self._remaining:
            return []
        buffer = data if len(self._chunks) == 1 else b"".join(self._chunks)
        packets: list[Packet] = []
        position = self._cut(buffer, packets)
        rest = buffer[position:] if position else buffer
        self._chunks = [rest] if rest else []
        self._have = len(rest)
        return packets

    def _cut(self, buffer: bytes, packets: list[Packet]) -> int:
        """Append the whole packets in *buffer* to *packets* and return where they end."""
        position = 0
        available = len(buffer)
        self._need = HEADER_SIZE
        while self._remaining and available - position >= HEADER_SIZE:
            modifier1, size, modifier2 = _unpack_header(buffer, position)
            if size > self._limit:
                raise PacketTooLarge(
                    f"a packet announces {size} bytes, {self._limit} are accepted",
                    size=size,
                    limit=self._limit,
                )
            end = position + HEADER_SIZE + size
            if end > available:
                self._need = HEADER_SIZE + size
                break
            packets.append(Packet(modifier1, modifier2, buffer[position + HEADER_SIZE : end]))
            self._remaining -= 1
            position = end
        return position

    def rest(self) -> bytes:
        """Give up the bytes that belong to no packet yet."""
        rest = b"".join(self._chunks)
        self._chunks = []
        self._have = 0
        self._need = HEADER_SIZE
        return rest
