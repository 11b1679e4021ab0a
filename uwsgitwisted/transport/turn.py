"""Gathers what one piece of input causes, so that it goes out in one write a connection.

A chunk of input may hold fifty requests; their answers, and what is passed to the workers for them, are written
when the chunk has been worked through, not fifty times. Outside of a chunk, everything is written at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from twisted.logger import Logger

_T = TypeVar("_T")

#: After so many things of one chunk, what they caused is written, so that the other end has something to do
#: while the rest of the chunk is worked through.
STRIDE = 64


class Turn:
    """Puts off calls while input is being worked through: ``with turn:`` around that work.

    There is one, :data:`TURN`, as there is one reactor thread: input on one connection causes output on others.
    """

    __slots__ = ("_calls", "_depth")

    _log = Logger()

    def __init__(self) -> None:
        self._depth = 0
        self._calls: dict[Callable[[], None], None] = {}

    def at_end(self, call: Callable[[], None]) -> None:
        """Call *call* once when the turn ends; if there is none, in one of its own, which is now."""
        if self._depth:
            self._calls[call] = None
        else:
            with self:
                self._calls[call] = None

    def strides(self, things: list[_T]) -> Iterable[_T]:
        """Give *things* one by one, and make the calls that were put off after every :data:`STRIDE` of them."""
        return things if len(things) <= STRIDE else self._strides(things)

    def _strides(self, things: list[_T]) -> Iterator[_T]:
        for count, thing in enumerate(things, 1):
            yield thing
            if not count % STRIDE:
                self._call()

    def _call(self) -> None:
        """Make the calls that were put off until now."""
        calls, self._calls = self._calls, {}
        for call in calls:
            try:
                call()
            except Exception:  # a fault of one connection is none of the others'
                self._log.failure("at the end of a turn")

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        try:
            # What a call causes in its turn is put off too, and done in the next round.
            while self._depth == 1 and self._calls:
                self._call()
        finally:
            self._depth -= 1


TURN = Turn()
