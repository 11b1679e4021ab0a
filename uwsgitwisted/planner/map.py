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

``sending.node`` says where to send a request, ``sending.request`` what to send, or ``sending.message`` if that
is None. ``sending.decode`` makes the value of the answer, and ``sending.handle`` is the shell's. The shell
calls ``set_terms`` when it has learned the terms of a session. It may poll as late as it likes: the planner
does nothing by itself, and ignores the ends of requests that it has cancelled. What it holds is bounded: it
takes no further item while too many results wait to be taken.

Work is pulled. A node gets as many requests as keep its workers busy, chunks take a set time, and both become
smaller when little is left. A node that would finish an item later than the others could leaves it to them.
Tiny items go to a node several at a time, in bundles, but each has a result of its own. When nothing
is left to give out and the requests are idempotent, idle nodes get copies of the oldest pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import islice
from typing import Any

from uwsgitwisted.errors import MalformedAnswer, Unavailable, UnknownModifier
from uwsgitwisted.planner.lane import Lane
from uwsgitwisted.planner.lanes import Lanes
from uwsgitwisted.planner.piece import Actions, Piece, Result, Sending
from uwsgitwisted.planner.progress import Progress, Rate
from uwsgitwisted.planner.results import Results
from uwsgitwisted.planner.retry import Node, may_retry, rule_of
from uwsgitwisted.planner.settings import Settings
from uwsgitwisted.planner.work import Work
from uwsgitwisted.wire.bundle import Outcome
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.terms import MAX_REQUESTS

#: Seconds between two looks at all nodes that are idle while there is work for others, and for each node that a
#: look has to look at: it takes a tenth of that.
_LOOK_AGAIN, _LOOK_COST = 0.02, 2e-5
#: How many idle nodes are looked at between two looks at all of them.
_MOST_IDLE = 2


