"""Logs the requests that fail without a handler's doing, in a bounded number of lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import RequestCancelled, UwsgiError
from uwsgitwisted.interfaces import Request

__all__ = ["REPORT_INTERVAL", "Failures"]

#: A peer can send requests that are refused as fast as the network carries them: each kind of error gets one
#: line in this many seconds, which says how many requests it stands for.
REPORT_INTERVAL = 1.0


class Failures:
    """Logs failed requests with their peer: our own errors by what they say, defects with their traceback.

    A request that was withdrawn is nobody's failure, and leaves no line.

    :param monotonic: a clock that is never set, in seconds.
    """

    _log = Logger()

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        #: By the kind of error: until when nothing is said of it, and how many requests weren't spoken of.
        self._kinds: dict[type[BaseException] | None, tuple[float, int]] = {}

    def log(self, failure: Failure, request: Request) -> None:
        """Log that *request* failed, or count it."""
        if failure.check(RequestCancelled, CancelledError):
            return
        silent_until, unreported = self._kinds.get(failure.type, (float("-inf"), 0))
        now = self._monotonic()
        if now < silent_until:
            self._kinds[failure.type] = (silent_until, unreported + 1)
            return
        self._kinds[failure.type] = (now + REPORT_INTERVAL, 0)
        count = unreported + 1
        line = "{peer}: modifier1 {modifier1}: {reason}"
        if count > 1:
            line += " ({count} requests since the last such line)"
        about: dict[str, Any] = {
            "peer": request.peer,
            "modifier1": request.packet.modifier1,
            "reason": failure.getErrorMessage(),
            "count": count,
        }
        if isinstance(failure.value, UwsgiError):
            self._log.error(line, **about)
        else:
            self._log.failure(line, failure, **about)
