"""One map over a cluster: does what its planner decides, with one selector."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Hashable

from uwsgitwisted.address import Address
from uwsgitwisted.blocking.links import NodeLink, Outcome
from uwsgitwisted.blocking.lookups import Watch
from uwsgitwisted.blocking.loop import Loop
from uwsgitwisted.blocking.sessions import TERMS
from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.planner.map import MapPlanner
from uwsgitwisted.planner.piece import Result, Sending
from uwsgitwisted.planner.progress import REPORT_INTERVAL, Progress
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.terms import Terms

#: For how long the nodes are left alone while the caller works on results that are ready, in seconds.
_ALONE = 0.005
#: Seconds for sending the nodes, at an early end, the cancellations of what is in flight.
_CANCEL_TIMEOUT = 0.5


class Run:
    """Drives the planner of one map.

    :param watch: knows the nodes.
    :param planner: decides.
    :param encode: makes the request of a message; it may raise one of our errors.
    :param timeout: seconds for each request.
    :param idempotent: whether the requests may run twice.
    :param report: called with the progress, ten times a second at most, and at the end.
    """

    def __init__(
        self,
        watch: Watch,
        planner: MapPlanner,
        encode: Callable[[object], Packet],
        timeout: float,
        idempotent: bool,
        report: Callable[[Progress], object] | None,
    ) -> None:
        self._watch = watch
        self._planner = planner
        self._encode = encode
        self._timeout = timeout
        self._idempotent = idempotent
        self._report = report
        self._links: dict[Hashable, NodeLink] = {}
        self._nodes: dict[Address, None] = {}
        self._outcomes: deque[Outcome] = deque()
        self._next_report = 0.0
        self._next_check = -math.inf
        self._pumped = 0.0
        self._loop = Loop()

    def results(self) -> Generator[Result, None, None]:
        """Work, and yield the results. When the iteration ends early, withdraw all that is in flight."""
        planner = self._planner
        try:
            self._check_nodes()
            while True:
                result = planner.take()
                if result is not None:
                    yield result
                    if time.monotonic() - self._pumped > _ALONE:
                        self._pump(wait=False)
                elif planner.finished:
                    break
                else:
                    self._pump(wait=True)
        finally:
            self._stop()
            self._report_progress()

    def _pump(self, *, wait: bool) -> None:
        """Do what the planner wants, and tell it what has become of the requests.

        :param wait: whether to wait until something happens.
        """
        now = time.monotonic()
        if now >= self._next_check:
            self._check_nodes()
        wake = self._act(now)
        until = now
        if wait and not self._outcomes and not self._planner.ready and not self._planner.finished:
            until = min(wake, self._next_check, self._next_report if self._report else math.inf)
        self._loop.turn(until)
        self._pumped = now = time.monotonic()
        self._hand_over(now)
        if self._report is not None and now >= self._next_report:
            self._report_progress()

    def _act(self, now: float) -> float:
        """Do what the planner wants; return when to ask it again."""
        actions = self._planner.poll(now)
        for sending in actions.cancel:
            self._cancel(sending)
        for sending in actions.send:
            self._send(sending)
        self._flush({sending.node for part in actions[:2] for sending in part})
        return math.inf if actions.wake is None else actions.wake

    def _send(self, sending: Sending) -> None:
        address = sending.node
        assert isinstance(address, Address)
        try:
            packet = sending.request or self._encode(sending.message)
        except UwsgiError as error:
            self._outcomes.append(Outcome(sending, None, error, 0.0))
            return
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = NodeLink(
                address, self._loop, self._timeout, self._idempotent, self._outcomes.append, self._learn
            )
        link.send(sending, packet)

    def _flush(self, addresses: Collection[Hashable]) -> bool:
        """Send what is queued for nodes, as far as possible; return whether something is left."""
        links = [self._links[address] for address in addresses if address in self._links]
        return False in [link.flush() for link in links]

    def _cancel(self, sending: Sending) -> None:
        withdraw, sending.handle = sending.handle, None
        if callable(withdraw):
            withdraw()

    def _hand_over(self, now: float) -> None:
        """Tell the planner how requests have ended."""
        while self._outcomes:
            sending, value, error, took = self._outcomes.popleft()
            sending.handle = None
            if error is None:
                self._planner.answered(sending, value, now, took)
            else:
                error.address = error.address or sending.node
                self._planner.failed(sending, error, now)

    def _learn(self, address: Address, terms: Terms) -> None:
        bundle = terms.bundle_from(TERMS)
        self._planner.set_terms(address, terms.workers, terms.max_requests, time.monotonic(), bundle)

    def _check_nodes(self) -> None:
        """See which nodes there are now."""
        for steps in self._watch.check():
            self._loop.start(steps, lambda _: self._update_nodes())
        self._update_nodes()

    def _update_nodes(self) -> None:
        now = time.monotonic()
        self._next_check = self._watch.next_check
        nodes = dict.fromkeys(self._watch.addresses)
        for address in nodes.keys() - self._nodes.keys():
            self._planner.add_node(address, now)
        for address in self._nodes.keys() - nodes.keys():
            self._planner.remove_node(address, now)
        self._nodes = nodes

    def _report_progress(self) -> None:
        if self._report is not None:
            now = time.monotonic()
            self._next_report = now + REPORT_INTERVAL
            self._report(self._planner.progress(now))

    def _stop(self) -> None:
        """Withdraw what is in flight, and close the connections."""
        self._planner.close()
        try:
            actions = self._planner.poll(time.monotonic())
            for sending in actions.cancel:
                self._cancel(sending)
            until = time.monotonic() + _CANCEL_TIMEOUT
            while self._flush(self._links) and time.monotonic() < until:
                self._loop.turn(until)
        finally:
            self._loop.close()
