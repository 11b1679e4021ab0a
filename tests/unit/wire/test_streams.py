"""Streams in a session: windows, ends, cancels, and what a peer must not do."""

from __future__ import annotations

import struct
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwsgitwisted.errors import Busy, MalformedPacket, MessageTooLarge, MisuseError, PacketTooLarge
from uwsgitwisted.wire.events import (
    AnswerReceived,
    CancelReceived,
    DataReceived,
    EndReceived,
    ErrorReceived,
    Event,
    StreamedAnswerReceived,
    StreamedRequestReceived,
    WindowGranted,
)
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.frame import DATA, END, FIRST_PIECE, STREAMED_ANSWER, STREAMED_REQUEST, WINDOW
from uwsgitwisted.wire.packet import SESSION, Packet, encode_packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import Terms

T = TypeVar("T", bound=Event)

WINDOW_SIZE = 100_000
TERMS = Terms(window=WINDOW_SIZE)
HEAD = Packet(0, 0, b"head")


class Pair:
    """A client and a server that speak to each other.

    :param terms: of both.
    """

    def __init__(self, terms: Terms = TERMS) -> None:
        self.client = Session(Role.CLIENT, terms, terms)
        self.server = Session(Role.SERVER, terms, terms)

    def to_server(self) -> list[Event]:
        return self.server.receive(sent(self.client))

    def to_client(self) -> list[Event]:
        return self.client.receive(sent(self.server))


def sent(session: Session) -> bytes:
    return b"".join(iter(session.data_to_send, b""))


def frame(kind: int, payload: bytes) -> bytes:
    return encode_packet(Packet(SESSION, kind, payload))


def begun() -> Pair:
    """Return a pair with a streamed request and a streamed answer, of the id 1."""
    pair = Pair()
    pair.client.send_streamed_request(1, HEAD, 2.0)
    assert pair.to_server() == [StreamedRequestReceived(1, HEAD, 2.0)]
    pair.server.send_streamed_answer(1, HEAD)
    assert pair.to_client() == [StreamedAnswerReceived(1, HEAD)]
    return pair


def test_both_directions() -> None:
    """A request's stream and its answer's are independent of each other."""
    pair = begun()
    pair.client.streams.send(1, b"up")
    pair.server.streams.send(1, b"down")
    pair.server.streams.send_end(1, 0.25)
    assert pair.to_server() == [DataReceived(1, b"up")]
    assert pair.to_client() == [DataReceived(1, b"down"), EndReceived(1, 0.25)]
    pair.client.streams.send_end(1)
    assert pair.to_server() == [EndReceived(1, 0.0)]


@settings(deadline=None)  # other processes use the processors, too
@given(st.lists(st.integers(1, WINDOW_SIZE), max_size=20), st.integers(2_000, 70_000))
def test_window(uses: list[int], chunk: int) -> None:
    """However the receiver uses bytes, no more than a window are on their way, and all arrive in order."""
    pair = begun()
    source = (bytes(range(251)) * 3_000)[: 2 * WINDOW_SIZE]
    position, arrived, used = 0, b"", 0
    for use in [*uses, *[WINDOW_SIZE] * 6]:
        while size := min(chunk, pair.client.streams.credit(1), len(source) - position):
            pair.client.streams.send(1, source[position : position + size])
            position += size
        arrived += b"".join(event.data for event in pair.to_server() if isinstance(event, DataReceived))
        assert len(arrived) - used <= WINDOW_SIZE
        part = min(use, len(arrived) - used)
        if part:
            used += part
            pair.server.streams.grant(1, part)
            assert pair.to_client() == [WindowGranted(1)]
    assert arrived == source


def test_spent_elsewhere() -> None:
    """Bytes that the caller sends by itself count too."""
    pair = begun()
    pair.server.streams.spend(1, 60_000)
    assert pair.server.streams.credit(1) == WINDOW_SIZE - 60_000


