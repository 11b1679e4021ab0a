"""Bodies and answers that pass through a server's connection as streams: limits, back-pressure, every end."""

from __future__ import annotations

import socket
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from tests.unit.transport.server.test_server_protocol import Recorder
from tests.unit.transports import CLIENT, Link, MemoryTransport
from uwsgitwisted.errors import Busy, ConnectionFailed, MessageTooLarge, WorkerDied
from uwsgitwisted.interfaces import Answer, Reply, Request, StreamedAnswer
from uwsgitwisted.stream import Stream
from uwsgitwisted.transport.answers import collect
from uwsgitwisted.transport.server.bodies import HELD
from uwsgitwisted.transport.server.factory import ServerFactory
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.transport.server.protocol import STREAM_MEMORY
from uwsgitwisted.wire.packet import MAX_PAYLOAD, WSGI, Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

HEAD = b"HTTP/1.0 200 OK\r\n\r\n"
LIMITS = Limits(body_timeout=30.0, write_timeout=20.0, header_timeout=4.0, max_ignored=1_000)
LARGE = 3 * HELD


def asked(size: int) -> bytes:
    """Return the packet of a request with a body of that size."""
    return encode_packet(Packet(WSGI, 0, variables(size)))


def variables(size: int) -> bytes:
    return encode_vars([(b"REQUEST_METHOD", b"POST"), (b"CONTENT_LENGTH", size)])


class Bench:
    """A server, a connection to it, and its request, whose answer the test gives."""

    def __init__(self, *, limits: Limits = LIMITS, answer: Reply | None = None, **options: Any) -> None:
        self.clock = Clock()
        self.requests: list[Request] = []
        self.cancelled: list[bool] = []
        self.answer: Deferred[Answer] = Deferred(lambda _: self.cancelled.append(True))

        def respond(request: Request) -> Reply:
            self.requests.append(request)
            return self.answer if answer is None else answer

        self.factory = ServerFactory(self.clock, respond, limits=limits, streamed_bodies=(WSGI,), **options)
        self.client = Recorder()
        protocol = self.factory.buildProtocol(CLIENT)
        assert protocol is not None
        self.protocol = protocol
        self.link = Link(self.client, protocol)
        self.server: MemoryTransport = self.link.server

    def send(self, data: bytes, chunk: int = 60_000) -> None:
        """Send bytes to the server, in chunks, as far as it reads."""
        for start in range(0, len(data), chunk):
            self.link.client.write(data[start : start + chunk])
            self.link.flush()

    def body(self) -> Stream:
        """Return the stream of the request's body."""
        (request,) = self.requests
        assert request.body is not None
        return request.body

    def stream(self) -> Stream:
        """Begin a streamed answer, and return its stream."""
        stream = Stream(on_cancel=lambda: self.cancelled.append(True))
        self.answer.callback(StreamedAnswer(Packet(WSGI, 0, HEAD), stream))
        self.link.flush()
        return stream

    @property
    def lost(self) -> bool:
        return self.client.lost is not None

    @property
    def aborted(self) -> bool:
        return self.server.aborted

    def check_end(self) -> None:
        """See that the connection is closed, and that nothing is left of it."""
        self.link.flush()
        assert self.lost
        assert self.factory.budget.used == 0
        assert not self.clock.getDelayedCalls()


def take(stream: Stream, size: int) -> int:
    """Take so many bytes, or as many as there are; return how many."""
    taken = 0
    while taken < size and (data := stream.take(size - taken)):
        taken += len(data)
    return taken


