"""Bundles: several objects in one request, and their outcomes in one answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import (
    MalformedAnswer,
    MalformedPacket,
    RemoteError,
    UnknownModifier,
    UnsafeObject,
    WorkerDied,
)
from uwsgitwisted.wire.bundle import (
    MAX_BUNDLE,
    MAX_BUNDLE_SIZE,
    decode_bundle,
    decode_outcomes,
    encode_bundle,
    encode_error,
    encode_outcomes,
    encode_value,
)
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.frame import FIRST_PIECE
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import BUNDLE, MARSHAL, Packet
from uwsgitwisted.wire.terms import Terms

OBJECTS = [Packet(MARSHAL, 17, dumps(value)) for value in (1, "two", [3])]
REQUEST = encode_bundle(OBJECTS)
FAILURE = encode_failure(RemoteError(type="KeyError", message="'user'"))


def answer(*outcomes: bytes) -> Packet:
    return encode_outcomes(REQUEST, outcomes)


class TestRequest:
    def test_bytes(self) -> None:
        """Each object stands behind its size; the modifier2 is that of all."""
        assert Packet(BUNDLE, 17, b"\1\0\0\0N\1\0\0\0T") == encode_bundle(
            [Packet(MARSHAL, 17, b"N"), Packet(MARSHAL, 17, b"T")]
        )
        assert decode_bundle(REQUEST) == OBJECTS

    @pytest.mark.parametrize("size", range(1, len(REQUEST.payload)))
    def test_cut(self, size: int) -> None:
        """A bundle that ends too early is refused, unless an object ends there."""
        ends = [len(encode_bundle(OBJECTS[:count]).payload) for count in (1, 2)]
        if size in ends:
            assert len(decode_bundle(Packet(BUNDLE, 17, REQUEST.payload[:size]))) == ends.index(size) + 1
        else:
            with pytest.raises(MalformedPacket, match="ends within"):
                decode_bundle(Packet(BUNDLE, 17, REQUEST.payload[:size]))

    def test_number(self) -> None:
        """A bundle has from 1 to 256 objects, so that empty ones can't fill the memory."""
        empty = b"\0\0\0\0"
        assert len(decode_bundle(Packet(BUNDLE, 0, empty * MAX_BUNDLE))) == MAX_BUNDLE
        with pytest.raises(MalformedPacket, match="more than 256"):
            decode_bundle(Packet(BUNDLE, 0, empty * (MAX_BUNDLE + 1)))
        with pytest.raises(MalformedPacket, match="without an object"):
            decode_bundle(Packet(BUNDLE, 0))

    def test_one_frame(self) -> None:
        """The largest bundle of ours fits one frame."""
        assert MAX_BUNDLE_SIZE + 4 * MAX_BUNDLE <= FIRST_PIECE


class TestAnswer:
    def test_outcomes(self) -> None:
        """Each outcome is a value or an error."""
        first, second = decode_outcomes(answer(encode_value(dumps([1])), encode_error(FAILURE)))
        assert first == ([1], None)
        assert isinstance(second.error, RemoteError)
        assert (second.value, second.error.type) == (None, "KeyError")

    def test_broken_outcomes(self) -> None:
        """What can't be read in an outcome is its error, and the others are read."""
        outcomes = decode_outcomes(
            answer(encode_value(b"?"), encode_error(b"\xff"), b"\2\1\0\0\0N", encode_value(dumps(4)))
        )
        assert [type(error) for _, error in outcomes[:3]] == [UnsafeObject, MalformedPacket, MalformedAnswer]
        assert outcomes[3] == (4, None)

    def test_cut(self) -> None:
        """An answer that ends too early is refused, unless an outcome ends there."""
        first, second = encode_value(dumps(1)), encode_error(FAILURE)
        for size in range(1, len(first + second)):
            cut = Packet(BUNDLE, 17, (first + second)[:size])
            if size == len(first):
                assert decode_outcomes(cut) == [(1, None)]
            else:
                with pytest.raises(MalformedAnswer, match="ends within"):
                    decode_outcomes(cut)

    def test_number(self) -> None:
        """An answer has from 1 to 256 outcomes."""
        assert len(decode_outcomes(answer(*[encode_value(b"N")] * MAX_BUNDLE))) == MAX_BUNDLE
        with pytest.raises(MalformedAnswer, match="more than 256"):
            decode_outcomes(answer(*[encode_value(b"N")] * (MAX_BUNDLE + 1)))
        with pytest.raises(MalformedAnswer, match="no outcome"):
            decode_outcomes(answer())

    def test_another_kind_of_answer(self) -> None:
        """An object is no answer to a bundle."""
        with pytest.raises(MalformedAnswer, match="modifier1 33"):
            decode_outcomes(Packet(MARSHAL, 17, dumps(1)))


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=20), st.integers(0, 255))
def test_round_trip(payloads: list[bytes], modifier2: int) -> None:
    """Whatever objects go in come out."""
    packets = [Packet(MARSHAL, modifier2, payload) for payload in payloads]
    assert decode_bundle(encode_bundle(packets)) == packets


@pytest.mark.parametrize(
    ("node", "client", "expected"),
    [
        (Terms(), Terms(), 0),
        (Terms(bundle=5), Terms(), 5),
        (Terms(bundle=10**19), Terms(), MAX_BUNDLE),
        (Terms(bundle=5, max_message=1 << 20), Terms(), 5),
        (Terms(bundle=5, max_message=(1 << 20) - 1), Terms(), 0),
        (Terms(bundle=5), Terms(max_message=1 << 20), 0),
    ],
)
def test_terms(node: Terms, client: Terms, expected: int) -> None:
    """A node says how many objects it takes; it gets none whose answer might not fit."""
    decoded = Terms.decode(node.encode())
    assert decoded == node
    assert decoded.bundle_from(client) == expected


def test_plain_servers() -> None:
    """No bundle goes to a plain server, which doesn't know it."""
    with pytest.raises(UnknownModifier, match="grants no session") as caught:
        PlainExchange(REQUEST)
    assert caught.value.modifier1 == BUNDLE


def test_errors_of_a_node() -> None:
    """An error that is the node's own keeps its class."""
    (outcome,) = decode_outcomes(answer(encode_error(encode_failure(WorkerDied("killed")))))
    assert isinstance(outcome.error, WorkerDied)
