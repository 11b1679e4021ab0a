"""Streamed answers in a session: windows, turns, every end, and clients that take nothing."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from tests.unit.transport.server.test_server_session import ASK, TOLD
from tests.unit.transport.server.test_server_session import Bench as SessionBench
from uwsgitwisted.errors import Busy, MessageTooLarge, RequestTimeout, WorkerDied
from uwsgitwisted.interfaces import Reply, Request, StreamedAnswer
from uwsgitwisted.stream import Stream
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.transport.server.streamed_answers import ANSWER_MEMORY
from uwsgitwisted.wire.events import (
    AnswerReceived,
    DataReceived,
    EndReceived,
    StreamedAnswerReceived,
)
from uwsgitwisted.wire.frame import FIRST_PIECE, NEXT_PIECE
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.terms import Terms

WINDOW = 100_000
HEAD = Packet(0, 0, b"head")
PAGE = Packet(0, 0, b"/page")
#: What a worker sends ahead.
AHEAD = bytes(200_000)


class Bench(SessionBench):
    """A server, and a session whose client accepts streams; it answers requests for pages with streams."""

    def __init__(self, window: int = WINDOW, **options: Any) -> None:
        self.streams: list[Stream] = []
        self.ended: list[Stream] = []
        self.page = HEAD
        super().__init__(self.give, theirs=Terms(window=window), **options)

    def give(self, request: Request) -> Reply:
        if request.packet.modifier1 != PAGE.modifier1:
            return TOLD
        stream = Stream(on_cancel=lambda: self.ended.append(stream))
        self.streams.append(stream)
        answer: Deferred[Any] = Deferred()
        answer.callback(StreamedAnswer(self.page, stream))
        return answer

    def begin(self, *numbers: int) -> Stream:
        """Ask for pages; return the stream of the last one."""
        self.ask(*numbers or (1,), packet=PAGE)
        return self.streams[-1]

    def write(self, data: bytes, stream: Stream | None = None) -> None:
        (stream or self.streams[-1]).write(data)
        self.settle()

    def grant(self, request: int, size: int) -> None:
        self.client.session.streams.grant(request, size)
        self.send()

    def received(self, request: int = 1) -> int:
        """Return how many bytes of a stream have arrived."""
        data = [
            event.data
            for event in self.client.events
            if isinstance(event, DataReceived) and event.id == request
        ]
        return len(b"".join(data))

    def answered(self, number: int) -> bool:
        """Ask for something else; return whether the answer comes at once."""
        self.ask(number)
        return self.client.events[-1] == AnswerReceived(number, TOLD, 0.0)


class TestPassedOn:
    def test_as_it_comes(self) -> None:
        """Each part goes out at once, and the end has the time that the handler ran."""
        bench = Bench()
        stream = bench.begin()
        assert bench.client.events == [StreamedAnswerReceived(1, HEAD)]
        bench.write(b"one")
        assert bench.client.events[1:] == [DataReceived(1, b"one")]
        stream.write(b"two")
        stream.end(None, 0.25)
        bench.settle()
        assert bench.client.events[2:] == [DataReceived(1, b"two"), EndReceived(1, 0.25)]
        assert bench.factory.budget.used == 0
        assert bench.answered(1)

    def test_complete_at_once(self) -> None:
        """A stream may be complete before any of it is sent."""
        bench = Bench()
        bench.page = Packet(0, 0, b"")
        stream = Stream()
        stream.write(b"all")
        stream.end()
        bench.respond = lambda _: _fired(StreamedAnswer(bench.page, stream))
        bench.ask(1)
        assert bench.client.events == [
            StreamedAnswerReceived(1, bench.page),
            DataReceived(1, b"all"),
            EndReceived(1, 0.0),
        ]

    def test_window(self) -> None:
        """No more than the window goes out, however much there is; a grant lets it go on."""
        bench = Bench()
        stream = bench.begin()
        bench.write(AHEAD)
        assert (bench.received(), stream.size) == (WINDOW, len(AHEAD) - WINDOW)
        bench.grant(1, 30_000)
        assert bench.received() == WINDOW + 30_000
        stream.end()
        bench.grant(1, WINDOW)
        assert bench.received() == len(AHEAD)
        assert bench.client.events[-1] == EndReceived(1, 0.0)

    def test_pieces(self) -> None:
        """A chunk that is larger than a frame goes out in several."""
        bench = Bench()
        bench.begin()
        bench.write(bytes(WINDOW))
        sizes = [len(event.data) for event in bench.client.events if isinstance(event, DataReceived)]
        assert sizes == [NEXT_PIECE, WINDOW - NEXT_PIECE]

    def test_turns(self) -> None:
        """Streams, and large answers beside them, take turns."""
        bench = Bench(window=1 << 20)
        large = Packet(33, 0, bytes(600_000))
        bench.begin(1, 2)
        bench.link.client.paused = True
        for stream in bench.streams:
            stream.write(bytes(600_000))
        bench.respond = lambda _: large
        bench.client.session.send_request(3, ASK)
        bench.client.write()
        bench.link.client.paused = False
        while not (bench.received(1) > 100_000 and bench.received(2) > 100_000):
            assert bench.link.pump(65_536)
            bench.clock.advance(0)
        assert bench.client.session.unfinished > 50_000
        assert abs(bench.received(1) - bench.received(2)) <= 2 * NEXT_PIECE

    def test_fails(self) -> None:
        """An answer that ends early has its error at this place, behind what was sent before."""
        bench = Bench()
        stream = bench.begin()
        stream.write(b"part")
        stream.end(WorkerDied("killed"))
        bench.settle()
        assert bench.client.events[1] == DataReceived(1, b"part")
        assert [type(error) for error in bench.errors()] == [WorkerDied]
        assert bench.factory.budget.used == 0

    def test_large_head(self) -> None:
        """A first part that fits no frame fails, and its producer is told to stop."""
        bench = Bench()
        bench.page = Packet(0, 0, bytes(FIRST_PIECE + 1))
        bench.begin()
        assert [type(error) for error in bench.errors()] == [MessageTooLarge]
        assert bench.ended == bench.streams
        assert bench.answered(2)

    def test_drain(self) -> None:
        """A session that drains sends its streams to the end."""
        bench = Bench()
        stream = bench.begin()
        bench.link.server.protocol.finish()  # type: ignore[attr-defined]
        bench.settle()
        bench.clock.advance(6)
        bench.write(b"more")
        assert bench.received() == 4
        stream.end()
        bench.settle()
        assert bench.client.events[-1] == EndReceived(1, 0.0)


class TestCancelled:
    @pytest.mark.parametrize("written", [b"", AHEAD], ids=["idle", "stalled"])
    def test_by_its_client(self, written: bytes) -> None:
        """A cancel reaches the producer; what is still written goes nowhere, and no time limit is left."""
        bench = Bench()
        stream = bench.begin()
        bench.write(written)
        bench.client.session.send_cancel(1)
        bench.send()
        assert bench.ended == [stream]
        before = list(bench.client.events)
        bench.write(b"late")
        bench.clock.advance(60)
        bench.settle()
        assert bench.client.events == before
        assert bench.answered(1)

    def test_at_once(self) -> None:
        """A cancel behind the request itself ends the stream when that has begun."""
        bench = Bench()
        bench.client.session.send_request(1, PAGE)
        data = bench.client.session.data_to_send()
        bench.client.session.send_cancel(1)
        bench.link.client.write(data + bench.client.session.data_to_send())
        bench.settle()
        assert bench.ended == bench.streams
        assert bench.factory.budget.used == 0

    def test_lost_connection(self) -> None:
        """So does the end of the connection, for each of its streams; nothing is left of them."""
        bench = Bench()
        bench.begin(1, 2)
        bench.write(AHEAD)
        bench.link.cut()
        assert bench.ended == bench.streams
        assert bench.factory.budget.used == 0
        assert not bench.clock.getDelayedCalls()


class TestHostile:
    def test_no_grant(self) -> None:
        """A client that takes nothing has its answer cancelled in time; other requests go on meanwhile."""
        bench = Bench(limits=Limits(write_timeout=20.0))
        stream = bench.begin()
        bench.write(AHEAD)
        bench.clock.advance(19)
        assert bench.answered(2)
        assert not bench.errors()
        with capturedLogs() as logs:
            bench.clock.advance(1)
        bench.settle()
        assert [type(error) for error in bench.errors()] == [RequestTimeout]
        assert bench.ended == [stream]
        assert "took nothing" in logs[0]["log_format"]
        assert bench.client.lost is None
        assert bench.answered(3)
        assert bench.factory.budget.used == 0

    def test_slowly(self) -> None:
        """A byte now and then keeps it going, as on a plain connection."""
        bench = Bench(limits=Limits(write_timeout=20.0))
        bench.begin()
        bench.write(AHEAD)
        for count in range(1, 4):
            bench.clock.advance(19)
            bench.grant(1, 1)
            assert bench.received() == WINDOW + count
        bench.clock.advance(20)
        bench.settle()
        assert bench.errors()

    def test_idle_producer(self) -> None:
        """The time limit is not for a worker that has nothing to send."""
        bench = Bench(limits=Limits(write_timeout=20.0))
        bench.begin()
        bench.write(bytes(WINDOW))
        bench.clock.advance(100)
        bench.write(b"x")
        bench.clock.advance(19)
        assert not bench.errors()
        bench.clock.advance(1)
        bench.settle()
        assert bench.errors()

    def test_beyond_the_maximum(self) -> None:
        """Grants that no number holds end the session."""
        bench = Bench()
        stream = bench.begin()
        with capturedLogs() as logs:
            bench.grant(1, 0xFFFFFFFF)
        assert bench.client.lost is not None
        assert bench.ended == [stream]
        assert "violated" in logs[0]["log_format"]

    def test_twice(self) -> None:
        """The id of a request whose answer is being streamed is in use."""
        bench = Bench()
        bench.begin()
        with capturedLogs():
            bench.ask(1)
        assert bench.client.lost is not None

    def test_unread_connection(self) -> None:
        """Of an endless window, no more is taken than the connection takes; then that is closed in time."""
        bench = Bench(window=0xFFFFFFFF, limits=Limits(write_timeout=20.0))
        stream = bench.begin()
        bench.link.client.paused = True
        for _ in range(20):
            bench.write(bytes(100_000))
        assert stream.size > 1_500_000
        with capturedLogs():
            bench.clock.advance(20)
        bench.settle()
        assert bench.client.lost is not None
        assert bench.ended == [stream]

    def test_many(self) -> None:
        """Streams that their client leaves hold up none of its other requests, and count while they last."""
        bench = Bench()
        bench.begin(*range(1, 201))
        for stream in bench.streams:
            stream.write(AHEAD)
        bench.settle()
        assert len(bench.streams) == 200
        assert bench.factory.budget.used >= 200 * ANSWER_MEMORY
        assert bench.answered(201)

    def test_more_than_the_budget(self) -> None:
        """Those that the budget has no room for are refused; grants and cancels of the others get through."""
        bench = Bench(limits=Limits(max_buffered=5 * ANSWER_MEMORY))
        bench.begin(1, 2, 3)
        for stream in bench.streams:
            stream.write(AHEAD)
        bench.settle()
        assert [type(error) for error in bench.errors()] == [Busy]
        assert bench.ended == [bench.streams[2]]
        bench.grant(1, 1)
        assert bench.received() == WINDOW + 1
        for request in (1, 2):
            bench.client.session.send_cancel(request)
        bench.send()
        assert bench.factory.budget.used == 0
        bench.begin(4)
        assert bench.client.events[-1] == StreamedAnswerReceived(4, HEAD)

    def test_grants_of_a_crowded_peer(self) -> None:
        """A peer that holds much in its streams is still read: they wait for its grants."""
        bench = Bench(limits=Limits(max_buffered=40 * ANSWER_MEMORY))
        bench.ask(*range(1, 19), packet=Packet(0, 0, bytes(5_000)))
        for stream in bench.streams:
            stream.write(AHEAD)
        bench.settle()
        assert not bench.errors()
        for request in range(1, 19):
            bench.grant(request, len(AHEAD))
            assert bench.received(request) == len(AHEAD)


def _fired(answer: StreamedAnswer) -> Deferred[Any]:
    fired: Deferred[Any] = Deferred()
    fired.callback(answer)
    return fired
