"""The interfaces between the parts of a service: requests, responders and engines."""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReactorProcess, IReactorTime
from zope.interface import Attribute, Interface

from uwsgitwisted.access import NOBODY, Peer
from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.stream import Stream
from uwsgitwisted.wire.packet import Packet, new_tuple


class TimedAnswer(NamedTuple):
    """A worker's answer, with the handler's run time.

    A session passes the run time on to the caller, which can balance its load by it.

    :param packet: the answer.
    :param took: how long the handler ran, in seconds.
    """

    packet: Packet
    took: float


class StreamedAnswer(NamedTuple):
    """An answer that has begun, and whose rest is a stream.

    :param packet: the first part, whose payload the stream's bytes follow.
    :param stream: the rest.
    """

    packet: Packet
    stream: Stream


#: The answer to a request: a packet, raw bytes, which a plain peer gets without a header, or a stream.
Answer = Packet | TimedAnswer | bytes | StreamedAnswer
#: A responder's return value: an immediate answer, or a Deferred that fires with one.
Reply = Packet | bytes | Deferred[Any]


class IProcessReactor(IReactorTime, IReactorProcess, IReactorFDSet):
    """The parts of a reactor that starting worker processes and talking to them needs."""


class Request(NamedTuple):
    """A request's packet, and what its receiver knows about the request besides.

    :param packet: the request's packet.
    :param peer: the caller.
    :param seconds: how long the caller will wait from now on; None if it didn't say.
    :param idempotent: whether the request may run again if its worker dies.
    :param refused: why the body behind the packet was not accepted; the request can then only be refused.
    :param body: the bytes that follow the packet, where they come as a stream.
    """

    packet: Packet
    peer: Peer = NOBODY
    seconds: float | None = None
    idempotent: bool = False
    refused: UwsgiError | None = None
    body: Stream | None = None

    def as_idempotent(self) -> Request:
        """Return the same request, which may run again if its worker dies."""
        packet, peer, seconds, _, refused, body = self
        return new_tuple(Request, (packet, peer, seconds, True, refused, body))


class IResponder(Interface):
    """Answers the requests of one modifier1. It runs in the reactor's thread and must not block it."""

    def respond(request: Request) -> Reply:
        """Return the answer, or a Deferred that fires with it.

        The server cancels the Deferred when nobody waits for the answer any more. If it fails, or the method
        raises, a plain peer's connection is closed, since plain uwsgi has no errors.
        """


class IEngine(Interface):
    """Runs the handlers that its constructor was given."""

    description: str = Attribute("The engine's description, such as ``processes:4``.")

    def start() -> Deferred[None]:
        """Start the engine.

        :return: fires when the engine can run requests; fails with ``StartupError`` if it can't load the
            handlers.
        """

    def stop(seconds: float) -> Deferred[None]:
        """Accept no new request, give running requests up to *seconds* to finish, then end them.

        It may be called again with less time.

        :return: fires when no request runs any more.
        """

    def submit(request: Request) -> Packet | Deferred[Any]:
        """Run a request's handler.

        :return: the handler's answer, or a Deferred that fires with it, as a packet, a :class:`TimedAnswer` or
            a :class:`StreamedAnswer`.
            It fails with ``RemoteError`` if the handler raised, ``WorkerDied``, ``RequestTimeout``, or ``Busy``
            if too many requests wait already. Cancelling it removes a waiting request, and drops the answer of
            a running one.
        """


class IReloadable(Interface):
    """An engine that can run its handlers with fresh code."""

    def reload() -> Deferred[bool]:
        """Load the code again, without failing a request.

        :return: fires with whether that succeeded; if not, the old code stays in use.
        """
