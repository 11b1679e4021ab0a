"""Runs a store's blocking calls in a thread, so that they never block the reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")


class Runner(Protocol):
    """Makes blocking calls elsewhere, one after the other, in the order in which they arrive."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End, when the calls that arrived are finished."""

    def run(
        self, function: Callable[_Params, _Result], *args: _Params.args, **kwargs: _Params.kwargs
    ) -> Deferred[_Result]:
        """Call *function* and return a Deferred that fires in the reactor's thread with what it returned."""
        ...


class StoreThread:
    """A :class:`Runner` with one thread of its own.

    Not the reactor's pool: there a commit would wait for name lookups, and two calls would run at once.
    """

    # One for each start: a pool that was stopped stays so.
    _pool: ThreadPool

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self._reactor = reactor

    def start(self) -> None:
        """Start the thread."""
        self._pool = ThreadPool(minthreads=1, maxthreads=1, name="spool")
        self._pool.start()

    def stop(self) -> None:
        """End the thread; this blocks until its last call is finished."""
        self._pool.stop()

    def run(
        self, function: Callable[_Params, _Result], *args: _Params.args, **kwargs: _Params.kwargs
    ) -> Deferred[_Result]:
        """Call *function* in the thread; the Deferred fires with what it returned or raised."""
        return deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)
