"""The session machine: bytes and events, in every chunking, at every limit, with every cancel."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwsgitwisted.errors import Busy, MalformedPacket, MessageTooLarge, PacketTooLarge, ProtocolError
from uwsgitwisted.wire.events import (
    AnswerReceived,
    CancelReceived,
    ErrorReceived,
    Event,
    PingReceived,
    PongReceived,
    RequestReceived,
    RequestRefused,
    ShutdownReceived,
)
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.frame import (
    ANSWER,
    CANCEL,
    ERROR,
    FIRST_PIECE,
    MIN_PIECE,
    MORE,
    NEXT_PIECE,
    REQUEST,
    SHUTDOWN,
)
from uwsgitwisted.wire.outgoing import OVERHEAD
from uwsgitwisted.wire.packet import MAX_PAYLOAD, PING, SESSION, Packet, encode_packet
from uwsgitwisted.wire.session import MAX_ID, Role, Session
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.wire.vars import encode_vars

LARGE = Packet(33, 0, bytes(FIRST_PIECE + NEXT_PIECE + 1))  # three pieces
SMALL = Packet(33, 7, b"small")


def frame(kind: int, payload: bytes) -> bytes:
    return encode_packet(Packet(SESSION, kind, payload))


def begin(kind: int, request: int, piece: bytes, size: int | None = None, time: int = 0) -> bytes:
    """Return the frame that begins a message, of the modifiers 33 and 7."""
    head = struct.pack("<IBBII", request, 33, 7, len(piece) if size is None else size, time)
    return frame(kind, head + piece)


def short(kind: int, request: int, rest: bytes = b"") -> bytes:
    return frame(kind, struct.pack("<I", request) + rest)


def client(theirs: Terms | None = None, **options: object) -> Session:
    return Session(Role.CLIENT, Terms(), theirs or Terms(), **options)  # type: ignore[arg-type]


def server(ours: Terms | None = None, theirs: Terms | None = None) -> Session:
    return Session(Role.SERVER, ours or Terms(), theirs or Terms())


def sent(session: Session) -> bytes:
    """Return everything that *session* has to send."""
    return b"".join(iter(session.data_to_send, b""))


def frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the kind and the request's id of each frame in *data*."""
    while data:
        _, size, kind, request = struct.unpack_from("<BHBI", data)
        yield kind, request
        data = data[4 + size :]


def terms(version: bytes, max_message: bytes, max_requests: bytes) -> bytes:
    pairs = [(b"uwsgi-session", version), (b"max-message", max_message), (b"max-requests", max_requests)]
    return encode_vars(pairs)


#: Prints how many pages of new memory a process takes for each message of 1 MB.
class TestTerms:
    def test_round_trip(self) -> None:
        """What one side encodes the other decodes."""
        told = Terms(max_message=5, max_requests=6, node="no\u0308de")
        assert Terms.decode(told.encode()) == told

    @pytest.mark.parametrize(
        "payload",
        [
            pytest.param(b"", id="uwsgi's pong"),
            pytest.param(b"my node has problems", id="uwsgi's warning message"),
            pytest.param(b"\xff" * 50, id="junk"),
            pytest.param(terms(b"2", b"1", b"1"), id="version"),
            pytest.param(terms(b"1", b"1", b"1")[:-6], id="cut"),
            pytest.param(encode_vars([(b"uwsgi-session", b"1"), (b"max-message", b"1")]), id="missing"),
            pytest.param(terms(b"1", b"-1", b"1"), id="negative"),
            pytest.param(terms(b"1", b"1", b"1_0"), id="underscore"),
            pytest.param(terms(b"1", b"9" * 9_999, b"1"), id="endless"),
            pytest.param(terms(b"1", b"0", b"1"), id="no message"),
            pytest.param(terms(b"1", b"1", b"0"), id="no request"),
        ],
    )
    def test_none(self, payload: bytes) -> None:
        """A ping without terms that can be understood offers no session."""
        assert Terms.decode(payload) is None

    def test_node_is_optional_and_any_bytes(self) -> None:
        """A peer may leave out its name, or send one that is no UTF-8."""
        block = terms(b"1", b"3", b"4")
        assert Terms.decode(block) == Terms(3, 4, "")
        assert Terms.decode(block + encode_vars([(b"node", b"\xff")])) == Terms(3, 4, "\ufffd")
        assert Terms.decode(block + encode_vars([(b"node", b"n" * 60_000)])) == Terms(3, 4, "n" * 255)

    @given(st.binary(max_size=200))
    def test_junk(self, payload: bytes) -> None:
        """Whatever a peer's ping carries, reading it raises nothing."""
        Terms.decode(payload)


