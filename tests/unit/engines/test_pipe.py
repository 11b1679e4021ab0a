"""The front's end of the pipe to a worker: tokens, recalls, streams, reports, and a worker that dies."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from tests.unit.transports import CLIENT, SERVER, MemoryTransport
from uwsgitwisted.engines.job import Job
from uwsgitwisted.engines.pipe import MAX_IN_FLIGHT, Pipe, Tokens
from uwsgitwisted.errors import (
    Busy,
    ConnectionFailed,
    MessageTooLarge,
    RequestCancelled,
    UwsgiError,
    WorkerDied,
)
from uwsgitwisted.interfaces import Request, StreamedAnswer, TimedAnswer
from uwsgitwisted.stream import Stream
from uwsgitwisted.wire.events import (
    CancelReceived,
    DataReceived,
    EndReceived,
    Event,
    RequestReceived,
    ShutdownReceived,
    StreamedRequestReceived,
    WindowGranted,
)
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.frame import FIRST_PIECE
from uwsgitwisted.wire.packet import WSGI, Packet, encode_packet
from uwsgitwisted.wire.session import MAX_ID, Role, Session
from uwsgitwisted.wire.terms import STREAM_WINDOW, Terms
from uwsgitwisted.worker.spec import NO_REQUEST

ASKED = Packet(WSGI, 0, b"vars")
ANSWER = Packet(WSGI, 0, b"HTTP/1.0 200 OK\r\n\r\n")
#: What a worker grants when it has begun a request with a body.
GRANT = 200_000
#: So many seconds that a worker counts as fast.
FAST = 0.000_001


class Owner:
    """Records what a pipe calls."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.progress = 0

    def on_progress(self) -> None:
        self.progress += 1

    def on_retiring(self) -> None:
        self.calls.append("retiring")

    def on_report(self, error: Exception, peer: str) -> None:
        self.calls.append((error, peer))

    def on_transfer(self, size: int) -> None:
        self.calls.append(size)


class Bench:
    """A pipe, and the session of a worker that does what the test says."""

    def __init__(self, threads: int = 1) -> None:
        self.clock = Clock()
        self.owner = Owner()
        self.tokens = Tokens()
        ours, worker = Terms(window=STREAM_WINDOW), Terms(window=1)
        self.transport = MemoryTransport(Protocol(), SERVER, CLIENT)
        transport: Any = self.transport
        self.pipe = Pipe(transport, self.clock, ours, worker, self.tokens, self.owner, threads)
        self.worker = Session(Role.SERVER, worker, ours)

    def job(self, body: Stream | None = None, packet: Packet = ASKED, seconds: float | None = None) -> Job:
        """Assign a job."""
        made = Job(Request(packet, seconds=seconds, body=body), self.clock.seconds(), lambda _: None)
        self.results(made)
        self.pipe.assign(made, self.clock.seconds())
        return made

    def results(self, job: Job) -> None:
        job.answer.addBoth(lambda result: setattr(self, f"result{id(job)}", getattr(result, "value", result)))

    def result(self, job: Job) -> object:
        """Return what a job was completed with; None if it isn't."""
        return getattr(self, f"result{id(job)}", None)

    def arrived(self) -> list[Event]:
        """Return the events at the worker."""
        return self.worker.receive(self.transport.take(None))

    def reply(self) -> None:
        """Deliver what the worker has to say."""
        while data := self.worker.data_to_send():
            self.pipe.data_received(data)

    def begin(self, request: int) -> None:
        """Have the worker begin a request with a body."""
        assert os.read(self.tokens.reader, 1)
        self.worker.streams.grant(request, GRANT)
        self.reply()

    def make_fast(self) -> None:
        """Have the worker answer some requests so fast that it is assigned several ahead."""
        while self.pipe.capacity < MAX_IN_FLIGHT:
            self.answer_after(FAST)

    def answer_after(self, took: float) -> None:
        """Have the worker answer a request, for which it has taken so many seconds."""
        self.job()
        (event,) = self.arrived()
        assert isinstance(event, RequestReceived)
        assert os.read(self.tokens.reader, 1)
        self.worker.send_answer(event.id, ANSWER, took)
        self.reply()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Give a pipe."""
    made = Bench()
    yield made
    made.tokens.close()


def test_answer(bench: Bench) -> None:
    """A request's answer comes with its run time."""
    job = bench.job(seconds=2.0)
    assert bench.arrived() == [RequestReceived(1, ASKED, 2.0)]
    assert bench.pipe.in_flight == 1
    assert bench.pipe.running == [job]
    bench.worker.send_answer(1, ANSWER, 0.5)
    bench.reply()
    assert bench.result(job) == TimedAnswer(ANSWER, 0.5)
    assert bench.pipe.in_flight == 0
    assert bench.pipe.running == []


