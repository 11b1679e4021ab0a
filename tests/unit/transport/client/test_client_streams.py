"""Answers that a client reads as they arrive: windows, time limits, and every way in which one can end."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.unit.transport.client.test_client_session import TOLD
from tests.unit.transport.client.test_client_session import Bench as SessionBench
from uwsgitwisted.errors import (
    Busy,
    ConnectionBroken,
    MalformedPacket,
    MessageTooLarge,
    MisuseError,
    RequestCancelled,
    RequestTimeout,
    Unavailable,
    WorkerDied,
)
from uwsgitwisted.transport.client.stream import AnswerStream, StreamCall
from uwsgitwisted.wire.events import CancelReceived, WindowGranted
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.terms import KEEPALIVE, Terms

WINDOW = 100_000
PAGE = Packet(0, 0, b"/page")
HEAD = Packet(0, 0, b"head ")
PLACE = ("192.0.2.1", 3_033)


class Bench(SessionBench):
    """A session with a window, and a server that streams answers when it is told to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Terms(window=WINDOW, **options))

    def begin(self, head: Packet = HEAD, timeout: float = 30.0) -> AnswerStream:
        """Begin a streamed answer, and return it."""
        results = self.stream(timeout)
        self.server.session.send_streamed_answer(self.asked[-1], head)
        self.send()
        answer = results[0]
        assert isinstance(answer, AnswerStream)
        return answer

    def stream(self, timeout: float = 30.0) -> list[Any]:
        """Ask for a stream; what becomes of it is put in the list that is returned."""
        call = StreamCall(self.clock, PAGE, timeout, address=PLACE)
        self.session.send(call)
        results: list[Any] = []
        call.answer.addBoth(results.append)
        self.link.flush()
        return results

    def write(self, data: bytes, request: int = 1) -> None:
        self.server.session.streams.send(request, data)
        self.send()

    def end(self, request: int = 1) -> None:
        self.server.session.streams.send_end(request, 0.5)
        self.send()

    def fail(self, error: Exception, request: int = 1) -> None:
        self.server.session.send_error(request, encode_failure(error))
        self.send()

    @property
    def cancelled(self) -> list[int]:
        return [event.id for event in self.server.events if isinstance(event, CancelReceived)]


def outcome(reading: Deferred[Any]) -> list[Any]:
    results: list[Any] = []
    reading.addBoth(results.append)
    return results


def collected(answer: AnswerStream) -> Deferred[list[bytes]]:
    """Return all parts of an answer, as a caller's coroutine gets them."""

    async def collect() -> list[bytes]:
        return [part async for part in answer]

    return Deferred.fromCoroutine(collect())


class TestParts:
    def test_as_they_come(self) -> None:
        """The parts arrive before the end; the answer's beginning is the first."""
        bench = Bench()
        answer = bench.begin()
        assert (answer.modifier1, answer.modifier2) == (0, 0)
        assert outcome(answer.read()) == [b"head "]
        reading = outcome(answer.read())
        assert reading == []
        bench.write(b"one")
        assert reading == [b"one"]
        bench.write(b"two")
        assert outcome(answer.read()) == [b"two"]
        reading = outcome(answer.read())
        bench.end()
        assert reading == [b""]
        assert outcome(answer.read()) == [b""]
        assert bench.session.pending == 0
        assert not bench.cancelled

    def test_iteration(self) -> None:
        """A coroutine iterates over them."""
        bench = Bench()
        results = outcome(collected(bench.begin()))
        bench.write(b"one")
        assert results == []
        bench.end()
        assert results == [[b"head ", b"one"]]

    @pytest.mark.parametrize("payload", [b"", b"whole"])
    def test_whole(self, payload: bytes) -> None:
        """An answer that is no stream is one part, or none if it is empty."""
        bench = Bench()
        results = bench.stream()
        bench.tell(1, Packet(0, 1, payload))
        assert outcome(collected(results[0])) == [[payload] if payload else []]

    def test_window(self) -> None:
        """The server may send more only when the caller has read some."""
        bench = Bench()
        answer = bench.begin()
        bench.write(bytes(WINDOW))
        streams = bench.server.session.streams
        assert streams.credit(1) == 0
        assert bench.ask() == []  # the other calls go on
        bench.tell(bench.asked[-1])
        taken = 0
        while taken < WINDOW // 2:
            taken += len(outcome(answer.read())[0])
        bench.link.flush()
        assert WindowGranted(1) in bench.server.events
        assert streams.credit(1) > WINDOW // 4

    def test_other_calls(self) -> None:
        """A stream that nobody reads leaves the other calls of the connection alone."""
        bench = Bench()
        bench.begin()
        bench.write(bytes(WINDOW))
        results = bench.ask()
        bench.tell(bench.asked[-1])
        assert results == [TOLD]

    def test_two_readers(self) -> None:
        """There is one reader at a time."""
        bench = Bench()
        answer = bench.begin(Packet(0, 0, b""))
        answer.read()
        assert outcome(answer.read())[0].check(MisuseError)


