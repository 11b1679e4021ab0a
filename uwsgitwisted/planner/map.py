"""The decisions of a map: many items over many nodes, sans-IO.

A planner gets nodes, items, the time and what became of the requests, and says what to send where. It opens no
connection, starts no timer, and reads no clock: all times are seconds of the shell's monotonic clock. A shell
drives it like this:

    planner = MapPlanner(items, Settings(...), now)
    planner.add_node(node, now)                      # at any time, as remove_node
    while True:
        actions = planner.poll(now)
        ...                                          # withdraw actions.cancel, send actions.send
        while (result := planner.take()) is not None:
            ...                                      # results that are ready; poll again afterwards
        if planner.finished:
            break
        ...                                          # wait until requests have ended, or until actions.wake
        planner.answered(sending, value, now, took)  # or planner.failed(sending, error, now)
    planner.close()                                  # to give up earlier; poll then withdraws what is in flight

``sending.node`` and ``sending.message`` say what to send where, and ``sending.handle`` is the shell's. The
shell calls ``set_terms`` when it has learned the terms of a session. It may poll as late as it likes: the
planner does nothing by itself, and ignores the ends of requests that it has cancelled. What it holds is
bounded: it takes no further item while too many results wait to be taken.

Work is pulled. A node gets as many requests as keep its workers busy, chunks take a set time, and both become
smaller when little is left. A node that would finish an item later than the others could leaves it to them.
When nothing is left to give out and the requests are idempotent, idle nodes get copies of the oldest pieces.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_args

from uwsgitwisted.errors import MisuseError, Unavailable
from uwsgitwisted.planner.items import Items
from uwsgitwisted.planner.lane import Lane
from uwsgitwisted.planner.lanes import Lanes
from uwsgitwisted.planner.piece import Actions, OnError, Piece, Result, Sending
from uwsgitwisted.planner.progress import Progress, Rate
from uwsgitwisted.planner.results import Results
from uwsgitwisted.planner.retry import Node, may_retry, rule_of
from uwsgitwisted.wire.terms import MAX_REQUESTS

#: How many nodes may fail a piece before it has failed for good.
MAX_FAILURES = 3
#: How long a chunk should take on its node, in seconds.
TARGET = 0.2
#: How much more work second copies may be, as a part of the items that were given out.
MAX_COPIES = 0.05
#: Results that wait, and pieces in flight, at the least; and for each request that nodes may have in flight.
_WINDOW, _WINDOW_FACTOR = 1_000, 8
#: Seconds between two looks at all nodes that are idle while there is work for others, and for each node that a
#: look has to look at: it takes a tenth of that.
_LOOK_AGAIN, _LOOK_COST = 0.02, 2e-5
#: How many pieces are looked at for one decision, and how many idle nodes between two looks at all of them.
_MOST_PIECES, _MOST_IDLE = 8, 2


@dataclass(frozen=True, slots=True)
class Settings:
    """How a map works.

    :param ordered: whether results come in the order of the items.
    :param chunked: whether a request carries a chunk of items.
    :param chunk: how many items a chunk has; None to size chunks by time.
    :param target: how long a chunk should take, in seconds.
    :param idempotent: whether an item may run twice.
    :param on_error: with ``"raise"``, nothing more is done behind an item that has failed.
    :param timeout: seconds for each request, which the shell enforces. If no node is well for so long, the map
        ends with ``Unavailable``.
    :raises MisuseError: if the values don't fit together.
    """

    ordered: bool = True
    chunked: bool = False
    chunk: int | None = None
    target: float = TARGET
    idempotent: bool = False
    on_error: OnError = "return"
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.chunk is not None and (type(self.chunk) is not int or self.chunk < 1):
            raise MisuseError(f"chunk is {self.chunk!r}; it is a number of items from 1, or None")
        if self.chunk not in (None, 1) and not self.chunked:
            raise MisuseError("without chunked=True a handler gets one item, so chunk can only be 1")
        if self.on_error not in get_args(OnError):
            raise MisuseError(f"on_error is {self.on_error!r}; it is 'raise' or 'return'")


class MapPlanner:
    """Decides for one map.

    :param items: the items.
    :param settings: how the map works.
    :param now: the time.
    :raises MisuseError: if *items* can't be iterated over.
    """

    def __init__(self, items: Iterable[Any], settings: Settings, now: float) -> None:
        self._items = Items(items, chunked=settings.chunked)
        self._settings = settings
        self._lanes = Lanes(now)
        self._look_at = math.inf
        self._looked_at = now
        #: The pieces to be given out again, those in flight, and of those the ones without a second copy.
        self._retries: deque[Piece] = deque()
        self._flying: dict[Piece, None] = {}
        self._single: OrderedDict[Piece, None] = OrderedDict()
        self._copied = 0
        self._results = Results(ordered=settings.ordered)
        #: How many pieces have begun whose results were not taken.
        self._open = 0
        self._send: list[Sending] = []
        self._cancel: list[Sending] = []
        self._done = self._failed = 0
        self._began = now
        self._rate = Rate(now)
        self._failure: BaseException | None = None
        self._last_error: BaseException | None = None
        #: Whether the map was closed, or has ended with an error.
        self.closed = False

    # Nodes

    def add_node(self, node: Hashable, now: float, *, workers: int = 0, most: int = MAX_REQUESTS) -> None:
        """Use *node* from now on.

        :param workers: how many requests it runs at once; 0 if that is not known.
        :param most: how many requests it accepts from one client.
        """
        self._lanes.add(node, workers, most, now)

    def remove_node(self, node: Hashable, now: float) -> None:
        """Give *node* no further pieces. Those that it has are still its own."""
        self._lanes.remove(node, now)

    def set_terms(self, node: Hashable, workers: int, most: int, now: float) -> None:
        """Set what *node* says about itself in its session's terms.

        :param workers: how many requests it runs at once; 0 if it doesn't say.
        :param most: how many requests it accepts from one client.
        """
        self._lanes.set_terms(node, workers, most, now)

    # What became of requests

    def answered(self, sending: Sending, value: object, now: float, took: float = 0.0) -> None:
        """Handle the answer to a request.

        :param value: the handler's answer.
        :param took: how long the handler ran, in seconds; 0 if the node doesn't say.
        """
        if not self._end(sending):
            return
        lane = sending.lane
        self._lanes.learn(lane, sending, now, took)
        piece = sending.piece
        self._done += piece.count
        self._settle(piece, Result(piece.index, value, None, lane.node, now - sending.at, piece.count))

    def failed(self, sending: Sending, error: BaseException, now: float) -> None:
        """Handle the failure of a request; :data:`~uwsgitwisted.planner.retry.RULES` says what follows."""
        if not self._end(sending):
            return
        lane, piece = sending.lane, sending.piece
        rule = rule_of(error)
        self._last_error = error
        if rule.node is Node.WELL:
            self._lanes.recover(lane, now)
        else:
            self._lanes.blame(lane, rule.node, now)
        self._lanes.adapt(lane, now)
        if may_retry(error, idempotent=self._settings.idempotent):
            self._try_again(piece, lane, error)
            if piece.sent or len(piece.failed_on) < MAX_FAILURES:
                return
        self._failed += piece.count
        self._settle(piece, Result(piece.index, None, error, lane.node, now - sending.at, piece.count))
        if self._settings.on_error == "raise":
            self._stop_behind(piece.index)

    def poll(self, now: float) -> Actions:
        """Decide.

        :return: what to do now.
        """
        if not self.closed:
            self._lanes.end_pauses(now)
            self._fill(now)
            if not self.finished and self._is_down(now):
                self._give_up(now)
        sent, cancelled = self._send, self._cancel
        if sent:
            self._send = []
        if cancelled:
            self._cancel = []
        return Actions(sent, cancelled, self._wake())

    # Results

    def take(self) -> Result | None:
        """Return the next result that is ready; None if there is none now.

        :raises BaseException: what reading the items has raised, or ``Unavailable`` if no node was well for too
            long. The map has ended then; poll once more for what is in flight.
        """
        if self._results.ready:
            self._open -= 1
            return self._results.ready.popleft()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return None

    @property
    def ready(self) -> bool:
        """Whether :meth:`take` has something."""
        return bool(self._results.ready) or self._failure is not None

    @property
    def finished(self) -> bool:
        """Whether every result has been taken, or the map was closed."""
        return self.closed or (self._items.exhausted and not self._open)

    def close(self) -> None:
        """Give up: withdraw all that is in flight, with the next poll."""
        if not self.closed:
            self.closed = True
            self._items.close()
            for piece in self._flying:
                self._withdraw(piece)
            self._flying.clear()
            self._single.clear()
            self._retries.clear()

    def progress(self, now: float) -> Progress:
        """Return how far the map is."""
        total = self._items.total
        over = self._done + self._failed
        rate = self._rate.update(over, now)
        left = None if total is None else total - over
        remaining = 0.0 if left == 0 else left / rate if left and rate > 0 else None
        return Progress(
            self._done, self._failed, total, rate, remaining, now - self._began, self._lanes.progress()
        )

    # Inside: what became of pieces

    def _end(self, sending: Sending) -> bool:
        """Count a request as ended; return whether it still was in flight."""
        if sending.over:
            return False
        self._take_off(sending)
        return True

    def _take_off(self, sending: Sending) -> None:
        sending.over = True
        sending.piece.sent.remove(sending)
        self._lanes.take_off(sending)

    def _withdraw(self, piece: Piece) -> None:
        """Cancel the requests that still carry *piece*."""
        for sending in piece.sent[:]:
            self._take_off(sending)
            self._cancel.append(sending)

    def _settle(self, piece: Piece, result: Result) -> None:
        """Keep the result of *piece*, and cancel its other copy."""
        self._flying.pop(piece, None)
        if self._settings.idempotent:
            self._single.pop(piece, None)
        if piece.sent:
            for sending in piece.sent:
                sending.lane.late = True
            self._withdraw(piece)
        self._results.add(result)

    def _try_again(self, piece: Piece, lane: Lane, error: BaseException) -> None:
        """Count the failure of *piece*, and put it in the queue unless another copy of it is in flight."""
        # That a node has no room, or is still down, says nothing about the piece.
        started = not may_retry(error, idempotent=False)
        if started or not (isinstance(error, Unavailable) or lane.node in piece.failed_on):
            piece.failed_on.append(lane.node)
        if len(piece.failed_on) >= MAX_FAILURES:
            return
        if piece.sent:
            self._single[piece] = None
            return
        self._flying.pop(piece, None)
        self._single.pop(piece, None)
        self._retries.append(piece)

    def _stop_behind(self, index: int) -> None:
        """Drop all pieces behind *index*: nobody will see their results."""
        self._items.close()
        dropped = [piece for piece in self._flying if piece.index > index]
        for piece in dropped:
            self._withdraw(piece)
            del self._flying[piece]
            self._single.pop(piece, None)
        kept = [piece for piece in self._retries if piece.index < index]
        later = self._results.drop_behind(index)
        self._open -= len(dropped) + len(self._retries) - len(kept) + later
        self._retries = deque(kept)

    # Inside: what to give out

    def _fill(self, now: float) -> None:
        """Give work to the nodes that have room."""
        look = self._look_at <= now
        if look:
            self._looked_at = now
        self._look_at = math.inf
        dirty, self._lanes.dirty = self._lanes.dirty, {}
        for lane in dirty:
            self._fill_lane(lane, now)
        if self._lanes.idle and self._has_work():
            if look:
                idle = sorted(self._lanes.idle, key=lambda lane: lane.service)
            else:
                idle = list(islice(self._lanes.idle, _MOST_IDLE))
            for lane in idle:
                self._fill_lane(lane, now)
                if not self._has_work():
                    break
            if self._lanes.idle and self._has_work():
                self._look_at = self._looked_at + _LOOK_AGAIN + _LOOK_COST * len(self._lanes.idle)

    def _has_work(self) -> bool:
        """Whether there is something that some node could be given."""
        return bool(self._retries or self._may_begin or self._may_copy)

    @property
    def _may_begin(self) -> bool:
        """Whether a further item may be taken."""
        return not self._items.exhausted and self._open < max(_WINDOW, _WINDOW_FACTOR * self._lanes.slots)

    @property
    def _may_copy(self) -> bool:
        """Whether a piece may be given to a second node: nothing else is left to give out."""
        return bool(
            self._settings.idempotent
            and self._single
            and not self._retries
            and self._copied < max(1.0, MAX_COPIES * self._items.taken)
        )

    def _fill_lane(self, lane: Lane, now: float) -> None:
        since = self._lanes.idle.pop(lane, now)
        if lane.late:
            lane.adapt(now)
        while lane.in_flight < lane.limit:
            piece = self._retry_for(lane) if self._retries else None
            if piece is None and self._may_begin and self._worthwhile(lane, now, since):
                piece = self._begin(lane)
            if piece is None and self._may_copy and not self._may_begin:
                piece = self._copy_for(lane, now, since)
            if piece is None:
                if lane.limit and not lane.removed:
                    self._lanes.idle[lane] = since
                return
            self._give(piece, lane, now)

    def _give(self, piece: Piece, lane: Lane, now: float) -> None:
        lane.in_flight += 1
        if piece.count != lane.chunk:  # of larger chunks, a node gets fewer ahead
            lane.chunk = piece.count
            self._lanes.adapt(lane, now)
        sending = Sending(piece, lane, now)
        if piece.sent:
            self._copied += piece.count
            self._single.pop(piece, None)
        else:
            piece.sent_at = now
            self._flying[piece] = None
            if self._settings.idempotent:
                self._single[piece] = None
        piece.sent.append(sending)
        self._send.append(sending)

    def _begin(self, lane: Lane) -> Piece | None:
        """Take the next item or chunk."""
        settings, items = self._settings, self._items
        count = 1
        if settings.chunked:
            share = items.left * lane.rate / (2 * self._lanes.speed) if self._lanes.speed > 0 else math.inf
            count = settings.chunk or lane.size(settings.target, share)
        index = items.taken
        try:
            got, message = items.take(count)
        except Exception as error:  # the user's generator raised
            self._fail_all(error)
            return None
        if not got:
            return None
        self._open += 1
        return Piece(index, got, message)

    def _worthwhile(self, lane: Lane, now: float, since: float) -> bool:
        """Whether the map gains when *lane* does a further item, rather than leaving it to faster nodes.

        :param since: how long the node has had nothing to do: others that seem faster may just hang.
        """
        if self._lanes.speed <= 0 or not lane.answers:
            return True
        # All others need about so long for the rest: what they do at the same time, and one item more each.
        others = (self._items.left + self._lanes.usable) / self._lanes.speed
        finishes = lane.service * (lane.in_flight // lane.slots + 1)
        return finishes <= others or (not lane.in_flight and now - since >= others)

    def _retry_for(self, lane: Lane) -> Piece | None:
        """Take a piece that is to be tried again from the queue, if *lane* may have one."""
        for place, piece in enumerate(islice(self._retries, _MOST_PIECES)):
            if self._lanes.may_retry_on(lane, piece):
                del self._retries[place]
                return piece
        return None

    def _copy_for(self, lane: Lane, now: float, since: float) -> Piece | None:
        """Return the oldest piece of which *lane* may have a second copy.

        There is no third one, so a node that is slower than the average leaves it to the others for a moment.

        :param since: how long the node has had nothing to do.
        """
        if not lane.answers or lane.late or not lane.usable or lane.in_flight >= max(1, int(lane.slots)):
            return None
        if lane.service * self._lanes.speed > self._lanes.usable and now - since < 2 * lane.service:
            return None
        for piece in islice(self._single, _MOST_PIECES):
            [sending] = piece.sent
            other = sending.lane
            if other is lane or lane.node in piece.failed_on:
                continue
            if lane.service * piece.count <= max(now - piece.sent_at, other.service * piece.count):
                return piece
        return None

    # Inside: the end

    def _is_down(self, now: float) -> bool:
        return not self._lanes.usable and now - self._lanes.down_since >= self._settings.timeout

    def _give_up(self, now: float) -> None:
        text = f"no node was well for {self._settings.timeout:g} s"
        if not self._lanes:
            text = f"there was no node for {self._settings.timeout:g} s"
        failure = Unavailable(f"{text}: {self._last_error}" if self._last_error else text)
        failure.__cause__ = self._last_error
        self._fail_all(failure)

    def _fail_all(self, failure: BaseException) -> None:
        self._failure = failure
        self.close()

    def _wake(self) -> float | None:
        if self.finished:
            return None
        wake = min(self._look_at, self._lanes.next_pause())
        if not self._lanes.usable:
            wake = min(wake, self._lanes.down_since + self._settings.timeout)
        return None if wake == math.inf else wake
