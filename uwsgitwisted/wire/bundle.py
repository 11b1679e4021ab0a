"""Bundles (modifier1 35): several small objects in one request, and what became of each of them in one answer.

A bundle is for objects whose handling costs less than a message. The handler gets them one by one. An answer
has the outcomes of the first objects of its bundle; the server has not begun those that have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import NamedTuple

from uwsgitwisted.errors import MalformedAnswer, MalformedPacket, UwsgiError
from uwsgitwisted.wire.failure import decode_failure
from uwsgitwisted.wire.objects import loads
from uwsgitwisted.wire.packet import BUNDLE, MARSHAL, Packet

#: How many objects a bundle has at most. More would save next to nothing, and each takes memory of its own.
MAX_BUNDLE = 256
#: How many bytes our objects in a bundle have at most, all together, so that it fits one frame.
MAX_BUNDLE_SIZE = 32 * 1024
#: How many bytes the head of an outcome has.
OUTCOME_HEAD = 5

_SIZE = Struct("<I")
_HEAD = Struct("<BI")
_FAILURE, _VALUE = 0, 1


class Outcome(NamedTuple):
    """What became of an object.

    :param value: the handler's answer; None if there is an error.
    :param error: why there is no answer.
    """

    value: object
    error: UwsgiError | None


def encode_bundle(requests: Sequence[Packet]) -> Packet:
    """Return the request that carries the objects of *requests*, which have the same modifiers."""
    parts: list[bytes] = []
    for _, _, payload in requests:
        parts += (_SIZE.pack(len(payload)), payload)
    return Packet(BUNDLE, requests[0].modifier2, b"".join(parts))


def decode_bundle(request: Packet) -> list[Packet]:
    """Return a request (modifier1 33) for each object of a bundle.

    :raises MalformedPacket: if there is none, there are more than ``MAX_BUNDLE``, or their sizes don't add up.
    """
    _, modifier2, payload = request
    requests: list[Packet] = []
    position, end = 0, len(payload)
    while position < end:
        if len(requests) == MAX_BUNDLE:
            raise MalformedPacket(f"a bundle of more than {MAX_BUNDLE} objects")
        start = position + _SIZE.size
        if start > end:
            raise MalformedPacket("a bundle that ends within a size")
        position = start + _SIZE.unpack_from(payload, position)[0]
        if position > end:
            raise MalformedPacket("a bundle that ends within an object")
        requests.append(Packet(MARSHAL, modifier2, payload[start:position]))
    if not requests:
        raise MalformedPacket("a bundle without an object")
    return requests


def encode_value(payload: bytes) -> bytes:
    """Return the outcome of an object whose answer is the object *payload*."""
    return _HEAD.pack(_VALUE, len(payload)) + payload


def encode_error(block: bytes) -> bytes:
    """Return the outcome of an object that has failed.

    :param block: the failure, as :func:`~uwsgitwisted.wire.failure.encode_failure` returns it.
    """
    return _HEAD.pack(_FAILURE, len(block)) + block


def encode_outcomes(request: Packet, outcomes: Iterable[bytes]) -> Packet:
    """Return the answer to the bundle *request*."""
    return Packet(BUNDLE, request.modifier2, b"".join(outcomes))


def decode_outcomes(answer: Packet) -> list[Outcome]:
    """Return the outcomes in the answer to a bundle. What can't be read in one of them is its error.

    :raises MalformedAnswer: if it is no such answer, has no outcome or more than ``MAX_BUNDLE``, or the sizes
        don't add up.
    """
    modifier1, _, payload = answer
    if modifier1 != BUNDLE:
        raise MalformedAnswer(f"the answer to a bundle has modifier1 {modifier1}")
    outcomes: list[Outcome] = []
    position, end = 0, len(payload)
    while position < end:
        if len(outcomes) == MAX_BUNDLE:
            raise MalformedAnswer(f"the answer to a bundle has more than {MAX_BUNDLE} outcomes")
        start = position + OUTCOME_HEAD
        if start > end:
            raise MalformedAnswer("the answer to a bundle ends within an outcome's head")
        kind, size = _HEAD.unpack_from(payload, position)
        position = start + size
        if position > end:
            raise MalformedAnswer("the answer to a bundle ends within an outcome")
        outcomes.append(_decode_outcome(kind, payload[start:position]))
    if not outcomes:
        raise MalformedAnswer("the answer to a bundle has no outcome")
    return outcomes


def _decode_outcome(kind: int, content: bytes) -> Outcome:
    try:
        if kind == _VALUE:
            return Outcome(loads(content), None)
        if kind == _FAILURE:
            return Outcome(None, decode_failure(content))
        raise MalformedAnswer(f"an outcome of kind {kind}")
    except UwsgiError as error:
        return Outcome(None, error)
