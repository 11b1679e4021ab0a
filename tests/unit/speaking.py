"""A real server that speaks our session, by a script, and a thread that makes blocking calls to it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.unit.servers import ScriptedServer
from uwsgitwisted import blocking
from uwsgitwisted.errors import FanOutError, UwsgiError
from uwsgitwisted.wire.bundle import decode_bundle, encode_error, encode_outcomes, encode_value
from uwsgitwisted.wire.events import RequestReceived
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import BUNDLE, MARSHAL, Packet, PacketDecoder
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import Terms, decode_offer, encode_grant

if TYPE_CHECKING:
    from typing_extensions import Self

#: What a session's server does; the connection is closed when it returns.
Turn = Callable[["Speaker"], None]


class Speaker:
    """The server's end of one session.

    :param peer: the server.
    :param connection: on which an offer has come.
    :param terms: what it grants.
    :param behind: further bytes to send along with the terms.
    """

    def __init__(
        self, peer: SpeakingServer, connection: socket.socket, terms: Terms, theirs: Terms, behind: bytes = b""
    ) -> None:
        self.peer = peer
        self.connection = connection
        self.session = Session(Role.SERVER, terms, theirs)
        #: The objects that it was asked, in order.
        self.asked: list[Any] = []
        self._events: list[RequestReceived] = []
        peer.sessions.append(self.asked)
        if (
            connection.family == socket.AF_INET
        ):  # a shutdown notice behind an answer must not wait for its acknowledgement
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(encode_grant(terms) + behind)

    def next(self) -> RequestReceived:
        """Return the next request.

        :raises ConnectionResetError: if the client closes instead, which ends the script.
        """
        while not self._events:
            data = self.connection.recv(65_536)
            if not data:
                raise ConnectionResetError("the client has closed the session")
            for event in self.session.receive(data):
                if isinstance(event, RequestReceived):
                    bundled = event.packet.modifier1 == BUNDLE
                    packets = decode_bundle(event.packet) if bundled else [event.packet]
                    self.asked += [loads(packet.payload) for packet in packets]
                    self._events.append(event)
        return self._events.pop(0)

    def answer(self, request: RequestReceived, message: object, *, request_id: int | None = None) -> None:
        """Answer with an object; under another id if the test says so."""
        packet = Packet(MARSHAL, request.packet.modifier2, dumps(message))
        self.session.send_answer(request.id if request_id is None else request_id, packet)
        self.flush()

    def answer_bundle(self, request: RequestReceived, *outcomes: object) -> None:
        """Answer a bundle; an outcome that is an error is one."""
        encoded = (
            encode_error(encode_failure(each)) if isinstance(each, UwsgiError) else encode_value(dumps(each))
            for each in outcomes
        )
        self.session.send_answer(request.id, encode_outcomes(request.packet, encoded))
        self.flush()

    def fail(self, request: RequestReceived, error: UwsgiError) -> None:
        """Answer with an error."""
        self.session.send_error(request.id, encode_failure(error))
        self.flush()

    def announce_shutdown(self) -> None:
        """Say that no further request is taken."""
        self.session.send_shutdown()
        self.flush()

    def bytes_to_send(self) -> bytes:
        """Return all that is queued."""
        data = b""
        while piece := self.session.data_to_send():
            data += piece
        return data

    def flush(self) -> None:
        """Send all that is queued."""
        self.connection.sendall(self.bytes_to_send())

    def note_done(self) -> None:
        """Tell the test that what this script does besides answering is done."""
        self.peer.done.set()


def echo_once(speaker: Speaker) -> None:
    """Answer one request with what it asked."""
    request = speaker.next()
    speaker.answer(request, speaker.asked[-1])


def echo_all(speaker: Speaker) -> None:
    """Answer every request with what it asked, until the client closes."""
    while True:
        echo_once(speaker)


class SpeakingServer(ScriptedServer):
    """A server that grants sessions.

    :param turns: what it does on each connection, in order; the last one's also on every later one.
    :param terms: what it grants.
    :param behind: what it sends along with them on the first connection.
    """

    def __init__(
        self,
        *turns: Turn,
        terms: Terms | None = None,
        behind: bytes = b"",
        path: str | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(self._speak, path=path, context=context)
        self._turns = turns or (echo_all,)
        self._terms = terms or Terms(node="scripted")
        self._behind = behind
        #: What was asked in each session, in the order in which they began.
        self.sessions: list[list[Any]] = []
        #: Set by scripts, see :meth:`Speaker.note_done`.
        self.done = threading.Event()
        self._open: list[socket.socket] = []

    def __exit__(self, *exception: object) -> None:
        """End as if every client that is left had closed its session."""
        for connection in self._open:
            with contextlib.suppress(OSError):  # it is closed already
                socket.socket.shutdown(connection, socket.SHUT_RD)
        super().__exit__(*exception)

    def _speak(self, server: ScriptedServer, connection: socket.socket) -> None:
        (packet,) = PacketDecoder().receive(self.read_request(connection))
        theirs = decode_offer(packet)
        assert theirs is not None, f"no offer, but {packet!r}"
        self._open.append(connection)
        number = len(self.sessions)
        behind, self._behind = self._behind, b""
        speaker = Speaker(self, connection, self._terms, theirs, behind)
        self._turns[min(number, len(self._turns) - 1)](speaker)


class Caller:
    """A thread that makes blocking calls, as a script does; its sessions end with it.

    :param fan_out: whether it makes each call as a fan-out to one node.
    """

    def __init__(self, *, fan_out: bool = False) -> None:
        self._fan_out = fan_out
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def __call__(self, address: Any, message: object, timeout: float = 10) -> Any:
        """Send an object and return its answer."""
        if self._fan_out:
            return self.run(_fan_out, address, message, timeout)
        return self.run(blocking.send_message, address, MARSHAL, 0, message, timeout)

    def run(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Call *function* in this thread."""
        try:
            return self._pool.submit(function, *arguments).result(15)
        except UwsgiError as error:
            forget_frames(error)
            raise


def _fan_out(address: Any, message: object, timeout: float) -> object:
    try:
        (answer,) = blocking.send_multi_uwsgi_message([(*address, message)], MARSHAL, 0, timeout)
    except FanOutError as error:
        raise error.failures[0] from None
    return answer


def forget_frames(error: BaseException) -> None:
    """Let an exception hold nothing alive that its thread used: a session ends with its thread."""
    found: list[BaseException] = [error]
    for each in found:
        traceback.clear_frames(each.__traceback__)
        each.__traceback__ = None
        related = (each.__cause__, each.__context__, *getattr(each, "results", ()))
        found.extend(more for more in related if isinstance(more, BaseException) and more not in found)