class TestBodies:
    @pytest.mark.parametrize("size", [0, 1, 65_535, HELD])
    def test_held(self, size: int) -> None:
        """A request with a body that is not large starts when the body is complete."""
        bench = Bench()
        bench.send(asked(size) + bytes(size)[1:])
        assert len(bench.requests) == (0 if size else 1)
        bench.send(bytes(min(size, 1)))
        (request,) = bench.requests
        assert request.packet.payload == variables(size) + bytes(size)
        assert request.body is None
        assert request.refused is None

    def test_streamed(self) -> None:
        """A request with a large body starts when a part of that has arrived; the rest comes as it is taken."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(HELD - 1))
        assert bench.requests == []
        bench.send(bytes(LARGE - HELD + 1))
        (request,) = bench.requests
        assert request.packet.payload == variables(LARGE)
        body = bench.body()
        assert bench.server.paused
        assert HELD <= body.size < HELD + 60_000
        taken = 0
        while taken < LARGE:
            got = take(body, 50_000)
            assert got, "reading does not go on"
            taken += got
            bench.link.flush(60_000)
            assert body.size < HELD + 60_000
        assert body.finished
        assert body.error is None

    def test_arrives_at_once(self) -> None:
        """A large body may arrive in one piece with its packet, and bytes behind it are not part of it."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(LARGE) + b"more", chunk=2 * LARGE)
        body = bench.body()
        assert take(body, 2 * LARGE) == LARGE
        assert body.finished

    def test_modifiers(self) -> None:
        """Only the bodies of the modifiers that have streams are streams."""
        bench = Bench(bodies={(17, 0)})
        bench.send(encode_packet(Packet(17, 0, variables(LARGE))) + bytes(LARGE))
        (request,) = bench.requests
        assert request.body is None
        assert len(request.packet.payload) == len(variables(LARGE)) + LARGE

    def test_broken_size(self) -> None:
        """The responder gets a request whose size can't be read, without a body, and refuses it."""
        bench = Bench()
        packet = Packet(WSGI, 0, encode_vars([(b"CONTENT_LENGTH", b"-1")]))
        bench.send(encode_packet(packet))
        assert [request.packet for request in bench.requests] == [packet]

    def test_too_large(self) -> None:
        """A body over the limit is refused before it arrives; what comes of it is dropped, up to its end."""
        bench = Bench(max_body=1_000_000)
        bench.send(asked(1_000_001))
        (request,) = bench.requests
        assert isinstance(request.refused, MessageTooLarge)
        assert (request.refused.size, request.refused.limit) == (1_000_001, 1_000_000)
        bench.answer.callback(b"413")
        bench.link.flush()
        assert bench.client.received == b"413"
        bench.send(bytes(1_000_000))
        assert not bench.lost
        bench.send(b"x")
        bench.check_end()
        assert not bench.aborted

    def test_more_than_announced_after_a_refusal(self) -> None:
        """A peer that sends much more than the body that was refused is cut off."""
        bench = Bench(max_body=10, answer=b"413")
        bench.send(asked(11) + bytes(10))
        assert not bench.lost
        bench.send(bytes(1_003))
        assert bench.aborted
        bench.check_end()

    def test_body_that_never_ends_after_a_refusal(self) -> None:
        """A refused body may arrive for the time that a peer has to read its answer, at most."""
        bench = Bench(max_body=10, answer=b"413")
        bench.send(asked(10**18))
        with capturedLogs():
            for _ in range(30):
                bench.clock.advance(1.0)
                bench.send(bytes(1_000))
        bench.check_end()

    @pytest.mark.parametrize("size", [HELD, LARGE])
    def test_no_room(self, size: int) -> None:
        """A body for which the budget has no room is refused before it arrives."""
        bench = Bench(limits=Limits(max_buffered=200_000))
        bench.send(asked(size))
        (request,) = bench.requests
        assert isinstance(request.refused, Busy)
        bench.answer.callback(b"503")
        bench.link.flush()
        assert bench.client.received == b"503"

    def test_budget(self) -> None:
        """A streamed body counts with what may be held of it, however long it is; so does a streamed answer."""
        bench = Bench(max_body=10**15)
        bench.send(asked(10**14))
        assert 2 * HELD <= bench.factory.budget.used < 3 * HELD
        bench.send(bytes(HELD))
        bench.stream()
        assert 4 * HELD <= bench.factory.budget.used < 5 * HELD
        bench.link.cut()
        assert bench.factory.budget.used == 0

    @pytest.mark.parametrize("sent", [0, 10, HELD])
    def test_slow_peer(self, sent: int) -> None:
        """A peer has the body timeout for each further part of the body."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(sent))
        if sent == HELD:
            take(bench.body(), HELD)
        bench.clock.advance(29.0)
        bench.send(bytes(MAX_PAYLOAD))
        bench.clock.advance(29.0)
        assert not bench.aborted
        with capturedLogs() as logs:
            bench.clock.advance(1.5)
        assert bench.aborted
        assert any("did not send the rest of its body" in str(event) for event in logs)
        bench.check_end()

    def test_peer_that_is_not_read(self) -> None:
        """While nobody takes the body, its peer is not read, and no time limit runs against it."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(HELD))
        assert bench.server.paused
        bench.clock.advance(1_000)
        bench.link.flush()
        assert not bench.lost
        take(bench.body(), LARGE)
        assert not bench.server.paused
        with capturedLogs():
            bench.clock.advance(31.0)
        assert bench.aborted

    def test_answer_of_the_held_request(self) -> None:
        """A request whose body is complete has no time limit here."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(LARGE))
        while take(bench.body(), LARGE):
            bench.link.flush()
        bench.clock.advance(1_000)
        bench.answer.callback(b"done")
        bench.check_end()
        assert bench.client.received == b"done"


class TestEarlyAnswers:
    def test_before_the_body_is_complete(self) -> None:
        """An answer ends the body: the rest is read and dropped, and the connection closes at its end."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(HELD))
        assert bench.server.paused
        bench.answer.callback(b"no")
        bench.link.flush()
        assert bench.client.received == b"no"
        assert not bench.server.paused
        assert not bench.lost
        bench.send(bytes(LARGE - HELD - 1))
        assert not bench.lost
        bench.send(b"x")
        bench.check_end()

    def test_nobody_reads_the_rest(self) -> None:
        """A peer that sends the rest of its body too slowly is cut off."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(HELD))
        bench.answer.callback(b"no")
        with capturedLogs():
            bench.clock.advance(21.0)
        bench.check_end()

    def test_at_once(self) -> None:
        """A responder may answer a streamed request at once."""
        bench = Bench(answer=b"no")
        bench.send(asked(LARGE) + bytes(LARGE))
        assert bench.client.received == b"no"
        bench.check_end()

    def test_nothing(self) -> None:
        """A responder that fails has the connection closed."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(HELD))
        bench.answer.errback(KeyError("x"))
        bench.check_end()
        assert bench.client.received == b""

    def test_body_that_nobody_wants_any_more(self) -> None:
        """A peer that reads its answer only after it has sent its body gets both done."""
        bench = Bench()
        bench.server.capacity = 10
        bench.link.client.paused = True
        bench.send(asked(LARGE) + bytes(HELD))
        stream = bench.stream()
        assert bench.server.paused
        bench.body().cancel()  # its worker has written the whole answer
        stream.write(b"the answer")
        stream.end()
        bench.send(bytes(LARGE - HELD))
        assert not bench.link.client.outgoing
        bench.link.client.paused = False
        bench.check_end()
        assert bench.client.received == HEAD + b"the answer"


