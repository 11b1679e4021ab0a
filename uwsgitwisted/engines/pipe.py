"""The front's end of the pipe to a worker process: requests given to it, and recalled.

It is The client's side of a session (:mod:`uwsgitwisted.wire.session`), with one thing more. A fast worker is
given several requests ahead, so that it never waits for the front between two. Should the one that it runs turn
out slow, those behind it must go to another worker, and neither of the two processes may have to wait for the
other to find out who has a request. So each request has a *token*, a byte in a second pipe that both can read:
the worker takes one before it begins a request, the front takes one to recall a request. The kernel gives
each byte to one reader only. (GNU make shares its job slots among processes in the same way.)

Requests are begun in the order in which they were given, and the front recalls the last ones. It gives
nothing more until the worker has confirmed what was recalled, so that no token can be taken for a request
that is not the front's any more.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import Protocol

from twisted.internet.interfaces import IReactorTime, ITransport

from uwsgitwisted.engines.job import Job
from uwsgitwisted.errors import ProtocolError
from uwsgitwisted.interfaces import TimedAnswer
from uwsgitwisted.transport.batch import BATCH
from uwsgitwisted.transport.writer import Writer
from uwsgitwisted.wire.frame import FIRST_PIECE
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.session import (
    MAX_ID,
    AnswerReceived,
    ErrorReceived,
    Role,
    Session,
    ShutdownReceived,
)
from uwsgitwisted.wire.terms import Terms

#: The most requests that a worker is given at once, the one that it runs included.
MAX_GIVEN = 16
#: A worker is given as many requests ahead as it is expected to run in this time, in seconds.
AHEAD_TIME = 0.001


class PipeOwner(Protocol):
    """Who gave the requests."""

    def progressed(self) -> None:
        """Note that requests were answered, or that the worker may be given some again."""

    def retiring(self) -> None:
        """Note that the worker asks to be replaced."""


class Tokens:
    """The pipe of tokens; both processes have its reading end, the front alone its writing end."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)

    def put(self, number: int) -> None:
        """Add *number* tokens; far fewer than a pipe holds are ever out."""
        os.write(self._writer, bytes(number))

    def take(self, number: int) -> int:
        """Take up to *number* tokens and return how many there were."""
        try:
            return len(os.read(self.reader, number)) if number else 0
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reader)
        os.close(self._writer)


class Pipe:
    """What one worker has been given.

    :param transport: the socket to it.
    :param clock: the reactor.
    :param ours: what this side takes.
    :param theirs: what the worker takes.
    :param tokens: shared with the worker.
    :param owner: is told what happens.
    """

    def __init__(
        self,
        transport: ITransport,
        clock: IReactorTime,
        ours: Terms,
        theirs: Terms,
        tokens: Tokens,
        owner: PipeOwner,
    ) -> None:
        self._session = Session(Role.CLIENT, ours, theirs)
        self._writer = Writer(transport, self.flush)
        self._clock = clock
        self._tokens = tokens
        self._owner = owner
        self._new_tokens = 0
        self._ids = itertools.count(1)
        self._given: dict[int, Job] = {}
        self._recalled: set[int] = set()
        self._closed = False
        # A request that arrives in pieces, so that one given behind it would overtake it.
        self._large: Job | None = None
        #: When the request that is run began to, in the reactor's time.
        self.running_since = 0.0
        # How many requests the worker may have at once, by what it needed for the last ones.
        self._took = AHEAD_TIME
        self._depth = 1

    @property
    def given(self) -> int:
        """How many requests the worker has."""
        return len(self._given)

    @property
    def room(self) -> int:
        """How many more it may be given."""
        if self._closed or self._recalled or self._large is not None:
            return 0
        return self._depth - len(self._given)

    @property
    def running(self) -> Job | None:
        """The request that it runs, or is about to."""
        return next(iter(self._given.values()), None)

    def give(self, job: Job, now: float) -> None:
        """Give it a request.

        :param now: the reactor's time.
        """
        request = next(self._ids) & MAX_ID
        self._session.send_request(request, job.packet, job.deadline - now if job.deadline < math.inf else None)
        if not self._given:
            self.running_since = now
        if len(job.packet.payload) > FIRST_PIECE:
            self._large = job
        self._given[request] = job
        self._new_tokens += 1
        BATCH.at_end(self.flush)

    def recall(self) -> list[Job]:
        """Recall what it has not begun, except for the first."""
        self.flush()
        number = self._tokens.take(len(self._given) - 1)
        taken = list(self._given)[len(self._given) - number :]
        jobs = [self._given.pop(request) for request in taken]
        if self._large in jobs:
            self._large = None
        for request in taken:
            self._recalled.add(request)
            self._session.send_cancel(request)
        self.flush()
        return jobs

    def abandon(self) -> tuple[list[Job], list[Job]]:
        """Return, when its process has ended, what it had begun and what it had not."""
        jobs = list(self._given.values())
        self._given.clear()
        self._closed = True
        self._writer.abort()
        begun = len(jobs) - self._new_tokens - self._tokens.take(len(jobs))
        return jobs[:begun], jobs[begun:]

    def flush(self) -> None:
        """Write what there is to send, as far as the socket takes it."""
        if self._closed:
            return
        if self._new_tokens:  # before the requests: a worker that finds no token takes a request for recalled
            self._tokens.put(self._new_tokens)
            self._new_tokens = 0
        while self._session.sending and not self._writer.waiting:
            self._writer.write(self._session.data_to_send())

    def data_received(self, data: bytes) -> None:
        """Take what the worker sends."""
        with BATCH:
            try:
                events = self._session.receive(data)
            except ProtocolError:  # a handler wrote to our descriptor
                self.close()
                return
            self.running_since = self._clock.seconds()
            for event in events:
                if isinstance(event, AnswerReceived):
                    self._finish(event.id, event.packet, event.took)
                elif isinstance(event, ErrorReceived):
                    self._finish(event.id, event.error, event.took)
                elif isinstance(event, ShutdownReceived):
                    self._owner.retiring()
            self._owner.progressed()

    def _finish(self, request: int, result: Packet | Exception, took: float) -> None:
        job = self._given.pop(request, None)
        if job is None:
            self._recalled.discard(request)
            return
        if job is self._large:
            self._large = None
        self._took = expected = max(took, 0.9 * self._took + 0.1 * took)
        self._depth = MAX_GIVEN if expected <= AHEAD_TIME / MAX_GIVEN else max(1, int(AHEAD_TIME / expected))
        job.settle(TimedAnswer(result, took) if isinstance(result, Packet) else result)

    def connection_lost(self) -> None:
        """Note that the worker has closed the socket; how its process ended is known soon."""
        self._closed = True

    def close(self) -> None:
        """Close the socket, on which the worker ends."""
        if not self._closed:
            self.flush()
            self._closed = True
            self._writer.close()
