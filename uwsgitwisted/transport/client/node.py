"""One node that a client talks to: by a session if the peer grants one, else a connection a request."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from uwsgitwisted.errors import ConnectionFailed, RequestCancelled, RequestTimeout, Unavailable
from uwsgitwisted.transport.client.call import Call, as_it_is
from uwsgitwisted.transport.client.negotiation import NegotiationProtocol
from uwsgitwisted.transport.client.plain import PlainProtocol
from uwsgitwisted.transport.client.session import ClientSession, negotiate
from uwsgitwisted.transport.writer import bound_buffer, set_keepalive, set_nodelay
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.failure import no_grant
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.terms import KEEPALIVE, OFFER_TIMEOUT, PLAIN_FOR, SILENT_FOR, Terms

_T = TypeVar("_T")


class Node:
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
        #: Until when the peer is known to be one that grants sessions, so that it hangs if it is silent.
        self._ours_until = 0.0
        self._session: ClientSession | None = None
        self._negotiating = False
        self._waiting: list[Deferred[ClientSession | None]] = []
        self._connecting: set[Deferred[Any]] = set()
        self._closed = False
        self._connections: set[NegotiationProtocol[ClientSession] | PlainProtocol] = set()

    def ask(
        self,
        packet: Packet,
        timeout: float,
        *,
        address: object = None,
        idempotent: bool = False,
        decode: Callable[[Packet], object] = as_it_is,
    ) -> Deferred[Any]:
        """Send a request.

        :param timeout: seconds for all of it: connecting, finding out what the peer speaks, the answer.
        :param address: the address that errors name.
        :param idempotent: whether it may be run again if the worker that runs it dies.
        :param decode: makes of the answer's packet what the Deferred fires with.
        :return: fires with the answer; fails with one of our errors. Cancelling it withdraws the request.
        :raises MessageTooLarge: if the peer doesn't take so large a message.
        """
        call = Call(
            packet,
            self._clock.seconds() + timeout,
            timeout,
            address=address,
            idempotent=idempotent,
            decode=decode,
        )
        session = self._session
        if session is None or session.leaving:
            self._find_way(call)
        else:
            session.send(call)
        return call.answer

    def _find_way(self, call: Call, refusal: Unavailable | None = None) -> None:
        """Settle a call for which there is no session.

        :param refusal: why the session refused it that it was in, for the case that its time is over.
        """
        if refusal is not None and call.deadline <= self._clock.seconds():
            call.fail(refusal)
            return
        way = Deferred.fromCoroutine(self._ask(call))
        call.enter(0, lambda _: way.cancel())
        way.addErrback(_fail, call)

    async def _ask(self, call: Call) -> None:
        if self._clock.seconds() >= self._plain_until:
            session = await self._wait(self._new_session(), call)
            if session is not None:
                session.send(call)
                return
        exchange = PlainExchange(call.packet)
        protocol = PlainProtocol(exchange)
        await self._wait(self._connect(protocol), call)
        await self._wait(protocol.finished, call)
        assert exchange.answer is not None
        call.succeed(exchange.answer)

    async def _wait(self, deferred: Deferred[_T], call: Call) -> _T:
        """Wait for *deferred*, as long as the call has time."""
        deferred.addTimeout(max(call.deadline - self._clock.seconds(), 0), self._clock)
        try:
            return await deferred
        except DeferredTimeout:
            text = f"no answer within {call.allowed:g} s"
            raise RequestTimeout(text, seconds=call.allowed) from None
        except CancelledError:
            raise RequestCancelled("the request was cancelled") from None

    # Connections

    def _new_session(self) -> Deferred[ClientSession | None]:
        """Return a Deferred that fires with a session, or with None if the peer grants none."""
        waiting: Deferred[ClientSession | None] = Deferred()
        self._waiting.append(waiting)
        if not self._negotiating:
            self._negotiating = True
            Deferred.fromCoroutine(self._negotiate()).addBoth(self._negotiated)
        return waiting

    def _negotiated(self, result: ClientSession | Failure | None) -> None:
        self._negotiating = False
        waiting, self._waiting = self._waiting, []
        if isinstance(result, ClientSession):
            self._session = result
        for deferred in waiting:  # one whose caller has given up takes no notice
            deferred.callback(result)

    async def _negotiate(self) -> ClientSession | None:
        protocol = negotiate(self._clock, self._ours, self._find_way)
        await self._connect(protocol)
        hangs_if_silent = self._clock.seconds() < self._ours_until
        patience = 2 * KEEPALIVE if hangs_if_silent else OFFER_TIMEOUT
        protocol.negotiated.addTimeout(patience, self._clock)
        late = False
        try:
            session = await protocol.negotiated
        except DeferredTimeout:
            protocol.close()
            session, late = None, True
        now = self._clock.seconds()
        if session is not None:
            protocol.lost.addCallback(self._remember_session)
        elif protocol.answered:
            self._plain_until = now + PLAIN_FOR
        elif late and hangs_if_silent:
            raise no_grant(patience)
        else:
            self._plain_until = now + SILENT_FOR
        return session

    def _remember_session(self, _: None) -> None:
        self._ours_until = self._clock.seconds() + PLAIN_FOR

    def _connect(self, protocol: NegotiationProtocol[ClientSession] | PlainProtocol) -> Deferred[None]:
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

    def _connected(self, protocol: NegotiationProtocol[ClientSession] | PlainProtocol) -> None:
        set_nodelay(protocol.transport)
        set_keepalive(protocol.transport)
        bound_buffer(protocol.transport)
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
            reason = (
                "the host's name has no address" if failure.check(DNSLookupError) else failure.getErrorMessage()
            )
            return Failure(ConnectionFailed(f"no connection: {reason}"))
        # An endpoint that is cancelled fails with an error of its own.
        return Failure(ConnectionFailed("the client was closed") if self._closed else CancelledError())


def _fail(failure: Failure, call: Call) -> None:
    if not call.answer.called:
        assert isinstance(failure.value, Exception)
        call.fail(failure.value)
