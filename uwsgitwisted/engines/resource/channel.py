"""The channel of one request: what twisted.web's ``Request`` writes to, in the place of an HTTP connection.

It stands between the request and the front as twisted.web's ``H2Stream`` stands between a request and an HTTP/2
connection. The body comes from a stream or as bytes, and the answer goes to a stream. The request is given as
HTTP/1.0, so that nothing is sent in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IConsumer, IReactorTime, ITransport
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from zope.interface import implementer

from uwsgitwisted.engines.resource.request import WebRequest
from uwsgitwisted.errors import ConnectionFailed, RemoteError, RequestCancelled, RequestTimeout
from uwsgitwisted.interfaces import Answer, Request, StreamedAnswer
from uwsgitwisted.stream import Stream
from uwsgitwisted.transport.timer import Timer

#: A producer pauses when so many bytes wait for the peer, and goes on when fewer than half of them do.
HELD = 128 * 1024
#: How much of a body is given to a request at once.
_PIECE = 64 * 1024
#: These would end a header early.
_CLEAN = bytes.maketrans(b"\r\n\0", b"   ")


@implementer(ITransport, IConsumer)
class Channel:
    """Feeds one request to twisted.web, and takes its answer.

    :param clock: for the time limit and for what waits for the next turn of the reactor.
    :param site: the application.
    :param asked: the request as the front has it.
    :param web: the same, as twisted.web wants it.
    :param timeout: within how many seconds of the end of the request the answer has to begin.
    :param on_end: called when the request is over.
    """

    disconnecting = False

    def __init__(
        self,
        clock: IReactorTime,
        site: Any,
        asked: Request,
        web: WebRequest,
        *,
        timeout: float,
        on_end: Callable[[Channel], None],
    ) -> None:
        self.site = site
        self.asked = asked
        self.web = web
        #: The status of the answer; empty if there is none.
        self.status = ""
        #: How many bytes of a body were written.
        self.size = 0
        #: When all of the request had arrived.
        self.started = clock.seconds()
        #: What twisted.web calls the request's transport.
        self.transport = self
        #: Fires when the answer is complete or has begun.
        self.answer: Deferred[Answer] = Deferred(lambda _: self._lose())
        self._clock = clock
        self._timeout = timeout
        self._on_end = on_end
        self._stream = Stream(self._on_taken, self._lose)
        self._begun = False
        self._processing = False
        self._producer: Any = None
        self._is_push = False
        self._paused = False
        # What is written within one turn of the reactor is sent together.
        self._turn_end = Timer(clock, self._begin)
        self._deadline = Timer(clock, self._on_late)
        self._next = Timer(clock, self._ask_producer)
        self._request = self._make_request()

    def _make_request(self) -> Any:
        """Make twisted.web's request, and give it the headers."""
        request = self.site.requestFactory(self)
        for name, value in self.web.headers:
            request.requestHeaders.addRawHeader(name, value)
        request.parseCookies()
        return request

    # The request

    def receive(self, body: bytes | Stream) -> None:
        """Pass the body to the request, and process it when it is complete.

        :param body: the body. A stream is read as fast as it comes; twisted.web keeps a large body in a file.
        """
        try:
            self._request.gotLength(self.web.size)
            if isinstance(body, Stream):
                body.on_ready(lambda: self._read(body))
            else:
                self._request.handleContentChunk(body)
                self._process()
        except Exception:
            self.fail(Failure())

    def _read(self, body: Stream) -> None:
        try:
            while self._request is not None and (data := body.take(_PIECE)):
                self._request.handleContentChunk(data)
        except Exception:  # such as a full disk
            self.fail(Failure())
        if self._request is None:
            body.cancel()
        elif body.error is not None:
            self._lose()
        elif body.finished:
            self._process()

    def _process(self) -> None:
        self._processing = True
        self.started = self._clock.seconds()
        try:
            self._request.requestReceived(self.web.method, self.web.uri, b"HTTP/1.0")
        except Exception:
            self.fail(Failure())
        self._processing = False
        if self._request is not None and not self._begun:
            self._deadline.set(self._timeout)
            if self._stream.size:
                self._turn_end.set(0)

    # The answer, as a request writes it

    def writeHeaders(
        self, version: bytes, code: bytes, reason: bytes, headers: Headers | Iterable[tuple[bytes, bytes]]
    ) -> None:
        """Write the head of the answer.

        :param headers: Twisted before 24 gives pairs.
        """
        lines = [b"%b %b %b" % (version, code, reason)]
        if isinstance(headers, Headers):
            headers = [(name, value) for name, values in headers.getAllRawHeaders() for value in values]
        lines += [b"%b: %b" % pair for pair in headers]
        self.status = code.decode()
        self._write(b"".join(line.translate(_CLEAN) + b"\r\n" for line in lines) + b"\r\n")

    def write(self, data: bytes) -> None:
        """Write bytes of the answer's body."""
        self.size += len(data)
        self._write(data)

    def _write(self, data: bytes) -> None:
        if self._request is None:
            return
        self._stream.write(data)
        if not self._begun and not self._processing and not self._turn_end.running:
            self._turn_end.set(0)
        if self._is_push and not self._paused and self._stream.size >= HELD:
            self._paused = True
            self._producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Write several pieces."""
        self.write(b"".join(data))

    def _begin(self) -> None:
        """Send what there is, before the answer is complete."""
        self._begun = True
        self._deadline.clear()
        packet = self.asked.packet._replace(payload=b"")
        self.answer.callback(StreamedAnswer(packet, self._stream))

    def requestDone(self, request: Any) -> None:
        """End the answer: the request is finished."""
        self._close()
        self._finish()

    def _finish(self, error: Exception | None = None) -> None:
        """End the answer; send it whole if it has not begun, and is small."""
        stream = self._stream
        if self._begun:
            stream.end(error)
        elif stream.size > HELD or (stream.size and error is not None):
            stream.end(error)
            self._begin()
        else:
            self._begun = True
            pieces = []
            while data := stream.take(HELD):
                pieces.append(data)
            self.answer.callback(b"".join(pieces))

    # Back-pressure

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Take the answer from a producer, as fast as the peer reads.

        :raises RuntimeError: if there is one already.
        """
        if self._producer is not None:
            raise RuntimeError("another producer is registered; unregister it first")
        self._producer, self._is_push, self._paused = producer, streaming, False
        if not streaming:
            self._next.set(0)

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self._producer, self._is_push = None, False
        self._next.clear()

    def _on_taken(self, _: int) -> None:
        """Have the producer go on, in the next turn: the bytes that were taken are not written yet."""
        waits = self._producer is not None and (self._paused or not self._is_push)
        if waits and self._stream.size < HELD // 2:
            self._next.set(0)

    def _ask_producer(self) -> None:
        self._paused = False
        try:
            self._producer.resumeProducing()
        except Exception:
            self.fail(Failure())

    # Ends

    def _close(self, *, stop: bool = False) -> Any:
        """Have no more to do with the request, and return it; None if that was so already.

        :param stop: whether to stop its producer, if it has one.
        """
        request, self._request = self._request, None
        if request is None:
            return None
        for timer in (self._turn_end, self._deadline, self._next):
            timer.clear()
        producer, self._producer, self._is_push = self._producer, None, False
        if stop and producer is not None:
            try:
                producer.stopProducing()
            except Exception:
                self.site.report(Failure(), self.asked)
        self._on_end(self)
        return request

    def _lose(self) -> None:
        """End the request: the peer has gone."""
        request = self._close(stop=True)
        if request is None:
            return
        if not self._begun:
            self._begun = True
            self.answer.errback(RequestCancelled("the peer has gone"))
        request.connectionLost(Failure(ConnectionLost("the peer has gone")))

    def fail(self, failure: Failure) -> None:
        """End the request with an error, which the peer sees as such, or as the early end of its answer."""
        if not self._begun:  # the answer is another one
            self.status = "500" if isinstance(failure.value, RemoteError) else ""
            self.size = 0
        request = self._close(stop=True)
        if request is None:
            return
        if self._begun:
            self.site.report(failure, self.asked)
            self._stream.end(ConnectionFailed("the application failed in the middle of its answer"))
        else:
            self._begun = True
            self.answer.errback(failure)
        request.connectionLost(failure)

    def _on_late(self) -> None:
        text = f"no answer has begun within {self._timeout:g} s (--timeout)"
        self.fail(Failure(RequestTimeout(text, seconds=self._timeout)))

    def loseConnection(self) -> None:
        """Send what was written, and nothing more."""
        self._end_early(Failure(ConnectionDone()))

    def abortConnection(self) -> None:
        """Send nothing more, and let the peer see that the answer isn't complete."""
        error = ConnectionFailed("the application has aborted its answer")
        self._end_early(Failure(ConnectionAborted()), error)

    def _end_early(self, reason: Failure, error: Exception | None = None) -> None:
        request = self._close(stop=True)
        if request is not None:
            self._finish(error)
            request.connectionLost(reason)

    # Facts

    def getPeer(self) -> IAddress:
        """Return the browser's address."""
        return self.web.client

    def getHost(self) -> IAddress:
        """Return the address that the browser has asked for."""
        return self.web.host

    def isSecure(self) -> bool:
        """Whether the request has come over HTTPS."""
        return self.web.secure

    # What a transport has besides: the body has arrived when an application runs, so there is nothing to pause

    def pauseProducing(self) -> None:
        """Do nothing."""

    def resumeProducing(self) -> None:
        """Do nothing."""

    def stopProducing(self) -> None:
        """Abort the answer."""
        self.abortConnection()