def test_cancel_ends_both() -> None:
    """A CANCEL ends both streams; what raced with it is ignored, and what is sent after it is dropped."""
    pair = begun()
    pair.server.streams.send(1, b"raced")
    pair.server.streams.grant(1, 5)
    late = sent(pair.server)
    pair.client.send_cancel(1)
    assert pair.client.receive(late) == []
    assert pair.to_server() == [CancelReceived(1)]
    pair.server.streams.send(1, b"dropped")
    pair.server.streams.send_end(1)
    pair.server.streams.grant(1, 5)
    assert sent(pair.server) == b""
    assert pair.server.streams.credit(1) == 0


def test_error_ends_an_answer() -> None:
    """An ERROR ends a streamed answer early; its later frames are ignored."""
    pair = begun()
    pair.server.send_error(1, encode_failure(Busy("no")))
    pair.server.streams.send(1, b"late")
    pair.server.streams.send_end(1)
    (error,) = pair.to_client()
    assert isinstance(error, ErrorReceived)
    assert isinstance(error.error, Busy)


def test_whole_answer_to_a_stream() -> None:
    """A streamed request may have a whole answer; its owner then forgets its stream."""
    pair = begun()
    pair.server.send_answer(1, HEAD)
    assert pair.to_client() == [AnswerReceived(1, HEAD, 0.0)]
    pair.client.streams.forget(1)
    pair.client.streams.forget(1)
    pair.client.streams.send(1, b"nobody reads this")
    assert sent(pair.client) == b""


def test_no_streams_accepted() -> None:
    """Nothing is streamed to a side that accepts no streams, and frames of streams are violations there."""
    pair = Pair(Terms())
    with pytest.raises(MisuseError):
        pair.client.send_streamed_request(1, HEAD)
    with pytest.raises(MisuseError):
        pair.server.send_streamed_answer(1, HEAD)
    for kind in (STREAMED_REQUEST, DATA, END, WINDOW):
        with pytest.raises(MalformedPacket):
            Pair(Terms()).server.receive(frame(kind, bytes(14)))


