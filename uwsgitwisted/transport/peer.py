"""One address that a client talks to: by a session if the peer grants one, else a connection a request."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from uwsgitwisted.errors import ConnectionFailed, RequestCancelled, RequestTimeout, Unavailable
from uwsgitwisted.transport.asking import AskingSession, offer
from uwsgitwisted.transport.offering import OfferingProtocol
from uwsgitwisted.transport.plain import PlainProtocol
from uwsgitwisted.transport.writer import set_keepalive, set_nodelay
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.message import decode_answer
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.session import OFFER_TIMEOUT, PLAIN_FOR, SILENT_FOR, Terms

_T = TypeVar("_T")


class Peer:
    """An address and what is known of it.

    :param clock: keeps the time.
    :param endpoint: connects to it.
    :param ours: what this side takes.
    :param plain: whether it is known to speak plain uwsgi only, so that it is never offered a session.
    """

    def __init__(
        self, clock: IReactorTime, endpoint: IStreamClientEndpoint, ours: Terms, *, plain: bool = False
    ) -> None:
        self._clock = clock
        self._endpoint = endpoint
        self._ours = ours
        self._plain_until = math.inf if plain else 0.0
        self._session: AskingSession | None = None
        self._negotiating = False
        self._waiting: list[Deferred[AskingSession | None]] = []
        self._connecting: set[Deferred[Any]] = set()
        self._closed = False
        self._connections: set[OfferingProtocol[AskingSession] | PlainProtocol] = set()

    def ask(
        self, packet: Packet, timeout: float, left: float | None = None, *, idempotent: bool = False
    ) -> Deferred[object]:
        """Send a request.

        :param timeout: seconds for all of it: connecting, finding out what the peer speaks, the answer.
        :param left: what is left of them, if a part has passed.
        :param idempotent: whether it may be run again if the worker that runs it dies.
        :return: fires with what the answer means; fails with one of our errors. Cancelling it withdraws the
            request.
        """
        session = self._session
        if session is None or session.leaving:
            return Deferred.fromCoroutine(
                self._ask(packet, timeout, timeout if left is None else left, idempotent)
            )
        deadline = self._clock.seconds() + (timeout if left is None else left)
        answer = session.request(
            packet,
            timeout if left is None else left,
            timeout,
            idempotent=idempotent,
            decode=decode_answer,
        )
        return answer.addErrback(self._crossed_goodbye, session, packet, timeout, deadline, idempotent)

    def _crossed_goodbye(
        self,
        failure: Failure,
        session: AskingSession,
        packet: Packet,
        timeout: float,
        deadline: float,
        idempotent: bool,
    ) -> Failure | Deferred[object]:
        """Ask again on a new connection if the peer refused because it was about to close this one."""
        left = deadline - self._clock.seconds()
        if isinstance(failure.value, Unavailable) and session.leaving and left > 0:
            return self.ask(packet, timeout, left, idempotent=idempotent)
        return failure

    async def _ask(self, packet: Packet, timeout: float, left: float, idempotent: bool) -> object:
        deadline = self._clock.seconds() + left
        if self._clock.seconds() >= self._plain_until:
            session = await self._wait(self._new_session(), deadline, timeout)
            if session is not None:
                left = max(deadline - self._clock.seconds(), 0.001)
                return await self.ask(packet, timeout, left, idempotent=idempotent)
        exchange = PlainExchange(packet)
        protocol = PlainProtocol(exchange)
        await self._wait(self._connect(protocol), deadline, timeout)
        await self._wait(protocol.finished, deadline, timeout)
        return exchange.result()

    async def _wait(self, deferred: Deferred[_T], deadline: float, timeout: float) -> _T:
        """Wait for *deferred* until *deadline*, which is the end of the caller's *timeout*."""
        deferred.addTimeout(max(deadline - self._clock.seconds(), 0), self._clock)
        try:
            return await deferred
        except DeferredTimeout:
            raise RequestTimeout(f"no answer within {timeout:g} s", seconds=timeout) from None
        except CancelledError:
            raise RequestCancelled("the request was cancelled") from None

    # Connections

    def _new_session(self) -> Deferred[AskingSession | None]:
        """Return a Deferred that fires with a session, or with None if the peer grants none."""
        waiting: Deferred[AskingSession | None] = Deferred()
        self._waiting.append(waiting)
        if not self._negotiating:
            self._negotiating = True
            Deferred.fromCoroutine(self._negotiate()).addBoth(self._negotiated)
        return waiting

    def _negotiated(self, result: AskingSession | Failure | None) -> None:
        self._negotiating = False
        waiting, self._waiting = self._waiting, []
        if isinstance(result, AskingSession):
            self._session = result
        for deferred in waiting:  # one whose caller has given up takes no notice
            deferred.callback(result)

    async def _negotiate(self) -> AskingSession | None:
        protocol = offer(self._clock, self._ours)
        await self._connect(protocol)
        protocol.negotiated.addTimeout(OFFER_TIMEOUT, self._clock)
        try:
            session = await protocol.negotiated
        except DeferredTimeout:
            protocol.close()
            session = None
        if session is None:
            known_for = PLAIN_FOR if protocol.answered else SILENT_FOR
            self._plain_until = self._clock.seconds() + known_for
        return session

    def _connect(self, protocol: OfferingProtocol[AskingSession] | PlainProtocol) -> Deferred[None]:
        """Connect; the Deferred fails with ``ConnectionFailed``."""
        if self._closed:
            return fail(ConnectionFailed("the client is closed"))
        connecting = self._endpoint.connect(Factory.forProtocol(lambda: protocol))
        self._connecting.add(connecting)
        connecting.addBoth(self._end_connecting, connecting)
        return connecting.addCallbacks(self._connected, self._explain)

    def _end_connecting(self, result: _T, connecting: Deferred[Any]) -> _T:
        self._connecting.discard(connecting)
        return result

    def _connected(self, protocol: OfferingProtocol[AskingSession] | PlainProtocol) -> None:
        set_nodelay(protocol.transport)
        set_keepalive(protocol.transport)
        self._connections.add(protocol)
        protocol.lost.addCallback(lambda _: self._connections.discard(protocol))

    def close(self) -> Deferred[None]:
        """Close every connection; what is in flight fails.

        :return: fires when they are closed.
        """
        self._closed = True
        for connecting in list(self._connecting):
            connecting.cancel()
        lost = []
        for protocol in list(self._connections):
            gone: Deferred[None] = Deferred()
            protocol.lost.addCallback(gone.callback)
            lost.append(gone)
            protocol.close()
        return DeferredList(lost).addCallback(lambda _: None)

    def _explain(self, failure: Failure) -> Failure:
        if failure.check(CancelledError, ConnectingCancelledError) is None:
            return Failure(ConnectionFailed(f"no connection: {failure.getErrorMessage()}"))
        # An endpoint that is cancelled fails with an error of its own.
        return Failure(ConnectionFailed("the client was closed") if self._closed else CancelledError())
