"""Pieces of work, the requests that carry them, and their results."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from uwsgitwisted.wire.bundle import decode_outcomes, encode_bundle
from uwsgitwisted.wire.message import decode_answer
from uwsgitwisted.wire.packet import Packet

if TYPE_CHECKING:
    from uwsgitwisted.planner.lane import Lane

#: What a map does at an item that has failed: raise its error, or yield that in place of the value.
OnError: TypeAlias = Literal["raise", "return"]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a piece.

    :param index: the index of its item, or of its first one if it is a chunk.
    :param value: the handler's answer; None if it failed.
    :param error: the error with which it failed; None if it didn't.
    :param node: the node that answered, or failed last, as the caller wrote it.
    :param seconds: from sending the request to the answer.
    :param count: how many items it has: 1, or the length of the chunk.
    """

    index: int
    value: object
    error: BaseException | None
    node: Hashable
    seconds: float
    count: int = 1

    def value_or_error(self, on_error: OnError) -> object:
        """Return the value; if there is none, raise the error, or return it.

        :param on_error: ``"raise"`` or ``"return"``.
        """
        if self.error is None:
            return self.value
        if on_error == "raise":
            raise self.error
        return self.error


class Piece:
    """What is given to a node: an item, a chunk of items, which its handler gets as one, or a bundle of items.

    :param index: the index of its first item.
    :param count: how many items it has.
    :param message: what the handler gets; None if the requests are there.
    :param requests: the requests of the items, if those are encoded already. Several are a bundle.
    """

    __slots__ = ("bundled", "count", "failed_on", "index", "message", "requests", "sent", "sent_at")

    def __init__(self, index: int, count: int, message: object, requests: Sequence[Packet] = ()) -> None:
        self.index = index
        self.count = count
        self.message = message
        self.requests = requests
        #: How many items it has that get results of their own; 0 if it is no bundle.
        self.bundled = count if len(requests) > 1 else 0
        #: The requests in flight that carry it: one, or two with a second copy.
        self.sent: list[Sending] = []
        #: When it was sent last as the only copy.
        self.sent_at = 0.0
        #: The nodes on which it has failed, once for each failure that counts.
        self.failed_on: list[Hashable] = []

    @property
    def results(self) -> int:
        """How many results it gets."""
        return self.bundled or 1

    def part(self, place: int) -> Piece:
        """Return an item of a bundle as a piece of its own."""
        return Piece(self.index + place, 1, None, self.requests[place : place + 1])

    def split(self) -> Iterator[Piece]:
        """Yield each item of a bundle as a piece of its own; the failures of the bundle count for it."""
        for place in range(self.bundled):
            part = self.part(place)
            part.failed_on = self.failed_on.copy()
            yield part


class Sending:
    """A request that carries a piece to a node. The shell hands it back with its answer.

    :param piece: what it carries.
    :param lane: the node's.
    :param at: when it is sent.
    """

    __slots__ = ("at", "handle", "lane", "over", "piece", "queued")

    def __init__(self, piece: Piece, lane: Lane, at: float) -> None:
        self.piece = piece
        self.lane = lane
        self.at = at
        #: How many requests the node had in flight with this one.
        self.queued = lane.in_flight
        #: Whether it has been answered, has failed, or is cancelled.
        self.over = False
        #: For the shell: what it needs to cancel the request.
        self.handle: object = None

    @property
    def node(self) -> Hashable:
        """The node to send it to."""
        return self.lane.node

    @property
    def message(self) -> object:
        """What the handler gets; None if there is a request."""
        return self.piece.message

    @property
    def request(self) -> Packet | None:
        """What to send, if it is encoded already."""
        requests = self.piece.requests
        if not requests:
            return None
        return encode_bundle(requests) if self.bundled else requests[0]

    @property
    def bundled(self) -> bool:
        """Whether it carries a bundle. The node must not run it twice: each item is tried again alone."""
        return bool(self.piece.bundled)

    def decode(self, answer: Packet) -> object:
        """Return the value of its answer, for the planner.

        :raises ProtocolError: if the answer can't be decoded.
        """
        return decode_outcomes(answer) if self.piece.bundled else decode_answer(answer)


class Actions(NamedTuple):
    """What a shell has to do now.

    :param send: the requests to send.
    :param cancel: the requests whose answers nobody needs any more. Do this first.
    :param wake: when to poll again at the latest, by the clock of the shell; None if no time is set.
    """

    send: list[Sending]
    cancel: list[Sending]
    wake: float | None
