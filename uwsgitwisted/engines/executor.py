"""The engines ``threads:N`` and ``executor:module:callable``: handlers run in an executor.

Any ``concurrent.futures.Executor`` will do, so a node can front an existing engine such as Dask's. An executor
can't end a call: a request that times out fails, and its handler runs on to its end.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from uwsgitwisted.engines.waiting import Waiting
from uwsgitwisted.errors import (
    RequestCancelled,
    StartupError,
    Unavailable,
    UnknownModifier,
    UwsgiError,
    WorkerDied,
)
from uwsgitwisted.interfaces import IEngine, Request
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.wire.failure import decode_failure, describe, encode_failure
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.worker.spec import FunctionTable, WorkerSpec

#: The result of a call: an answer, or a failure's vars block.
Outcome = tuple[Packet | None, bytes]

#: Seconds that an executor gets to be shut down in, by whether there is time for that at all. It waits for the
#: calls that it can't end, for which nobody else waits any more.
_PATIENCE = {True: 5.0, False: 0.5}

_tables: dict[str, FunctionTable] = {}
_loading = threading.Lock()


def call(spec: str, node: str, packet: Packet, number: int) -> Outcome:
    """Run a handler. The executor calls this, in whatever thread, process or machine it has.

    An exception comes back as a failure's vars block, since not every exception can be pickled.

    :param spec: the handlers, encoded by :meth:`WorkerSpec.encode`; each process loads them once.
    :param node: the node's name, for error texts.
    :param number: differs for each request, because Dask runs calls with equal arguments only once.
    """
    try:
        with _loading:
            table = _tables.get(spec)
            if table is None:
                table = _tables[spec] = WorkerSpec.decode(spec).load_functions()
        handler = table.get(packet.modifier1)
        if handler is None:
            return None, encode_failure(UnknownModifier(f"no handler for modifier1 {packet.modifier1}"))
        return handler(packet, node), b""
    except UwsgiError as error:
        return None, encode_failure(error, node=node)
    except (Exception, SystemExit) as error:  # the handlers can't be loaded
        return None, encode_failure(describe(error, node=node))


def _unpack(outcome: Outcome) -> Packet:
    packet, failure = outcome
    if packet is None:
        raise decode_failure(failure)
    return packet


@implementer(IEngine)
class ExecutorEngine:
    """Runs handlers in an executor.

    :param reactor: keeps the time and takes the results from the executor's threads.
    :param spec: the handlers.
    :param make: makes the executor.
    :param description: the description of this engine, such as ``threads:4``.
    :param timeout: seconds that a request may take, including its time in the executor's queue.
    :param max_queue: how many requests may be in flight in the executor at once.
    :param node: the node's name, for error texts.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        spec: WorkerSpec,
        make: Callable[[], Executor],
        *,
        description: str,
        timeout: float,
        max_queue: int,
        node: str = "",
    ) -> None:
        self.description = description
        self._reactor = reactor
        self._spec = spec
        self._make = make
        self._node = node
        self._waiting = Waiting(reactor, timeout=timeout, limit=max_queue)
        self._encoded = ""
        self._executor: Executor | None = None
        self._patience = 0.0
        self._overdue = Timer(reactor, self._end)
        self._ended: Deferred[None] = Deferred()
        # It begins anywhere, since the executor may have seen an earlier process of this node.
        self._numbers = itertools.count(int.from_bytes(os.urandom(8), "big"))

    def start(self) -> Deferred[None]:
        """Make the executor."""
        self._encoded = replace(self._spec, masterpid=os.getpid()).encode()
        try:
            self._executor = self._make()
        except StartupError as error:
            return fail(StartupError(f"--engine {self.description}: {error}"))
        except Exception as error:
            return fail(StartupError(f"--engine {self.description}: {type(error).__name__}: {error}"))
        return succeed(None)

    def stop(self, seconds: float) -> Deferred[None]:
        """Let the requests in flight finish for up to *seconds*, then shut the executor down."""
        self._patience = _PATIENCE[seconds > 0]
        if self._overdue.running:
            self._overdue.set(self._patience)
        return self._waiting.stop(seconds).addCallback(lambda _: self._shut_down())

    def _shut_down(self) -> Deferred[None]:
        """Shut the executor down.

        Wait for it for a while: if a signal ended this process first, a pool's processes would be left behind.
        """
        executor, self._executor = self._executor, None
        if executor is None:
            return succeed(None)
        self._overdue.set(self._patience)

        def shut_down() -> None:
            try:
                executor.shutdown()
            except Exception:
                self._log.failure("the executor could not be shut down")
            self._reactor.callFromThread(self._end)

        threading.Thread(target=shut_down, daemon=True).start()
        return self._ended

    def _end(self) -> None:
        self._overdue.clear()
        if not self._ended.called:
            self._ended.callback(None)

    def submit(self, request: Request) -> Deferred[Packet]:
        """Hand *request* to the executor."""
        refusal = self._waiting.refusal(request.peer)
        if refusal is not None:
            return fail(refusal)
        if self._executor is None:
            return fail(Unavailable("the node is starting"))
        arguments = (self._encoded, self._node, request.packet, next(self._numbers))
        try:
            try:
                future = self._executor.submit(call, *arguments)
            except BrokenExecutor:  # a pool whose processes have died takes nothing more
                self._replace(self._executor)
                future = self._executor.submit(call, *arguments)
        except Exception as error:
            return fail(WorkerDied(f"the executor failed: {type(error).__name__}: {error}"))

        def cancel(_: Deferred[Outcome]) -> None:
            future.cancel()

        result: Deferred[Outcome] = Deferred(cancel)
        future.add_done_callback(lambda done: self._reactor.callFromThread(_fire, result, done))
        return self._waiting.add(request, result.addCallback(_unpack))

    def _replace(self, broken: Executor) -> None:
        """Replace a *broken* executor with a new one."""
        self._log.error("the executor is broken; replacing it")
        broken.shutdown(wait=False)
        self._executor = self._make()


def _fire(result: Deferred[Outcome], future: Future[Outcome]) -> None:
    """Fire *result*, in the reactor's thread, unless it has timed out."""
    if result.called:
        return
    try:
        result.callback(future.result())
    except CancelledError:
        result.errback(RequestCancelled("the executor cancelled the request"))
    except Exception as error:  # the executor's own: the process is gone, the cluster can't be reached
        result.errback(WorkerDied(f"the executor failed: {type(error).__name__}: {error}"))
