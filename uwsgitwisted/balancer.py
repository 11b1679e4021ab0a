"""Chooses which of several nodes gets the next request, sans-IO: it opens no connection and starts no timer.

The node with the fewest requests in flight is next, and of those the one that has waited longest. A node that
fails is left out for a while, and longer each time, until somebody has seen that it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

N = TypeVar("N", bound=Hashable)

#: Seconds for which a node is left out after its first failure. The pause doubles with each further one, up to
#: the limit: looking after a dead node every few seconds costs nothing, and a node that is back is used soon.
FIRST_PAUSE, MAX_PAUSE = 0.5, 8.0
#: A float can't be doubled without end: after a thousand times it overflows.
_MAX_DOUBLINGS = 10


@dataclass(slots=True)
class Health:
    """Whether a node is well, or is left out for a pause.

    :param failures: how often it has failed since it was well.
    :param until: when the pause after the last failure ends; only if there are failures.
    """

    failures: int = 0
    until: float = 0.0

    def fail(self, now: float) -> bool:
        """Leave the node out for a pause, or for a longer one.

        A failure within the pause changes nothing: requests that were on their way to the node fail as well.

        :return: whether that is a new pause.
        """
        if self.failures and now < self.until:
            return False
        self.until = now + min(FIRST_PAUSE * 2 ** min(self.failures, _MAX_DOUBLINGS), MAX_PAUSE)
        self.failures += 1
        return True


@dataclass(slots=True)
class _State(Health):
    """What is known about a node.

    :param in_flight: how many requests it has.
    :param chosen: when it was chosen last, as the number of that choice.
    """

    in_flight: int = 0
    chosen: int = 0


class Balancer(Generic[N]):
    """The nodes, with their requests in flight and their health.

    :param nodes: the nodes; all count as well at first.
    :param seconds: a monotonic clock.
    :param limit: how many requests a node may have in flight.
    """

    def __init__(self, nodes: Iterable[N], seconds: Callable[[], float], limit: int) -> None:
        self._seconds = seconds
        self._limit = limit
        self._states = {node: _State() for node in nodes}
        self._choices = 0

    def choose(self, excluded: Collection[N] = ()) -> N | None:
        """Choose the node for a request, and count the request as in flight there.

        :param excluded: nodes that were tried already. A request that has failed there needs no room: it has
            waited once.
        :return: the node; None if no other one is well, or none has room.
        """
        usable = [
            (state.in_flight, state.chosen, node)
            for node, state in self._states.items()
            if not state.failures and node not in excluded and (excluded or state.in_flight < self._limit)
        ]
        if not usable:
            return None
        node = min(usable, key=lambda each: each[:2])[2]
        self._choices += 1
        state = self._states[node]
        state.chosen = self._choices
        state.in_flight += 1
        return node

    @property
    def any_well(self) -> bool:
        """Whether a node is well, with room or not."""
        return any(not state.failures for state in self._states.values())

    def finish(self, node: N) -> None:
        """Count a request of *node* as no longer in flight."""
        self._states[node].in_flight -= 1

    def fail(self, node: N) -> bool:
        """Leave *node* out for a pause, or for a longer one, as :meth:`Health.fail` does.

        :return: whether the node was well before.
        """
        state = self._states[node]
        return state.fail(self._seconds()) and state.failures == 1

    def fail_unless_last(self, node: N) -> bool:
        """Leave *node* out because it is late, unless no other one is well: it may just be busy.

        :return: whether the node was well before, and is left out now.
        """
        others = any(not state.failures for each, state in self._states.items() if each != node)
        return (others or bool(self._states[node].failures)) and self.fail(node)

    def recover(self, node: N) -> bool:
        """Use *node* again.

        :return: whether it was left out before.
        """
        state = self._states[node]
        failed = bool(state.failures)
        state.failures = 0
        return failed

    def pause(self, node: N) -> float | None:
        """Return for how many seconds *node* is still left out; None if it is well.

        0 means that somebody should see whether it is back.
        """
        state = self._states[node]
        return max(0.0, state.until - self._seconds()) if state.failures else None

    @property
    def shortest_pause(self) -> float:
        """Seconds until the first node may be well again."""
        return min((self.pause(node) or 0.0 for node in self._states), default=0.0)
