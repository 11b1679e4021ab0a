"""Divides the reactor's time: gathers what little input causes, and spreads what much input causes.

A chunk of input may hold fifty requests; their answers, and what is passed to the workers for them, are written
when the chunk has been worked through, not fifty times. Outside of a chunk, everything is written at once.

A chunk may also hold thousands of frames. What is too much for one turn of the reactor goes on in later ones.
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

#: After so many things of one chunk, what they caused is written, so that the other end has something to do
#: while the rest of the chunk is worked through.
SLICE_SIZE = 64
#: For so many seconds of each turn of the reactor, what was too much for one turn goes on: long enough that the
#: turn itself costs little beside it, and short enough that nobody notices the wait.
SLICE_TIME = 0.001


class Batch:
    """Puts off calls while input is being worked through: ``with BATCH:`` around that work.

    There is one, :data:`BATCH`, as there is one reactor thread: input on one connection causes output on
    others.
    """

    __slots__ = ("_calls", "_depth")

    _log = Logger()

    def __init__(self) -> None:
        self._depth = 0
        self._calls: dict[Callable[[], None], None] = {}

    def at_end(self, call: Callable[[], None]) -> None:
        """Call *call* once when the batch ends; if there is none, now, in a batch of its own."""
        if self._depth:
            self._calls[call] = None
        else:
            with self:
                self._calls[call] = None

    def slices(self, things: list[_T]) -> Iterable[_T]:
        """Yield *things*, and make the calls that were put off after every :data:`SLICE_SIZE` of them."""
        return things if len(things) <= SLICE_SIZE else self._slices(things)

    def _slices(self, things: list[_T]) -> Iterator[_T]:
        for count, thing in enumerate(things, 1):
            yield thing
            if not count % SLICE_SIZE:
                self._call()

    def _call(self) -> None:
        """Make the calls that were put off until now."""
        calls, self._calls = self._calls, {}
        for call in calls:
            try:
                call()
            except Exception:  # a fault of one connection is none of the others'
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
            # What a call causes is put off too, and done in the next round.
            while self._depth == 1 and self._calls:
                self._call()
        finally:
            self._depth -= 1


BATCH = Batch()


class Slices:
    """Does what is too much for one turn of the reactor, in steps, during a slice of each of the next turns.

    Whoever has such work shares the slice, a step each, so that no number of connections with much to do keeps
    the reactor from the others.

    :param clock: provides ``callLater`` and ``seconds``.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._steps: OrderedDict[Callable[[], None], None] = OrderedDict()
        self._timer = Timer(clock, self._run)

    def go_on(self, step: Callable[[], None]) -> None:
        """Call *step* once, in a later turn of the reactor; it comes back if there is more to do."""
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
