"""Divides the reactor's time: batches the output that a chunk of input causes, and slices long work.

A chunk of input may hold fifty requests. Their answers, and the frames that pass them to the workers, are
written once, when the chunk has been handled, instead of fifty times. Outside of a batch, everything is written
at once.

A chunk may also hold thousands of frames. Work that is too much for one turn of the reactor goes on in later
turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from uwsgitwisted.transport.timer import Timer

_T = TypeVar("_T")

#: After this many items of one chunk, their output is written, so that the other end has something to do while
#: the rest of the chunk is handled.
SLICE_SIZE = 64
#: How many seconds of each turn of the reactor go to scheduled work: long enough that the turn itself costs
#: little beside it, and short enough that nobody notices the wait.
SLICE_TIME = 0.001


class Batch:
    """Delays calls while input is handled: put ``with BATCH:`` around that.

    There is one batch, :data:`BATCH`, because there is one reactor thread, and input on one connection causes
    output on others.
    """

    __slots__ = ("_calls", "_depth")

    _log = Logger()

    def __init__(self) -> None:
        self._depth = 0
        self._calls: dict[Callable[[], None], None] = {}

    def at_end(self, call: Callable[[], None]) -> None:
        """Call *call* once when the batch ends; outside of a batch, call it now, in a batch of its own."""
        if self._depth:
            self._calls[call] = None
        else:
            with self:
                self._calls[call] = None

    def slices(self, things: list[_T]) -> Iterable[_T]:
        """Yield *things*, and make the delayed calls after every :data:`SLICE_SIZE` of them."""
        return things if len(things) <= SLICE_SIZE else self._slices(things)

    def _slices(self, things: list[_T]) -> Iterator[_T]:
        for count, thing in enumerate(things, 1):
            yield thing
            if not count % SLICE_SIZE:
                self._make_calls()

    def _make_calls(self) -> None:
        """Make the calls that have been delayed so far."""
        calls, self._calls = self._calls, {}
        for call in calls:
            try:
                call()
            except Exception:  # a bug on one connection must not affect the others
                self._log.failure("at the end of a batch")

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        try:
            # A call may delay further calls; they are made in the next round.
            while self._depth == 1 and self._calls:
                self._make_calls()
        finally:
            self._depth -= 1


BATCH = Batch()


class Slices:
    """Does work that is too much for one turn of the reactor, step by step, in a slice of each later turn.

    All who have such work share the slice and take turns, a step each. So connections with much work, however
    many, don't keep the reactor from the others.

    :param clock: provides ``callLater`` and ``seconds``.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._steps: OrderedDict[Callable[[], None], None] = OrderedDict()
        self._timer = Timer(clock, self._run)

    def schedule(self, step: Callable[[], None]) -> None:
        """Call *step* once, in a later turn of the reactor; it schedules itself again to go on."""
        self._steps[step] = None
        if not self._timer.running:
            self._timer.set(0)

    def _run(self) -> None:
        end = self._clock.seconds() + SLICE_TIME
        while self._steps:
            step, _ = self._steps.popitem(last=False)
            BATCH.at_end(step)
            if self._clock.seconds() >= end:
                break
        if self._steps and not self._timer.running:
            self._timer.set(0)