def test_body_waits_for_the_begin(bench: Bench) -> None:
    """A body is sent when the worker has begun the request, and only as far as it has granted."""
    taken: list[int] = []
    body = Stream(taken.append)
    body.write(bytes(100_000))
    job = bench.job(body)
    assert bench.arrived() == [StreamedRequestReceived(1, ASKED, None)]
    assert taken == []
    bench.begin(1)
    pieces = bench.arrived()
    assert all(isinstance(piece, DataReceived) for piece in pieces)
    assert sum(taken) == 100_000
    body.write(bytes(150_000))
    bench.arrived()
    assert sum(taken) == GRANT + 1
    assert body.size == 250_000 - GRANT - 1
    body.end()
    assert bench.arrived() == []
    bench.worker.streams.grant(1, GRANT)
    bench.reply()
    assert [type(event) for event in bench.arrived()] == [DataReceived, EndReceived]
    assert bench.result(job) is None


def test_body_that_is_complete(bench: Bench) -> None:
    """A body that has ended before the request begins is sent with its end."""
    body = Stream()
    body.write(b"all")
    body.end()
    bench.job(body)
    bench.arrived()
    bench.begin(1)
    assert bench.arrived() == [DataReceived(1, b"all"), EndReceived(1, 0.0)]


def test_body_breaks_off(bench: Bench) -> None:
    """The end of a body whose peer has gone is told to the worker, which knows how much is missing."""
    body = Stream()
    bench.job(body)
    bench.arrived()
    bench.begin(1)
    body.write(b"part")
    body.end(ConnectionFailed("gone"))
    assert bench.arrived() == [DataReceived(1, b"part"), EndReceived(1, 0.0)]


def test_head_that_is_too_large(bench: Bench) -> None:
    """The variables in front of a streamed body fit one frame; otherwise nothing is sent."""
    with pytest.raises(MessageTooLarge):
        bench.job(Stream(), ASKED._replace(payload=bytes(FIRST_PIECE + 1)))
    assert bench.pipe.in_flight == 0
    assert bench.pipe.capacity == 1
    bench.job(Stream(), ASKED._replace(payload=bytes(FIRST_PIECE)))
    assert len(bench.arrived()) == 1


def test_unread_body(bench: Bench) -> None:
    """An answer ends the body of its request: nobody reads the rest."""
    cancelled: list[bool] = []
    body = Stream(on_cancel=lambda: cancelled.append(True))
    job = bench.job(body)
    bench.arrived()
    bench.begin(1)
    bench.worker.send_answer(1, ANSWER)
    bench.reply()
    assert isinstance(bench.result(job), TimedAnswer)
    assert cancelled == [True]
    body.write(b"late")
    bench.worker.streams.grant(1, 10)
    bench.reply()
    assert bench.arrived() == []


def test_one_slow_answer(bench: Bench) -> None:
    """A request that has taken long once, as when it waited for a processor, leaves room for some ahead."""
    bench.make_fast()
    bench.answer_after(0.05)
    assert 4 <= bench.pipe.capacity < MAX_IN_FLIGHT


def test_slow_answers(bench: Bench) -> None:
    """If requests take long, the worker soon gets no more ahead, and more again when they are short."""
    bench.make_fast()
    for _ in range(10):
        bench.answer_after(0.05)
    assert bench.pipe.capacity == 1
    bench.make_fast()
    assert bench.pipe.capacity == MAX_IN_FLIGHT


def test_nothing_overtakes_a_body(bench: Bench) -> None:
    """A worker that has a request with a body gets no further ones until that is answered or recalled."""
    bench.make_fast()
    bench.job(Stream())
    assert bench.pipe.capacity == 0
    assert len(bench.pipe.recall(spared=0)) == 1
    assert bench.pipe.capacity == 0, "the recall is not confirmed"
    *_, cancel = bench.arrived()
    assert isinstance(cancel, CancelReceived)
    bench.worker.send_error(cancel.id, encode_failure(RequestCancelled("recalled")))
    bench.reply()
    assert bench.pipe.capacity == MAX_IN_FLIGHT


