"""The seams: what a responder, an engine and a store of tasks promise to the rest."""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReactorProcess, IReactorTime
from zope.interface import Attribute, Interface

from uwsgitwisted.access import NOBODY, Peer
from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.wire.packet import Packet


class TimedAnswer(NamedTuple):
    """A worker's answer. A session tells the caller how long its handler ran, so that it can balance by that.

    :param packet: the answer.
    :param took: how long the handler ran, in seconds.
    """

    packet: Packet
    took: float


#: What answers a request: a packet, or bytes that a plain peer gets as they are, without a header.
Answer = Packet | TimedAnswer | bytes
#: What a responder returns: an answer that is there at once, or a Deferred that fires with one.
Reply = Packet | bytes | Deferred[Any]


class IProcessReactor(IReactorTime, IReactorProcess, IReactorFDSet):
    """What starting worker processes and talking to them needs of a reactor."""


class Request(NamedTuple):
    """A packet that asks for something, and what its receiver knows about it besides.

    :param packet: what was asked.
    :param peer: who asked.
    :param seconds: how long the asker goes on waiting from now; None if it didn't say.
    :param idempotent: whether it may be run again if the worker that runs it dies.
    :param refused: why the body behind the packet was not taken, so that the request can only be refused.
    """

    packet: Packet
    peer: Peer = NOBODY
    seconds: float | None = None
    idempotent: bool = False
    refused: UwsgiError | None = None


class IResponder(Interface):
    """Answers the requests of one modifier1. It runs in the reactor's thread and must not block it."""

    def respond(request: Request) -> Reply:
        """Return the answer, or a Deferred that fires with it.

        Cancelling the Deferred says that nobody waits for the answer any more. A failure, or an exception, is
        answered with a closed connection where the peer speaks plain uwsgi, since that has no errors.
        """


class IEngine(Interface):
    """Runs handlers. Which ones, it was told when it was made."""

    description: str = Attribute("The string that describes it, such as ``processes:4``.")

    def start() -> Deferred[None]:
        """Begin.

        :return: fires when requests can be run; fails with ``StartupError`` if the handlers can't be loaded.
        """

    def stop(seconds: float) -> Deferred[None]:
        """Take nothing more, let what runs finish for up to *seconds*, then end it.

        It may be called again with less time.

        :return: fires when nothing runs any more.
        """

    def submit(request: Request) -> Packet | Deferred[Any]:
        """Have a request handled.

        :return: the handler's answer, or a Deferred that fires with it, as a packet or a :class:`TimedAnswer`.
            It fails with ``RemoteError`` if the handler raised, ``WorkerDied``, ``RequestTimeout``, or ``Busy``
            if too many wait already. Cancelling it takes a waiting request out and drops the answer of a
            running one.
        """


class IReloadable(Interface):
    """An engine that can run its handlers with fresh code."""

    def reload() -> Deferred[bool]:
        """Load the code anew, without failing a request.

        :return: fires with whether it worked; if not, the present code goes on.
        """
