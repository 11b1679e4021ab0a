"""RPC (modifier1 173): a function's name and arguments in, bytes out, in the three forms that uWSGI has.

The modifier2 of a request says the form: an array block, answered with a packet; the same, answered with the
raw bytes; or a web request, whose PATH_INFO has the name and the arguments, answered with HTTP. Encoding a call
checks the limits that uWSGI itself doesn't check.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

from uwsgitwisted.errors import MalformedPacket, ProtocolError, UnencodableMessage
from uwsgitwisted.wire.array import decode_array, encode_array
from uwsgitwisted.wire.packet import MAX_PAYLOAD, RPC, Packet, encode_packet
from uwsgitwisted.wire.vars import CONTENT_LENGTH, VarsValue, decode_vars, encode_vars, split_vars, to_bytes
from uwsgitwisted.wire.web_status import status_answer

#: The modifier2 of a call whose answer is a packet.
RPC_FRAMED = 0
#: The modifier2 of a call whose answer is raw bytes, as nginx needs it.
RPC_RAW = 1
#: The modifier2 of a call whose request and answer are HTTP.
RPC_HTTP = 2
#: The modifier2 of an answer whose payload is a vars block with the size of the raw bytes that follow. Plain
#: uwsgi has answers of more than 65535 bytes in this form.
LONG_ANSWER = 5
#: The modifier2 of an answer that has no result, None, where an empty one is b''. Only sessions have it: plain
#: uwsgi ends the connection for both.
NO_RESULT = 255

#: uWSGI copies a function's name into 256 bytes without looking, and a NUL byte ends it.
MAX_NAME = 255
#: How many digits the size of a long answer may have.
_MAX_DIGITS = 20

#: A media type, or several as Accept has them: text without control characters.
_MEDIA_TYPES = re.compile(rb"[ -~]+")
#: What Accept says if any media type will do.
_ANY_TYPE = (b"", b"*/*", b"*")
_PROTOCOLS = (b"HTTP/1.0", b"HTTP/1.1")


class FunctionCall(NamedTuple):
    """A call, as the receiver has it.

    :param name: the function's name.
    :param arguments: its arguments.
    """

    name: bytes
    arguments: tuple[bytes, ...]


def check_name(name: VarsValue) -> bytes:
    """Return a function's name as bytes.

    :raises UnencodableMessage: if it can't be the name of a function in uWSGI.
    """
    encoded = to_bytes(name)
    if not encoded or len(encoded) > MAX_NAME or b"\0" in encoded:
        raise UnencodableMessage(
            f"{encoded[:40]!r} can't be a function's name: it has 1 to {MAX_NAME} bytes, and no NUL"
        )
    return encoded


def encode_call(items: Sequence[VarsValue]) -> bytes:
    """Return the array block of *items*: a function's name and its arguments.

    :raises UnencodableMessage: if there is no name that uWSGI takes, an argument is empty or of another type,
        or there are over 254.
    :raises MessageTooLarge: if an argument is over 65535 bytes.
    """
    if not items:
        raise UnencodableMessage("a call without a function's name")
    check_name(items[0])
    return encode_array(items)


def decode_call(request: Packet) -> FunctionCall:
    """Return the call in *request*.

    :raises MalformedPacket: if there is none, or the modifier2 is one of those that are not known.
    """
    if request.modifier2 == RPC_HTTP:
        items = decode_path(decode_vars(split_vars(request.payload)[0]).get(b"PATH_INFO", b""))
    elif request.modifier2 in (RPC_FRAMED, RPC_RAW):
        items = decode_array(request.payload)
    else:
        raise MalformedPacket(f"an RPC with modifier2 {request.modifier2}; known are 0, 1 (raw) and 2 (HTTP)")
    if not items or not items[0]:
        raise MalformedPacket("an RPC that names no function")
    return FunctionCall(items[0], tuple(items[1:]))


def decode_path(path: bytes) -> list[bytes]:
    """Return the function's name and the arguments that a path has; as in uWSGI, slashes in a row are one."""
    return [part for part in path.split(b"/") if part]


def to_result(result: object) -> bytes:
    """Return as bytes what a function has returned: bytes, text, or None for nothing.

    :raises UnencodableMessage: if it is anything else.
    """
    if result is None:
        return b""
    if not isinstance(result, (bytes, str)):
        raise UnencodableMessage(
            f"an RPC function returned {type(result).__name__}; it must return bytes, text or None"
        )
    return to_bytes(result)


def encode_result(request: Packet, result: object) -> Packet:
    """Return the answer to *request*.

    :param result: what the function has returned; see :func:`to_result`.
    :raises UnencodableMessage: if it can't be sent.
    """
    data = to_result(result)
    if request.modifier2 == RPC_HTTP:
        return request._replace(payload=_http_answer(decode_vars(split_vars(request.payload)[0]), data))
    return Packet(RPC, NO_RESULT if result is None else request.modifier2, data)


def decode_result(packet: Packet) -> bytes | None:
    """Return the result in an answer's packet."""
    return None if packet.modifier2 == NO_RESULT and not packet.payload else packet.payload


def read_result(answer: object, address: object = None) -> bytes | None:
    """Return *answer*, if it is a result of a call.

    :raises ProtocolError: if it is something else, such as an object.
    """
    if answer is None or isinstance(answer, bytes):
        return answer
    raise ProtocolError("the server's answer is not one to an RPC", address=address)


def encode_plain(packet: Packet) -> bytes:
    """Return the bytes of an answer in plain uwsgi: none, if the result is empty, as in uWSGI."""
    size = len(packet.payload)
    if size <= MAX_PAYLOAD:
        return encode_packet(packet) if size else b""
    head = Packet(RPC, LONG_ANSWER, encode_vars([(CONTENT_LENGTH, size)]))
    return encode_packet(head) + packet.payload


def long_size(block: bytes) -> int:
    """Return how many bytes follow the packet of a long answer.

    :raises MalformedPacket: if *block* doesn't say.
    """
    size = decode_vars(block).get(CONTENT_LENGTH, b"")
    if not size.isdigit() or len(size) > _MAX_DIGITS:
        raise MalformedPacket(f"a long answer whose CONTENT_LENGTH is {size[:40]!r}")
    return int(size)


def _http_answer(variables: dict[bytes, bytes], data: bytes) -> bytes:
    """Return a result as HTTP, with the type that the caller accepts; 404 if it is empty."""
    if not data:
        return status_answer(HTTPStatus.NOT_FOUND)
    protocol = variables.get(b"SERVER_PROTOCOL", b"")
    if protocol not in _PROTOCOLS:
        protocol = b"HTTP/1.0"
    kind = variables.get(b"HTTP_ACCEPT", b"")
    if kind in _ANY_TYPE or not _MEDIA_TYPES.fullmatch(kind):
        kind = b"application/binary"
    head = b"%s 200 OK\r\nContent-Length: %d\r\nContent-Type: %s\r\n\r\n"
    return head % (protocol, len(data), kind) + data
