"""A worker process that runs several requests at a time, each in a thread of its own.

The main thread moves bytes: it alone reads the pipe and accepts connections, and it gives each request to a
thread that is free. What concerns the session happens under one lock. A thread that waits for a body, or for
the front to take some of its answer, waits until the main thread has handled more of what the front has sent.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any

from uwsgitwisted.activity import Slot
from uwsgitwisted.errors import RequestCancelled, StartupError, UwsgiError
from uwsgitwisted.wire.events import RequestReceived, StreamedRequestReceived
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.session import Session
from uwsgitwisted.worker.accepting import Accepted, Acceptor
from uwsgitwisted.worker.exchange import Exchange
from uwsgitwisted.worker.handlers.handler import Handler, StreamHandler
from uwsgitwisted.worker.worker import READ_SIZE, Worker


class RequestThread:
    """A thread that runs requests, one after another. To an exchange it is the pipe.

    :param worker: the worker.
    :param slot: shows the front what happens.
    """

    def __init__(self, worker: ThreadedWorker, slot: Slot) -> None:
        self._worker = worker
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)  # the process may end without it
        self.slot = slot
        self.session: Session  # set when it has begun
        self.connection = worker.connection
        #: What guards the session; notified when the main thread has handled more of what the front has sent.
        self.changed = worker.changed
        self._thread.start()

    def run(self, call: Callable[[], None]) -> None:
        """Have the thread call *call* as soon as it can."""
        self._calls.put(call)

    def end(self) -> None:
        """Wait until the thread has run what it was given, and end it."""
        self._calls.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException as error:  # as without threads, it ends the process
                self._worker.failure = error
            del call  # it has the request
            self._worker.release(self)

    # What an exchange calls, which holds the lock

    def receive(self, *, wait: bool) -> None:
        """Let the main thread handle what arrives on the pipe; see :class:`~.exchange.Pipe`."""
        self.flush()
        if wait and not self._worker.ended:
            self.slot.wait()
            self.changed.wait()
            self.slot.work()
        if self._worker.ended:
            raise BrokenPipeError("the node has ended")

    def flush(self) -> None:
        """Write the queued frames."""
        self._worker.flush()


class ThreadExchange(Exchange):
    """A web request that a thread handles: what it does with the session, it does under the lock.

    :param pipe: the thread.
    """

    __slots__ = ("_changed", "_slot")

    def __init__(self, pipe: RequestThread, *request: Any) -> None:
        super().__init__(pipe, *request)
        self._changed = pipe.changed
        self._slot = pipe.slot

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes of the request's stream; see :meth:`Exchange.read`."""
        with self._changed:
            self._slot.work()
            return super().read(size)

    def send(self, data: bytes) -> None:
        """Send a part of the answer; see :meth:`Exchange.send`."""
        with self._changed:
            self._slot.work()
            super().send(data)

    def send_file(self, descriptor: int, offset: int, size: int) -> None:
        """Send a part of a file; see :meth:`Exchange.send_file`."""
        with self._changed:
            self._slot.work()
            super().send_file(descriptor, offset, size)

    def finish(self, data: bytes = b"") -> None:
        """Send the last part of the answer, or all of it; see :meth:`Exchange.finish`."""
        with self._changed:
            self._slot.work()
            super().finish(data)


