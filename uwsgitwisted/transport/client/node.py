"""One node that a client calls: in a session if it grants one, otherwise with one connection per request."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure

from uwsgitwisted.errors import ConnectionFailed, RequestCancelled, RequestTimeout, Unavailable
from uwsgitwisted.transport.client.call import Call, identity
from uwsgitwisted.transport.client.factory import SingleFactory
from uwsgitwisted.transport.client.negotiation import NegotiationProtocol
from uwsgitwisted.transport.client.plain import PlainProtocol
from uwsgitwisted.transport.client.session import ClientSession, negotiate
from uwsgitwisted.transport.client.stream import AnswerStream, StreamCall
from uwsgitwisted.transport.writer import bound_buffer, set_keepalive, set_nodelay
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.failure import no_grant
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.terms import KEEPALIVE, OFFER_TIMEOUT, PLAIN_FOR, SILENT_FOR, Terms

_T = TypeVar("_T")


class Node:
    """An address, and what the client has learned about the node there.

    :param clock: keeps the time.
    :param endpoint: connects to the node.
    :param ours: the terms of this side.
    :param plain: whether the node speaks plain uwsgi only; it is never offered a session then.
    :param on_session: called with the node's terms when it has granted a session.
    """

    def __init__(
        self,
        clock: IReactorTime,
        endpoint: IStreamClientEndpoint,
        ours: Terms,
        *,
        plain: bool = False,
        on_session: Callable[[Terms], None] | None = None,
    ) -> None:
        self._on_session = on_session
        self._clock = clock
        self._endpoint = endpoint
        self._ours = ours
        self._plain_until = math.inf if plain else 0.0
        #: Until when the node is expected to grant sessions: if it is silent before that, it hangs.
        self._grants_until = 0.0
        self._session: ClientSession | None = None
        self._negotiating = False
        self._waiting: list[Deferred[ClientSession | None]] = []
        self._connecting: set[Deferred[Any]] = set()
        self._closed = self._retired = False
        self._connections: set[NegotiationProtocol[ClientSession] | PlainProtocol] = set()

    def call(
        self,
        packet: Packet,
        timeout: float,
        *,
        address: object = None,
        idempotent: bool = False,
        decode: Callable[[Packet], object] = identity,
    ) -> Deferred[Any]:
        """Send a request.

        :param timeout: seconds for everything: connecting, negotiating a session, and the answer.
        :param address: the address that errors name.
        :param idempotent: whether the request may run again if its worker dies.
        :param decode: turns the answer's packet into the result of the Deferred.
        :return: fires with the decoded answer; fails with one of our errors. Cancelling it cancels the request.
        :raises MessageTooLarge: if the peer doesn't accept a message of this size.
        """
        call = Call(
            packet,
            self._clock.seconds() + timeout,
            timeout,
            address=address,
            idempotent=idempotent,
            decode=decode,
        )
        self.send(call)
        return call.answer

    def stream(
        self, packet: Packet, timeout: float, *, address: object = None, idempotent: bool = False
    ) -> Deferred[AnswerStream]:
        """Send a request whose answer is read as it arrives. Parameters and errors are those of :meth:`call`.

        :param timeout: seconds until the answer begins, and then for each part.
        :return: fires when the answer has begun.
        """
        call = StreamCall(self._clock, packet, timeout, address=address, idempotent=idempotent)
        self.send(call)
        return call.answer

    def send(self, call: Call) -> None:
        """Send the request of *call*, and complete the call.

        :raises MessageTooLarge: if the peer doesn't accept a message of this size.
        """
        session = self._session
        if session is None or session.draining:
            self._send_without_session(call)
        else:
            session.send(call)

    def _send_without_session(self, call: Call, refusal: Unavailable | None = None) -> None:
        """Send a call for which there is no session yet, or no longer.

        :param refusal: the error of the session that refused the call, which fails if it has timed out as well.
        """
        if refusal is not None and call.deadline <= self._clock.seconds():
            call.fail(refusal)
            return
        sending = Deferred.fromCoroutine(self._connect_and_send(call))
        call.attach(0, lambda _: sending.cancel())
        sending.addErrback(_fail_call, call)

    async def _connect_and_send(self, call: Call) -> None:
        if self._clock.seconds() >= self._plain_until:
            session = await self._wait(self._get_session(), call)
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
        """Wait for *deferred* until the call's deadline."""
        deferred.addTimeout(max(call.deadline - self._clock.seconds(), 0), self._clock)
        try:
            return await deferred
        except DeferredTimeout:
            text = f"no answer within {call.allowed:g} s"
            raise RequestTimeout(text, seconds=call.allowed) from None
        except CancelledError:
            raise RequestCancelled("the request was cancelled") from None

    # Connections

    def _get_session(self) -> Deferred[ClientSession | None]:
        """Negotiate a session, once for all callers that wait.

        :return: fires with the session, or with None if the peer grants none.
        """
        waiting: Deferred[ClientSession | None] = Deferred()
        self._waiting.append(waiting)
        if not self._negotiating:
            self._negotiating = True
            Deferred.fromCoroutine(self._negotiate()).addBoth(self._on_negotiated)
        return waiting

    def _on_negotiated(self, result: ClientSession | Failure | None) -> None:
        self._negotiating = False
        waiting, self._waiting = self._waiting, []
        if isinstance(result, ClientSession):
            self._session = result
            if self._retired:
                result.draining = True  # it closes after the last answer
            if self._on_session is not None:
                self._on_session(result.theirs)
        for deferred in waiting:  # a cancelled one ignores this
            deferred.callback(result)

    async def _negotiate(self) -> ClientSession | None:
        protocol = negotiate(self._clock, self._ours, self._send_without_session)
        await self._connect(protocol)
        expects_grant = self._clock.seconds() < self._grants_until
        grant_timeout = 2 * KEEPALIVE if expects_grant else OFFER_TIMEOUT
        protocol.negotiated.addTimeout(grant_timeout, self._clock)
        timed_out = False
        try:
            session = await protocol.negotiated
        except DeferredTimeout:
            protocol.close()
            session, timed_out = None, True
        now = self._clock.seconds()
        if session is not None:
            protocol.lost.addCallback(self._remember_session)
        elif protocol.answered:
            self._plain_until = now + PLAIN_FOR
        elif timed_out and expects_grant:
            raise no_grant(grant_timeout)
        else:
            self._plain_until = now + SILENT_FOR
        return session

    def _remember_session(self, _: None) -> None:
        self._grants_until = self._clock.seconds() + PLAIN_FOR

    def _connect(self, protocol: NegotiationProtocol[ClientSession] | PlainProtocol) -> Deferred[None]:
        """Connect; the Deferred fails with ``ConnectionFailed``."""
        if self._closed:
            return fail(ConnectionFailed("the client is closed"))
        connecting = self._endpoint.connect(SingleFactory(protocol))
        self._connecting.add(connecting)
        connecting.addBoth(self._forget_attempt, connecting)
        return connecting.addCallbacks(self._on_connected, self._translate_error)

    def _forget_attempt(self, result: _T, connecting: Deferred[Any]) -> _T:
        self._connecting.discard(connecting)
        return result

    def _on_connected(self, protocol: NegotiationProtocol[ClientSession] | PlainProtocol) -> None:
        set_nodelay(protocol.transport)
        set_keepalive(protocol.transport)
        bound_buffer(protocol.transport)
        self._connections.add(protocol)
        protocol.lost.addCallback(lambda _: self._connections.discard(protocol))

    def retire(self) -> None:
        """Close the connection when the calls in flight have ended; there will be no others."""
        self._retired = True
        if self._session is not None:
            self._session.retire()

    def close(self) -> Deferred[None]:
        """Close every connection; the calls in flight fail.

        :return: fires when all connections are closed.
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

    def _translate_error(self, failure: Failure) -> Failure:
        if failure.check(CancelledError, ConnectingCancelledError) is None:
            reason = (
                "the host name has no address" if failure.check(DNSLookupError) else failure.getErrorMessage()
            )
            return Failure(ConnectionFailed(f"no connection: {reason}"))
        # A cancelled endpoint fails with an error of its own.
        return Failure(ConnectionFailed("the client was closed") if self._closed else CancelledError())


def _fail_call(failure: Failure, call: Call) -> None:
    if not call.answer.called:
        assert isinstance(failure.value, Exception)
        call.fail(failure.value)
