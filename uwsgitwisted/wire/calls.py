"""Calls of a worker process for the state that it shares with others, and the front's answers.

A frame is a header and items, each with its length in front, little-endian:

    u32 size of the items, u32 sequence number, u8 status, then for each item: u32 length, bytes

A call's first item is the operation's name. An answer has the call's sequence number, so that one that comes
too late is not taken for another. Both sides belong to one service: this never goes over a network.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge

#: The status of a call, and of an answer that has the operation's result.
OK = 0
#: The status of an answer that has the text of an error.
FAILED = 1

#: The most bytes that the items of a call may have: one value of the cache, with what belongs to it. A front
#: has as many for each client, besides what it keeps.
MAX_CALL = 1024 * 1024
#: The most bytes of an answer's items, which a list of all keys may need.
MAX_ANSWER = 1024 * 1024 * 1024

_HEADER = struct.Struct("<IIB")
_LENGTH = struct.Struct("<I")


class Frame(NamedTuple):
    """A call or an answer.

    :param sequence: ties an answer to its call.
    :param status: :data:`OK` or :data:`FAILED`.
    :param items: what the frame carries.
    """

    sequence: int
    status: int
    items: tuple[bytes, ...]


def encode_frame(sequence: int, status: int, items: Iterable[bytes], limit: int = MAX_CALL) -> bytes:
    """Return the bytes of a frame.

    :param limit: the most bytes that the items may have, with their lengths.
    :raises MessageTooLarge: if they have more.
    """
    parts = [b""]
    for item in items:
        parts += (_LENGTH.pack(len(item)), item)
    size = sum(map(len, parts))
    if size > limit:
        raise MessageTooLarge(
            f"a call of {size} bytes; {limit} is the most that workers may share at once",
            size=size,
            limit=limit,
        )
    parts[0] = _HEADER.pack(size, sequence, status)
    return b"".join(parts)


class FrameDecoder:
    """Turns the bytes of a connection into frames.

    :param limit: the most bytes that the items of a frame may have, with their lengths.
    """

    def __init__(self, limit: int = MAX_CALL) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def receive(self, data: bytes) -> list[Frame]:
        """Return the frames that *data* completes.

        :raises MalformedPacket: if it can't be a frame's, or the frame is too large. The connection is then of
            no further use.
        """
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            size, sequence, status = _HEADER.unpack_from(buffer, start)
            if size > self._limit:
                raise MalformedPacket(f"a frame of {size} bytes; {self._limit} is the most")
            first = start + _HEADER.size
            if len(buffer) - first < size:
                break
            start = first + size
            frames.append(Frame(sequence, status, _items(bytes(buffer[first:start]))))
        del buffer[:start]
        return frames


def _items(block: bytes) -> tuple[bytes, ...]:
    items = []
    position = 0
    while position < len(block):
        first = position + _LENGTH.size
        if first > len(block):
            raise MalformedPacket("a frame ends within the length of an item")
        position = first + _LENGTH.unpack_from(block, first - _LENGTH.size)[0]
        if position > len(block):
            raise MalformedPacket("a frame ends within an item")
        items.append(block[first:position])
    return tuple(items)


def encode_number(number: int) -> bytes:
    """Encode an integer as an item."""
    return b"%d" % number


def decode_number(item: bytes) -> int:
    """Decode an item as an integer.

    :raises MalformedPacket: if it is none, or has more digits than a number of 64 bits may have.
    """
    digits = item[1:] if item[:1] == b"-" else item
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise MalformedPacket(f"{item[:40]!r} is no number")
    return int(item)


#: The most digits of a number of 64 bits.
_MAX_DIGITS = 20
