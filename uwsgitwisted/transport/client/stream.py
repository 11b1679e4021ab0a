"""An answer that its caller reads as it arrives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime

from uwsgitwisted.errors import (
    ConnectionBroken,
    MisuseError,
    NoAnswer,
    RequestCancelled,
    RequestTimeout,
    UwsgiError,
)
from uwsgitwisted.stream import Stream
from uwsgitwisted.transport.client.call import Call
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.wire.packet import Packet

if TYPE_CHECKING:
    from typing_extensions import Self

#: The most bytes of a part.
_PART = 256 * 1024


class AnswerStream:
    """An answer that arrives in parts.

    Iterate over it with ``async for``, or call :meth:`read`. What is not read waits: the node sends no more
    than a window ahead, and its worker waits. So leave it with :meth:`cancel`, or use it with ``async with``.

    :param clock: keeps the time.
    :param packet: its beginning.
    :param stream: the rest.
    :param timeout: seconds that each part may take.
    :param address: the address that errors name.
    """

    def __init__(
        self, clock: IReactorTime, packet: Packet, stream: Stream, timeout: float, address: object
    ) -> None:
        #: The modifiers of the answer, which are those of its request as a rule.
        self.modifier1, self.modifier2, self._first = packet
        self._stream = stream
        self._timeout = timeout
        self._address = address
        self._timer = Timer(clock, self._time_out)
        self._reading: Deferred[bytes] | None = None
        self._error: Exception | None = None
        stream.on_ready(self._on_ready)

    def read(self) -> Deferred[bytes]:
        """Read the next part.

        :return: fires with its bytes, or with none at the end of the answer. Fails with ``ConnectionBroken`` if
            the connection is lost before that, with ``RequestTimeout`` if nothing arrives in time, or with the
            node's error. Cancelling it cancels the answer.
        """
        if self._reading is not None:
            return fail(MisuseError("the part before this one is still being read", address=self._address))
        if self._first:
            first, self._first = self._first, b""
            return succeed(first)
        data = self._stream.take(_PART)
        if data:
            return succeed(data)
        if self._stream.ended:
            return succeed(b"") if self._reason is None else fail(self._reason)
        self._timer.set(self._timeout)
        self._reading = Deferred(lambda _: self.cancel())
        return self._reading

    def cancel(self) -> None:
        """Tell the node that nobody wants the rest; reading more fails with ``RequestCancelled``.

        After the end of the answer, it does nothing.
        """
        self._stop(RequestCancelled("the answer was cancelled"))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        part = await self.read()
        if not part:
            raise StopAsyncIteration
        return part

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.cancel()

    @property
    def _reason(self) -> Exception | None:
        """Why the answer is not complete, once it has ended; None if it is."""
        error = self._error or self._stream.error
        if isinstance(error, UwsgiError) and error.address is None:
            error.address = self._address
        return error

    def _on_ready(self) -> None:
        """Give the one who reads what has arrived."""
        reading, self._reading = self._reading, None
        if reading is not None:
            self._timer.clear()
            self.read().chainDeferred(reading)

    def _time_out(self) -> None:
        text = f"no further part of the answer within {self._timeout:g} s"
        self._stop(RequestTimeout(text, seconds=self._timeout))

    def _stop(self, error: UwsgiError) -> None:
        if self._stream.finished and not self._first:
            return
        self._first = b""
        self._error = self._error or error
        self._stream.cancel()
        self._on_ready()


class StreamCall(Call):
    """A call whose answer may be a stream; its Deferred fires with an :class:`AnswerStream`.

    :param clock: keeps the time.
    :param packet: the request.
    :param timeout: seconds until the answer begins, and then for each part.
    :param address: the address that errors name.
    :param idempotent: whether the request may run again if its worker dies before the answer begins.
    """

    __slots__ = ("_clock", "_stream")

    streams = True

    def __init__(
        self,
        clock: IReactorTime,
        packet: Packet,
        timeout: float,
        *,
        address: object = None,
        idempotent: bool = False,
    ) -> None:
        super().__init__(packet, clock.seconds() + timeout, timeout, address=address, idempotent=idempotent)
        self._clock = clock
        self._stream: Stream | None = None

    def begin(self, packet: Packet, stream: Stream) -> None:
        """Fire with an answer that has begun. From here on, each part has a time limit of its own."""
        self._stream = stream
        self.deadline = math.inf
        self.answer.callback(AnswerStream(self._clock, packet, stream, self.allowed, self.address))

    def succeed(self, packet: Packet) -> None:
        """Fire with a whole answer."""
        whole = Stream()
        whole.end()
        self.begin(packet, whole)

    def fail(self, error: Exception) -> None:
        """Fail with *error*, or end the answer with it if that has begun."""
        if self._stream is None:
            super().fail(error)
            return
        if isinstance(error, NoAnswer):  # there is a part of one
            error = ConnectionBroken(f"in the middle of the answer: {error.text}")
        self._stream.end(error)