class TestEnds:
    def test_failure(self) -> None:
        """The server's error is raised behind the parts that came before it, and again."""
        bench = Bench()
        answer = bench.begin()
        bench.write(b"part")
        bench.fail(WorkerDied("killed"))
        parts: list[bytes] = []

        async def read() -> None:
            parts.extend([part async for part in answer])

        results = outcome(Deferred.fromCoroutine(read()))
        assert results[0].check(WorkerDied)
        assert results[0].value.address == PLACE
        assert outcome(answer.read())[0].check(WorkerDied)
        assert bench.session.pending == 0

    def test_failure_before_the_answer(self) -> None:
        """A request that fails has no stream."""
        bench = Bench()
        results = bench.stream()
        bench.fail(Busy("full"))
        assert results[0].check(Busy)

    def test_no_second_try(self) -> None:
        """An answer that has begun is never asked for again."""
        bench = Bench()
        answer = bench.begin(Packet(0, 0, b""))
        tried: list[object] = []
        bench.session._retry = lambda *call: tried.append(call)
        bench.server.session.send_shutdown()
        bench.fail(Unavailable("stopping"))
        assert outcome(answer.read())[0].check(Unavailable)
        assert not tried

    @pytest.mark.parametrize("waiting", [True, False])
    def test_lost_connection(self, waiting: bool) -> None:
        """A connection that breaks is an error at this point, never the end of the answer."""
        bench = Bench()
        answer = bench.begin()
        bench.write(b"part")
        parts = [outcome(answer.read()), outcome(answer.read())]
        reading = outcome(answer.read()) if waiting else []
        bench.link.cut()
        reading = reading or outcome(answer.read())
        assert parts == [[b"head "], [b"part"]]
        assert reading[0].check(ConnectionBroken)
        assert "in the middle of the answer" in str(reading[0].value)
        assert not bench.clock.getDelayedCalls()

    def test_violation(self) -> None:
        """So is a server that sends more than was granted."""
        bench = Bench()
        answer = bench.begin(Packet(0, 0, b""))
        bench.server.session.streams._credit[1] = 2 * WINDOW
        bench.write(bytes(WINDOW))
        bench.write(b"x")
        bench.link.flush()
        while isinstance(part := outcome(answer.read())[0], bytes):
            assert part
        assert bench.server.lost

    def test_second_answer(self) -> None:
        """A whole answer in the middle of a streamed one ends that with an error, for either kind of caller."""
        bench = Bench()
        answer = bench.begin(Packet(0, 0, b""))
        bench.tell(1)
        assert outcome(answer.read())[0].check(MalformedPacket)
        results = bench.ask(PAGE)
        bench.server.session.send_streamed_answer(2, HEAD)
        bench.tell(2)
        assert results[0].check(MalformedPacket)
        assert bench.session.pending == 0

    def test_cancelled_by_the_event_before(self) -> None:
        """An answer that begins in the same chunk as one whose callback cancels it is dropped."""
        bench = Bench()
        first, second = bench.request(), bench.request(PAGE)
        results = outcome(second)
        first.addCallback(lambda _: second.cancel())
        bench.link.flush()
        bench.server.session.send_answer(1, TOLD)
        bench.server.session.send_streamed_answer(2, HEAD)
        bench.write(b"part", 2)
        assert results[0].check(RequestCancelled)
        assert bench.cancelled == [2]
        assert not bench.server.lost

    def test_frozen_server(self) -> None:
        """A server that answers no ping has hung, however long the parts may take."""
        bench = Bench()
        answer = bench.begin(Packet(0, 0, b""), timeout=600)
        reading = outcome(answer.read())
        bench.link.server.paused = True
        for _ in range(3):
            bench.clock.advance(KEEPALIVE)
        assert reading[0].check(ConnectionBroken)

    def test_shutdown(self) -> None:
        """A server that drains finishes its streams; then the connection is closed."""
        bench = Bench()
        answer = bench.begin()
        bench.server.session.send_shutdown()
        bench.send()
        bench.write(b"rest")
        assert not bench.server.lost
        bench.end()
        assert bench.server.lost
        assert outcome(collected(answer)) == [[b"head ", b"rest"]]


class TestTimeouts:
    def test_before_the_answer(self) -> None:
        """An answer has to begin in time."""
        bench = Bench()
        results = bench.stream(timeout=2.0)
        bench.clock.advance(2.0)
        assert results[0].check(RequestTimeout)
        bench.link.flush()
        assert bench.cancelled == [1]

    def test_between_two_parts(self) -> None:
        """Each part has the whole time, while somebody waits for it; after that, the answer is cancelled."""
        bench = Bench()
        answer = bench.begin(Packet(0, 0, b""), timeout=4.0)
        for _ in range(5):  # nobody waits
            bench.clock.advance(KEEPALIVE)
            bench.send()
            bench.send()
        for _ in range(3):
            reading = outcome(answer.read())
            bench.clock.advance(3.0)
            bench.write(b"x")
            assert reading == [b"x"]
        reading = outcome(answer.read())
        bench.clock.advance(4.0)
        assert reading[0].check(RequestTimeout)
        assert outcome(answer.read())[0].check(RequestTimeout)
        bench.link.flush()
        assert bench.cancelled == [1]
        assert bench.session.pending == 0


