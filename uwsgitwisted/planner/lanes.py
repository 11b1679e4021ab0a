"""All nodes of a map: which are well, how fast they are together, and which have room."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable

from uwsgitwisted.planner.lane import Lane
from uwsgitwisted.planner.piece import Piece, Sending
from uwsgitwisted.planner.progress import NodeProgress
from uwsgitwisted.planner.retry import Node


class Lanes:
    """The nodes, with sums over them that take no longer with more nodes.

    :param now: the time.
    """

    def __init__(self, now: float) -> None:
        self._lanes: dict[Hashable, Lane] = {}
        #: How many nodes are well, and how many of those have answered.
        self.usable = self.proven = 0
        #: How many items the nodes that are well do in a second, and how many results may be on their way.
        self.speed = 0.0
        self.capacity = 0
        #: The nodes that may have room.
        self.dirty: dict[Lane, None] = {}
        #: The nodes for which there was nothing, and since when.
        self.idle: dict[Lane, float] = {}
        #: Since when no node is well, if none is.
        self.down_since = now
        #: The nodes that are left out, by the end of their pauses.
        self._pauses: list[tuple[float, int, Lane]] = []
        self._pause_ids = 0

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def add(self, node: Hashable, workers: int, most: int, bundle: int, now: float) -> None:
        """Use *node* from now on."""
        lane = self._lanes.get(node)
        if lane is None:
            lane = self._lanes[node] = Lane(node, workers, most, bundle)
            self._count(lane, 1, now)
        elif lane.removed:
            lane.removed = False
            self._count(lane, 1, now)
        self.adapt(lane, now)

    def remove(self, node: Hashable, now: float) -> None:
        """Give *node* nothing more; forget it when it has nothing in flight."""
        lane = self._lanes.get(node)
        if lane is None or lane.removed:
            return
        self._count(lane, -1, now)
        lane.removed = True
        self.adapt(lane, now)
        self._forget_if_gone(lane)

    def set_terms(self, node: Hashable, workers: int, most: int, bundle: int, now: float) -> None:
        """Set what *node* says about itself."""
        lane = self._lanes.get(node)
        if lane is not None and (workers, most, bundle) != (lane.workers, lane.most, lane.bundle):
            lane.workers, lane.most, lane.bundle = workers, most, bundle
            self.adapt(lane, now)

    def adapt(self, lane: Lane, now: float, piece: Piece | None = None) -> None:
        """Set how many requests a node may have, and have it looked at.

        :param piece: what it gets next, if that has another size than the last one.
        """
        before = lane.capacity
        if piece is not None:
            lane.chunk, lane.results = piece.count, piece.results
        lane.adapt(now)
        if lane.usable:
            self.capacity += lane.capacity - before
        self.dirty[lane] = None

    def learn(self, sending: Sending, now: float, took: float, count: int) -> None:
        """Learn from an answer, and use the node again if it was left out.

        :param count: how many items were handled.
        """
        lane = sending.lane
        self.recover(lane, now)
        rate, capacity, first = lane.rate, lane.capacity, not lane.answers
        lane.learn(sending, now, took, count)
        if lane.usable:
            self.speed += lane.rate - rate
            self.capacity += lane.capacity - capacity
            self.proven += first
        self.dirty[lane] = None

    def recover(self, lane: Lane, now: float) -> None:
        """Use a node again that has answered."""
        lane.doubts = 0
        if lane.health.failures:
            lane.health.failures = 0
            if not lane.removed:
                self._count(lane, 1, now)

    def blame(self, lane: Lane, state: Node, now: float) -> None:
        """Leave a node out that has failed, or give it fewer requests if it was full."""
        lane.failures += 1
        if state is Node.FULL and lane.in_flight:
            lane.shrink()
        elif lane.is_down(state):
            if lane.usable:
                self._count(lane, -1, now)
            if lane.health.fail(now):
                self._pause_ids += 1
                heapq.heappush(self._pauses, (lane.health.until, self._pause_ids, lane))

    def end_pauses(self, now: float) -> None:
        """Have those nodes tried whose pauses are over."""
        while self._pauses and self._pauses[0][0] <= now:
            lane = heapq.heappop(self._pauses)[2]
            if lane.health.failures:
                self.adapt(lane, now)

    def take_off(self, sending: Sending) -> None:
        """Count a request as no longer in flight."""
        lane = sending.lane
        lane.in_flight -= 1
        self.dirty[lane] = None
        self._forget_if_gone(lane)

    def may_retry_on(self, lane: Lane, piece: Piece) -> bool:
        """Whether *piece*, which has failed elsewhere, goes to *lane*.

        Nodes that are well and haven't failed it come first, and of those the ones that have ever answered.
        """
        failed = {self._lanes[node] for node in piece.failed_on if node in self._lanes}
        failed = {each for each in failed if each.usable}
        if lane.node in piece.failed_on and self.usable > len(failed):
            return False
        proven = lane.usable and lane.answers
        return bool(proven) or self.proven <= sum(1 for each in failed if each.answers)

    def next_pause(self) -> float:
        """Return when the first pause ends; infinite if there is none."""
        return self._pauses[0][0] if self._pauses else math.inf

    def progress(self) -> tuple[NodeProgress, ...]:
        """Return the numbers of each node."""
        return tuple(
            NodeProgress(
                lane.node, lane.done, lane.rate, lane.in_flight, lane.failures, bool(lane.health.failures)
            )
            for lane in self._lanes.values()
        )

    def _count(self, lane: Lane, sign: int, now: float) -> None:
        """Count a node that becomes usable, or is no longer."""
        if lane.health.failures:
            return
        self.usable += sign
        self.speed += sign * lane.rate
        self.capacity += sign * lane.capacity
        if lane.answers:
            self.proven += sign
        if not self.usable:
            self.down_since = now

    def _forget_if_gone(self, lane: Lane) -> None:
        if lane.removed and not lane.in_flight:
            self._lanes.pop(lane.node, None)
            self.idle.pop(lane, None)
            self.dirty.pop(lane, None)
