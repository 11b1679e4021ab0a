"""What a map learns about one node: its speed, and how many requests it needs in flight."""

from __future__ import annotations

import math
from collections.abc import Hashable

from uwsgitwisted.balancer import Health
from uwsgitwisted.planner.piece import Sending
from uwsgitwisted.planner.retry import Node

#: Seconds of work that a node has waiting, so that its workers don't idle while an answer and the next request
#: are on their way. It is twice the time on the way if that is more.
_AHEAD = 0.005
#: How many requests may wait for each worker. More of them would only make the session's queues longer.
_MOST_AHEAD = 64
#: How many requests a node gets at most if it doesn't say how many workers it has.
_MOST_UNKNOWN = 64
#: The weight of a new measurement of the service time: after a change, ten answers show most of it.
_WEIGHT = 0.2
#: From so many answers on, the limit of requests in flight is set only at every few of them.
_MANY_ANSWERS, _ADAPT_EVERY = 64, 8
#: How many times larger than the largest answered chunk or bundle the next one may be, until its time is known
#: well.
_GROWTH = 8
#: How long a bundle should take, in seconds: many times what a message costs. With fewer items than so many, a
#: bundle would save too little.
_BUNDLE_TIME, _LEAST_BUNDLE = 0.002, 4


class Lane:
    """A node, as one map sees it.

    :param node: the node.
    :param workers: how many requests it runs at once; 0 if that is not known.
    :param most: how many requests it accepts.
    :param bundle: how many items it accepts in a bundle; 0 if it accepts none.
    """

    __slots__ = (
        "_growing",
        "_network",
        "_quickest",
        "_room",
        "answers",
        "bundle",
        "chunk",
        "done",
        "doubts",
        "failures",
        "health",
        "in_flight",
        "largest",
        "late",
        "limit",
        "most",
        "node",
        "rate",
        "removed",
        "results",
        "service",
        "workers",
    )

    def __init__(self, node: Hashable, workers: int, most: int, bundle: int = 0) -> None:
        self.node = node
        self.bundle = bundle
        self.workers = workers
        self.most = most
        self.health = Health()
        self.in_flight = 0
        #: How many requests it may have in flight now.
        self.limit = 1
        #: How long a worker needs for an item, in seconds; 0 before the first answer.
        self.service = 0.0
        #: How many items it does in a second.
        self.rate = 0.0
        #: How many items its last piece had, and how many of them get results of their own.
        self.chunk = 0
        self.results = 1
        #: How many items its largest answered piece had.
        self.largest = 0
        self.answers = 0
        self.done = 0
        self.failures = 0
        #: How many requests have failed since its last answer.
        self.doubts = 0
        #: Whether another node has overtaken it with a piece, and it has answered nothing since.
        self.late = False
        #: Whether it has left, and gets no further pieces.
        self.removed = False
        #: The shortest time on the way, and the shortest time for an answer.
        self._network = math.inf
        self._quickest = math.inf
        #: How many requests it had room for when it refused one, and a little more after each answer.
        self._room = float(most)
        #: How many requests a node takes that doesn't say how many workers it has.
        self._growing = 1.0

    @property
    def slots(self) -> float:
        """How many requests run at once there, as far as that is known."""
        return self.workers or self._growing

    @property
    def usable(self) -> bool:
        """Whether it is well and stays."""
        return not self.health.failures and not self.removed

    @property
    def capacity(self) -> int:
        """How many results may be on their way from it."""
        return self.limit * self.results

    def learn(self, sending: Sending, now: float, took: float, count: int) -> None:
        """Learn from an answer.

        :param took: how long the handler ran, in seconds; 0 if the node doesn't say.
        :param count: how many items were handled.
        """
        wall = max(now - sending.at, 0.0)
        if 0 < took <= wall:
            self._network = min(self._network, wall - took)
        else:  # what ran at the same time has shared the workers
            took = wall / max(1.0, sending.queued / self.slots)
        each = max(took / count, 1e-7)
        self.service = each if not self.answers else self.service + _WEIGHT * (each - self.service)
        if not self.workers:
            self._grow(sending, wall / count, took / count)
        if self._room < self.most:  # it had no room; perhaps it has by now
            self._room += 1 / self._room
        self.answers += 1
        self.largest = max(self.largest, count)
        self.late = False
        self.doubts = 0
        self.rate = self.slots / self.service
        # Nothing changes much from one answer to the next, once there are many.
        if self.answers < _MANY_ANSWERS or self.limit <= 1 or not self.answers % _ADAPT_EVERY:
            self.adapt(now)

    def _grow(self, sending: Sending, wall: float, took: float) -> None:
        """Change the number of requests in flight of a node that doesn't say how many workers it has.

        It grows while answers come as soon as they did with few in flight, and shrinks when they wait.
        """
        self._quickest = min(self._quickest, wall)
        if wall > 2 * max(self._quickest, took):
            self._growing = max(1.0, self._growing - 0.5 / self._growing)
        elif sending.queued >= int(self._growing):
            self._growing = min(_MOST_UNKNOWN, self._growing + 1.0 / self._growing)

    def adapt(self, now: float) -> None:
        """Set the limit of requests in flight."""
        if self.removed:
            self.limit = 0
        elif self.health.failures:  # one request shows whether it is back
            self.limit = int(now >= self.health.until)
        elif self.late:
            self.limit = 1
        else:
            wanted = self._wanted() if self.answers else max(1, self.workers)
            self.limit = min(wanted, self.most, int(self._room))

    def _wanted(self) -> int:
        slots = self.slots
        if not self.workers:
            return math.ceil(slots)
        ahead = _AHEAD if self._network > 1 else max(_AHEAD, 2 * self._network)
        waiting = slots * ahead / (self.service * max(self.chunk, 1))
        return int(slots + min(max(1, math.ceil(waiting)), _MOST_AHEAD * slots))

    def is_down(self, state: Node) -> bool:
        """Whether a request that failed shows that the node is down.

        In plain uwsgi, a handler that raises looks the same. So only the second time in a row counts.
        """
        self.doubts += 1
        return state is Node.FAILED or self.doubts > 1

    def shrink(self) -> None:
        """Take it that one request less is all that the node has room for at present."""
        self._room = max(1.0, self.in_flight)

    def bundle_size(self, share: float) -> int:
        """Return how many items its next bundle has; 1 if it gets none.

        :param share: how many items are this node's at most.
        """
        if not self.bundle or not self.answers:
            return 1
        wanted = min(_BUNDLE_TIME / self.service, self.largest * _GROWTH, share / self.slots, self.bundle)
        return int(wanted) if wanted >= _LEAST_BUNDLE else 1

    def size(self, seconds: float, share: float) -> int:
        """Return how many items its next chunk has.

        :param seconds: how long a worker should need for it.
        :param share: how many items are this node's at most.
        """
        if not self.answers:
            return 1
        wanted = min(seconds / self.service, self.largest * _GROWTH)
        least = min(wanted, _AHEAD / self.service)
        return max(1, int(min(wanted, max(share / self.slots, least))))
