"""Jobs on a store, done in slices so that more urgent work can have the store in between."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from uwsgitwisted.spool.stores.interface import ISpoolStore

#: How many tasks are looked up in one slice, which takes about a millisecond.
SLICE = 50

_T = TypeVar("_T")
_Item = TypeVar("_Item")

#: A job in progress: it does a slice of its work between two yields, and returns its answer.
Steps = Generator[None, None, _T]
#: A job: it is called with the store.
Job = Callable[[ISpoolStore], Steps[_T]]


def at_once(call: Callable[[ISpoolStore], _T]) -> Job[_T]:
    """Return a job of one slice."""

    def job(store: ISpoolStore) -> Steps[_T]:
        yield from ()
        return call(store)

    return job


def finish(steps: Steps[_T]) -> _T:
    """Run a job to its end, and return its answer."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: _T = end.value
            return value


def slices(items: Sequence[_Item], size: int = SLICE) -> Iterator[Sequence[_Item]]:
    """Yield *items* in parts of *size*."""
    return (items[start : start + size] for start in range(0, len(items), size))
