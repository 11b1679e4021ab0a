"""The results of a map that wait until they are taken."""

from __future__ import annotations

from collections import deque

from uwsgitwisted.planner.piece import Result


class Results:
    """Puts results in order, if they have one.

    :param ordered: whether they come in the order of the items.
    """

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self.ready: deque[Result] = deque()
        #: Those behind the next one, by their index.
        self._waiting: dict[int, Result] = {}
        self._next = 0

    def add(self, result: Result) -> None:
        """Add a result."""
        if not self._ordered:
            self.ready.append(result)
            return
        self._waiting[result.index] = result
        while (ready := self._waiting.pop(self._next, None)) is not None:
            self.ready.append(ready)
            self._next += ready.count

    def drop_behind(self, index: int) -> int:
        """Drop those behind *index* that wait; return how many."""
        later = [place for place in self._waiting if place > index]
        for place in later:
            del self._waiting[place]
        return len(later)