def test_recalled_body_goes_elsewhere(bench: Bench) -> None:
    """A recalled request takes its body, whole, to another worker; a grant that comes late changes nothing."""
    body = Stream()
    body.write(b"body")
    body.end()
    job = bench.job(body)
    assert bench.pipe.recall(spared=0) == [job]
    bench.worker.receive(bench.transport.take(None))
    bench.pipe._streams.grant(1)
    assert body.size == 4
    other = Bench()
    other.pipe.assign(job, 0.0)
    other.arrived()
    other.begin(1)
    assert other.arrived() == [DataReceived(1, b"body"), EndReceived(1, 0.0)]
    other.tokens.close()


def test_recall_spares_what_has_begun(bench: Bench) -> None:
    """A request whose token the worker has taken stays with it."""
    bench.make_fast()
    jobs = [bench.job() for _ in range(4)]
    bench.arrived()
    assert os.read(bench.tokens.reader, 2) == bytes(2)
    assert bench.pipe.recall(spared=0) == jobs[2:]
    assert bench.pipe.in_flight == 2
    assert bench.pipe.recall() == []


def test_streamed_answer(bench: Bench) -> None:
    """An answer may be a stream; the worker may send as much as was taken of it."""
    job = bench.job()
    bench.arrived()
    bench.worker.send_streamed_answer(1, ANSWER)
    bench.worker.streams.send(1, bytes(STREAM_WINDOW))
    bench.reply()
    answer = bench.result(job)
    assert isinstance(answer, StreamedAnswer)
    assert answer.packet == ANSWER
    assert answer.stream.size == STREAM_WINDOW
    assert bench.pipe.waits_for_peer
    answer.stream.take(1)
    assert bench.arrived() == [], "small grants are saved up"
    while answer.stream.take(60_000):
        pass
    assert set(bench.arrived()) == {WindowGranted(1)}
    assert bench.worker.streams.credit(1) > STREAM_WINDOW // 2
    assert not bench.pipe.waits_for_peer
    bench.worker.streams.send_end(1, 0.25)
    bench.reply()
    assert answer.stream.finished
    assert answer.stream.error is None
    assert bench.pipe.in_flight == 0


def test_answer_is_taken_after_its_end(bench: Bench) -> None:
    """What is taken of an answer whose worker is done grants nothing."""
    job = bench.job()
    bench.arrived()
    bench.worker.send_streamed_answer(1, ANSWER)
    bench.worker.streams.send(1, bytes(STREAM_WINDOW))
    bench.worker.streams.send_end(1)
    bench.reply()
    answer = bench.result(job)
    assert isinstance(answer, StreamedAnswer)
    while answer.stream.take(STREAM_WINDOW):
        pass
    assert bench.arrived() == []
    assert answer.stream.finished


def test_streamed_answer_fails(bench: Bench) -> None:
    """An error ends a streamed answer early."""
    job = bench.job()
    bench.arrived()
    bench.worker.send_streamed_answer(1, ANSWER)
    bench.worker.send_error(1, encode_failure(Busy("no")))
    bench.reply()
    answer = bench.result(job)
    assert isinstance(answer, StreamedAnswer)
    assert isinstance(answer.stream.error, Busy)


def test_streamed_answer_is_cancelled(bench: Bench) -> None:
    """A caller that goes cancels the answer; the worker has the request until it confirms that."""
    job = bench.job()
    bench.arrived()
    bench.worker.send_streamed_answer(1, ANSWER)
    bench.worker.streams.send(1, b"raced")
    bench.reply()
    answer = bench.result(job)
    assert isinstance(answer, StreamedAnswer)
    answer.stream.cancel()
    assert bench.arrived() == [CancelReceived(1)]
    assert bench.pipe.in_flight == 1
    bench.worker.send_error(1, encode_failure(RequestCancelled("gone")))
    bench.reply()
    assert bench.pipe.in_flight == 0


def test_nobody_waits_when_the_answer_begins(bench: Bench) -> None:
    """A streamed answer to a caller that has gone is cancelled at once."""
    job = bench.job()
    bench.arrived()
    job.answer.cancel()
    bench.worker.send_streamed_answer(1, ANSWER)
    bench.reply()
    assert bench.arrived() == [CancelReceived(1)]
    assert isinstance(bench.result(job), RequestCancelled)