class ThreadedWorker(Worker):
    """Answers the front's requests in threads; its parameters are those of :class:`Worker`.

    It has a thread for each slot.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: Guards the session and what is known of its requests.
        self.changed = threading.Condition()
        #: Whether the front has closed the pipe.
        self.ended = False
        #: What has ended a thread, and so ends the process.
        self.failure: BaseException | None = None
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._free: list[RequestThread] = []
        # Whether the main thread has to know when a thread is free.
        self._awaits_thread = False

    def serve(self) -> None:
        """Answer until the front closes the socket, and all threads have finished."""
        threads = self._start_threads()
        data = self.negotiate()
        for thread in threads:
            thread.session = self.session
        self._free = list(threads)
        self._loop(data)
        for thread in threads:
            thread.end()
        os.close(self._wakeup)
        if self.failure is not None:
            raise self.failure

    def _start_threads(self) -> list[RequestThread]:
        try:
            return [RequestThread(self, slot) for slot in self._slots]
        except RuntimeError as error:
            needed = "each thread needs 8 MiB of --max-memory as a rule (ulimit -s)"
            raise StartupError(f"--wsgi-threads {len(self._slots)}: {error}; {needed}") from error

    def _loop(self, data: bytes) -> None:
        """Move bytes until the front closes the socket."""
        pipe = self.connection.fileno()
        listeners = {} if self._acceptor is None else self._acceptor.listeners
        watched = False
        with select.epoll() as poll:
            poll.register(pipe, select.EPOLLIN)
            poll.register(self._wakeup, select.EPOLLIN)
            self._serve_pipe(data)
            while True:
                may_accept = self._may_accept()
                if may_accept != watched:
                    watched = may_accept
                    for listener in listeners:
                        if watched:
                            poll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
                        else:
                            poll.unregister(listener)
                ready = [descriptor for descriptor, _ in poll.poll()]
                if self._wakeup in ready:
                    os.eventfd_read(self._wakeup)
                # First, as no other worker was woken for such a connection.
                for descriptor in ready:
                    if self._acceptor is not None and descriptor in listeners and self._may_accept():
                        self._accept(self._acceptor, descriptor)
                data = self.connection.recv(READ_SIZE) if pipe in ready else b""
                if pipe in ready and not data:
                    self._end()
                    return
                self._serve_pipe(data)

    def _may_accept(self) -> bool:
        """Whether a thread is free for a connection."""
        with self.changed:
            self._awaits_thread = not self._free
            return bool(self._free) and not self._draining

    def _serve_pipe(self, data: bytes) -> None:
        """Handle bytes from the pipe, and give the requests that are there to free threads."""
        with self.changed:
            if self.failure is not None:
                raise self.failure
            self._handle(data)
            while self._waiting and self._free and self._may_begin():
                self._begin(*self._waiting.popleft())
            self.flush()
            self.changed.notify_all()

    def _begin(self, request: RequestReceived | StreamedRequestReceived, deadline: float, _: int) -> None:
        """Give a request to a free thread."""
        packet, now = request.packet, monotonic()
        try:
            handler = self._find_handler(packet, deadline, now)
        except UwsgiError as error:
            self._complete(request.id, error, 0.0)
            return
        thread = self._free.pop()
        thread.slot.begin(request.id)
        if isinstance(handler, StreamHandler):
            exchange = ThreadExchange(thread, request.id, packet, self._bodies.get(request.id))
            thread.run(partial(self._run_stream, handler, self._open(exchange), now, thread.slot))
        else:
            thread.run(partial(self._run_handler, handler, request.id, packet, now, thread.slot))

    def _accept(self, acceptor: Acceptor, descriptor: int) -> None:
        """Accept a connection, and give its request to a free thread."""
        accepted = acceptor.accept(descriptor)
        if accepted is not None:
            with self.changed:
                thread = self._free.pop()
            thread.run(partial(self._run_accepted, acceptor, accepted, thread.slot))

    # In a thread

    def _run_handler(self, handler: Handler, request: int, packet: Packet, started: float, slot: Slot) -> None:
        try:
            answer = handler(packet, self._node)
        except UwsgiError as error:
            self._finish(slot, request, error, started)
        else:
            self._finish(slot, request, answer, started, len(answer.payload))

    def _run_stream(self, handler: StreamHandler, exchange: Exchange, started: float, slot: Slot) -> None:
        try:
            handler(exchange, self._node)
        except UwsgiError as error:
            self._finish(slot, exchange.id, error, started)
        else:
            gone = RequestCancelled("the client has gone") if exchange.cancelled else None
            self._finish(slot, exchange.id, gone, started, exchange.sent)

    def _finish(
        self, slot: Slot, request: int, outcome: Packet | UwsgiError | None, started: float, sent: int = 0
    ) -> None:
        """Complete a request of the front; *sent* is how many bytes its answer has."""
        with self.changed:
            slot.rest()
            took = monotonic() - started
            slot.count(took, isinstance(outcome, UwsgiError), sent)
            self._complete(request, outcome, took)

    def _run_accepted(self, acceptor: Acceptor, accepted: Accepted, slot: Slot) -> None:
        acceptor.run(accepted, slot)
        with self.changed:
            self._count()
            self.flush()

    def release(self, thread: RequestThread) -> None:
        """Note that a thread is free, or that it has failed."""
        with self.changed:
            self._free.append(thread)
            if self._waiting or self._awaits_thread or self.failure is not None:
                os.eventfd_write(self._wakeup, 1)

    # Under the lock

    def _complete(self, request: int, outcome: Packet | UwsgiError | None, took: float) -> None:
        """Send the answer of a request, unless it was sent as a stream, and forget the request."""
        try:
            if isinstance(outcome, UwsgiError):
                self._fail(request, outcome, took)
            elif outcome is not None:
                self.session.send_answer(request, outcome, took)
        except UwsgiError as error:  # it is too large
            self._fail(request, error, took)
        self._forget(request)
        self._count()
        self.flush()

    def _report(self, error: UwsgiError, peer: str) -> None:
        with self.changed:
            super()._report(error, peer)

    def _end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def flush(self) -> None:
        """Write the queued frames. If the front has gone, drop them: the main thread will notice."""
        while chunk := self.session.data_to_send():
            try:
                self.connection.sendall(chunk)
            except (BrokenPipeError, ConnectionResetError):
                self._end()