class TestPeersThatGo:
    def test_while_the_body_is_held(self) -> None:
        """Nothing is started for a peer that goes before its body is complete."""
        bench = Bench()
        bench.send(asked(HELD) + bytes(10))
        bench.link.cut()
        assert bench.requests == []
        bench.check_end()

    def test_while_uploading(self) -> None:
        """The body of a peer that goes ends with an error behind what has arrived; the request is cancelled."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(HELD))
        body = bench.body()
        bench.link.cut()
        assert bench.cancelled == [True]
        assert take(body, LARGE) == HELD
        assert body.finished
        assert isinstance(body.error, ConnectionFailed)
        bench.check_end()

    def test_while_answering(self) -> None:
        """The request of a peer that goes is cancelled."""
        bench = Bench()
        bench.send(asked(10) + bytes(10))
        bench.link.cut()
        assert bench.cancelled == [True]
        bench.check_end()

    def test_while_an_answer_is_streamed(self) -> None:
        """The answer to a peer that goes is cancelled."""
        bench = Bench()
        bench.send(asked(10) + bytes(10))
        stream = bench.stream()
        bench.link.cut()
        assert bench.cancelled == [True]
        stream.write(b"late")
        stream.end()
        bench.check_end()

    def test_while_both_are_streamed(self) -> None:
        """The body ends with an error, and the answer is cancelled."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(HELD))
        body = bench.body()
        bench.stream()
        bench.link.cut()
        assert isinstance(body.error, ConnectionFailed)
        assert bench.cancelled == [True]
        bench.check_end()

    def test_before_the_answer_begins(self) -> None:
        """A streamed answer that comes although its request was cancelled is cancelled as well."""
        bench = Bench()
        stream = Stream(on_cancel=lambda: bench.cancelled.append(True))
        begun = StreamedAnswer(Packet(WSGI, 0, HEAD), stream)
        bench.answer = Deferred(lambda answer: answer.callback(begun))
        bench.send(asked(0))
        bench.link.cut()
        assert bench.cancelled == [True]

    @pytest.mark.parametrize("sent", [10, HELD])
    def test_half_close_before_the_end_of_a_body(self, sent: int) -> None:
        """A peer that says that it sends no more, but owes a part of its body, is cut off."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(sent))
        bench.protocol.readConnectionLost()
        assert bench.aborted
        bench.check_end()

    def test_half_close_behind_the_body(self) -> None:
        """A peer may close its sending side when its body is complete, and gets its answer."""
        bench = Bench()
        bench.send(asked(10) + bytes(10))
        bench.protocol.readConnectionLost()
        stream = bench.stream()
        stream.write(b"page")
        stream.end()
        bench.check_end()
        assert bench.client.received == HEAD + b"page"


class TestAnswers:
    def test_no_room(self) -> None:
        """An answer for which the budget has no room is not begun, and its worker is told."""
        bench = Bench(limits=replace(LIMITS, max_buffered=STREAM_MEMORY - 1))
        bench.send(asked(0))
        with capturedLogs() as events:
            bench.stream()
        assert bench.client.received == b""
        assert bench.cancelled == [True]
        assert any("no room" in event["log_format"] for event in events)
        bench.check_end()

    def test_parts(self) -> None:
        """Each part goes out when it comes, and the connection closes at the end."""
        bench = Bench()
        bench.send(asked(0))
        stream = bench.stream()
        assert bench.client.received == HEAD
        for part in (b"one", b"two"):
            stream.write(part)
            bench.link.flush()
            assert bench.client.received.endswith(part)
        assert not bench.lost
        stream.end()
        bench.check_end()
        assert bench.client.received == HEAD + b"onetwo"

    def test_complete_at_once(self) -> None:
        """A stream that has ended before its answer is sent is sent whole; one without a first part as well."""
        for head in (HEAD, b""):
            bench = Bench()
            bench.send(asked(0))
            stream = Stream()
            stream.write(b"page")
            stream.end()
            bench.answer.callback(StreamedAnswer(Packet(WSGI, 0, head), stream))
            bench.check_end()
            assert bench.client.received == head + b"page"

    def test_error(self) -> None:
        """An answer that fails is cut off, so that nobody takes what has come for the whole."""
        bench = Bench()
        bench.send(asked(0))
        stream = bench.stream()
        stream.write(b"a part")
        stream.end(WorkerDied("killed"))
        assert bench.aborted
        bench.check_end()

    def test_peer_that_reads_slowly(self) -> None:
        """Nothing is taken from the stream while the peer does not read, and in the end the peer is cut off."""
        bench = Bench()
        bench.server.capacity = 10
        bench.send(asked(0))
        stream = Stream(on_cancel=lambda: bench.cancelled.append(True))
        bench.answer.callback(StreamedAnswer(Packet(WSGI, 0, HEAD), stream))
        stream.write(bytes(100_000))
        assert stream.size == 100_000
        bench.clock.advance(19.0)
        bench.link.flush()
        assert stream.size == 0
        stream.write(bytes(100_000))
        stream.write(bytes(50_000))
        assert stream.size == 50_000
        bench.clock.advance(19.0)
        assert not bench.aborted
        with capturedLogs() as logs:
            bench.clock.advance(1.5)
        assert bench.aborted
        assert any("did not read its answer" in str(event) for event in logs)
        bench.check_end()
        assert bench.cancelled == [True]

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_peer_that_reads_slowly_and_steadily(self, wrapped: bool) -> None:
        """A peer that goes on reading is not cut off, however slow it is, until it stops."""
        bench = Bench()
        bench.server.capacity = 10
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for _ in range(20):
                ours.send(b"x")
            if wrapped:  # as TLS does
                bench.server.transport = SimpleNamespace(getHandle=lambda: ours)  # type: ignore[attr-defined]
            else:
                bench.server.getHandle = lambda: ours  # type: ignore[attr-defined]
            bench.send(asked(0))
            stream = Stream()
            bench.answer.callback(StreamedAnswer(Packet(WSGI, 0, HEAD), stream))
            stream.write(bytes(100_000))
            for _ in range(10):
                bench.clock.pump([4.9] * 4)
                assert not bench.aborted
                theirs.recv(1)
            bench.clock.pump([5.0] * 4)
            assert not bench.aborted
            bench.clock.pump([5.0] * 4)
            assert bench.aborted
        bench.check_end()

    def test_no_limit_for_the_worker(self) -> None:
        """The write timeout does not run while the answer has nothing to send."""
        bench = Bench()
        bench.send(asked(0))
        stream = bench.stream()
        bench.clock.advance(10_000)
        stream.write(b"late")
        stream.end()
        bench.check_end()
        assert bench.client.received == HEAD + b"late"

    def test_end_behind_what_waits(self) -> None:
        """The connection closes only when the peer has read all."""
        bench = Bench()
        bench.server.capacity = 10
        bench.send(asked(0))
        stream = Stream()
        bench.answer.callback(StreamedAnswer(Packet(WSGI, 0, HEAD), stream))
        stream.write(b"page")
        stream.end()
        assert not bench.server.disconnecting
        bench.check_end()
        assert bench.client.received == HEAD + b"page"

    def test_unexpected_data(self) -> None:
        """A peer that keeps sending while it gets its answer is cut off."""
        bench = Bench()
        bench.send(asked(0))
        bench.stream()
        bench.send(bytes(1_000))
        assert not bench.aborted
        bench.send(b"x")
        assert bench.aborted
        bench.check_end()
        assert bench.cancelled == [True]


class TestDrain:
    def test_while_the_body_is_held(self) -> None:
        """A request that has not begun is not waited for."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(10))
        bench.factory.finish()
        bench.check_end()

    def test_while_uploading(self) -> None:
        """A request that has begun gets the rest of its body, and its answer."""
        bench = Bench()
        bench.send(asked(LARGE) + bytes(HELD))
        done = bench.factory.finish()
        bench.send(bytes(LARGE - HELD))
        while take(bench.body(), LARGE):
            bench.link.flush()
        stream = bench.stream()
        assert not done.called
        stream.write(b"page")
        stream.end()
        bench.check_end()
        assert done.called
        assert bench.client.received == HEAD + b"page"