class TestCancel:
    def test_before_the_answer(self) -> None:
        """Cancelling the Deferred withdraws the request."""
        bench = Bench()
        call = StreamCall(bench.clock, PAGE, 30.0)
        bench.session.send(call)
        bench.link.flush()
        call.answer.cancel()
        bench.link.flush()
        assert outcome(call.answer)[0].check(RequestCancelled)
        assert bench.cancelled == [1]

    @pytest.mark.parametrize("written", [0, WINDOW])
    def test_left_early(self, written: int) -> None:
        """A caller that leaves the block cancels the rest; what has arrived is dropped."""
        bench = Bench()
        answer = bench.begin()
        bench.write(bytes(written))

        async def leave() -> None:
            async with answer:
                async for _ in answer:
                    break

        assert outcome(Deferred.fromCoroutine(leave())) == [None]
        bench.link.flush()
        assert bench.cancelled == [1]
        assert outcome(answer.read())[0].check(RequestCancelled)
        bench.write(b"late")
        assert bench.session.pending == 0
        results = bench.ask()
        bench.tell(bench.asked[-1])
        assert results == [TOLD]

    def test_while_reading(self) -> None:
        """Cancelling a coroutine that waits for a part cancels the answer."""
        bench = Bench()
        reading = collected(bench.begin())
        results = outcome(reading)
        reading.cancel()
        bench.link.flush()
        assert results[0].check(RequestCancelled)
        assert bench.cancelled == [1]

    def test_after_the_end(self) -> None:
        """After the end, there is nothing to cancel; parts that were not read are dropped."""
        bench = Bench()
        answer = bench.begin()
        bench.end()
        answer.cancel()
        assert not bench.cancelled
        assert outcome(answer.read())[0].check(RequestCancelled)
        answer = bench.begin(Packet(0, 0, b""))
        bench.end(2)
        answer.cancel()
        assert outcome(answer.read()) == [b""]


class TestWholeAnswers:
    """Calls that want whole answers, which the server streams nevertheless."""

    def begin(self, bench: Bench) -> list[Any]:
        results = bench.ask(PAGE)
        bench.server.session.send_streamed_answer(bench.asked[-1], HEAD)
        bench.send()
        return results

    def test_collected(self) -> None:
        """They get all of it at the end, however much that is, and how long it took."""
        bench = Bench()
        results = self.begin(bench)
        for _ in range(5):
            bench.write(bytes(WINDOW // 2))
        assert results == []
        bench.end()
        assert results == [Packet(0, 0, HEAD.payload + bytes(5 * WINDOW // 2))]

    def test_failure(self) -> None:
        """An answer that fails in its middle has no part."""
        bench = Bench()
        results = self.begin(bench)
        bench.write(b"part")
        bench.fail(WorkerDied("killed"))
        assert results[0].check(WorkerDied)
        assert bench.session.pending == 0

    def test_lost_connection(self) -> None:
        """Neither has one whose connection is lost."""
        bench = Bench()
        results = self.begin(bench)
        bench.write(b"part")
        bench.link.cut()
        assert len(results) == 1
        assert results[0].check(ConnectionError)

    def test_timeout(self) -> None:
        """The time limit is for all of it; what had arrived is dropped."""
        bench = Bench(max_message=WINDOW)
        results: list[Any] = []
        bench.request(PAGE, 2.0).addBoth(results.append)
        bench.link.flush()
        bench.server.session.send_streamed_answer(1, HEAD)
        for _ in range(2):
            bench.write(bytes(WINDOW // 4))
            bench.clock.advance(1.0)
        assert results[0].check(RequestTimeout)
        bench.link.flush()
        assert bench.cancelled == [1]
        bench.write(b"late")
        bench.end()
        assert bench.session.pending == 0
        again = self.begin(bench)
        bench.write(bytes(WINDOW - len(HEAD.payload)), 2)
        bench.end(2)
        assert len(again[0].payload) == WINDOW

    def test_too_large(self) -> None:
        """One that is larger than the client accepts is cancelled; all together are bounded, too."""
        bench = Bench(max_message=WINDOW)
        results = self.begin(bench)
        bench.write(bytes(WINDOW // 2))
        other = self.begin(bench)
        bench.write(bytes(WINDOW // 2 + 1), 2)
        assert other[0].check(Busy)
        bench.write(bytes(WINDOW // 2), 1)
        assert results[0].check(MessageTooLarge)
        assert bench.cancelled == [2, 1]
        again = self.begin(bench)
        bench.write(bytes(WINDOW - len(HEAD.payload)), 3)
        bench.end(3)
        assert len(again[0].payload) == WINDOW
