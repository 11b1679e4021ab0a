"""One plain uwsgi request and its answer, sans-IO.

The owner of the connection sends :attr:`PlainExchange.outgoing`, passes received bytes to
:meth:`PlainExchange.receive` until :attr:`PlainExchange.done`, and closes. The blocking call, its fan-out and
the Deferred client all use this.
"""

from __future__ import annotations

from uwsgitwisted.errors import (
    ConnectionBroken,
    MisuseError,
    NoAnswer,
    PacketTooLarge,
    ProtocolError,
    UnknownModifier,
)
from uwsgitwisted.wire.message import answers_raw, decode_answer, needs_session
from uwsgitwisted.wire.packet import BUNDLE, ECHO, RPC, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.rpc import LONG_ANSWER, long_size

#: The most bytes of an answer without a size field: far more than a page or a template file has.
MAX_RAW_ANSWER = 16 * 1024 * 1024

#: What the end of a connection without an answer may mean, besides a failure, by the request's modifier1.
_MEANINGS = {RPC: " (in plain uwsgi also a function that is unknown, or returned nothing)"}


#: How an answer begins that is HTTP.
_HTTP = b"HTTP/"
#: uWSGI's default --buffer-size, in bytes.
BUFFER_SIZE = 4_096


class PlainExchange:
    """A request and its answer, on a connection of their own.

    :param request: the request.
    :param limit: the most bytes to accept of a raw answer, or of an RPC's long answer.
    :raises MessageTooLarge: if the request's payload is over 65535 bytes.
    :raises MisuseError: if the request is a task with a body, which a plain spooler would misread.
    :raises UnknownModifier: if it is a bundle, which no plain server knows.
    """

    __slots__ = (
        "_chunks",
        "_decoder",
        "_head",
        "_limit",
        "_need",
        "_raw",
        "_request",
        "_size",
        "answer",
        "outgoing",
    )

    def __init__(self, request: Packet, *, limit: int = MAX_RAW_ANSWER) -> None:
        if needs_session(request):
            raise MisuseError(
                "only a uwsgitwisted spooler accepts a task with a body; the server at this address grants no "
                "session, or not now"
            )
        if request.modifier1 == BUNDLE:
            raise UnknownModifier("the server at this address grants no session", modifier1=BUNDLE)
        #: The request's bytes.
        self.outgoing = encode_packet(request)
        #: The answer; None until it is complete. A raw answer has no header, and gets the request's modifiers.
        self.answer: Packet | None = None
        self._request = request
        self._limit = limit
        self._raw = answers_raw(request.modifier1, request.modifier2)
        self._decoder = PacketDecoder(count=1)
        self._chunks: list[bytes] = []
        self._size = 0
        self._need: int | None = None
        # The first bytes of a framed answer, as many as tell HTTP from it.
        self._head = b""

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.answer is not None

    @property
    def begun(self) -> bool:
        """Whether a part of the answer has arrived."""
        return self.done or self._size > 0 or self._need is not None or not self._decoder.empty

    def receive(self, data: bytes) -> None:
        """Handle bytes from the peer. Bytes after a complete answer are ignored.

        :raises PacketTooLarge: if the answer is over the limit.
        :raises MalformedPacket: if the size of a long answer can't be read.
        :raises ProtocolError: if the answer is HTTP, and shouldn't be.
        """
        if self.done:
            return
        if self._raw:
            self._add_raw(data)
            return
        if len(self._head) < len(_HTTP):
            self._head += data[: len(_HTTP) - len(self._head)]
            if self._head == _HTTP:
                raise ProtocolError(
                    "the server at this address answers with HTTP, so it is no uwsgi server; name the "
                    "port of its uwsgi socket"
                )
        packets = self._decoder.receive(data)
        if packets:
            self._handle_packet(packets[0])

    def receive_eof(self) -> None:
        """Handle the end of the connection, which completes a raw answer.

        :raises NoAnswer: if the peer sent nothing at all.
        :raises ConnectionBroken: if it sent only a part of an answer.
        """
        if self.done:
            return
        if self._raw and self._need is None and (self.begun or self._echoes_nothing()):
            self.answer = self._request._replace(payload=b"".join(self._chunks))
        elif self.begun:
            raise ConnectionBroken("the connection ended in the middle of the answer")
        else:
            raise NoAnswer(
                "the connection ended without an answer; the server's log says why"
                f"{_MEANINGS.get(self._request.modifier1, '')}"
            )

    def receive_reset(self) -> None:
        """Handle a connection that the peer has reset.

        :raises NoAnswer: if the peer sent nothing at all.
        :raises ConnectionBroken: if it sent only a part of an answer.
        """
        if self.begun:
            raise ConnectionBroken("the server reset the connection in the middle of the answer")
        text, size = "the server reset the connection instead of answering", len(self.outgoing)
        if size > BUFFER_SIZE:
            text += f"; a uWSGI does so to more bytes than its --buffer-size ({BUFFER_SIZE}; these were {size})"
        raise NoAnswer(text)

    def result(self) -> object:
        """Return the decoded answer: see :func:`~uwsgitwisted.wire.message.decode_answer`.

        :raises UnsafeObject: if it is a marshalled object that is not plain data.
        """
        assert self.answer is not None, "the answer is not complete"
        return decode_answer(self.answer)

    def _echoes_nothing(self) -> bool:
        return self._request.modifier1 == ECHO and not self._request.payload

    def _handle_packet(self, packet: Packet) -> None:
        """Handle a framed answer, which may announce a long one."""
        if self._request.modifier1 != RPC or packet.modifier2 != LONG_ANSWER:
            self.answer = packet
            return
        self._raw = True
        self._need = long_size(packet.payload)
        self._check_limit(self._need)
        self._add_raw(self._decoder.rest())

    def _add_raw(self, data: bytes) -> None:
        """Add raw bytes, up to the announced size if there is one."""
        self._chunks.append(data)
        self._size += len(data)
        if self._need is None:
            self._check_limit(self._size)
        elif self._size >= self._need:
            self.answer = Packet(RPC, 0, b"".join(self._chunks)[: self._need])

    def _check_limit(self, size: int) -> None:
        if size > self._limit:
            raise PacketTooLarge(
                f"an answer of at least {size} bytes, {self._limit} are accepted", size=size, limit=self._limit
            )
