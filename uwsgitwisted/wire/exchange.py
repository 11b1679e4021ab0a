"""One request in plain uwsgi, as bytes that go out and bytes that come in.

Whoever owns the connection sends :attr:`PlainExchange.outgoing`, hands in what it receives until
:attr:`PlainExchange.done`, then closes. The blocking call, its fan-out and the Deferred client all drive this.
"""

from __future__ import annotations

from uwsgitwisted.errors import ConnectionFailed, MalformedPacket, MisuseError, NoAnswer, PacketTooLarge
from uwsgitwisted.wire.message import RPC, answers_raw, decode_answer, needs_session
from uwsgitwisted.wire.packet import ECHO, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.vars import decode_vars

#: The most bytes of an answer that has no size in front: far more than a page or a file of templates takes.
MAX_RAW_ANSWER = 16 * 1024 * 1024

#: The modifier2 of an RPC's answer whose payload is a vars block with the size of the raw bytes behind it:
#: how uWSGI answers more than 65535 bytes.
_LONG_ANSWER = 5


class PlainExchange:
    """A request and its answer, alone on their connection.

    :param request: what to ask.
    :param limit: the most bytes to take of a raw answer, or of an RPC's long one.
    :raises MessageTooLarge: if the request's payload is over 65535 bytes.
    :raises MisuseError: if it is a task with a body, which a plain spooler would take for something else.
    """

    __slots__ = ("_chunks", "_decoder", "_limit", "_need", "_raw", "_request", "_size", "answer", "outgoing")

    def __init__(self, request: Packet, *, limit: int = MAX_RAW_ANSWER) -> None:
        if needs_session(request):
            raise MisuseError(
                "a task with a body can be sent to a spooler of ours only; what is there grants no session, or "
                "not now"
            )
        #: The request's bytes.
        self.outgoing = encode_packet(request)
        #: The answer; None until it is whole. A raw one has no header, and gets the request's modifiers.
        self.answer: Packet | None = None
        self._request = request
        self._limit = limit
        self._raw = answers_raw(request.modifier1, request.modifier2)
        self._decoder = PacketDecoder(count=1)
        self._chunks: list[bytes] = []
        self._size = 0
        self._need: int | None = None

    @property
    def done(self) -> bool:
        """Whether the answer is whole."""
        return self.answer is not None

    @property
    def begun(self) -> bool:
        """Whether a part of the answer has come."""
        return self.done or self._size > 0 or self._need is not None or not self._decoder.empty

    def receive(self, data: bytes) -> None:
        """Take bytes that the peer sent. What follows a whole answer is ignored.

        :raises PacketTooLarge: if the answer is over the limit.
        :raises MalformedPacket: if the size of a long answer can't be read.
        """
        if self.done:
            return
        if self._raw:
            self._add(data)
            return
        packets = self._decoder.receive(data)
        if packets:
            self._take(packets[0])

    def receive_eof(self) -> None:
        """Note that the peer sends nothing more, which ends a raw answer.

        :raises NoAnswer: if it sent nothing at all.
        :raises ConnectionFailed: if it sent a part of an answer.
        """
        if self.done:
            return
        if self._raw and self._need is None and (self.begun or self._echoes_nothing()):
            self.answer = self._request._replace(payload=b"".join(self._chunks))
        elif self.begun:
            raise ConnectionFailed("the connection ended in the middle of the answer")
        else:
            raise NoAnswer("the connection ended without an answer; the server's log says why")

    def result(self) -> object:
        """Return what the answer means: see :func:`~uwsgitwisted.wire.message.decode_answer`.

        :raises UnsafeObject: if it is a marshalled object that is not plain data.
        """
        assert self.answer is not None, "asked for a result before the answer was whole"
        return decode_answer(self.answer)

    def _echoes_nothing(self) -> bool:
        return self._request.modifier1 == ECHO and not self._request.payload

    def _take(self, packet: Packet) -> None:
        """Take a framed answer, which may be the announcement of a long one."""
        if self._request.modifier1 != RPC or packet.modifier2 != _LONG_ANSWER:
            self.answer = packet
            return
        self._raw = True
        self._need = _content_length(packet.payload)
        self._check(self._need)
        self._add(self._decoder.rest())

    def _add(self, data: bytes) -> None:
        """Take raw bytes, up to the announced size if there is one."""
        self._chunks.append(data)
        self._size += len(data)
        if self._need is None:
            self._check(self._size)
        elif self._size >= self._need:
            self.answer = Packet(RPC, 0, b"".join(self._chunks)[: self._need])

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise PacketTooLarge(
                f"an answer of at least {size} bytes, {self._limit} are accepted", size=size, limit=self._limit
            )


def _content_length(block: bytes) -> int:
    size = decode_vars(block).get(b"CONTENT_LENGTH", b"")
    if not size.isdigit() or len(size) > 20:
        raise MalformedPacket(f"a long answer whose CONTENT_LENGTH is {size!r}")
    return int(size)
