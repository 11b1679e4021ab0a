"""Handles the signals that Twisted doesn't handle for a service."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Signals:
    """Calls functions in the reactor's thread when signals arrive.

    Only the main thread can install signal handlers; in any other thread it does nothing.

    :param reactor: calls the functions.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._previous: dict[int, Any] = {}

    def install(self, number: int, call: Callable[[], object]) -> None:
        """Call *call* when the signal *number* arrives, in place of its previous handler."""
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(number, lambda *_: self._reactor.callFromThread(call))
            self._previous.setdefault(number, previous)

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, previous in self._previous.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)
        self._previous = {}
