"""Work on a store that is done in slices, so that whoever has more urgent work gets the store in between."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from uwsgitwisted.spool.stores.interface import ISpoolStore

#: How many tasks are looked up in one slice: that takes about a millisecond.
SLICE = 50

_T = TypeVar("_T")
_Item = TypeVar("_Item")

#: Does a slice of its work between two yields, and returns the answer.
Steps = Generator[None, None, _T]
#: What is asked: called with the store, it does the work.
Job = Callable[[ISpoolStore], Steps[_T]]


def at_once(call: Callable[[ISpoolStore], _T]) -> Job[_T]:
    """Return a job that is done in one slice."""

    def job(store: ISpoolStore) -> Steps[_T]:
        yield from ()
        return call(store)

    return job


def finish(steps: Steps[_T]) -> _T:
    """Do a job to its end, here and now, and return its answer."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: _T = end.value
            return value


def slices(items: Sequence[_Item], size: int = SLICE) -> Iterator[Sequence[_Item]]:
    """Give *items* in parts of *size*."""
    return (items[start : start + size] for start in range(0, len(items), size))
