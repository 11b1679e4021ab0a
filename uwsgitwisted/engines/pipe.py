"""The front's end of the pipe to a worker process: assigns requests to the worker, and recalls them.

It is the client's side of a session (:mod:`uwsgitwisted.wire.session`) with one addition. A fast worker is
assigned several requests ahead, so that it never waits for the front between two. If the running one turns out
slow, those behind it must go to another worker, and neither process may have to ask the other who has a
request. So each request has a *token*, a byte in a second pipe that both processes can read. The worker takes a
token before it starts a request, and the front takes one to recall a request. The kernel hands each byte to one
reader only. (GNU make shares its job slots among processes in the same way.)

The worker starts requests in the order of their assignment, and the front recalls the last ones. It assigns
nothing more until the worker has confirmed the recalls. Otherwise it could take a token for a request that is
no longer the front's.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import Protocol

from twisted.internet.interfaces import IReactorTime, ITransport

from uwsgitwisted.engines.job import Job
from uwsgitwisted.engines.pipe_streams import PipeStreams
from uwsgitwisted.errors import ProtocolError, WorkerDied
from uwsgitwisted.interfaces import StreamedAnswer, TimedAnswer
from uwsgitwisted.transport.batch import BATCH
from uwsgitwisted.transport.writer import Writer
from uwsgitwisted.wire.events import (
    AnswerReceived,
    DataReceived,
    EndReceived,
    ErrorReceived,
    Event,
    ShutdownReceived,
    StreamedAnswerReceived,
    WindowGranted,
)
from uwsgitwisted.wire.frame import FIRST_PIECE
from uwsgitwisted.wire.packet import Packet, new_tuple
from uwsgitwisted.wire.session import MAX_ID, Role, Session
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.worker.spec import NO_REQUEST

#: The most requests in flight in one worker, including the one that it runs.
MAX_IN_FLIGHT = 16
#: A worker is assigned as many requests ahead as it should finish in this time, in seconds.
PREFETCH_TIME = 0.001
#: With requests of up to so many seconds, a worker is assigned as many as it may have.
_QUICK = PREFETCH_TIME / MAX_IN_FLIGHT


class PipeOwner(Protocol):
    """Assigns the requests."""

    def on_progress(self) -> None:
        """Handle answered requests, or a worker that has capacity again."""

    def on_retiring(self) -> None:
        """Replace the worker, which has asked for it."""

    def on_report(self, error: Exception, peer: str) -> None:
        """Log that a request of *peer* has failed that the worker had accepted itself."""

    def on_transfer(self, size: int) -> None:
        """Note how many bytes the answers have that arrive in pieces; 0 if there are none any more."""


class Tokens:
    """The pipe of tokens. Both processes have its reading end; only the front has its writing end."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)

    def put(self, number: int) -> None:
        """Add *number* tokens. A pipe has room for far more than are ever out."""
        os.write(self._writer, bytes(number))

    def take(self, number: int) -> int:
        """Take up to *number* tokens; return how many it got."""
        try:
            return len(os.read(self.reader, number)) if number else 0
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reader)
        os.close(self._writer)


