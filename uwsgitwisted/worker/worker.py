"""The loop of a worker process: takes the front's requests from the pipe, and runs one after another.

It also takes what comes on the service's ports, if it may; see :mod:`.accepting`. A worker that runs several
requests at a time is in :mod:`.threads`.
"""

from __future__ import annotations

import math
import os
import select
import socket
from collections import deque
from collections.abc import Sequence
from time import monotonic

from uwsgitwisted.activity import Slot, open_slots
from uwsgitwisted.errors import RequestCancelled, RequestTimeout, UnknownModifier, UwsgiError
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
from uwsgitwisted.wire.terms import STREAM_WINDOW, Terms, decode_offer, encode_grant
from uwsgitwisted.worker.accepting import Acceptor, MakeAcceptor
from uwsgitwisted.worker.compat.requests import requests
from uwsgitwisted.worker.exchange import Body, Exchange
from uwsgitwisted.worker.handlers.handler import Handler, StreamHandler
from uwsgitwisted.worker.recycling import ran_out_of_memory, recycling_due
from uwsgitwisted.worker.spec import NO_REQUEST, HandlerTable, WorkerSpec

#: For how many seconds a worker goes on to accept quick requests without looking at its pipe.
_UNINTERRUPTED = 0.001
#: How many bytes are read at once.
READ_SIZE = 256 * 1024


