"""The vars block: repeated ``u16 length, key, u16 length, value``, little-endian.

Web requests, spooled tasks and the terms of a session travel in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, UnencodableMessage
from uwsgitwisted.wire.packet import MAX_PAYLOAD

_LENGTH = struct.Struct("<H")
_pack_length = _LENGTH.pack
_unpack_length = _LENGTH.unpack_from

#: What a vars block takes as a key or value besides bytes: text as UTF-8, numbers as their decimal digits,
#: which is what uWSGI's own spooler makes of them.
VarsValue = bytes | str | int | float


def to_bytes(value: VarsValue) -> bytes:
    """Return *value* as the bytes that stand for it in a vars block.

    :raises UnencodableMessage: if it is not bytes, text or a number, or is text with lone surrogates.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise UnencodableMessage(f"text that has no UTF-8 form: {error}") from error
    if isinstance(value, (int, float)):
        return str(value).encode()
    raise UnencodableMessage(
        f"a key or value of type {type(value).__name__}; use bytes, text or a number, in the form that the "
        "handler expects"
    )


def encode_item(item: bytes) -> bytes:
    """Return *item* behind its length.

    :raises MessageTooLarge: if it is over 65535 bytes.
    """
    size = len(item)
    if size > MAX_PAYLOAD:
        raise MessageTooLarge(
            f"an item of {size} bytes; {MAX_PAYLOAD} is the most that one takes", size=size, limit=MAX_PAYLOAD
        )
    return _pack_length(size) + item


def decode_items(block: bytes) -> list[bytes]:
    """Cut *block* into the items of which it consists.

    :raises MalformedPacket: if a length points past the end.
    """
    items: list[bytes] = []
    position = 0
    available = len(block)
    while position < available:
        start = position + 2
        if start > available:
            raise MalformedPacket("the block ends within a length")
        (size,) = _unpack_length(block, position)
        position = start + size
        if position > available:
            raise MalformedPacket(f"an item announces {size} bytes where {available - start} are left")
        items.append(block[start:position])
    return items


def encode_vars(
    variables: Mapping[VarsValue, VarsValue] | Mapping[str, VarsValue] | Iterable[tuple[VarsValue, VarsValue]],
) -> bytes:
    """Return the vars block of *variables*.

    :raises UnencodableMessage: if a key is empty or something is neither bytes, text nor a number.
    :raises MessageTooLarge: if a key or value is over 65535 bytes. The block as a whole has no limit here: the
        packet that carries it has.
    """
    pairs = variables.items() if isinstance(variables, Mapping) else variables
    parts: list[bytes] = []
    for key, value in pairs:
        name = to_bytes(key)
        if not name:
            raise UnencodableMessage("an empty key, which uWSGI refuses")
        parts.append(encode_item(name))
        parts.append(encode_item(to_bytes(value)))
    return b"".join(parts)


def decode_vars(block: bytes) -> dict[bytes, bytes]:
    """Return what *block* holds; of a key that stands there twice, the last value, as uWSGI has it.

    :raises MalformedPacket: if the lengths don't fill the block, a key has no value, or a key is empty.
    """
    items = decode_items(block)
    if len(items) % 2:
        raise MalformedPacket("the last key of the vars block has no value")
    variables = dict(zip(items[::2], items[1::2], strict=True))
    if b"" in variables:
        raise MalformedPacket("a key of length 0 in the vars block")
    return variables
