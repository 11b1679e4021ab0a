"""What runs in a worker process: a node reached over a socketpair.

It is started with the session's socket as file descriptor 3, loads its handlers, answers the front's offer of
a session when it is ready, and then runs one request after another until the front closes the socket. It
imports no Twisted, so that it starts in tens of milliseconds and a handler may use any library that blocks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic

from uwsgitwisted.activity import Activity
from uwsgitwisted.errors import (
    RequestCancelled,
    RequestTimeout,
    StartupError,
    UnknownModifier,
    UwsgiError,
)
from uwsgitwisted.memory import keep_large_blocks
from uwsgitwisted.wire.events import (
    CancelReceived,
    DataReceived,
    EndReceived,
    RequestReceived,
    ShutdownReceived,
    StreamedRequestReceived,
)
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.packet import Packet, PacketDecoder
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import Terms, decode_offer, encode_grant
from uwsgitwisted.worker.accepting import Acceptor
from uwsgitwisted.worker.compat.decorators import postfork_chain_hook
from uwsgitwisted.worker.exchange import WINDOW, Body, Exchange
from uwsgitwisted.worker.handlers.handler import StreamHandler
from uwsgitwisted.worker.handlers.spool import periodic
from uwsgitwisted.worker.reaper import fork_below_reaper
from uwsgitwisted.worker.spec import (
    ACTIVITY_FD,
    HANDOFF_FD,
    LISTENER_FD,
    MAX_PORTS,
    NO_REQUEST,
    SOCKET_FD,
    TOKENS_FD,
    HandlerTable,
    WorkerSpec,
)

#: For how many seconds a worker goes on to accept quick requests without looking at its pipe.
_UNINTERRUPTED = 0.001
#: How many bytes are read at once.
_READ_SIZE = 256 * 1024


class Worker:
    """Answers the front's requests, one after another.

    :param connection: the session's socket; blocking.
    :param tokens: the descriptor to take a token from before a request is begun: see
        :mod:`uwsgitwisted.engines.pipe`. Non-blocking.
    :param spec: its limits.
    :param handlers: what answers, by modifier1.
    :param node: this worker's name in the errors that it reports.
    :param make_acceptor: makes what accepts connections, from what reports an error to the front; None if this
        worker accepts none.
    """

    def __init__(
        self,
        connection: socket.socket,
        tokens: int,
        spec: WorkerSpec,
        handlers: HandlerTable,
        node: str,
        make_acceptor: Callable[[Callable[[UwsgiError], None]], Acceptor] | None = None,
    ) -> None:
        self.connection = connection
        self._tokens = tokens
        self._handlers = handlers
        self._node = node
        self._terms = Terms(max_message=spec.max_message, node=node, window=1)
        self._left = -1 if spec.max_requests is None else spec.max_requests
        self._waiting: deque[tuple[RequestReceived | StreamedRequestReceived, float]] = deque()
        #: Whether no further connections are accepted.
        self._draining = False
        #: The streams behind requests, by the requests' ids.
        self._bodies: dict[int, Body] = {}
        self._exchange: Exchange | None = None
        self._acceptor = None if make_acceptor is None else make_acceptor(self._report)

    def serve(self) -> None:
        """Answer until the front closes the socket."""
        data = self._negotiate()
        if self._acceptor is not None:
            self._serve_with_ports(self._acceptor, data)
            return
        while data or (data := self.connection.recv(_READ_SIZE)):
            self._serve_pipe(data)
            data = b""

    def _serve_with_ports(self, acceptor: Acceptor, data: bytes) -> None:
        """Answer what comes on the pipe, and what comes on the ports while the pipe is silent."""
        pipe = self.connection.fileno()
        with select.epoll() as poll:
            poll.register(pipe, select.EPOLLIN)
            for listener in acceptor.listeners:
                # The kernel wakes one worker for a connection, not all.
                poll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self._serve_pipe(data)
            while True:
                ready = [descriptor for descriptor, _ in poll.poll()]
                if pipe in ready:
                    if not (data := self.connection.recv(_READ_SIZE)):
                        return
                    self._serve_pipe(data)
                    if self._draining:
                        for listener in acceptor.listeners:
                            poll.unregister(listener)
                        acceptor.listeners.clear()
                until = monotonic() + _UNINTERRUPTED
                for descriptor in ready:
                    while descriptor in acceptor.listeners and acceptor.accept(descriptor):
                        self._count()
                        self.flush()
                        if monotonic() > until:
                            break

    def _serve_pipe(self, data: bytes) -> None:
        """Handle bytes from the pipe, and run the requests that are there then."""
        self._handle(data)
        while self._waiting and self._may_begin():
            self._run(*self._waiting.popleft())
            self._count()
            self.flush()  # before the next begins: should that end this process, this answer is out
        self.flush()

    def _count(self) -> None:
        """Count a request."""
        self._left -= 1
        if not self._left:
            self.session.send_shutdown()  # the front starts a successor; until then this one goes on

    def _report(self, error: UwsgiError) -> None:
        """Have the front log an error of a request that isn't its own."""
        self.session.send_error(NO_REQUEST, encode_failure(error))
        self._retire_without_memory(error)

    def _retire_without_memory(self, error: UwsgiError) -> None:
        """Have this request be the last if it ran out of memory: what holds that goes with this process."""
        if isinstance(error.__cause__, MemoryError):
            self._left = 1

    def _negotiate(self) -> bytes:
        """Wait for the front's offer, grant the session, and return the bytes that came after the offer."""
        decoder = PacketDecoder(count=1)
        packets: list[Packet] = []
        while not packets:
            data = self.connection.recv(_READ_SIZE)
            if not data:
                raise SystemExit(0)  # the front went away before it began
            packets = decoder.receive(data)
        theirs = decode_offer(packets[0]) or Terms()
        self.connection.sendall(encode_grant(self._terms))
        self.session = Session(Role.SERVER, self._terms, theirs)
        return decoder.rest()

    def receive(self, *, wait: bool) -> None:
        """Handle what has arrived on the pipe, for a request that is running.

        :param wait: whether to wait if nothing has.
        :raises BrokenPipeError: if the front has closed it.
        """
        self.flush()
        try:
            data = self.connection.recv(_READ_SIZE, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            raise BrokenPipeError("the node has ended")
        self._handle(data)

    def _handle(self, data: bytes) -> None:
        now = monotonic()
        for event in self.session.receive(data):
            if isinstance(event, (RequestReceived, StreamedRequestReceived)):
                self._waiting.append((event, math.inf if event.seconds is None else now + event.seconds))
                if isinstance(event, StreamedRequestReceived):
                    self._bodies[event.id] = Body()
            elif isinstance(event, DataReceived):
                self._bodies[event.id].chunks.append(event.data)
            elif isinstance(event, EndReceived):
                self._bodies[event.id].ended = True
            elif isinstance(event, ShutdownReceived):
                self._draining = True
            elif isinstance(event, CancelReceived):
                if self._exchange is not None and event.id == self._exchange.id:
                    self._exchange.cancelled = True
                else:
                    self._confirm(event.id)

    def _confirm(self, request: int) -> None:
        """Tell the front that a request that it recalled is forgotten here."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0].id != request)
        self._bodies.pop(request, None)
        self.session.send_error(request, encode_failure(RequestCancelled("recalled")))

    def _may_begin(self) -> bool:
        """Take the token of the next request, if the front has not recalled it."""
        try:
            return bool(os.read(self._tokens, 1))
        except BlockingIOError:
            return False

    def _run(self, request: RequestReceived | StreamedRequestReceived, deadline: float) -> None:
        started = monotonic()
        packet = request.packet
        handler = self._handlers.get(packet.modifier1)
        if deadline <= started:
            self._fail(request.id, RequestTimeout("its caller's time was over before it was begun"), 0.0)
        elif handler is None:
            self._fail(request.id, UnknownModifier(f"no handler for modifier1 {packet.modifier1}"), 0.0)
        else:
            try:
                if isinstance(handler, StreamHandler):
                    body = self._bodies.get(request.id)
                    if body is not None:  # the front sends it only now, so that it can recall the request
                        self.session.streams.grant(request.id, WINDOW)
                    self._exchange = Exchange(self, request.id, packet, body)
                    handler(self._exchange, self._node)
                    if self._exchange.cancelled:
                        raise RequestCancelled("the client has gone")
                else:
                    answer = handler(packet, self._node)
                    self.session.send_answer(request.id, answer, monotonic() - started)
            except UwsgiError as error:
                self._fail(request.id, error, monotonic() - started)
                self._retire_without_memory(error)

        self._exchange = None
        self._bodies.pop(request.id, None)
        self.session.streams.forget(request.id)

    def _fail(self, request: int, error: Exception, took: float) -> None:
        self.session.send_error(request, encode_failure(error), took)

    def flush(self) -> None:
        """Write the queued frames."""
        while chunk := self.session.data_to_send():
            self.connection.sendall(chunk)


def _become_worker(*, accepts: bool) -> None:
    """Take signals and memory as a worker should, and leave the processor to the front.

    :param accepts: whether it also does the front's work for its connections.
    """
    keep_large_blocks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux" and not accepts:
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            # A worker computes; the front, which only moves packets, interrupts it and not the other way round.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main(arguments: list[str]) -> None:
    """Run a worker, or with ``--check`` only find out whether its handlers can be loaded.

    Then the periodic tasks that they register go to the standard output, as JSON.

    :param arguments: ``SPEC NODE WORKER_ID`` or ``--check SPEC``.
    """
    if arguments[0] == "--check":
        with os.fdopen(os.dup(1), "w") as output:
            os.dup2(2, 1)  # what a handler module prints is not for who reads the JSON
            WorkerSpec.decode(arguments[1]).load()
            json.dump(periodic(), output)
        return
    spec = WorkerSpec.decode(arguments[0])
    _become_worker(accepts=spec.accepting is not None)
    node, worker_id = arguments[1], int(arguments[2])
    if spec.descriptors is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec.descriptors, hard))
    if spec.max_memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (spec.max_memory, spec.max_memory))
    handlers = spec.load(worker_id)
    postfork_chain_hook()
    with socket.socket(fileno=SOCKET_FD) as connection:
        name = f"{node} worker {worker_id}"
        Worker(connection, TOKENS_FD, spec, handlers, name, _acceptor_maker(spec, handlers, name)).serve()


def _acceptor_maker(
    spec: WorkerSpec, handlers: HandlerTable, node: str
) -> Callable[[Callable[[UwsgiError], None]], Acceptor] | None:
    if spec.accepting is None:
        return None
    return partial(
        Acceptor,
        spec.accepting,
        [socket.socket(fileno=LISTENER_FD + number) for number in range(spec.accepting.ports)],
        socket.socket(fileno=HANDOFF_FD),
        Activity(ACTIVITY_FD),
        {modifier1: handler for modifier1, handler in handlers.items() if isinstance(handler, StreamHandler)},
        node,
    )


if __name__ == "__main__":
    try:
        fork_below_reaper(*range(SOCKET_FD, LISTENER_FD + MAX_PORTS))
        main(sys.argv[1:])
    except StartupError as error:
        sys.exit(f"{error}")