PING_BYTES, PONG = encode_packet(Packet(PING, 0)), encode_packet(Packet(PING, 1))

FROM_CLIENT: list[tuple[bytes, list[Event]]] = [
    (begin(REQUEST, 1, b"ask"), [RequestReceived(1, Packet(33, 7, b"ask"), None)]),
    (begin(REQUEST, MAX_ID, b"", time=1_500), [RequestReceived(MAX_ID, Packet(33, 7, b""), 1.5)]),
    (short(CANCEL, 9), [CancelReceived(9)]),
    (frame(SHUTDOWN, b""), [ShutdownReceived()]),
    (encode_packet(Packet(PING, 0)), [PingReceived()]),
    (encode_packet(Packet(PING, 1)), [PongReceived()]),
    (short(MORE, 12, b"of a request that was cancelled"), []),
    (
        begin(REQUEST, 3, b"x" * MIN_PIECE, 2 * MIN_PIECE + 1)
        + short(MORE, 3, b"y" * MIN_PIECE)
        + short(MORE, 3, b"z"),
        [RequestReceived(3, Packet(33, 7, b"x" * MIN_PIECE + b"y" * MIN_PIECE + b"z"), None)],
    ),
]
FROM_SERVER: list[tuple[bytes, list[Event]]] = [
    (begin(ANSWER, 1, b"told", time=2_000_000), [AnswerReceived(1, Packet(33, 7, b"told"), 2.0)]),
    (
        begin(ANSWER, 3, b"x" * MIN_PIECE, MIN_PIECE + 1) + short(MORE, 3, b"z"),
        [AnswerReceived(3, Packet(33, 7, b"x" * MIN_PIECE + b"z"), 0.0)],
    ),
    (frame(SHUTDOWN, b""), [ShutdownReceived()]),
    (encode_packet(Packet(PING, 1, b"a word")), [PongReceived()]),
]
CASES = [pytest.param(server, *case) for case in FROM_CLIENT]
CASES += [pytest.param(client, *case) for case in FROM_SERVER]


