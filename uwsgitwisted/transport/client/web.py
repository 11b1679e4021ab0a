"""One web request to a uwsgi server, on a connection of its own, streaming both ways with back-pressure.

The server gets a packet with the variables, then the body. It answers with plain HTTP, until the answer's
Content-Length or the end of the connection.
"""

from __future__ import annotations

import enum
from typing import Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.errors import ConnectionFailed, MalformedAnswer, NoAnswer, RequestTimeout, UwsgiError
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import bound_buffer, read_unread, set_keepalive, set_nodelay
from uwsgitwisted.wire.http import AnswerHead, HeadDecoder

#: How many reads there are at most when a connection is lost, which is more than a system keeps for one. A
#: server that goes on sending, as it may when this process ends, must not be read for ever.
_LAST_READS = 100
#: Seconds that a server gets to close the connection after its answer. If we closed it first, our system would
#: keep the port for a minute.
_CLOSE_TIMEOUT = 1.0


class AnswerReceiver(Protocol):
    """Gets what happens to a request. After ``answer_ended`` or ``answer_failed`` nothing more happens."""

    def body_wanted(self, wanted: bool) -> None:
        """Go on with the body, or wait: the server takes no more now."""

    def answer_began(self, head: AnswerHead) -> None:
        """Handle the head of the answer."""

    def answer_received(self, data: bytes) -> None:
        """Handle a piece of the answer's body."""

    def answer_ended(self) -> None:
        """Handle the end of the answer, which is complete."""

    def answer_failed(self, error: UwsgiError) -> None:
        """Handle the failure of the request: ``NoAnswer`` if the connection was closed without an answer."""


class _State(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    #: The answer is complete; the server will close the connection.
    ENDED = enum.auto()
    CLOSED = enum.auto()


@implementer(IPushProducer)
class WebProtocol(TwistedProtocol):
    """Sends a request, and passes its answer on.

    It is the producer of the answer: whoever gets the answer pauses and resumes it.

    :param clock: for the time limits.
    :param packet: the bytes of the packet.
    :param method: the request's method.
    :param receiver: gets the answer.
    :param timeout: seconds in which the server has to take some of the request, or send some of its answer.
    """

    def __init__(
        self, clock: IReactorTime, packet: bytes, method: bytes, receiver: AnswerReceiver, timeout: float
    ) -> None:
        self._packet = packet
        self._method = method
        self._receiver = receiver
        self._timeout = timeout
        self._timer = Timer(clock, self._time_out)
        self._state = _State.HEAD
        self._decoder = HeadDecoder()
        #: How many bytes of the answer's body are missing; None if it ends with the connection.
        self._missing: int | None = None
        self._sending = True
        self._body_wanted = True
        self._paused = False

    def connectionMade(self) -> None:
        """Send the packet, and ask for the body."""
        assert self.transport is not None
        set_nodelay(self.transport)
        set_keepalive(self.transport)
        bound_buffer(self.transport)
        self.transport.registerProducer(_BodyProducer(self), True)  # type: ignore[attr-defined]
        self.transport.write(self._packet)
        self._watch()

    # The request's body

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        assert self.transport is not None
        if self._state in (_State.HEAD, _State.BODY):
            self.transport.write(data)

    def sent(self) -> None:
        """Note that the whole body was sent."""
        self._sending = False
        self._watch()

    def want_body(self, wanted: bool) -> None:
        """Pass on whether the transport takes more."""
        self._body_wanted = wanted
        if self._state in (_State.HEAD, _State.BODY):
            self._watch()
            self._receiver.body_wanted(wanted)

    # The answer

    def pauseProducing(self) -> None:
        """Read no more of the answer: its receiver takes no more now."""
        assert self.transport is not None
        self._paused = True
        self.transport.pauseProducing()  # type: ignore[attr-defined]
        self._watch()

    def resumeProducing(self) -> None:
        """Go on reading."""
        assert self.transport is not None
        self._paused = False
        self.transport.resumeProducing()  # type: ignore[attr-defined]
        self._watch()

    def stopProducing(self) -> None:
        """Close the connection: nobody waits for the answer any more."""
        self.abort()

    def dataReceived(self, data: bytes) -> None:
        """Handle a part of the answer."""
        if self._state is _State.HEAD:
            self._receive_head(data)
        elif self._state is _State.BODY:
            self._receive_body(data)
        self._watch()

    def _receive_head(self, data: bytes) -> None:
        try:
            head = self._decoder.receive(data)
        except MalformedAnswer as error:
            self._fail(error)
            return
        if head is None:
            return
        self._state = _State.BODY
        self._missing = head.body_size(self._method)
        self._receiver.answer_began(head)
        self._receive_body(self._decoder.rest())

    def _receive_body(self, data: bytes) -> None:
        if self._state is not _State.BODY:  # the receiver has closed the connection
            return
        if self._missing is not None:
            data = data[: self._missing]
            self._missing -= len(data)
        if data:
            self._receiver.answer_received(data)
        if self._missing == 0:
            self._end()

    def _end(self) -> None:
        self._state = _State.ENDED
        self._timer.set(_CLOSE_TIMEOUT)
        if self._paused:
            self.resumeProducing()
        self._receiver.answer_ended()

    # The end

    def read_rest(self) -> None:
        """Handle what has arrived on a connection that is about to be closed.

        A server may answer without having read the whole body, and close the connection. Whoever sends the
        body then may learn of that before the answer is read.
        """
        for _ in range(_LAST_READS):
            if self._state not in (_State.HEAD, _State.BODY) or not (data := read_unread(self.transport)):
                break
            self.dataReceived(data)

    def abort(self) -> None:
        """Close the connection now; the receiver gets nothing more."""
        assert self.transport is not None
        if self._state is not _State.CLOSED:
            self._state = _State.CLOSED
            self._timer.clear()
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Complete the answer if it ends with the connection, or fail."""
        state, self._state = self._state, _State.CLOSED
        self._timer.clear()
        clean = bool(reason.check(ConnectionDone))
        if state is _State.BODY and self._missing is None and clean:
            self._receiver.answer_ended()
        elif state is _State.BODY:
            self._receiver.answer_failed(ConnectionFailed("it closed the connection within its answer"))
        elif state is _State.HEAD and self._decoder.begun:
            self._receiver.answer_failed(
                ConnectionFailed("it closed the connection within the head of its answer")
            )
        elif state is _State.HEAD:
            self._receiver.answer_failed(NoAnswer("it closed the connection without an answer"))

    def _fail(self, error: UwsgiError) -> None:
        self.abort()
        self._receiver.answer_failed(error)

    def _watch(self) -> None:
        """Set the time limit while the server is the one that has to do something."""
        if self._state not in (_State.HEAD, _State.BODY):
            return
        if not self._body_wanted or (not self._sending and not self._paused):
            self._timer.set(self._timeout)
        else:
            self._timer.clear()

    def _time_out(self) -> None:
        if self._state is _State.ENDED:
            self.abort()
        else:
            self._fail(RequestTimeout(f"it did nothing for {self._timeout:g} s", seconds=self._timeout))


@implementer(IPushProducer)
class _BodyProducer:
    """Tells a connection whether its transport takes more of the body, and when it is about to close."""

    def __init__(self, protocol: WebProtocol) -> None:
        self._protocol = protocol

    def pauseProducing(self) -> None:
        """Wait with the body."""
        self._protocol.want_body(False)

    def resumeProducing(self) -> None:
        """Go on with it."""
        self._protocol.want_body(True)

    def stopProducing(self) -> None:
        """Handle what has arrived, while the socket is still open."""
        self._protocol.read_rest()
