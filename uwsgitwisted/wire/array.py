"""The array block of an RPC call: repeated ``u16 length, item``, the function's name first.

uWSGI drops empty items, so that later arguments move up; crashes on an empty last item; and accepts at most 254
arguments. So the encoder is stricter than the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

from uwsgitwisted.errors import UnencodableMessage
from uwsgitwisted.wire.vars import VarsValue, decode_items, encode_item, to_bytes

#: uWSGI keeps the arguments in an array of this size.
MAX_ARGUMENTS = 254


def encode_array(items: Sequence[VarsValue]) -> bytes:
    """Return the array block of *items*: a function's name and its arguments.

    :raises UnencodableMessage: if an item is empty or of another type, or there are over 254 arguments.
    :raises MessageTooLarge: if an item is over 65535 bytes.
    """
    if len(items) > MAX_ARGUMENTS + 1:
        raise UnencodableMessage(f"{len(items) - 1} arguments; uWSGI takes {MAX_ARGUMENTS}")
    encoded = [to_bytes(item) for item in items]
    if b"" in encoded:
        raise UnencodableMessage(f"item {encoded.index(b'')} is empty; uWSGI drops it and moves the rest up")
    return b"".join(map(encode_item, encoded))


def decode_array(block: bytes) -> list[bytes]:
    """Return the items in *block*.

    :raises MalformedPacket: if a length points past the end, or there are over 254 arguments. Millions of them
        would take far more memory than the block.
    """
    return decode_items(block, MAX_ARGUMENTS + 1)