class TestCollect:
    """A streamed answer for a peer that takes only whole messages."""

    def begin(self, limit: int = 100) -> tuple[Stream, list[bool], Deferred[Packet]]:
        cancelled: list[bool] = []
        stream = Stream(on_cancel=lambda: cancelled.append(True))
        return stream, cancelled, collect(StreamedAnswer(Packet(WSGI, 1, HEAD), stream), limit)

    def test_whole(self) -> None:
        """The parts are put together at the end."""
        stream, _, collected = self.begin()
        stream.write(b"one")
        assert not collected.called
        stream.write(b"two")
        stream.end()
        assert collected.result == Packet(WSGI, 1, HEAD + b"onetwo")

    def test_error(self) -> None:
        """An answer that fails has no part."""
        stream, _, collected = self.begin()
        stream.write(b"one")
        stream.end(WorkerDied("killed"))
        failures: list[Any] = []
        collected.addErrback(failures.append)
        assert failures[0].check(WorkerDied)

    def test_too_large(self) -> None:
        """An answer over the limit is cancelled, and fails once."""
        stream, cancelled, collected = self.begin()
        failures: list[Any] = []
        collected.addErrback(failures.append)
        stream.write(bytes(100 - len(HEAD)))
        assert not failures
        stream.write(b"x")
        stream.write(bytes(100))
        stream.end()
        assert failures[0].check(MessageTooLarge)
        assert cancelled == [True]
