"""Watches files that somebody touches to have a service reloaded (``--touch-reload``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Seconds between two looks.
INTERVAL = 1.0


class TouchedFiles:
    """Calls a function when a file is touched, changed or replaced, or when it appears.

    :param reactor: runs the timer.
    :param paths: the files.
    :param call: called once for all files that were touched since the last look.
    """

    def __init__(self, reactor: IReactorTime, paths: Sequence[str], call: Callable[[], object]) -> None:
        self._reactor = reactor
        self._paths = paths
        self._call = call
        self._seen: list[tuple[int, int] | None] = []
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Start to watch; without files, nothing is done."""
        if self._paths:
            self._seen = self._look()
            self._wait()

    def stop(self) -> None:
        """Stop to watch."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = self._reactor.callLater(INTERVAL, self._compare)

    def _compare(self) -> None:
        before, self._seen = self._seen, self._look()
        self._wait()
        # A file that has gone is being replaced, or the whole program is: there is nothing to load yet.
        if any(new is not None and new != old for old, new in zip(before, self._seen, strict=True)):
            self._call()

    def _look(self) -> list[tuple[int, int] | None]:
        return [_state(path) for path in self._paths]


def _state(path: str) -> tuple[int, int] | None:
    """Return the time of a file's last change, and its number; None if it isn't there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