class Worker:
    """Answers the front's requests, one after another.

    :param connection: the session's socket; blocking.
    :param tokens: the descriptor to take a token from before a request is begun: see
        :mod:`uwsgitwisted.engines.pipe`. Non-blocking.
    :param spec: its limits.
    :param handlers: what answers, by modifier1.
    :param node: this worker's name in the errors that it reports.
    :param make_acceptor: makes what accepts connections; None if this worker accepts none.
    :param slots: where the front sees what each thread does and has done; none, if it doesn't look.
    """

    def __init__(
        self,
        connection: socket.socket,
        tokens: int,
        spec: WorkerSpec,
        handlers: HandlerTable,
        node: str,
        make_acceptor: MakeAcceptor | None = None,
        slots: Sequence[Slot] = (),
    ) -> None:
        self.connection = connection
        self._tokens = tokens
        self._handlers = handlers
        self._node = node
        self._terms = Terms(max_message=spec.max_message, node=node, window=1)
        # How many requests are left until this worker asks to be replaced; it does so once.
        self._left = math.inf if spec.max_requests is None else spec.max_requests
        self._recycling_is_due = recycling_due(spec)
        #: Each with its deadline, and the number of the read that has completed it.
        self._waiting: deque[tuple[RequestReceived | StreamedRequestReceived, float, int]] = deque()
        self._reads = 0
        #: Whether no further connections are accepted.
        self._draining = False
        #: The streams behind requests, by the requests' ids.
        self._bodies: dict[int, Body] = {}
        #: The web requests that are running, by their ids.
        self._exchanges: dict[int, Exchange] = {}
        self._slots = slots or open_slots()
        self._acceptor = None if make_acceptor is None else make_acceptor(self._report, self._slots[0])

    def serve(self) -> None:
        """Answer until the front closes the socket."""
        data = self.negotiate()
        if self._acceptor is not None:
            self._serve_with_ports(self._acceptor, data)
            return
        while data or (data := self.connection.recv(READ_SIZE)):
            self._serve_pipe(data)
            data = b""

    def _serve_with_ports(self, acceptor: Acceptor, data: bytes) -> None:
        """Answer what comes on the pipe, and what comes on the ports while the pipe is silent."""
        pipe, (slot,) = self.connection.fileno(), self._slots
        with select.epoll() as poll:
            poll.register(pipe, select.EPOLLIN)
            for listener in acceptor.listeners:
                # The kernel wakes one worker for a connection, not all.
                poll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self._serve_pipe(data)
            while True:
                ready = [descriptor for descriptor, _ in poll.poll()]
                # First: no other worker was woken for such a connection, and the pipe may bring a long request,
                # or the end. The front recalls what has to wait.
                until = monotonic() + _UNINTERRUPTED
                for descriptor in ready:
                    while descriptor in acceptor.listeners and (accepted := acceptor.accept(descriptor)):
                        acceptor.run(accepted, slot)
                        self._count()
                        self.flush()
                        if monotonic() > until:
                            break
                if pipe in ready:
                    if not (data := self.connection.recv(READ_SIZE)):
                        return
                    self._serve_pipe(data)
                    if self._draining:
                        for listener in acceptor.listeners:
                            poll.unregister(listener)
                        acceptor.listeners.clear()

    def _serve_pipe(self, data: bytes) -> None:
        """Handle bytes from the pipe, and run the requests that are there then."""
        self._handle(data)
        while self._waiting and self._may_begin():
            self._run(*self._waiting.popleft())
            self._count()
            self.flush()  # before the next begins: should that end this process, this answer is out
        requests.read = 0
        self.flush()

    def _count(self) -> None:
        """Count a request."""
        self._left -= 1
        if self._left > 0 and self._recycling_is_due():
            self._left = 0
        if not self._left:
            self.session.send_shutdown()  # the front starts a successor; until then this one goes on

    def _report(self, error: UwsgiError, peer: str) -> None:
        """Have the front log an error of a request that isn't its own.

        :param peer: whose request it was.
        """
        self.session.send_error(NO_REQUEST, encode_failure(error, peer=peer))
        ran_out_of_memory(error)

    def negotiate(self) -> bytes:
        """Wait for the front's offer, grant the session, and return the bytes that came after the offer.

        :raises SystemExit: if the front has closed the socket.
        """
        decoder = PacketDecoder(count=1)
        packets: list[Packet] = []
        while not packets:
            data = self.connection.recv(READ_SIZE)
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
            data = self.connection.recv(READ_SIZE, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            raise BrokenPipeError("the node has ended")
        self._handle(data)

    def _handle(self, data: bytes) -> None:
        now = monotonic()
        self._reads += 1
        for event in self.session.receive(data):
            if isinstance(event, (RequestReceived, StreamedRequestReceived)):
                deadline = math.inf if event.seconds is None else now + event.seconds
                self._waiting.append((event, deadline, self._reads))
                if isinstance(event, StreamedRequestReceived):
                    self._bodies[event.id] = Body()
            elif isinstance(event, DataReceived):
                self._bodies[event.id].chunks.append(event.data)
            elif isinstance(event, EndReceived):
                self._bodies[event.id].ended = True
            elif isinstance(event, ShutdownReceived):
                self._draining = True
            elif isinstance(event, CancelReceived):
                if exchange := self._exchanges.get(event.id):
                    exchange.cancelled = True
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

    def _run(self, request: RequestReceived | StreamedRequestReceived, deadline: float, read: int) -> None:
        requests.read = read
        started = monotonic()
        packet = request.packet
        sent, failed = 0, False
        try:
            handler = self._find_handler(packet, deadline, started)
            if isinstance(handler, StreamHandler):
                exchange = self._open(Exchange(self, request.id, packet, self._bodies.get(request.id)))
                handler(exchange, self._node)
                sent, took = exchange.sent, monotonic() - started
                if exchange.cancelled:
                    raise RequestCancelled("the client has gone")
            else:
                answer = handler(packet, self._node)
                sent, took = len(answer.payload), monotonic() - started
                self.session.send_answer(request.id, answer, took)
        except UwsgiError as error:
            failed, took = True, monotonic() - started
            self._fail(request.id, error, took)
        self._slots[0].count(took, failed, sent)
        if self._exchanges or self._bodies:  # as hardly ever
            self._forget(request.id)

    def _find_handler(self, packet: Packet, deadline: float, now: float) -> Handler | StreamHandler:
        """Return what answers a request.

        :raises UwsgiError: if nothing does, or its caller's time is over.
        """
        if deadline <= now:
            raise RequestTimeout("its caller's time was over before it was begun")
        handler = self._handlers.get(packet.modifier1)
        if handler is None:
            raise UnknownModifier(f"no handler for modifier1 {packet.modifier1}")
        if isinstance(handler, Handler) and handler.streams:
            return handler.streams.get(packet.modifier2, handler)
        return handler

    def _open(self, exchange: Exchange) -> Exchange:
        """Note that a web request begins, and return it."""
        self._exchanges[exchange.id] = exchange
        if exchange.streamed:  # the front sends its body only now, so that it can recall the request
            self.session.streams.grant(exchange.id, STREAM_WINDOW)
        return exchange

    def _forget(self, request: int) -> None:
        """Forget a request that is answered."""
        self._exchanges.pop(request, None)
        self._bodies.pop(request, None)
        self.session.streams.forget(request)

    def _fail(self, request: int, error: UwsgiError, took: float) -> None:
        """Answer a request with an error."""
        self.session.send_error(request, encode_failure(error), took)
        ran_out_of_memory(error)

    def flush(self) -> None:
        """Write the queued frames."""
        while chunk := self.session.data_to_send():
            self.connection.sendall(chunk)