class TestReceive:
    @pytest.mark.parametrize(("make", "data", "events"), CASES)
    def test_whole(self, make: type[Session], data: bytes, events: list[Event]) -> None:
        """What arrives at once comes out at once."""
        assert make().receive(data) == events

    @pytest.mark.parametrize(("make", "data", "events"), CASES)
    def test_byte_by_byte(self, make: type[Session], data: bytes, events: list[Event]) -> None:
        """What arrives a byte at a time comes out the same."""
        session = make()
        assert [event for byte in data for event in session.receive(bytes([byte]))] == events

    @pytest.mark.parametrize(("make", "data", "events"), CASES)
    def test_with_a_tail(self, make: type[Session], data: bytes, events: list[Event]) -> None:
        """What follows in the same chunk is kept, and completed by the next one."""
        session = make()
        tail = frame(SHUTDOWN, b"")
        assert session.receive(data + tail[:3]) == events
        assert session.receive(tail[3:]) == [ShutdownReceived()]

    def test_ping_is_answered(self) -> None:
        """The answer to a ping is queued by the session itself."""
        session = server()
        session.receive(encode_packet(Packet(PING, 0)))
        assert sent(session) == PONG

    def test_a_sign_of_life(self) -> None:
        """A pong may be sent without being asked for."""
        session = server()
        session.send_pong()
        assert sent(session) == PONG

    def test_a_request_that_is_not_admitted(self) -> None:
        """A request without room is refused at its first piece, and the others are thrown away."""
        asked: list[int] = []

        def admits(size: int) -> bool:
            asked.append(size)
            return len(asked) > 1

        session = Session(Role.SERVER, Terms(), Terms(), admits=admits)
        size = 2 * FIRST_PIECE
        first = begin(REQUEST, 7, bytes(FIRST_PIECE), size)
        rest = short(MORE, 7, bytes(FIRST_PIECE))
        assert session.receive(first + rest) == [RequestRefused(7, size)]
        assert (session.announced, session.unfinished) == (0, 0)
        (event,) = session.receive(first + rest)
        assert isinstance(event, RequestReceived)
        assert asked == [size, size]

    def test_one_answer_to_many_pings(self) -> None:
        """While an answer to a ping waits, it is that of all pings that come, and goes before all else."""
        session = server()
        session.send_answer(1, SMALL)
        assert session.receive(PING_BYTES * 5_000) == [PingReceived()] * 5_000
        assert session.backlog < 2 * OVERHEAD
        assert sent(session) == PONG + begin(ANSWER, 1, b"small")
        session.receive(PING_BYTES)
        assert session.sending
        assert sent(session) == PONG

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(PING_BYTES, id="ping"),
            pytest.param(PONG, id="pong"),
            pytest.param(frame(SHUTDOWN, b""), id="shutdown"),
            pytest.param(short(CANCEL, 5), id="cancel of an id that nobody has"),
            pytest.param(short(MORE, 5), id="empty piece of an id that nobody has"),
            pytest.param(short(MORE, 5, bytes(100)), id="piece of an id that nobody has"),
        ],
    )
    def test_nothing_stays_of_floods(self, data: bytes) -> None:
        """Of frames that mean nothing any more, or are there again and again, nothing is kept."""
        session = server()
        for _ in range(50):
            session.receive(data * 100)
        assert (session._incoming, session.announced, session.unfinished, session.more) == ({}, 0, 0, False)
        assert session.backlog <= OVERHEAD
        assert len(session.data_to_send()) <= len(PONG)

    def test_the_number_of_unfinished_messages(self) -> None:
        """It is bounded by the limit for their bytes, since each has at least the smallest piece."""
        session = server(Terms(max_message=100 * MIN_PIECE))
        data = b"".join(begin(REQUEST, request, bytes(MIN_PIECE), MIN_PIECE + 1) for request in range(1_000))
        with pytest.raises(PacketTooLarge):
            session.receive(data)
        assert len(session._incoming) < 100

    @pytest.mark.parametrize(("make", "data", "events"), CASES)
    def test_frame_by_frame(self, make: type[Session], data: bytes, events: list[Event]) -> None:
        """What arrives at once can be read a frame at a time, and more may arrive meanwhile."""
        session = make()
        tail = frame(SHUTDOWN, b"")
        read = session.receive(data + tail + tail[:2], 1)
        assert session.more
        while session.more:
            read += session.receive(most=1)
        assert read == [*events, ShutdownReceived()]
        assert session.receive(tail[2:] + tail, 1) == [ShutdownReceived()]
        assert session.receive(tail, 1) == [ShutdownReceived()]
        assert session.receive(most=1) == [ShutdownReceived()]
        assert not session.more

    def test_error(self) -> None:
        """An error frame brings the exception that it describes."""
        [event] = client().receive(begin(ERROR, 4, encode_failure(Busy("full")), time=500_000))
        assert isinstance(event, ErrorReceived)
        assert (event.id, type(event.error), str(event.error), event.took) == (4, Busy, "full", 0.5)

    @pytest.mark.parametrize(
        ("make", "data"),
        [
            pytest.param(server, begin(ANSWER, 1, b""), id="an answer to a server"),
            pytest.param(server, begin(ERROR, 1, b""), id="an error to a server"),
            pytest.param(client, begin(REQUEST, 1, b""), id="a request to a client"),
            pytest.param(client, short(CANCEL, 1), id="a cancel to a client"),
            pytest.param(server, frame(99, b""), id="unknown kind"),
            pytest.param(server, encode_packet(Packet(33, 0)), id="plain packet"),
            pytest.param(server, frame(REQUEST, b"short"), id="short head"),
            pytest.param(server, frame(MORE, b"abc"), id="short more"),
            pytest.param(server, frame(CANCEL, b""), id="short cancel"),
            pytest.param(server, begin(REQUEST, 1, b"abc", 2), id="more than announced"),
            pytest.param(server, begin(REQUEST, 1, b"", 10), id="empty first piece"),
            pytest.param(server, begin(REQUEST, 1, bytes(MIN_PIECE - 1), 9_999), id="tiny first piece"),
            pytest.param(client, begin(ERROR, 1, b"\xff\xff"), id="an error that is no vars block"),
        ],
    )
    def test_malformed(self, make: type[Session], data: bytes) -> None:
        """Bytes that break the protocol are refused."""
        with pytest.raises(MalformedPacket):
            make().receive(data)

    @pytest.mark.parametrize(
        "piece",
        [
            pytest.param(b"", id="empty"),
            pytest.param(bytes(MIN_PIECE - 1), id="tiny"),
            pytest.param(bytes(2 * MIN_PIECE + 1), id="too much"),
        ],
    )
    def test_malformed_piece(self, piece: bytes) -> None:
        """A later piece that is empty, needlessly small, or more than was announced, is refused."""
        session = server()
        session.receive(begin(REQUEST, 1, bytes(MIN_PIECE), 3 * MIN_PIECE))
        with pytest.raises(MalformedPacket):
            session.receive(short(MORE, 1, piece))

    def test_begins_twice(self) -> None:
        """A second message can't begin with the id of an unfinished one."""
        session = server()
        session.receive(begin(REQUEST, 1, bytes(MIN_PIECE), MIN_PIECE + 1))
        with pytest.raises(MalformedPacket):
            session.receive(begin(REQUEST, 1, bytes(MIN_PIECE), MIN_PIECE + 1))

    def test_too_large_whole(self) -> None:
        """A message over the limit is refused even if it fits one frame."""
        with pytest.raises(PacketTooLarge) as caught:
            server(Terms(max_message=2)).receive(begin(REQUEST, 1, b"abc"))
        assert (caught.value.size, caught.value.limit) == (3, 2)

    def test_too_large_in_pieces(self) -> None:
        """A message over the limit is refused when it announces itself."""
        limit = 3 * MIN_PIECE
        with pytest.raises(PacketTooLarge) as caught:
            server(Terms(max_message=limit)).receive(begin(REQUEST, 1, bytes(MIN_PIECE), limit + 1))
        assert (caught.value.size, caught.value.limit) == (limit + 1, limit)

    def test_window(self) -> None:
        """Unfinished messages may not announce more than the limit together; finished ones don't count."""
        size = 2 * MIN_PIECE
        session = server(Terms(max_message=2 * size))
        piece = bytes(MIN_PIECE)
        assert session.receive(begin(REQUEST, 1, piece, size) + begin(REQUEST, 2, piece, size)) == []
        assert len(session.receive(short(MORE, 1, piece))) == 1
        assert session.receive(begin(REQUEST, 3, piece, size)) == []
        with pytest.raises(PacketTooLarge):
            session.receive(begin(REQUEST, 4, piece, size))

    def test_unfinished(self) -> None:
        """The bytes of unfinished messages are counted until the messages are complete or cancelled."""
        session = server()
        for request in (1, 2):
            session.receive(begin(REQUEST, request, bytes(MIN_PIECE), 3 * MIN_PIECE))
            session.receive(short(MORE, request, bytes(MIN_PIECE + 1)))
        assert session.unfinished == 2 * (2 * MIN_PIECE + 1)
        session.receive(short(CANCEL, 1))
        assert session.unfinished == 2 * MIN_PIECE + 1
        session.receive(short(MORE, 2, bytes(MIN_PIECE - 1)))
        assert session.unfinished == 0

    def test_errors_pass_a_small_limit(self) -> None:
        """A client whose limit is smaller than an error's text gets the error nevertheless."""
        answering = server(theirs=Terms(max_message=3))
        answering.send_error(1, encode_failure(Busy("full")))
        [event] = Session(Role.CLIENT, Terms(max_message=3), Terms()).receive(sent(answering))
        assert isinstance(event, ErrorReceived)

    @given(st.binary(max_size=300), st.sampled_from([server, client]))
    def test_junk(self, data: bytes, make: type[Session]) -> None:
        """Junk gives events or a ProtocolError, and nothing else."""
        with contextlib.suppress(ProtocolError):
            make().receive(data)

    @given(st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=40)), max_size=8))
    def test_junk_in_frames(self, parts: list[tuple[int, bytes]]) -> None:
        """Frames with junk in them give events or a ProtocolError, and nothing else."""
        with contextlib.suppress(ProtocolError):
            server().receive(b"".join(frame(kind, payload) for kind, payload in parts))


