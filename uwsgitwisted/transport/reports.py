"""Logs the events that peers cause, a few lines for each kind, so that no peer can fill the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from uwsgitwisted.errors import RemoteError, RequestCancelled, UwsgiError
from uwsgitwisted.interfaces import Request

#: Each kind of event gets at most one line in this many seconds. While a kind goes on, the interval doubles up
#: to the limit, so that an hour of it makes some seventy lines.
INTERVAL, MAX_INTERVAL = 1.0, 60.0
#: How many kinds to keep. There are a few dozen, apart from the exceptions that handlers raise.
_MAX_KINDS = 1_000
#: How many new kinds get a line at once, and after how many seconds one more does. An exception's text, which a
#: peer may choose, can look like a line of a traceback, and so like a kind that was not there before.
_NEW_KINDS, _NEW_KIND_INTERVAL = 200, 6.0


class Reports:
    """Logs events that peers can cause as fast as the network carries them.

    :param log: where the lines go.
    :param monotonic: a monotonic clock, in seconds.
    """

    def __init__(self, log: Logger, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._monotonic = monotonic
        self._kinds: dict[Hashable, _Kind] = {}
        # How many new kinds may have a line, as of the last one.
        self._allowance, self._last_new = float(_NEW_KINDS), monotonic()

    def report(self, kind: Hashable, line: str, *, level: Any = LogLevel.warn, **about: Any) -> None:
        """Log an event, or count it.

        :param kind: each kind has its own limit.
        :param line: a logger's format; its fields are *about*.
        """
        if count := self._count(kind):
            self._log.emit(level, line + _suffix(count), count=count, **about)

    def failed(self, failure: Failure, request: Request) -> None:
        """Log that *request* failed: one of our errors by its text, any other with a traceback now and then.

        A cancelled request is not a failure, and is not logged.
        """
        error = failure.value
        if isinstance(error, (RequestCancelled, CancelledError)):
            return
        # Each line of code that raises is a kind of its own; there are only so many.
        kind: Any = last_call(error.traceback) if isinstance(error, RemoteError) else failure.type
        count = self._count(kind)
        if not count:
            return
        about: dict[str, Any] = {
            "peer": request.peer,
            "modifier1": request.packet.modifier1,
            "reason": failure.getErrorMessage(),
            "count": count,
        }
        with_traceback = self._count(("traceback", kind), MAX_INTERVAL)
        if isinstance(error, RemoteError):
            line = "{peer}: the handler of modifier1 {modifier1} raised {reason}" + _suffix(count)
            if with_traceback:
                self._log.error(line + "\n{traceback}", traceback=error.traceback, **about)
            else:
                self._log.error(line + "; its traceback is further up", **about)
        elif isinstance(error, UwsgiError) or not with_traceback:
            self._log.error("{peer}: modifier1 {modifier1}: {reason}" + _suffix(count), **about)
        else:
            self._log.failure("{peer}: modifier1 {modifier1}: {reason}" + _suffix(count), failure, **about)

    def _count(self, kind: Hashable, interval: float = INTERVAL) -> int:
        """Count an event; return how many events the next line covers, or 0 if no line is due.

        :param interval: seconds until the next line, if this is the first.
        """
        now = self._monotonic()
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) >= _MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
            earned = (now - self._last_new) / _NEW_KIND_INTERVAL
            self._allowance, self._last_new = min(self._allowance + earned, float(_NEW_KINDS)), now
            allowed = self._allowance >= 1
            self._allowance -= allowed
            self._kinds[kind] = _Kind(now + interval, interval, unreported=int(not allowed))
            return int(allowed)
        known.unreported += 1
        if now < known.due:
            return 0
        goes_on = now < known.due + MAX_INTERVAL
        known.interval = min(2 * known.interval, MAX_INTERVAL) if goes_on else interval
        known.due = now + known.interval
        count, known.unreported = known.unreported, 0
        return count


@dataclass(slots=True)
class _Kind:
    """The state of a kind of event.

    :param due: when its next line may be written.
    :param interval: seconds from the last line until then.
    :param unreported: how many events have not been logged since.
    """

    due: float
    interval: float
    unreported: int = 0


def last_call(traceback: str) -> str:
    """Return the location of the last call in *traceback*, or an empty text if it has none."""
    return traceback.rpartition("\n  File ")[2].partition("\n")[0]


def _suffix(count: int) -> str:
    return " ({count} of this kind since the last such line)" if count > 1 else ""
