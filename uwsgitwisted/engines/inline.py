"""The engine ``reactor``: handlers run in the reactor's own thread.

It suits handlers that wait, returning a coroutine or a Deferred, and handlers that take microseconds. A handler
that computes blocks every connection, and no time limit ends it: use worker processes for those.
"""

from __future__ import annotations

import os
from dataclasses import replace
from types import CoroutineType

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.engines.waiting import Waiting
from uwsgitwisted.errors import UnknownModifier, UwsgiError
from uwsgitwisted.interfaces import IEngine, Request
from uwsgitwisted.wire.failure import describe
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.worker.spec import FunctionTable, WorkerSpec


@implementer(IEngine)
class InlineEngine:
    """Runs handlers in this thread.

    :param clock: keeps the time.
    :param spec: the handlers.
    :param timeout: seconds after which a coroutine or a Deferred is cancelled.
    :param max_queue: how many of them may be in flight at once.
    :param node: the node's name, for error texts.
    """

    description = "reactor"

    def __init__(
        self, clock: IReactorTime, spec: WorkerSpec, *, timeout: float, max_queue: int, node: str = ""
    ) -> None:
        self._spec = spec
        self._node = node
        self._handlers: FunctionTable = {}
        self._waiting = Waiting(clock, timeout=timeout, limit=max_queue)

    def start(self) -> Deferred[None]:
        """Load the handlers."""
        self._handlers = replace(self._spec, masterpid=os.getpid()).load_functions(worker_id=1)
        return succeed(None)

    def stop(self, seconds: float) -> Deferred[None]:
        """Let the requests in flight finish for up to *seconds*, then cancel them."""
        return self._waiting.stop(seconds)

    def submit(self, request: Request) -> Packet | Deferred[Packet]:
        """Run the handler."""
        packet = request.packet
        refusal = self._waiting.refusal(request.peer)
        if refusal is not None:
            return fail(refusal)
        handler = self._handlers.get(packet.modifier1)
        if handler is None:
            return fail(UnknownModifier(f"no handler for modifier1 {packet.modifier1}"))
        try:
            message = handler.read(packet)
        except UwsgiError as error:
            return fail(error)
        try:
            result = handler.run(message)
            if not isinstance(result, (Deferred, CoroutineType)):
                return handler.answer(packet, result)
            if isinstance(result, CoroutineType):
                result = Deferred.fromCoroutine(result)
        except (Exception, SystemExit) as error:
            return fail(describe(error, node=self._node))
        answer = result.addCallback(lambda value: handler.answer(packet, value)).addErrback(self._describe)
        return self._waiting.add(request, answer)

    def _describe(self, failure: Failure) -> Failure:
        """Describe a handler's exception as the handler's: a Busy from a node that it called is not ours."""
        if failure.check(CancelledError):
            return failure
        assert failure.value is not None
        return Failure(describe(failure.value, node=self._node))