class TestSend:
    def test_request_bytes(self) -> None:
        """A request is one frame with the id, the modifiers, the size and the milliseconds."""
        session = client()
        session.send_request(5, SMALL, 1.25)
        assert session.sending
        assert sent(session) == begin(REQUEST, 5, b"small", time=1_250)
        assert not session.sending
        assert session.data_to_send() == b""

    @pytest.mark.parametrize(
        ("seconds", "told"),
        [(None, None), (0.0001, 0.001), (-5.0, 0.001), (30.0, 30.0), (1e12, MAX_ID / 1000)],
    )
    def test_deadlines(self, seconds: float | None, told: float | None) -> None:
        """A deadline travels in whole milliseconds, at least one and at most what the field takes."""
        session = client()
        session.send_request(1, SMALL, seconds)
        assert server().receive(sent(session)) == [RequestReceived(1, SMALL, told)]

    def test_answers(self) -> None:
        """Answers and errors tell how long their handler took."""
        session = server()
        session.send_answer(1, SMALL, 0.25)
        session.send_error(2, encode_failure(Busy("full")), 1e12)
        answer, error = client().receive(sent(session))
        assert answer == AnswerReceived(1, SMALL, 0.25)
        assert isinstance(error, ErrorReceived)
        assert error.took == MAX_ID / 1_000_000

    def test_several_small_ones_in_one_piece(self) -> None:
        """All small messages are sent at once."""
        session = client()
        session.send_request(1, SMALL)
        session.send_ping()
        session.send_shutdown()
        assert server().receive(session.data_to_send()) == [
            RequestReceived(1, SMALL, None),
            PingReceived(),
            ShutdownReceived(),
        ]

    @pytest.mark.parametrize("size", [6, FIRST_PIECE + 1])
    def test_too_large(self, size: int) -> None:
        """What the peer doesn't take is refused, and nothing is sent."""
        session = client(Terms(max_message=5))
        with pytest.raises(MessageTooLarge) as caught:
            session.send_request(1, Packet(33, 0, bytes(size)))
        assert (caught.value.size, caught.value.limit) == (size, 5)
        assert not session.sending

    def test_larger_than_the_size_field(self) -> None:
        """A message over 4 GiB is refused even if the peer says that it would take it."""

        class Endless(bytes):
            def __len__(self) -> int:
                return 1 << 32

        session = client(Terms(max_message=1 << 40))
        with pytest.raises(MessageTooLarge):
            session.send_request(1, Packet(33, 0, Endless()))

    @pytest.mark.parametrize(
        "size", [0, FIRST_PIECE, FIRST_PIECE + 1, FIRST_PIECE + NEXT_PIECE, len(LARGE.payload)]
    )
    def test_sizes_at_the_edges(self, size: int) -> None:
        """A message arrives whole wherever its last piece ends."""
        session = client()
        packet = Packet(1, 2, bytes(range(256)) * (size // 256) + bytes(size % 256))
        session.send_request(1, packet)
        assert server().receive(sent(session)) == [RequestReceived(1, packet, None)]

    def test_large_ones_take_turns(self) -> None:
        """The pieces of two large messages alternate."""
        session = client()
        session.send_request(1, LARGE)
        session.send_request(2, LARGE)
        assert [request for _, request in frames(sent(session))] == [1, 2, 1, 2, 1, 2]

    def test_a_small_one_passes_large_ones(self) -> None:
        """A small message waits for no more than the piece that has gone out."""
        session = client()
        session.send_request(1, LARGE)
        assert len(session.data_to_send()) == MAX_PAYLOAD + 4
        session.send_request(2, SMALL)
        assert [request for _, request in frames(session.data_to_send())] == [2, 1]

    def test_the_piece_size_asked_for(self) -> None:
        """A caller that wants more gets more pieces at once."""
        session = client()
        session.send_request(1, LARGE)
        assert len(list(frames(session.data_to_send(10**9)))) == 3

    def test_backlog(self) -> None:
        """The backlog counts all bytes that wait, and goes down as they are taken."""
        session = client()
        session.send_request(1, SMALL)
        small = session.backlog
        assert OVERHEAD < small < OVERHEAD + 100
        session.send_request(2, LARGE)
        assert session.backlog == small + len(LARGE.payload)
        session.data_to_send()
        assert session.backlog == len(LARGE.payload) - FIRST_PIECE
        sent(session)
        assert session.backlog == 0

    def test_backlog_of_small_ones(self) -> None:
        """Each frame counts with the size of Python's objects."""
        session = server()
        for request in range(100):
            session.send_answer(request, Packet(33, 0))
        assert session.backlog > 100 * OVERHEAD
        sent(session)
        assert session.backlog == 0

    def test_work_is_linear(self) -> None:
        """Neither cancelling one of many messages, nor asking how much waits, looks at all of them."""
        session = server()
        number = 20_000
        began = process_time()
        for request in range(number):
            session.send_answer(request, LARGE)
            assert session.backlog == (request + 1) * len(LARGE.payload)
        for request in reversed(range(number)):
            assert session.is_sending(request)
            session.receive(short(CANCEL, request))
        assert session.backlog == 0
        assert process_time() - began < 3  # it takes 0.1 s, and took minutes

    def test_the_sender_keeps_to_the_window(self) -> None:
        """Large messages begin only while the peer takes what all of them announce."""
        terms = Terms(max_message=2 * len(LARGE.payload))
        session = client(terms)
        for request in range(1, 6):
            session.send_request(request, LARGE)
        order = list(frames(data := sent(session)))
        assert len(server(terms).receive(data)) == 5
        first_of_third = order.index((REQUEST, 3))
        assert order[:first_of_third].count((MORE, 1)) == 2, "the third began before the first was out"

    def test_a_message_of_the_whole_window_is_sent(self) -> None:
        """The largest message that the peer takes goes out, alone."""
        terms = Terms(max_message=len(LARGE.payload))
        session = client(terms)
        session.send_request(1, LARGE)
        session.send_request(2, LARGE)
        assert [request for _, request in frames(sent(session))] == [1, 1, 1, 2, 2, 2]


class Pair:
    """A client and a server with a window for one large message."""

    def __init__(self) -> None:
        self.terms = Terms(max_message=len(LARGE.payload))
        self.awaited: set[int] = set()
        self.client = Session(Role.CLIENT, self.terms, self.terms, awaited=self.awaited)
        self.server = Session(Role.SERVER, self.terms, self.terms)

    def to_server(self) -> list[Event]:
        return self.server.receive(sent(self.client))

    def to_client(self) -> list[Event]:
        return self.client.receive(sent(self.server))

    def check(self) -> None:
        """Check that the whole window is free in both directions."""
        self.client.send_request(1_000, LARGE)
        assert self.to_server()[-1] == RequestReceived(1_000, LARGE, None)
        self.awaited.add(1_000)
        self.server.send_answer(1_000, LARGE)
        assert self.to_client() == [AnswerReceived(1_000, LARGE, 0.0)]
        assert not self.client.sending
        assert not self.server.sending
        for session in (self.client, self.server):
            assert (session.announced, session.unfinished, session.backlog) == (0, 0, 0)


class TestCancel:
    def test_bytes(self) -> None:
        """A cancel is a frame with the id."""
        session = client()
        session.send_cancel(5)
        assert sent(session) == short(CANCEL, 5)

    def test_request_queued(self) -> None:
        """A request that has not begun is not sent."""
        pair = Pair()
        pair.client.send_request(1, LARGE)
        pair.client.data_to_send()
        pair.client.send_request(2, LARGE)
        pair.client.send_cancel(2)
        assert REQUEST not in [kind for kind, _ in frames(pair.client.data_to_send(1))]
        pair = Pair()
        pair.client.send_request(1, LARGE)
        pair.client.send_cancel(1)
        assert pair.to_server() == [CancelReceived(1)]
        pair.check()

    def test_request_partly_sent(self) -> None:
        """Both sides forget what they have of it."""
        pair = Pair()
        pair.client.send_request(1, LARGE)
        assert pair.server.receive(pair.client.data_to_send()) == []
        pair.client.send_cancel(1)
        assert pair.to_server() == [CancelReceived(1)]
        pair.check()

    def test_the_next_one_begins_after_the_cancel(self) -> None:
        """A message that waited for the window begins behind the cancel that opens it."""
        pair = Pair()
        pair.client.send_request(1, LARGE)
        pair.server.receive(pair.client.data_to_send())
        pair.client.send_request(2, LARGE)
        pair.client.send_cancel(1)
        assert pair.to_server() == [CancelReceived(1), RequestReceived(2, LARGE, None)]
        pair.check()

    def test_answer_queued(self) -> None:
        """An answer that has not begun is not sent."""
        pair = Pair()
        pair.server.send_answer(1, LARGE)
        pair.client.send_cancel(1)
        assert pair.to_server() == [CancelReceived(1)]
        assert pair.to_client() == []
        pair.check()

    def test_answer_partly_received(self) -> None:
        """The received pieces are dropped, and later ones are ignored."""
        pair = Pair()
        pair.awaited.add(1)
        pair.server.send_answer(1, LARGE)
        pair.client.receive(pair.server.data_to_send())
        on_the_way = pair.server.data_to_send()
        pair.awaited.discard(1)
        pair.client.send_cancel(1)
        assert pair.client.receive(on_the_way) == []
        assert pair.to_server() == [CancelReceived(1)]
        assert sent(pair.server) == b""
        pair.check()

    def test_cancel_crosses_the_beginning_of_the_answer(self) -> None:
        """The beginning of an answer that nobody wants, and that will never be finished, takes no room."""
        pair = Pair()
        pair.server.send_answer(1, LARGE)
        on_the_way = pair.server.data_to_send()
        pair.client.send_cancel(1)
        assert pair.client.receive(on_the_way) == []
        assert pair.to_server() == [CancelReceived(1)]
        pair.check()

    def test_answered(self) -> None:
        """A cancel that comes after the answer does no harm."""
        pair = Pair()
        pair.server.send_answer(1, SMALL)
        assert pair.to_client() == [AnswerReceived(1, SMALL, 0.0)]
        pair.client.send_cancel(1)
        assert pair.to_server() == [CancelReceived(1)]
        pair.check()

    def test_one_of_several(self) -> None:
        """Cancelling one message leaves the others."""
        session = client()
        for request in (1, 2, 3):
            session.send_request(request, LARGE)
        answering = server()
        answering.receive(session.data_to_send())
        session.send_cancel(2)
        assert answering.receive(sent(session)) == [
            CancelReceived(2),
            RequestReceived(1, LARGE, None),
            RequestReceived(3, LARGE, None),
        ]


sizes = st.one_of(st.integers(0, 100), st.sampled_from([FIRST_PIECE, FIRST_PIECE + 1, 100_000, 200_001]))


class TestAnything:
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(sizes, min_size=1, max_size=8),
        st.lists(sizes, min_size=1, max_size=8),
        st.lists(st.integers(1, 70_000), min_size=1, max_size=6),
        st.sampled_from([200_001, 300_000, 1 << 26]),
    )
    def test_arrives(self, requests: list[int], answers: list[int], cuts: list[int], window: int) -> None:
        """Any requests, in any chunks, arrive whole under their ids, and so do their answers."""
        terms = Terms(max_message=window)
        asking, answering = client(terms), server(terms, terms)
        asked = {number: Packet(33, 1, bytes([number]) * size) for number, size in enumerate(requests, 1)}
        told = {number: Packet(33, 2, bytes([number]) * answers[number % len(answers)]) for number in asked}
        for number, packet in asked.items():
            asking.send_request(number, packet)
        arrived = list(deliver(asking, answering, cuts))
        assert {event.id: event.packet for event in arrived} == asked  # type: ignore[union-attr]
        for event in arrived:
            answering.send_answer(event.id, told[event.id])  # type: ignore[union-attr]
        back = list(deliver(answering, asking, cuts))
        assert {event.id: event.packet for event in back} == told  # type: ignore[union-attr]
        assert len(back) == len(asked)


def deliver(source: Session, destination: Session, cuts: list[int]) -> Iterator[Event]:
    """Take what *source* sends to *destination* in chunks of the sizes in *cuts*, over and over."""
    data = sent(source)
    places = [0]
    while places[-1] < len(data):
        places.append(min(len(data), places[-1] + cuts[len(places) % len(cuts)] + len(data) // 2_000))
    for start, end in pairwise(places):
        yield from destination.receive(data[start:end])


def test_abandon() -> None:
    """A session whose connection is closed holds nothing any more, neither received nor unsent."""
    one, other = server(), client()
    other.send_request(1, LARGE)
    one.receive(other.data_to_send())
    one.receive(begin(REQUEST, 2, b"half a frame")[:10])
    one.send_answer(3, LARGE)
    one.send_answer(4, SMALL)
    one.send_pong()
    assert one.unfinished
    assert one.backlog_memory > len(LARGE.payload)
    one.abandon()
    assert (one.unfinished, one.announced, one.backlog_memory, one.backlog, one.more) == (0, 0, 0, 0, False)
    assert one.data_to_send() == b""
    assert not one.is_sending(3)
