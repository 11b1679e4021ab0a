"""The vars block: repeated ``u16 length, key, u16 length, value``, little-endian.

It carries web requests, spooled tasks and the terms of a session. A *body* may follow it, whose size in bytes
is the block's ``CONTENT_LENGTH``.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Mapping

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, UnencodableMessage
from uwsgitwisted.wire.packet import MAX_PAYLOAD

_LENGTH = struct.Struct("<H")
_pack_length = _LENGTH.pack
_unpack_length = _LENGTH.unpack_from

#: The variable with the size of the body.
CONTENT_LENGTH = b"CONTENT_LENGTH"
#: That variable without a value, as a vars block has it.
_EMPTY_LENGTH = b"\x0e\x00" + CONTENT_LENGTH + b"\x00\x00"
#: The most digits that it may have, so that no peer makes us parse a number of 60,000 digits.
_MAX_DIGITS = 20

#: A key or value of a vars block: bytes, text as UTF-8, or a number in decimal digits, as uWSGI's own spooler
#: encodes it.
VarsValue = bytes | str | int | float


def to_bytes(value: VarsValue) -> bytes:
    """Return *value* as bytes for a vars block.

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
        f"a key or value of type {type(value).__name__}; use bytes, text or a number, as the handler expects"
    )


def encode_item(item: bytes) -> bytes:
    """Return *item* with its length in front.

    :raises MessageTooLarge: if it is over 65535 bytes.
    """
    size = len(item)
    if size > MAX_PAYLOAD:
        raise MessageTooLarge(
            f"an item of {size} bytes; the limit is {MAX_PAYLOAD}", size=size, limit=MAX_PAYLOAD
        )
    return _pack_length(size) + item


def decode_items(block: bytes, most: int = sys.maxsize) -> list[bytes]:
    """Cut *block* into its items.

    :param most: how many items it may have.
    :raises MalformedPacket: if it has more, or a length points past the end.
    """
    items: list[bytes] = []
    position = 0
    available = len(block)
    for _ in range(most):
        if position == available:
            break
        start = position + 2
        if start > available:
            raise MalformedPacket("the block ends within a length")
        (size,) = _unpack_length(block, position)
        position = start + size
        if position > available:
            raise MalformedPacket(f"an item announces {size} bytes where {available - start} are left")
        items.append(block[start:position])
    if position < available:
        raise MalformedPacket(f"the block has more than {most} items")
    return items


def encode_vars(
    variables: Mapping[VarsValue, VarsValue] | Mapping[str, VarsValue] | Iterable[tuple[VarsValue, VarsValue]],
) -> bytes:
    """Return the vars block of *variables*.

    :raises UnencodableMessage: if a key is empty or something is neither bytes, text nor a number.
    :raises MessageTooLarge: if a key or value is over 65535 bytes. The size of the whole block is limited by
        the packet that carries it, not here.
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
    """Return the variables in *block*. If a key occurs twice, the last value counts, as in uWSGI.

    :raises MalformedPacket: if the lengths don't fill the block, a key has no value, or a key is empty.
    """
    items = decode_items(block)
    if len(items) % 2:
        raise MalformedPacket("the last key of the vars block has no value")
    variables = dict(zip(items[::2], items[1::2], strict=True))
    if b"" in variables:
        raise MalformedPacket("a key of length 0 in the vars block")
    return variables


def may_announce_body(block: bytes) -> bool:
    """Return whether a body may follow *block*, without parsing it: False for most web requests.

    nginx sends an empty CONTENT_LENGTH with a request that has no body.
    """
    occurrences = block.count(CONTENT_LENGTH)
    return occurrences > 1 or (occurrences == 1 and _EMPTY_LENGTH not in block)


def body_size(block: bytes) -> int:
    """Return the size of the body that *block* announces: its CONTENT_LENGTH, or 0 if that is absent or empty.

    :param block: a vars block, without a body.
    :raises MalformedPacket: if *block* is not a vars block, or its CONTENT_LENGTH is not a number of bytes.
    """
    return _number(decode_vars(block).get(CONTENT_LENGTH, b""))


def split_vars(message: bytes) -> tuple[bytes, bytes, int]:
    """Cut *message* into its vars block and its body.

    The block ends where exactly as many bytes are left as its CONTENT_LENGTH says. If the body is present, this
    end is unique: at any earlier place, further keys and values are left as well. A second CONTENT_LENGTH would
    make the end ambiguous, so it is refused.

    :return: the block, the body, and how many bytes are missing: 0, or all if there is no body.
    :raises MalformedPacket: if there is no such end, a CONTENT_LENGTH is not a number of bytes, or there are
        two. :func:`decode_vars` checks everything else in the block.
    :raises MessageTooLarge: if the block is over 65535 bytes. The rest of *message* is not read.
    """
    left = len(message)
    announced: int | None = None
    while left and left != announced:
        key_at, value_at, end = _pair_at(message, len(message) - left)
        if value_at - key_at == _KEY_SPAN and message.startswith(CONTENT_LENGTH, key_at):
            if announced is not None:
                raise MalformedPacket("CONTENT_LENGTH occurs twice in the vars block")
            announced = _number(message[value_at:end])
        if end > MAX_PAYLOAD:
            raise MessageTooLarge(
                f"a vars block of over {MAX_PAYLOAD} bytes; put large data in the body",
                size=end,
                limit=MAX_PAYLOAD,
            )
        left = len(message) - end
    size = len(message) - left
    return message[:size], message[size:], (announced or 0) - left


#: From the first byte of the key CONTENT_LENGTH to that of its value.
_KEY_SPAN = len(CONTENT_LENGTH) + 2


def text_variables(message: bytes) -> dict[str, str]:
    """Return the variables of a web request as WSGI has them, for a log; none, if they are malformed.

    :param message: the vars block, perhaps with a body behind it.
    """
    try:
        variables = decode_vars(split_vars(message)[0])
    except (MalformedPacket, MessageTooLarge):
        return {}
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in variables.items()}


def _pair_at(message: bytes, position: int) -> tuple[int, int, int]:
    """Return where the key of the pair at *position* starts, where its value starts, and where that ends."""
    available = len(message)
    key_at = position + 2
    if key_at > available:
        raise MalformedPacket("the vars block ends within a length")
    value_at = key_at + int(_unpack_length(message, position)[0]) + 2
    if value_at > available:
        raise MalformedPacket("the vars block ends within a key or the length of its value")
    end = value_at + int(_unpack_length(message, value_at - 2)[0])
    if end > available:
        raise MalformedPacket(f"a value announces {end - value_at} bytes where {available - value_at} are left")
    return key_at, value_at, end


def _number(text: bytes) -> int:
    """Parse a CONTENT_LENGTH."""
    if not text:
        return 0
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise MalformedPacket(
            f"CONTENT_LENGTH is {text[:40]!r}; it must be a number of bytes, in decimal digits"
        )
    return int(text)