def test_unknown_answers(bench: Bench) -> None:
    """Streams of requests that are not in flight are ignored."""
    bench.worker.send_streamed_answer(9, ANSWER)
    bench.worker.streams.send(9, b"data")
    bench.worker.streams.send_end(9)
    bench.reply()
    assert bench.pipe.in_flight == 0


def test_waits_for_peer(bench: Bench) -> None:
    """A worker may wait for its peer while the rest of a body has not arrived, and not once it has ended."""
    body = Stream()
    bench.job(body)
    assert not bench.pipe.waits_for_peer
    bench.arrived()
    bench.begin(1)
    assert bench.pipe.waits_for_peer
    body.write(bytes(GRANT + 2))
    assert not bench.pipe.waits_for_peer
    bench.worker.streams.grant(1, 10)
    bench.arrived()
    bench.worker.streams.grant(1, 10)
    bench.reply()
    assert bench.pipe.waits_for_peer
    body.end()
    assert not bench.pipe.waits_for_peer


def test_uploading(bench: Bench) -> None:
    """A worker has an upload from its assignment until all of the body has arrived from the peer."""
    body = Stream()
    assert not bench.pipe.uploading
    bench.job(body)
    assert bench.pipe.uploading
    bench.arrived()
    bench.begin(1)
    body.write(b"body")
    assert bench.pipe.uploading
    body.end()
    assert not bench.pipe.uploading
    assert bench.pipe.in_flight == 1


def test_worker_dies(bench: Bench) -> None:
    """A worker that dies ends the streams of the request that it ran, body and answer."""
    cancelled: list[bool] = []
    body = Stream(on_cancel=lambda: cancelled.append(True))
    job = bench.job(body)
    bench.arrived()
    bench.begin(1)
    bench.worker.send_streamed_answer(1, ANSWER)
    bench.reply()
    assert bench.pipe.take_unfinished() == ([job], [])
    answer = bench.result(job)
    assert isinstance(answer, StreamedAnswer)
    assert isinstance(answer.stream.error, WorkerDied)
    assert cancelled == [True]
    assert bench.pipe.capacity == 0


def test_worker_dies_before_it_begins(bench: Bench) -> None:
    """The body of a request that a dead worker had not begun goes, whole, to another one."""
    body = Stream()
    body.write(b"body")
    job = bench.job(body)
    bench.arrived()
    assert bench.pipe.take_unfinished() == ([], [job])
    body.end()
    other = Bench()
    other.pipe.assign(job, 0.0)
    other.arrived()
    other.begin(1)
    assert other.arrived() == [DataReceived(1, b"body"), EndReceived(1, 0.0)]
    other.tokens.close()


def test_reports(bench: Bench) -> None:
    """An error of the id 0 is of a request that the worker has accepted itself: it completes nothing here."""
    job = bench.job()
    bench.arrived()
    bench.worker.send_error(NO_REQUEST, encode_failure(Busy("reported"), peer="192.0.2.1:5"))
    bench.reply()
    ((error, peer),) = bench.owner.calls
    assert peer == "192.0.2.1:5"
    assert isinstance(error, UwsgiError)
    assert error.text == "reported"
    assert bench.result(job) is None
    assert bench.pipe.in_flight == 1


def test_retiring(bench: Bench) -> None:
    """A worker asks to be replaced with a shutdown notice."""
    bench.worker.send_shutdown()
    bench.reply()
    assert bench.owner.calls == ["retiring"]


def test_large_answers_are_reported(bench: Bench) -> None:
    """The owner hears how many bytes the answers in pieces have, and when there are none any more."""
    bench.job()
    bench.arrived()
    bench.worker.send_answer(1, ANSWER._replace(payload=bytes(100_000)))
    bench.reply()
    assert bench.owner.calls == [100_000, 0]


def test_stop_accepting(bench: Bench) -> None:
    """A worker that accepts connections hears that it should accept no more, if its pipe is open."""
    bench.pipe.stop_accepting()
    assert bench.arrived() == [ShutdownReceived()]
    bench.pipe.close()
    bench.pipe.stop_accepting()
    bench.pipe.close()
    assert bench.arrived() == []
    assert bench.transport.disconnecting


