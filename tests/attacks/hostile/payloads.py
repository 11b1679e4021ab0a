"""Objects that were made to cost their receiver much more than their bytes."""

from __future__ import annotations

import functools
import marshal
import struct

_PRIME = (1 << 61) - 1


@functools.cache
def colliding_ints(count: int) -> bytes:
    """Return a dict of *count* ints of equal hash; 20,000 are 327 KB."""
    keys = (marshal.dumps(number * _PRIME, 2) + b"N" for number in range(count))
    return b"{" + b"".join(keys) + b"0"


@functools.cache
def trees() -> bytes:
    """Return 312 tuples of equal hash, whose comparison walks a tree of 2**12 leaves, in under 32 KB."""
    tree = b"\xa9\x02" * 11 + b"\xa9\x02" + b"i\0\0\0\0" * 2
    tree += b"".join(b"r" + struct.pack("<I", level) for level in range(11, 0, -1))
    members = [b")\x02r\0\0\0\0" + marshal.dumps(number * _PRIME, 2) for number in range(312)]
    return b"[\x02\0\0\0" + tree + b"<" + struct.pack("<I", len(members)) + b"".join(members)


#: Bytes that announce more than they are, by what they claim to be.
HUGE = (
    b"(\xff\xff\xff\x7f",
    b"[\xff\xff\xff\x7fN",
    b"s\xff\xff\xff\x7fx",
    b"l\xff\xff\xff\x7f\x01\x00",
    b"[\x01\x00\x00\x00" * 12_000 + b"N",
    b"<\xff\xff\xff\x7f" + b"N" * 1_000,
)
