"""A simulated farm: nodes of many speeds, some of which die or turn slow, and what they make of the planner."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uwsgitwisted.errors import NoAnswer
from uwsgitwisted.planner.map import MapPlanner
from uwsgitwisted.planner.piece import Sending
from uwsgitwisted.planner.settings import Settings
from uwsgitwisted.wire.terms import KEEPALIVE


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated.

    :param nodes: how many nodes there are; each has one worker.
    :param items: how many items there are.
    :param spread: how many times as fast as the slowest node the fastest one is.
    :param cost: the mean cost of an item: seconds at speed 1.
    :param sigma: the spread of the costs, which are lognormal.
    :param network: seconds for a request, and for an answer, on the way.
    :param dying: the part of the nodes that die without a word in the middle.
    :param slowing: the part of the nodes that turn ten times slower in the middle.
    :param seed: of all that is random.
    """

    nodes: int = 1_000
    items: int = 1_000_000
    spread: float = 8.0
    cost: float = 0.2
    sigma: float = 0.5
    network: float = 0.001
    dying: float = 0.02
    slowing: float = 0.02
    seed: int = 1


#: How much slower a node turns.
_SLOWER = 10.0


@dataclass(slots=True)
class Node:
    """A node: its speed, and when it dies or turns slow."""

    name: int
    speed: float
    dies: float = float("inf")
    slows: float = float("inf")
    #: Until when its worker is busy, and how long it has been.
    free: float = 0.0
    busy: float = 0.0

    def finish(self, start: float, cost: float) -> float:
        """Return when a worker that begins at *start* has done an item."""
        end = start + cost / self.speed
        if end <= self.slows:
            return end
        if start >= self.slows:
            return start + cost * _SLOWER / self.speed
        return self.slows + (end - self.slows) * _SLOWER

    def capacity(self, until: float) -> float:
        """Return how much work it can have done by then."""
        until = min(until, self.dies)
        fast = min(until, self.slows)
        return self.speed * (fast + (until - fast) / _SLOWER)


@dataclass(slots=True)
class Farm:
    """A scenario's nodes and costs."""

    scenario: Scenario
    nodes: list[Node] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    #: When all work could be done, if nothing was ever idle or done twice.
    bound: float = 0.0

    @classmethod
    def make(cls, scenario: Scenario) -> Farm:
        """Draw the nodes and the costs."""
        chance = random.Random(scenario.seed)
        mu = -(scenario.sigma**2) / 2
        costs = [scenario.cost * chance.lognormvariate(mu, scenario.sigma) for _ in range(scenario.items)]
        nodes = [Node(name, scenario.spread ** chance.random()) for name in range(scenario.nodes)]
        about = sum(costs) / sum(node.speed for node in nodes)
        changed = chance.sample(nodes, round((scenario.dying + scenario.slowing) * scenario.nodes))
        for place, node in enumerate(changed):
            at = about * chance.uniform(0.3, 0.7)
            if place < scenario.dying * scenario.nodes:
                node.dies = at
            else:
                node.slows = at
        farm = cls(scenario, nodes, costs)
        farm.bound = farm._find_bound(sum(costs), about)
        return farm

    def _find_bound(self, work: float, about: float) -> float:
        low, high = 0.0, 100 * about
        for _ in range(60):
            middle = (low + high) / 2
            if sum(node.capacity(middle) for node in self.nodes) < work:
                low = middle
            else:
                high = middle
        return high


@dataclass(slots=True)
class Outcome:
    """How a run ended.

    :param end: when the last result was there.
    :param bound: when it could have been, at best.
    :param twice: the work that was done more than once, as a part of all.
    :param lost: how many items have no answer, or several.
    :param requests: how many requests were sent.
    :param planning: the planner's own processor time, in seconds for each request.
    :param busy: for each hundredth of the time up to the end, which part of the nodes worked.
    """

    end: float
    bound: float
    twice: float
    lost: int
    requests: int
    planning: float
    busy: list[float]

    @property
    def after(self) -> float:
        """How long after the bound it ended, as a part of the bound."""
        return self.end / self.bound - 1


#: The kinds of events.
_ARRIVES, _ENDS, _FAILS, _WAKES = range(4)


