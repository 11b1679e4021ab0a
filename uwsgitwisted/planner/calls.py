"""Which node gets a single call, sans-IO: of two at random, the one with the shorter expected wait.

A node that has failed is left out for a pause, and for a longer one each time. After it, one call tries it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from random import Random

from uwsgitwisted.errors import Unavailable, UwsgiError
from uwsgitwisted.planner.lane import Lane
from uwsgitwisted.planner.piece import Piece, Sending
from uwsgitwisted.planner.retry import MAX_FAILURES, Node, may_retry, rule_of
from uwsgitwisted.wire.terms import MAX_REQUESTS


class CallPlanner:
    """Chooses the nodes of single calls.

    :param random: chooses the two candidates.
    """

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()  # noqa: S311 - nobody gains anything by guessing it
        self._lanes: dict[Hashable, Lane] = {}
        self._well: list[Lane] = []

    def add_node(self, node: Hashable) -> None:
        """Use *node* from now on."""
        if node not in self._lanes:
            lane = self._lanes[node] = Lane(node, 0, MAX_REQUESTS)
            self._well.append(lane)

    def remove_node(self, node: Hashable) -> None:
        """Use *node* no longer."""
        lane = self._lanes.pop(node, None)
        if lane is not None:
            lane.removed = True
            if lane in self._well:
                self._well.remove(lane)

    def set_terms(self, node: Hashable, workers: int) -> None:
        """Set how many requests *node* runs at once; 0 if it doesn't say."""
        if node in self._lanes:
            self._lanes[node].workers = workers

    def begin(self, now: float, tried: Collection[Hashable] = ()) -> Sending | None:
        """Choose the node of a call, and count the call as in flight there.

        :param tried: the nodes on which it has failed.
        :return: what to pass to :meth:`end`; it has the node. None if there is no other node.
        """
        lane = self._due(now, tried) or self._choose(tried) or self._first_back(tried)
        if lane is None:
            return None
        lane.in_flight += 1
        return Sending(Piece(0, 1, None), lane, now)

    def end(
        self, sending: Sending, now: float, *, took: float = 0.0, error: BaseException | None = None
    ) -> None:
        """Learn from the end of a call.

        :param took: how long the handler ran, in seconds; 0 if the node doesn't say.
        :param error: why it failed; None for an answer.
        """
        lane = sending.lane
        lane.in_flight -= 1
        state = rule_of(error).node if error is not None else Node.WELL
        if state in (Node.FAILED, Node.DOUBTFUL) and lane.is_down(state):
            if not lane.health.failures and not lane.removed:
                self._well.remove(lane)
            lane.health.fail(now)
        elif state is Node.WELL:
            lane.doubts = 0
            if lane.health.failures:
                lane.health.failures = 0
                if not lane.removed:
                    self._well.append(lane)
            if error is None:
                lane.learn(sending, now, took, 1)

    def _choose(self, tried: Collection[Hashable]) -> Lane | None:
        """Choose the better one of two nodes that are well."""
        well = [lane for lane in self._well if lane.node not in tried] if tried else self._well
        if len(well) < 2:
            return well[0] if well else None
        return min(self._random.sample(well, 2), key=_expected_wait)

    def _due(self, now: float, tried: Collection[Hashable]) -> Lane | None:
        """Return a node whose pause is over, and that nobody tries yet."""
        if len(self._well) == len(self._lanes):
            return None
        for lane in self._lanes.values():
            over = lane.health.failures and now >= lane.health.until
            if over and not lane.in_flight and lane.node not in tried:
                return lane
        return None

    def _first_back(self, tried: Collection[Hashable]) -> Lane | None:
        """Return the node whose pause ends first: none is well, and a call shouldn't wait for that."""
        lanes = (lane for lane in self._lanes.values() if lane.node not in tried)
        return min(lanes, key=lambda lane: lane.health.until, default=None)


class Attempts:
    """A single call, on one node after another.

    :param planner: chooses the nodes.
    :param idempotent: whether the call may run twice.
    :param until: when it times out.
    """

    def __init__(self, planner: CallPlanner, *, idempotent: bool, until: float) -> None:
        self._planner = planner
        self._idempotent = idempotent
        self._until = until
        self._tried: list[Hashable] = []
        self._failure: UwsgiError = Unavailable("the cluster has no node")

    def begin(self, now: float) -> Sending:
        """Choose the node of the next attempt; see :meth:`CallPlanner.begin`.

        :raises UwsgiError: the last error, if three nodes have failed, the call has timed out, or there is no
            other node; ``Unavailable`` if there is none at all.
        """
        if not self._tried or (len(self._tried) < MAX_FAILURES and now < self._until):
            sending = self._planner.begin(now, self._tried)
            if sending is not None:
                return sending
        raise self._failure

    def failed(self, sending: Sending, error: UwsgiError) -> None:
        """Note that an attempt has failed.

        :raises UwsgiError: *error*, if the call can't be tried on another node.
        """
        if not may_retry(error, idempotent=self._idempotent):
            raise error
        self._failure = error
        self._tried.append(sending.node)


def _expected_wait(lane: Lane) -> float:
    return (lane.in_flight + 1) * lane.service / lane.slots