class Pipe:
    """The requests in flight in one worker.

    :param transport: the socket to the worker.
    :param clock: the reactor.
    :param ours: the terms of this side.
    :param theirs: the terms of the worker.
    :param tokens: shared with the worker.
    :param owner: is called when something happens.
    :param threads: how many requests the worker runs at a time. If they are several, it is assigned no more.
    """

    def __init__(
        self,
        transport: ITransport,
        clock: IReactorTime,
        ours: Terms,
        theirs: Terms,
        tokens: Tokens,
        owner: PipeOwner,
        threads: int = 1,
    ) -> None:
        self._session = Session(Role.CLIENT, ours, theirs)
        self._streams = PipeStreams(self._session, self._flush_later, owner.on_progress)
        self._writer = Writer(transport, self.flush)
        self._clock = clock
        self._tokens = tokens
        self._owner = owner
        self._threads = threads
        self._new_tokens = 0
        self._last_id = NO_REQUEST
        self._in_flight: dict[int, Job] = {}
        self._recalled: set[int] = set()
        self._closed = False
        # How many bytes the answers have that arrive in pieces.
        self._arriving = 0
        # The id of a request that is sent in pieces, or is followed by a stream: a later request would overtake
        # it. A worker with threads has begun it, or will before later ones, as soon as all pieces are sent.
        self._large: int | None = None
        #: When the running request started, in the reactor's time.
        self.running_since = 0.0
        # How long the next request should run, judging by the last ones, and how many may therefore be in
        # flight.
        self._expected_time = PREFETCH_TIME
        self._depth = threads

    @property
    def in_flight(self) -> int:
        """How many requests the worker has."""
        return len(self._in_flight)

    @property
    def capacity(self) -> int:
        """How many more requests the worker can be assigned."""
        if self._closed or self._recalled or self._large is not None:
            return 0
        return self._depth - len(self._in_flight)

    @property
    def running(self) -> list[Job]:
        """The requests that the worker runs, or is about to run."""
        return list(itertools.islice(self._in_flight.values(), self._threads))

    def find(self, request: int) -> Job | None:
        """Return the request in flight with this id on the pipe."""
        return self._in_flight.get(request)

    def assign(self, job: Job, now: float) -> None:
        """Send *job* to the worker.

        :param now: the reactor's time.
        """
        request = self._last_id = self._last_id % MAX_ID + 1  # never NO_REQUEST
        seconds = job.deadline - now if job.deadline < math.inf else None
        if job.body is None:
            self._session.send_request(request, job.packet, seconds)
            is_large = len(job.packet.payload) > FIRST_PIECE
        else:
            self._session.send_streamed_request(request, job.packet, seconds)
            self._streams.add_body(request, job.body)
            is_large = True
        if not self._in_flight:
            self.running_since = now
        if is_large:
            self._large = request
        self._in_flight[request] = job
        self._new_tokens += 1
        if self._new_tokens == 1:
            self._flush_later()

    @property
    def uploading(self) -> int:
        """How many requests the worker has whose bodies are still arriving."""
        return self._streams.uploading

    @property
    def waits_for_peer(self) -> bool:
        """Whether the worker may be waiting for the peer whose request it runs."""
        return self._streams.waits_for_peer

    def recall(self, spared: int = 1) -> list[Job]:
        """Recall the requests that the worker has not started; return them.

        :param spared: how many of the first ones to leave with it.
        """
        self.flush()
        number = self._tokens.take(len(self._in_flight) - spared)
        taken = list(self._in_flight)[len(self._in_flight) - number :]
        jobs = [self._in_flight.pop(request) for request in taken]
        if self._large in taken:
            self._large = None
        for request in taken:
            self._streams.withdraw(request)
            self._recalled.add(request)
            self._session.send_cancel(request)
        self.flush()
        return jobs

    def take_unfinished(self) -> tuple[list[Job], list[Job]]:
        """Take the unanswered requests of a worker whose process has ended.

        :return: the requests that it had started, and those that it had not.
        """
        jobs = list(self._in_flight.values())
        started = len(jobs) - self._new_tokens - self._tokens.take(len(jobs))
        for request in list(self._in_flight)[started:]:  # their bodies go with them to another worker
            self._streams.withdraw(request)
        self._in_flight.clear()
        self._closed = True
        self._streams.end_all(WorkerDied("the worker died while it was answering"))
        self._session.abandon()
        self._writer.abort()
        return jobs[:started], jobs[started:]

    def flush(self) -> None:
        """Write queued frames until the socket is full."""
        if self._closed:
            return
        if self._new_tokens:  # before the requests: without a token, the worker treats a request as recalled
            self._tokens.put(self._new_tokens)
            self._new_tokens = 0
        while self._session.sending and not self._writer.waiting:
            self._writer.write(self._session.data_to_send())
        if self._threads > 1 and self._large is not None and not self._session.is_sending(self._large):
            self._large = None
            self._owner.on_progress()

    def _flush_later(self) -> None:
        BATCH.at_end(self.flush)

    def data_received(self, data: bytes) -> None:
        """Handle bytes from the worker."""
        with BATCH:
            try:
                events = self._session.receive(data)
            except ProtocolError:  # a handler wrote to our descriptor
                self.close()
                return
            self.running_since = self._clock.seconds()
            for event in events:
                if isinstance(event, AnswerReceived):
                    request, packet, took = event
                    self._complete_job(request, new_tuple(TimedAnswer, (packet, took)), took)
                elif isinstance(event, ErrorReceived):
                    if event.id == NO_REQUEST:
                        self._owner.on_report(event.error, event.peer)
                    else:
                        self._complete_job(event.id, event.error, event.took)
                else:
                    self._handle_other(event)
            if self._session.announced != self._arriving:
                self._arriving = self._session.announced
                self._owner.on_transfer(self._arriving)
            self._owner.on_progress()

    def _handle_other(self, event: Event) -> None:
        """Handle what is neither a whole answer nor an error."""
        if isinstance(event, DataReceived):
            self._streams.answers.receive(event.id, event.data)
        elif isinstance(event, StreamedAnswerReceived):
            self._begin_answer(event.id, event.packet)
        elif isinstance(event, EndReceived):
            self._complete_job(event.id, None, event.took)
        elif isinstance(event, WindowGranted):
            self._streams.grant(event.id)
        elif isinstance(event, ShutdownReceived):
            self._owner.on_retiring()

    def _begin_answer(self, request: int, packet: Packet) -> None:
        job = self._in_flight.get(request)
        if job is None:
            return
        stream = self._streams.answers.begin(request)
        if job.completed:  # its caller has gone
            stream.cancel()
        else:
            job.complete(StreamedAnswer(packet, stream))

    def _complete_job(self, request: int, result: TimedAnswer | Exception | None, took: float) -> None:
        """Complete a job with its answer or error, or with None at the end of a stream."""
        job = self._in_flight.pop(request, None)
        if job is None:
            self._recalled.discard(request)
            return
        if job.body is not None or job.completed:  # otherwise it has no stream
            self._streams.end(request, result if isinstance(result, Exception) else None, took)
        if request == self._large:
            self._large = None
        if self._threads == 1:
            # A longer one only shows that nothing may be assigned ahead; it may have waited for a processor.
            bounded = took if took < PREFETCH_TIME else PREFETCH_TIME
            self._expected_time = expected = 0.9 * self._expected_time + 0.1 * bounded
            self._depth = MAX_IN_FLIGHT if expected <= _QUICK else max(1, int(PREFETCH_TIME / expected))
        if result is not None:
            job.complete(result)

    def connection_lost(self) -> None:
        """Stop writing: the worker has closed the socket. Its process's exit status follows soon."""
        self._closed = True

    def stop_accepting(self) -> None:
        """Have the worker accept no further connections."""
        if not self._closed:
            self._session.send_shutdown()
            self.flush()

    def close(self) -> None:
        """Close the socket, which makes the worker exit."""
        if not self._closed:
            self.flush()
            self._closed = True
            self._writer.close()