class Simulation:
    """A shell over the planner, whose time is simulated.

    :param farm: the nodes and the costs.
    :param idempotent: whether pieces may run twice.
    :param settings: the other settings of the map.
    """

    def __init__(self, farm: Farm, *, idempotent: bool = True, **settings: Any) -> None:
        self._farm = farm
        self._settings = Settings(ordered=False, idempotent=idempotent, **settings)
        self._events: list[tuple[float, int, int, Any]] = []
        self._ids = itertools.count()
        self._queues: dict[int, list[Sending]] = {}
        self._work = 0.0
        self._spans: list[tuple[float, float]] = []
        self._planning = 0.0

    def run(self) -> Outcome:
        """Run the map to its end."""
        farm = self._farm
        planner = MapPlanner(range(len(farm.costs)), self._settings, 0.0)
        for node in farm.nodes:
            planner.add_node(node.name, 0.0, workers=1)
        results = bytearray(len(farm.costs))
        requests, now, woken = 0, 0.0, float("inf")
        clock = time.thread_time
        while True:
            began = clock()
            actions = planner.poll(now)
            while (result := planner.take()) is not None:
                results[result.index] += result.error is None
            finished = planner.finished
            self._planning += clock() - began
            for sending in actions.cancel:
                sending.handle = None
            requests += len(actions.send)
            for sending in actions.send:
                sending.handle = True
                self._at(now + farm.scenario.network, _ARRIVES, sending)
            if finished:
                break
            if actions.wake is not None and not now < woken <= actions.wake:
                woken = actions.wake
                self._at(max(woken, now), _WAKES, None)
            relevant = False
            while not relevant:  # the planner hears nothing of requests that arrive at nodes
                now, relevant = self._step(planner)
            if now >= woken:
                woken = float("inf")
        answered = sum(cost for cost, count in zip(farm.costs, results, strict=True) if count)
        lost = sum(count != 1 for count in results)
        twice = max(0.0, self._work / answered - 1)  # sums of floats differ by their order
        return Outcome(now, farm.bound, twice, lost, requests, self._planning / requests, self._shares(now))

    def _at(self, when: float, kind: int, what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._ids), kind, what))

    def _step(self, planner: MapPlanner) -> tuple[float, bool]:
        """Let the next thing happen; return when it does, and whether it concerns the planner."""
        now, _, kind, sending = heapq.heappop(self._events)
        if kind == _ARRIVES:
            self._arrive(sending, now)
        elif kind == _ENDS and sending.handle is not None:
            began = time.thread_time()
            planner.answered(sending, None, now, sending.handle)
            self._planning += time.thread_time() - began
        elif kind == _FAILS and sending.handle is not None:
            planner.failed(sending, NoAnswer("dead"), now)
        return now, kind != _ARRIVES

    def _arrive(self, sending: Sending, now: float) -> None:
        """Let a worker do the request, after those that came before; a cancelled one is only skipped there."""
        node = self._farm.nodes[sending.node]  # type: ignore[call-overload]
        if node.free <= now:
            node.free = now
        if sending.handle is None:
            return
        cost = self._cost(sending)
        start = node.free
        end = node.finish(start, cost)
        node.free = min(end, max(node.dies, start))
        if end > node.dies:
            # The session's keep-alive notices it.
            self._at(max(now, node.dies) + 2 * KEEPALIVE, _FAILS, sending)
            return
        self._work += cost
        node.busy += end - start
        self._spans.append((start, end))
        sending.handle = end - start
        self._at(end + self._farm.scenario.network, _ENDS, sending)

    def _cost(self, sending: Sending) -> float:
        piece = sending.piece
        return sum(self._farm.costs[piece.index : piece.index + piece.count])

    def _shares(self, end: float) -> list[float]:
        return shares(self._spans, end, len(self._farm.nodes))


#: Into how many parts a run's time is divided, to draw it.
_PARTS = 100


def shares(spans: list[tuple[float, float]], end: float, nodes: int) -> list[float]:
    """Return how many of the nodes worked in each part of the time up to *end*."""
    width = end / _PARTS
    changes = [0.0] * (_PARTS + 1)
    busy = [0.0] * _PARTS
    for start, stop in spans:
        first, last = int(start / width), min(int(stop / width), _PARTS - 1)
        if first >= _PARTS:
            continue
        if first == last:
            busy[first] += min(stop, end) - start
            continue
        busy[first] += (first + 1) * width - start
        busy[last] += min(stop, end) - last * width
        changes[first + 1] += width
        changes[last] -= width
    level, result = 0.0, []
    for part in range(_PARTS):
        level += changes[part]
        result.append((busy[part] + level) / width / nodes)
    return result


def simulate_static(farm: Farm) -> Outcome:
    """Give each node an equal part at the beginning, as the original call does; dead nodes lose theirs."""
    return _simulate_given(farm, lambda place, items, nodes: place * nodes // items)


def simulate_round_robin(farm: Farm) -> Outcome:
    """Give each node every n-th item, in turn; the items of dead nodes are lost."""
    return _simulate_given(farm, lambda place, items, nodes: place % nodes)


def _simulate_given(farm: Farm, owner: Callable[[int, int, int], int]) -> Outcome:
    """Run a distribution that is decided before the work begins."""
    spans, lost = [], 0
    for place, cost in enumerate(farm.costs):
        node = farm.nodes[owner(place, len(farm.costs), len(farm.nodes))]
        start = max(node.free, farm.scenario.network)
        node.free = node.finish(start, cost)
        if node.free > node.dies:
            lost += 1
        else:
            spans.append((start, node.free))
    end = max(stop for _, stop in spans) + farm.scenario.network
    return Outcome(end, farm.bound, 0.0, lost, len(farm.nodes), 0.0, shares(spans, end, len(farm.nodes)))


def simulate_stealing(farm: Farm, chunk: int) -> Outcome:
    """Let each idle node take a chunk of a fixed size; a dead one's go to others when its silence is noticed.

    It is as kind as can be to this way: nodes take and return chunks without a mistake.
    """
    network, costs = farm.scenario.network, farm.costs
    queue = deque(range(0, len(costs), chunk))
    idle = [(0.0, node.name) for node in farm.nodes]
    heapq.heapify(idle)
    returned: list[tuple[float, int]] = []
    spans = []
    end = 0.0
    while queue or returned:
        now, name = heapq.heappop(idle)
        node = farm.nodes[name]
        if node.dies <= now:
            continue
        if returned and (returned[0][0] <= now or not queue):
            at, first = heapq.heappop(returned)
            now = max(now, at)
        else:
            first = queue.popleft()
        start = now + network
        stop = node.finish(start, sum(costs[first : first + chunk]))
        if stop > node.dies:
            heapq.heappush(returned, (node.dies + 2 * KEEPALIVE, first))
            continue
        spans.append((start, stop))
        end = max(end, stop + network)
        heapq.heappush(idle, (stop + network, name))
    requests = len(spans)
    return Outcome(end, farm.bound, 0.0, 0, requests, 0.0, shares(spans, end, len(farm.nodes)))
