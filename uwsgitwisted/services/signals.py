"""The signals that a service takes besides those that Twisted does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Signals:
    """Calls functions in the reactor's thread when signals come.

    It does nothing where signals can't be taken, in another thread than the main one.

    :param reactor: calls them.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._previous: dict[int, Any] = {}

    def take(self, number: int, call: Callable[[], object]) -> None:
        """Call *call* when signal *number* comes, instead of what was to happen before."""
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(number, lambda *_: self._reactor.callFromThread(call))
            self._previous.setdefault(number, previous)

    def give_back(self) -> None:
        """Let happen again what was to happen before."""
        for number, previous in self._previous.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)
        self._previous = {}