def test_broken_pipe(bench: Bench) -> None:
    """A handler that writes to the pipe by mistake has it closed, which ends its worker."""
    bench.job()
    bench.pipe.data_received(encode_packet(Packet(9, 9)))
    assert bench.transport.disconnecting
    assert bench.pipe.capacity == 0


def test_lost_pipe(bench: Bench) -> None:
    """Nothing is written to a pipe that the worker has closed."""
    bench.pipe.connection_lost()
    bench.pipe.flush()
    assert bench.transport.outgoing == b""
    assert bench.pipe.capacity == 0


@pytest.fixture
def threads() -> Iterator[Bench]:
    """Give a pipe to a worker with three threads."""
    made = Bench(3)
    yield made
    made.tokens.close()


def test_threads(threads: Bench) -> None:
    """A worker with threads is assigned as many requests as it runs at a time, however fast it is."""
    jobs = [threads.job() for _ in range(3)]
    assert threads.pipe.capacity == 0
    assert threads.pipe.running == jobs
    assert len(threads.arrived()) == 3
    threads.worker.send_answer(2, ANSWER, FAST)
    threads.reply()
    assert threads.result(jobs[1]) == TimedAnswer(ANSWER, FAST)
    assert threads.pipe.capacity == 1
    assert threads.pipe.find(3) is jobs[2]
    assert threads.pipe.find(2) is None


def test_threads_recall(threads: Bench) -> None:
    """What a worker with threads has not begun can be recalled, although earlier requests are answered."""
    jobs = [threads.job() for _ in range(3)]
    threads.arrived()
    assert os.read(threads.tokens.reader, 2)
    threads.worker.send_answer(1, ANSWER)
    threads.reply()
    assert threads.pipe.recall(spared=0) == [jobs[2]]
    assert threads.pipe.running == [jobs[1]]
    assert threads.arrived() == [CancelReceived(3)]


def test_threads_that_die(threads: Bench) -> None:
    """All requests that a worker with threads had begun die with it; the others may go elsewhere."""
    jobs = [threads.job() for _ in range(3)]
    threads.arrived()
    assert os.read(threads.tokens.reader, 2)
    assert threads.pipe.take_unfinished() == (jobs[:2], jobs[2:])


def test_bodies_beside_each_other(threads: Bench) -> None:
    """A worker with threads gets further requests while bodies arrive, each on its own stream."""
    bodies = [Stream(), Stream()]
    for body in bodies:
        threads.job(body)
    threads.arrived()
    assert threads.pipe.uploading == 2
    assert threads.pipe.capacity == 1
    for request in (1, 2):
        threads.begin(request)
    bodies[1].write(b"second")
    bodies[0].write(b"first")
    assert threads.arrived() == [DataReceived(2, b"second"), DataReceived(1, b"first")]
    bodies[1].end()
    assert threads.pipe.uploading == 1


def test_nothing_overtakes_pieces(threads: Bench) -> None:
    """A worker with threads gets no request that would overtake one in pieces; when they are sent, it does."""
    large = Packet(WSGI, 0, bytes(1_000_000))
    threads.job(packet=large)
    assert threads.pipe.capacity == 0
    progress = threads.owner.progress
    events: list[Event] = []
    while not events:
        events = threads.arrived()
    assert events == [RequestReceived(1, large, None)]
    assert threads.pipe.capacity == 2
    assert threads.owner.progress > progress


def test_ids_begin_again(bench: Bench) -> None:
    """After the largest id comes the first again, which is not the one of reports."""
    bench.pipe._last_id = MAX_ID
    bench.job()
    (event,) = bench.arrived()
    assert isinstance(event, RequestReceived)
    assert event.id == NO_REQUEST + 1


def test_requests_leave_nothing_behind(bench: Bench) -> None:
    """A pipe takes no more memory after many requests than after few."""

    def run(requests: int) -> None:
        for _ in range(requests):
            job = Job(Request(ASKED), 0.0, lambda _: None)
            bench.pipe.assign(job, 0.0)
            (event,) = bench.arrived()
            assert isinstance(event, RequestReceived)
            bench.worker.send_answer(event.id, ANSWER)
            bench.reply()
            assert job.completed

    run(300)  # ids below 257 are always there
    tracemalloc.start()
    try:
        run(100)
        before, _ = tracemalloc.get_traced_memory()
        run(2_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
