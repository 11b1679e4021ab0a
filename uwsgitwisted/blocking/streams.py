"""Answers that a script reads as they arrive.

Each has a connection of its own, so that a script may make other calls while it reads.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import TYPE_CHECKING

from uwsgitwisted.address import Address, AddressLike
from uwsgitwisted.blocking.sessions import CachedSession, negotiate, remember_ours
from uwsgitwisted.blocking.sockets import NO_ANSWER, Deadline, Steps, converse, drive, explained, send
from uwsgitwisted.errors import (
    ConnectionBroken,
    MalformedPacket,
    NoAnswer,
    RequestCancelled,
    Unavailable,
    UwsgiError,
)
from uwsgitwisted.wire.events import (
    AnswerReceived,
    DataReceived,
    EndReceived,
    ErrorReceived,
    ShutdownReceived,
    StreamedAnswerReceived,
)
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.terms import STREAM_WINDOW, Terms

if TYPE_CHECKING:
    from typing_extensions import Self

#: What we accept from a peer whose answer we read as it arrives.
_TERMS = Terms(window=STREAM_WINDOW)
#: The id of the only request of a session.
_REQUEST = 1


class _StreamingSession(CachedSession):
    """A session for one request, whose answer may be a stream; its parameters are those of other sessions."""

    def __init__(self, sock: socket.socket, theirs: Terms, rest: bytes) -> None:
        self._parts: deque[bytes] = deque()
        self._begun = False
        self._error: UwsgiError | None = None
        #: Whether the answer has ended.
        self.ended = False
        super().__init__(sock, theirs, rest, _TERMS, (_REQUEST,))

    def _handle_data(self, data: bytes, request: int) -> Packet | UwsgiError | None:
        """Handle the peer's bytes; return the answer when it has begun, or the error instead of it."""
        result: Packet | UwsgiError | None = None
        for event in self._session.receive(data):
            if isinstance(event, DataReceived):
                self._parts.append(event.data)
            elif isinstance(event, ShutdownReceived):
                self.draining = True
            elif isinstance(event, StreamedAnswerReceived):
                self._begun = True
                result = event.packet
            elif isinstance(event, EndReceived):
                self.ended = True
            elif isinstance(event, (AnswerReceived, ErrorReceived)) and event.id == request and not self.ended:
                self.ended = True
                outcome = event.packet if isinstance(event, AnswerReceived) else event.error
                if not self._begun:
                    result = outcome
                elif isinstance(outcome, UwsgiError):
                    self._error = outcome
                else:
                    self._error = MalformedPacket("a second answer to a request")
        return result

    def read_part(self, deadline: Deadline) -> Steps[bytes]:
        """Return the next part of the answer, or b"" at its end.

        :raises ConnectionBroken: if the peer is gone before that.
        :raises UwsgiError: with which the peer has ended it.
        """
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self.ended:
                return b""
            try:
                data = yield from self._receive_or_ping(deadline)
            except NoAnswer as error:
                raise ConnectionBroken(f"in the middle of the answer: {error.text}") from None
            if not data:
                raise ConnectionBroken("the connection was lost in the middle of the answer")
            self._handle_data(data, _REQUEST)
            if not self._parts and not self.ended:
                deadline.check(NO_ANSWER)
        part = self._parts.popleft()
        if self._session.streams.use(_REQUEST, len(part)):
            yield from send(self._sock, self._session.data_to_send(), deadline)
        return part


class AnswerStream:
    """An answer that arrives in parts.

    Iterate over it, or call :meth:`read`. What is not read waits: the node sends no more than a window ahead,
    and its worker waits. So leave it with :meth:`close`, or use it with ``with``.

    :param packet: its beginning.
    :param session: has the rest; None if there is none.
    :param timeout: seconds that each part may take.
    :param address: the address that errors name.
    """

    def __init__(
        self, packet: Packet, session: _StreamingSession | None, timeout: float, address: AddressLike
    ) -> None:
        #: The modifiers of the answer, which are those of its request as a rule.
        self.modifier1, self.modifier2, self._first = packet
        self._session = session
        self._timeout = timeout
        self._address = address
        self._error: UwsgiError | None = None

    def read(self) -> bytes:
        """Return the next part, or b"" at the end of the answer.

        :raises ConnectionBroken: if the connection is lost before that.
        :raises RequestTimeout: if nothing arrives in time.
        :raises UwsgiError: with which the node has ended the answer.
        """
        if self._error is not None:
            raise self._error
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._session is None:
            return b""
        try:
            part = drive(self._session.read_part(Deadline.after(self._timeout)))
        except BaseException as error:
            self.close()
            if isinstance(error, (UwsgiError, OSError)):
                self._error = explained(error, self._address)
                raise self._error from error.__cause__
            raise
        if not part:
            self._session.close()
            self._session = None
        return part

    def close(self) -> None:
        """Tell the node that nobody wants the rest; reading more raises ``RequestCancelled``.

        After the end of the answer, it does nothing.
        """
        if self._session is not None or self._first:
            self._error = self._error or RequestCancelled("the answer was cancelled", address=self._address)
        self._first = b""
        if self._session is not None:
            self._session.close()
            self._session = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        part = self.read()
        if not part:
            raise StopIteration
        return part

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def begin(
    address: Address, packet: Packet, deadline: Deadline
) -> Steps[tuple[Packet, _StreamingSession | None]]:
    """Send a request; return the beginning of its answer, and the session that has the rest, if there is one.

    :raises UwsgiError: if the call fails before the answer begins.
    :raises OSError: if a system call fails.
    """
    while True:
        granted = yield from negotiate(address, deadline, _TERMS)
        if granted is None:
            deadline.check("no answer")
            exchange = PlainExchange(packet)
            yield from converse(address, exchange, deadline)
            assert exchange.answer is not None
            return exchange.answer, None
        remember_ours(address)
        session = _StreamingSession(*granted)
        try:
            answer = yield from session.call(packet, deadline)
        except BaseException:
            session.close()
            raise
        if isinstance(answer, Packet):
            return answer, session
        session.close()
        if not (isinstance(answer, Unavailable) and session.draining):
            raise answer
        # The request raced with the peer's shutdown notice and did not run, so it is sent again.
