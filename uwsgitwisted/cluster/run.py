"""One map over a cluster: does what its planner decides, with Deferreds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from uwsgitwisted.errors import RequestCancelled, UwsgiError
from uwsgitwisted.planner.map import MapPlanner
from uwsgitwisted.planner.piece import Result, Sending
from uwsgitwisted.planner.progress import REPORT_INTERVAL, Progress
from uwsgitwisted.transport.batch import BATCH
from uwsgitwisted.transport.client.call import Call
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.wire.terms import Terms

if TYPE_CHECKING:
    from uwsgitwisted.cluster.nodes import NodeAddress, Nodes

_T = TypeVar("_T")


class Run:
    """Drives the planner of one map.

    :param reactor: keeps the time.
    :param nodes: the nodes of the cluster.
    :param planner: decides.
    :param make_call: makes the call that carries a request to a node; it may raise one of our errors.
    :param ours: the terms of this side.
    :param on_progress: called with the progress, ten times a second at most, and at the end.
    """

    def __init__(
        self,
        reactor: Any,
        nodes: Nodes,
        planner: MapPlanner,
        make_call: Callable[[NodeAddress, Sending], Call],
        ours: Terms,
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        self._reactor = reactor
        self._nodes = nodes
        self._planner = planner
        self._make_call = make_call
        self._ours = ours
        self._on_progress = on_progress
        self._timer = Timer(reactor, self._poll)
        self._reports = Timer(reactor, self._report)
        self._waiting: Deferred[None] | None = None

    async def results(self, pick: Callable[[Result], _T]) -> AsyncIterator[_T]:
        """Work, and yield what *pick* makes of each result.

        When the iteration ends early, all that is in flight is withdrawn. This is one generator, and it awaits
        nothing at its end, so that a loop that is left ends it at once.
        """
        planner = self._planner
        self._start()
        try:
            while True:
                while (result := planner.take()) is not None:
                    yield pick(result)
                self._poll()
                if not planner.ready:
                    if planner.finished:
                        break
                    self._waiting = Deferred()
                    await self._waiting
            self._report_now()
        finally:
            self._stop()

    def add_node(self, address: NodeAddress, terms: Terms | None) -> None:
        """Use a node from now on."""
        now = self._reactor.seconds()
        if terms is None:
            self._planner.add_node(address, now)
        else:
            bundle = terms.bundle_from(self._ours)
            self._planner.add_node(address, now, workers=terms.workers, most=terms.max_requests, bundle=bundle)
        self._poll_later()

    def remove_node(self, address: NodeAddress) -> None:
        """Give a node no further pieces."""
        self._planner.remove_node(address, self._reactor.seconds())
        self._poll_later()

    def set_terms(self, address: NodeAddress, terms: Terms) -> None:
        """Learn what a node says about itself."""
        now = self._reactor.seconds()
        bundle = terms.bundle_from(self._ours)
        self._planner.set_terms(address, terms.workers, terms.max_requests, now, bundle)
        self._poll_later()

    def _start(self) -> None:
        for address, terms in self._nodes.watch(self):
            self.add_node(address, terms)
        if self._on_progress is not None:
            self._reports.set(REPORT_INTERVAL)
        self._poll()

    def _stop(self) -> None:
        self._waiting = None
        self._nodes.unwatch(self)
        self._reports.clear()
        self._planner.close()
        self._poll()
        self._timer.clear()

    def _poll_later(self) -> None:
        """Poll when all that has arrived with this chunk of input is handled."""
        BATCH.at_end(self._poll)

    def _poll(self) -> None:
        actions = self._planner.poll(self._reactor.seconds())
        if actions.cancel or actions.send:
            with BATCH:  # a connection writes all its requests at once
                for sending in actions.cancel:
                    self._withdraw(sending)
                for sending in actions.send:
                    self._send(sending)
        if actions.wake is None:
            self._timer.clear()
        else:
            self._timer.set(max(0.0, actions.wake - self._reactor.seconds()))
        if self._waiting is not None and (self._planner.ready or self._planner.finished):
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    def _send(self, sending: Sending) -> None:
        address: Any = sending.node
        try:
            call = self._make_call(address, sending)
            sending.handle = call
            call.answer.addCallbacks(
                self._on_answer, self._on_failure, callbackArgs=(sending, call), errbackArgs=(sending,)
            )
            self._nodes.connection(address).send(call)
        except UwsgiError as error:
            sending.handle = None
            self._planner.failed(sending, error, self._reactor.seconds())
            self._poll_later()

    def _withdraw(self, sending: Sending) -> None:
        call = sending.handle
        if isinstance(call, Call):
            sending.handle = None
            call.answer.cancel()

    def _on_answer(self, value: object, sending: Sending, call: Call) -> None:
        sending.handle = None
        self._planner.answered(sending, value, self._reactor.seconds(), call.took)
        BATCH.at_end(self._poll)

    def _on_failure(self, failure: Failure, sending: Sending) -> None:
        sending.handle = None
        error = failure.value
        if sending.over and isinstance(error, RequestCancelled):
            return
        assert error is not None
        self._planner.failed(sending, error, self._reactor.seconds())
        self._poll_later()

    def _report(self) -> None:
        self._reports.set(REPORT_INTERVAL)
        self._report_now()

    def _report_now(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._planner.progress(self._reactor.seconds()))
