"""The work of a map: what can be given to a node, and the pieces that were given out."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from uwsgitwisted.errors import Unavailable
from uwsgitwisted.planner.items import Items
from uwsgitwisted.planner.lane import Lane
from uwsgitwisted.planner.lanes import Lanes
from uwsgitwisted.planner.piece import Piece, Sending
from uwsgitwisted.planner.retry import MAX_FAILURES, may_retry
from uwsgitwisted.planner.settings import Settings
from uwsgitwisted.wire.packet import Packet

#: How much more work second copies may be, as a part of the items that were given out.
MAX_COPIES = 0.05
#: Results that wait or are on their way, at the least; and for each one that may be on its way.
_WINDOW, _WINDOW_FACTOR = 1_000, 8
#: How many pieces are looked at for one decision.
_MOST_PIECES = 8
#: How many items are read at once from a source that may take long for each: nothing is sent meanwhile.
_READ_AT_ONCE = 128


class Work:
    """The items that are left, the pieces to be tried again, and those in flight.

    :param items: the items.
    :param settings: how the map works.
    :param lanes: the nodes.
    :param encode: makes the request of an item; without it there are no bundles.
    """

    def __init__(
        self,
        items: Iterable[Any],
        settings: Settings,
        lanes: Lanes,
        encode: Callable[[Any], Packet] | None,
    ) -> None:
        self.items = Items(items, chunked=settings.chunked)
        self._settings = settings
        self._encode = encode if settings.bundles else None
        self._lanes = lanes
        # The pieces to be given out again, those in flight, and of those the ones without a second copy.
        self._retries: deque[Piece] = deque()
        self._flying: dict[Piece, None] = {}
        self._single: OrderedDict[Piece, None] = OrderedDict()
        self._copied = 0
        # How many items may still be read at once.
        self._readable = math.inf
        #: How many results were not taken of the pieces that have begun.
        self.open = 0

    def __bool__(self) -> bool:
        """Whether there is something that some node could be given."""
        return bool(self._retries or self._may_begin or self._may_copy)

    @property
    def interrupted(self) -> bool:
        """Whether there are items to be read, once what was read is sent."""
        return self._readable <= 0 and not self.items.exhausted

    def resume(self) -> None:
        """Allow some further items to be read."""
        slow = self.items.total is None and not self._settings.chunked
        self._readable = _READ_AT_ONCE if slow else math.inf

    def next_for(self, lane: Lane, now: float, since: float) -> Piece | None:
        """Return what *lane* is given next; None if there is nothing for it.

        :param since: how long the node has had nothing to do.
        :raises Exception: what reading the items has raised.
        """
        piece = self._retry_for(lane) if self._retries else None
        if piece is None and self._may_begin and self._worthwhile(lane, now, since):
            piece = self._begin(lane)
        if piece is None and self._may_copy and not self._may_begin:
            piece = self._copy_for(lane, now, since)
        return piece

    def send(self, piece: Piece, lane: Lane, now: float) -> Sending:
        """Note that *piece* is sent to a node."""
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
        return sending

    def try_again(self, piece: Piece, lane: Lane, error: BaseException) -> bool:
        """Count the failure of *piece*, and have it tried again; return whether it still may be."""
        # That a node has no room, or is still down, says nothing about the piece.
        started = not may_retry(error, idempotent=False)
        if started or not (isinstance(error, Unavailable) or lane.node in piece.failed_on):
            piece.failed_on.append(lane.node)
        # One item of a bundle may be to blame; the others must not fail with it.
        alone = started and piece.bundled > 0
        if len(piece.failed_on) >= MAX_FAILURES and not alone:
            return bool(piece.sent)
        self.queue(piece, alone=alone)
        return True

    def queue(self, piece: Piece, *, alone: bool) -> None:
        """Put a piece in the queue of those to be tried again, unless another copy of it is in flight.

        :param alone: whether each item of a bundle is tried alone.
        """
        if piece.sent:
            self._single[piece] = None
            return
        self._flying.pop(piece, None)
        self._single.pop(piece, None)
        self._retries.extend(piece.split() if alone else [piece])

    def conclude(self, piece: Piece) -> None:
        """Forget a piece that has its results."""
        self._flying.pop(piece, None)
        if self._settings.idempotent:
            self._single.pop(piece, None)

    def put_back(self, pieces: Iterable[Piece]) -> None:
        """Have pieces given out again that were not begun."""
        self._retries.extend(pieces)

    def drop_behind(self, index: int) -> list[Piece]:
        """Give out nothing more behind *index*; return the pieces in flight that nobody needs any more."""
        self.items.close()
        dropped = [piece for piece in self._flying if piece.index > index]
        for piece in dropped:
            self.conclude(piece)
        waiting = [piece for piece in self._retries if piece.index >= index]
        self._retries = deque(piece for piece in self._retries if piece.index < index)
        self.open -= sum(piece.results for piece in (*dropped, *waiting))
        return dropped

    def clear(self) -> list[Piece]:
        """Give out nothing more; return the pieces in flight."""
        self.items.close()
        flying = list(self._flying)
        self._flying.clear()
        self._single.clear()
        self._retries.clear()
        return flying

    @property
    def _may_begin(self) -> bool:
        """Whether a further item may be taken."""
        window = max(_WINDOW, _WINDOW_FACTOR * self._lanes.capacity)
        return not self.items.exhausted and self._readable > 0 and self.open < window

    @property
    def _may_copy(self) -> bool:
        """Whether a piece may be given to a second node: nothing else is left to give out."""
        return bool(
            self._settings.idempotent
            and self._single
            and not self._retries
            and self._copied < max(1.0, MAX_COPIES * self.items.taken)
        )

    def _begin(self, lane: Lane) -> Piece | None:
        """Take the next item, chunk or bundle."""
        index, count = self.items.taken, self._size(lane)
        requests: list[Packet] = []
        if self._encode is not None and count > 1:
            requests, count = self.items.take_requests(count, self._encode), 1
        got, message = (len(requests), None) if requests else self.items.take(count)
        if not got:
            return None
        self._readable -= got
        piece = Piece(index, got, message, requests)
        self.open += piece.results
        return piece

    def _size(self, lane: Lane) -> int:
        """Return how many items the next piece of a node has at most."""
        settings, speed = self._settings, self._lanes.speed
        if not settings.chunked and self._encode is None:
            return 1
        if settings.chunk is not None:
            return settings.chunk if settings.chunked else min(settings.chunk, max(lane.bundle, 1))
        share = self.items.left * lane.rate / (2 * speed) if speed > 0 else math.inf
        if settings.chunked:
            return lane.size(settings.target, share)
        return int(min(lane.bundle_size(share), self._readable))

    def _worthwhile(self, lane: Lane, now: float, since: float) -> bool:
        """Whether the map gains when *lane* does a further item, rather than leaving it to faster nodes.

        :param since: how long the node has had nothing to do: others that seem faster may just hang.
        """
        if self._lanes.speed <= 0 or not lane.answers:
            return True
        # All others need about so long for the rest: what they do at the same time, and one item more each.
        others = (self.items.left + self._lanes.usable) / self._lanes.speed
        finishes = lane.service * (lane.in_flight // lane.slots + 1)
        return finishes <= others or (not lane.in_flight and now - since >= others)

    def _retry_for(self, lane: Lane) -> Piece | None:
        """Take a piece that is to be tried again from the queue, if *lane* may have one."""
        for place, piece in enumerate(islice(self._retries, _MOST_PIECES)):
            if self._lanes.may_retry_on(lane, piece):
                del self._retries[place]
                if piece.bundled > lane.bundle:
                    piece, *others = piece.split()
                    self._retries.extendleft(reversed(others))
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
            if other is lane or lane.node in piece.failed_on or piece.bundled > lane.bundle:
                continue
            if self._copied and self._copied + piece.count > MAX_COPIES * self.items.taken:
                continue
            if lane.service * piece.count <= max(now - piece.sent_at, other.service * piece.count):
                return piece
        return None