class MapPlanner:
    """Decides for one map.

    :param items: the items.
    :param settings: how the map works.
    :param now: the time.
    :param encode: makes the request of an item; without it there are no bundles.
    :raises MisuseError: if *items* can't be iterated over.
    """

    def __init__(
        self,
        items: Iterable[Any],
        settings: Settings,
        now: float,
        encode: Callable[[Any], Packet] | None = None,
    ) -> None:
        self._settings = settings
        self._lanes = Lanes(now)
        self._work = Work(items, settings, self._lanes, encode)
        self._look_at = math.inf
        self._looked_at = now
        self._results = Results(ordered=settings.ordered)
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

    def add_node(
        self, node: Hashable, now: float, *, workers: int = 0, most: int = MAX_REQUESTS, bundle: int = 0
    ) -> None:
        """Use *node* from now on.

        :param workers: how many requests it runs at once; 0 if that is not known.
        :param most: how many requests it accepts from one client.
        :param bundle: how many items it accepts in a bundle; 0 if it accepts none.
        """
        self._lanes.add(node, workers, most, bundle, now)

    def remove_node(self, node: Hashable, now: float) -> None:
        """Give *node* no further pieces. Those that it has are still its own."""
        self._lanes.remove(node, now)

    def set_terms(self, node: Hashable, workers: int, most: int, now: float, bundle: int = 0) -> None:
        """Set what *node* says about itself in its session's terms; see :meth:`add_node`."""
        self._lanes.set_terms(node, workers, most, bundle, now)

    # What became of requests

    def answered(self, sending: Sending, value: Any, now: float, took: float = 0.0) -> None:
        """Handle the answer to a request.

        :param value: the handler's answer; of a bundle, the outcomes.
        :param took: how long the handler ran, in seconds; 0 if the node doesn't say.
        """
        lane, piece = sending.lane, sending.piece
        if piece.bundled and len(value) > piece.count:
            self.failed(sending, MalformedAnswer("a bundle's answer has more outcomes than it has items"), now)
        elif self._end(sending):
            self._lanes.learn(sending, now, took, len(value) if piece.bundled else piece.count)
            self._conclude(piece)
            if piece.bundled:
                self._take_apart(piece, value, lane, now - sending.at)
            else:
                self._add_value(piece.index, value, lane, now - sending.at, piece.count)

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
        if piece.bundled and isinstance(error, UnknownModifier):  # another server by now; nothing was started
            lane.bundle = 0
            self._work.queue(piece, alone=True)
        else:
            self._fail(piece, lane, error, now - sending.at)
        self._lanes.adapt(lane, now)

    def poll(self, now: float) -> Actions:
        """Decide.

        :return: what to do now.
        """
        if not self.closed:
            self._lanes.end_pauses(now)
            self._work.resume()
            self._fill(now)
            if not self.finished and self._is_down(now):
                self._give_up(now)
        sent, cancelled = self._send, self._cancel
        if sent:
            self._send = []
        if cancelled:
            self._cancel = []
        return Actions(sent, cancelled, self._wake(now))

    # Results

    def take(self) -> Result | None:
        """Return the next result that is ready; None if there is none now.

        :raises BaseException: what reading the items has raised, or ``Unavailable`` if no node was well for too
            long. The map has ended then; poll once more for what is in flight.
        """
        if self._results.ready:
            self._work.open -= 1
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
        return self.closed or (self._work.items.exhausted and not self._work.open)

    def close(self) -> None:
        """Give up: withdraw all that is in flight, with the next poll."""
        if not self.closed:
            self.closed = True
            for piece in self._work.clear():
                self._withdraw(piece)

    def progress(self, now: float) -> Progress:
        """Return how far the map is."""
        total = self._work.items.total
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

    def _conclude(self, piece: Piece) -> None:
        """Note that *piece* has its results, and cancel its other copy."""
        self._work.conclude(piece)
        if piece.sent:
            for sending in piece.sent:
                sending.lane.late = True
            self._withdraw(piece)

    def _add_value(self, index: int, value: object, lane: Lane, seconds: float, count: int = 1) -> None:
        lane.done += count
        self._done += count
        self._results.add(Result(index, value, None, lane.node, seconds, count))

    def _take_apart(self, piece: Piece, outcomes: Sequence[Outcome], lane: Lane, seconds: float) -> None:
        """Handle the outcomes of a bundle, and give out again what the node has not begun."""
        for place, (value, error) in enumerate(outcomes):
            if error is None:
                self._add_value(piece.index + place, value, lane, seconds)
                continue
            error.address = error.address or lane.node
            if self._fail(piece.part(place), lane, error, seconds) and self._settings.on_error == "raise":
                self._work.open -= piece.count - place - 1
                return
        self._work.put_back(piece.part(place) for place in range(len(outcomes), piece.count))

    def _fail(self, piece: Piece, lane: Lane, error: BaseException, seconds: float) -> bool:
        """Try a piece again that has failed, or give it up; return whether it is given up."""
        if may_retry(error, idempotent=self._settings.idempotent) and self._work.try_again(piece, lane, error):
            return False
        self._conclude(piece)
        self._failed += piece.count
        count = piece.count // piece.results
        for index in range(piece.index, piece.index + piece.results):
            self._results.add(Result(index, None, error, lane.node, seconds, count))
        if self._settings.on_error == "raise":
            self._stop_behind(piece.index)
        return True

    def _stop_behind(self, index: int) -> None:
        """Drop all pieces behind *index*: nobody will see their results."""
        for piece in self._work.drop_behind(index):
            self._withdraw(piece)
        self._work.open -= self._results.drop_behind(index)

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
        if self._lanes.idle and self._work:
            if look:
                idle = sorted(self._lanes.idle, key=lambda lane: lane.service)
            else:
                idle = list(islice(self._lanes.idle, _MOST_IDLE))
            for lane in idle:
                self._fill_lane(lane, now)
                if not self._work:
                    break
            if self._lanes.idle and self._work:
                self._look_at = self._looked_at + _LOOK_AGAIN + _LOOK_COST * len(self._lanes.idle)

    def _fill_lane(self, lane: Lane, now: float) -> None:
        since = self._lanes.idle.pop(lane, now)
        if lane.late:
            lane.adapt(now)
        while lane.in_flight < lane.limit:
            try:
                piece = self._work.next_for(lane, now, since)
            except Exception as error:  # the user's generator raised
                self._fail_all(error)
                return
            if piece is None:
                if self._work.interrupted:
                    self._lanes.dirty[lane] = None
                elif lane.limit and not lane.removed:
                    self._lanes.idle[lane] = since
                return
            lane.in_flight += 1
            if piece.count != lane.chunk:  # of larger chunks, a node gets fewer ahead
                self._lanes.adapt(lane, now, piece)
            self._send.append(self._work.send(piece, lane, now))

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

    def _wake(self, now: float) -> float | None:
        if self.finished:
            return None
        if self._work.interrupted:
            return now
        wake = min(self._look_at, self._lanes.next_pause())
        if not self._lanes.usable:
            wake = min(wake, self._lanes.down_since + self._settings.timeout)
        return None if wake == math.inf else wake