def test_large_head() -> None:
    """A message in front of a stream fits one frame, and the peer's limit."""
    pair = Pair()
    with pytest.raises(MessageTooLarge):
        pair.client.send_streamed_request(1, Packet(0, 0, bytes(FIRST_PIECE + 1)))
    pair.client.send_streamed_request(1, Packet(0, 0, bytes(FIRST_PIECE)))
    assert len(pair.to_server()) == 1
    small = Pair(Terms(max_message=3, window=5))
    with pytest.raises(MessageTooLarge):
        small.client.send_streamed_request(1, HEAD)
    with pytest.raises(PacketTooLarge):
        small.server.receive(frame(STREAMED_REQUEST, struct.pack("<IBBII", 1, 0, 0, 4, 0) + b"head"))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (DATA, struct.pack("<I", 1)),
        (DATA, b"123"),
        (DATA, struct.pack("<I", 1) + bytes(WINDOW_SIZE // 2 + 1)),
        (END, struct.pack("<I", 1)),
        (WINDOW, struct.pack("<I", 1)),
        (WINDOW, struct.pack("<II", 1, 0xFFFFFFFF)),
        (STREAMED_REQUEST, struct.pack("<IBBII", 1, 0, 0, 0, 0)),
        (STREAMED_REQUEST, struct.pack("<IBBII", 2, 0, 0, 5, 0) + b"head"),
        (STREAMED_REQUEST, bytes(13)),
        (STREAMED_ANSWER, struct.pack("<IBBII", 2, 0, 0, 0, 0)),
    ],
)
def test_violations(kind: int, payload: bytes) -> None:
    """A peer that breaks a rule is found out."""
    pair = begun()
    pair.client.streams.send(1, bytes(WINDOW_SIZE // 2))
    pair.to_server()
    with pytest.raises(MalformedPacket):
        pair.server.receive(frame(kind, payload))


def test_unknown_streams() -> None:
    """Frames of unknown streams are ignored."""
    pair = Pair()
    unknown = frame(DATA, struct.pack("<I", 9) + b"x") + b"".join(
        frame(kind, struct.pack("<II", 9, 1)) for kind in (END, WINDOW)
    )
    assert pair.server.receive(unknown) == []


def test_no_deadline() -> None:
    """A streamed request may have no deadline."""
    pair = Pair()
    pair.client.send_streamed_request(7, HEAD)
    assert pair.to_server() == [StreamedRequestReceived(7, HEAD, None)]


def test_window_of_terms() -> None:
    """A window larger than a WINDOW frame can say counts as the largest."""
    ours = Terms(window=1 << 40)
    assert Terms.decode(ours.encode()) == ours
    assert Terms.decode(Terms().encode()) == Terms()
    side = Session(Role.CLIENT, ours, ours)
    side.send_streamed_request(1, HEAD)
    assert side.streams.credit(1) == 0xFFFFFFFF


def test_answer_that_raced_with_a_cancel() -> None:
    """A streamed answer that nobody awaits any more is dropped, with its stream, which may never end."""
    awaited = {1}
    pair = Pair()
    pair.client = Session(Role.CLIENT, TERMS, TERMS, awaited=awaited)
    for request in (1, 2):
        pair.server.send_streamed_answer(request, HEAD)
        pair.server.streams.send(request, b"data")
    assert pair.to_client() == [StreamedAnswerReceived(1, HEAD), DataReceived(1, b"data")]
    pair.server.streams.send_end(2)
    assert pair.to_client() == []


def test_used_bytes_are_granted_again() -> None:
    """What was used is granted again, a quarter of the window at a time; after the end, nothing is."""
    pair = begun()
    pair.server.streams.send(1, bytes(WINDOW_SIZE))
    pair.to_client()
    quarter = WINDOW_SIZE // 4
    assert not pair.client.streams.use(1, quarter - 1)
    assert sent(pair.client) == b""
    assert pair.client.streams.use(1, 1)
    assert pair.to_server() == [WindowGranted(1)]
    assert pair.server.streams.credit(1) == quarter
    assert not pair.client.streams.use(1, quarter - 1)
    assert not pair.client.streams.use(2, WINDOW_SIZE)
    pair.server.streams.send_end(1)
    pair.to_client()
    assert not pair.client.streams.use(1, WINDOW_SIZE)
    pair.server.send_streamed_answer(1, HEAD)
    assert pair.to_client() == [StreamedAnswerReceived(1, HEAD)]
    assert not pair.client.streams.use(1, quarter - 1)  # the count begins again


def test_windows_of_one_side() -> None:
    """A side that sends streams, and accepts none, reads grants and nothing else of a stream."""
    ours, theirs = Terms(), TERMS
    client, server = Session(Role.CLIENT, theirs, ours), Session(Role.SERVER, ours, theirs)
    server.send_streamed_answer(1, HEAD)
    client.receive(sent(server))
    client.streams.grant(1, 5)
    assert server.receive(sent(client)) == [WindowGranted(1)]
    assert server.streams.credit(1) == WINDOW_SIZE + 5
    for kind in (STREAMED_REQUEST, DATA, END):
        server = Session(Role.SERVER, ours, theirs)
        with pytest.raises(MalformedPacket):
            server.receive(frame(kind, struct.pack("<II", 1, 0)))


def test_an_error_ends_what_is_sent() -> None:
    """Whoever answers with an error need not end the stream before it."""
    pair = begun()
    pair.server.streams.send(1, b"part")
    pair.server.send_error(1, encode_failure(Busy("no more")))
    assert pair.server.streams.credit(1) == 0
    pair.server.streams.send(1, b"late")
    part, error = pair.to_client()
    assert part == DataReceived(1, b"part")
    assert isinstance(error, ErrorReceived)
