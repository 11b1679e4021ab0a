"""Encodes the messages of uWSGI's original calls, and decodes their answers.

One table says how to encode the message of each modifier1, for every client and for the ``uwsgi`` module that
old code imports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, MisuseError, UnencodableMessage
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import (
    ANSWER,
    ECHO,
    MARSHAL,
    MAX_PAYLOAD,
    PING,
    RPC,
    SPOOL,
    WSGI,
    Packet,
    encode_packet,
    new_tuple,
)
from uwsgitwisted.wire.python2 import check_encoding, to_text
from uwsgitwisted.wire.rpc import RPC_HTTP, RPC_RAW, decode_result, encode_call, encode_plain
from uwsgitwisted.wire.tasks import SPOOL_WITH_ID, TaskMessage
from uwsgitwisted.wire.vars import CONTENT_LENGTH, decode_vars, encode_item, encode_vars, to_bytes

#: WSGI as 0, but the server takes SCRIPT_NAME off PATH_INFO.
WSGI_STRIPPED = 30

#: A task's id, in the answer of a spooler.
_ID = re.compile(rb"[1-9][0-9]{0,18}")


def _by_type(message: object) -> bytes:
    """Encode as ``uwsgi.send_message`` of uWSGI 0.9.7 to 1.4 did."""
    if isinstance(message, (bytes, str)):
        return to_bytes(message)
    if isinstance(message, Mapping):
        return encode_vars(message)
    return dumps(message)


def _task(message: object) -> bytes:
    if isinstance(message, TaskMessage):
        return message.encode()
    if isinstance(message, Mapping):
        return _small(encode_vars(message))
    if not isinstance(message, bytes):
        raise UnencodableMessage(f"a task is a dict, not {type(message).__name__}")
    try:
        decode_vars(message)
    except MalformedPacket as error:
        raise UnencodableMessage(f"a task in bytes must be a vars block: {error}") from error
    return _small(message)


def _small(block: bytes) -> bytes:
    """Return a task's variables, if a spooler takes as many; otherwise it would only say no."""
    size = len(block)
    if size > MAX_PAYLOAD:
        raise MessageTooLarge(
            f"a task's variables of {size} bytes; the limit is {MAX_PAYLOAD}: put large data in the body",
            size=size,
            limit=MAX_PAYLOAD,
        )
    return block


def _opaque(message: object) -> bytes:
    if message is None:
        return b""
    if not isinstance(message, bytes):
        raise UnencodableMessage(f"this modifier1 takes bytes or None, not {type(message).__name__}")
    return message


def _call(message: object) -> bytes:
    if isinstance(message, (list, tuple)):
        return encode_call(message)
    if isinstance(message, Mapping):
        return encode_vars(message)
    if isinstance(message, bytes):
        return message
    raise UnencodableMessage(
        f"a call is a list of the function's name and its arguments, not {type(message).__name__}"
    )


_ENCODERS: dict[int, Callable[[object], bytes]] = {
    SPOOL: _task,
    MARSHAL: dumps,
    PING: _opaque,
    ECHO: _opaque,
    RPC: _call,
}


_MAX_BYTE = 0xFF


def encode_request(modifier1: int, modifier2: int, message: object) -> Packet:
    """Return the request that carries *message*.

    :param modifier1: the kind of request. 33 marshals the message; 17 takes a dict, bytes that are a vars
        block, or a :class:`TaskMessage`; 100 and 101 take bytes or None; 173 takes a list of the function's
        name and its arguments. Any other sends a dict as a vars block, bytes unchanged, text as UTF-8, and
        marshals everything else.
    :param modifier2: a detail for the handler, 0 to 255.
    :raises MisuseError: if a modifier is out of range.
    :raises UnencodableMessage: if the message can't be encoded in that way.
    :raises MessageTooLarge: if a key or value is over 65535 bytes. The sender checks the size of the whole
        message.
    """
    if (
        type(modifier1) is not int
        or type(modifier2) is not int
        or not 0 <= modifier1 <= _MAX_BYTE
        or not 0 <= modifier2 <= _MAX_BYTE
    ):
        raise MisuseError(f"the modifiers are {modifier1!r} and {modifier2!r}; each is one byte, 0 to 255")
    return new_tuple(Packet, (modifier1, modifier2, _ENCODERS.get(modifier1, _by_type)(message)))


def _yes_or_no(packet: Packet) -> object:
    if packet.payload and packet.modifier2 and _ID.fullmatch(packet.payload):
        return int(packet.payload)
    return bool(packet.modifier2)


_DECODERS: dict[int, Callable[[Packet], object]] = {ANSWER: _yes_or_no, RPC: decode_result}


def decode_answer(packet: Packet) -> object:
    """Return the value of the answer *packet*.

    :return: for a 255, True, False, or the id in a yes; for a 33, the object; for a 173, bytes, or None if the
        function returned that; for anything else, the payload.
    :raises UnsafeObject: if the payload of a 33 is not a plain marshalled object.
    """
    if packet.modifier1 == MARSHAL:  # nearly all answers
        return loads(packet.payload)
    decoder = _DECODERS.get(packet.modifier1)
    return packet.payload if decoder is None else decoder(packet)


def decoder(python2: str = "") -> Callable[[Packet], object]:
    """Return what decodes answers: :func:`decode_answer`, or what also makes text of the bytes in objects.

    :param python2: the encoding of text from Python 2; empty to leave it bytes.
    :raises ValueError: if there is no such encoding.
    """
    if not python2:
        return decode_answer
    encoding = check_encoding(python2)

    def decode(packet: Packet) -> object:
        value = decode_answer(packet)
        return to_text(value, encoding) if packet.modifier1 == MARSHAL else value

    return decode


def needs_session(packet: Packet) -> bool:
    """Whether *packet* must not go to a plain peer, because it is a task with a body.

    uWSGI ignores the modifier2, so it would read the body as variables, or store the task without its body.
    """
    return (
        packet.modifier1 == SPOOL
        and packet.modifier2 == SPOOL_WITH_ID
        and packet.payload.startswith(encode_item(CONTENT_LENGTH))
    )


def answers_raw(modifier1: int, modifier2: int) -> bool:
    """Whether a plain peer answers such a request not with a packet but with raw bytes up to the end."""
    if modifier1 == RPC:
        return modifier2 in (RPC_RAW, RPC_HTTP)
    return modifier1 in (WSGI, WSGI_STRIPPED, ECHO)


def _payload(packet: Packet) -> bytes:
    return packet.payload


def answer_encoder(modifier1: int, modifier2: int) -> Callable[[Packet], bytes]:
    """Return what makes the bytes of the answer to such a request of a plain peer.

    It raises ``MessageTooLarge`` if the answer fits no packet, and has to.
    """
    if answers_raw(modifier1, modifier2):
        return _payload
    return encode_plain if modifier1 == RPC else encode_packet
