"""What peers cause, in a log that none can fill: a few lines for each kind, whoever causes it."""

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

#: Of each kind of event there is at most one line in this many seconds. While a kind goes on, the time between
#: two of its lines doubles up to the limit, so that an hour of it leaves some seventy lines.
INTERVAL, MAX_INTERVAL = 1.0, 60.0
#: How many kinds are known at once. There are a few dozen, but for the names of exceptions that handlers raise.
_MAX_KINDS = 1_000


class Reports:
    """Logs events that peers can cause as fast as the network carries them.

    :param log: where the lines go.
    :param monotonic: a monotonic clock, in seconds.
    """

    def __init__(self, log: Logger, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._monotonic = monotonic
        self._kinds: dict[Hashable, _Kind] = {}

    def report(self, kind: Hashable, line: str, *, level: Any = LogLevel.warn, **about: Any) -> None:
        """Log an event, or count it.

        :param kind: events of another kind have lines of their own.
        :param line: as for a logger, whose fields are *about*.
        """
        if count := self._due(kind):
            self._log.emit(level, line + _suffix(count), count=count, **about)

    def failed(self, failure: Failure, request: Request) -> None:
        """Log that *request* failed: our own errors by what they say, others with their traceback now and then.

        One that was cancelled is nobody's failure, and leaves no line.
        """
        error = failure.value
        if isinstance(error, (RequestCancelled, CancelledError)):
            return
        # Another line that raises is another kind; there are as many as the code has.
        kind: Any = last_call(error.traceback) if isinstance(error, RemoteError) else failure.type
        count = self._due(kind)
        if not count:
            return
        about: dict[str, Any] = {
            "peer": request.peer,
            "modifier1": request.packet.modifier1,
            "reason": failure.getErrorMessage(),
            "count": count,
        }
        with_traceback = self._due(("traceback", kind), MAX_INTERVAL)
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

    def _due(self, kind: Hashable, interval: float = INTERVAL) -> int:
        """Count an event, and return for how many of its kind a line is to be written now; 0 for none.

        :param interval: seconds until the next line, if this is the first.
        """
        now = self._monotonic()
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) >= _MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
            self._kinds[kind] = _Kind(now + interval, interval)
            return 1
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
    """What is known of a kind of event.

    :param due: when its next line may be written.
    :param interval: seconds between the last line and that.
    :param unreported: how many events were not reported since.
    """

    due: float
    interval: float
    unreported: int = 0


def last_call(traceback: str) -> str:
    """Return where the last call of a *traceback* was, without the exception's text; empty if it is none."""
    return traceback.rpartition("\n  File ")[2].partition("\n")[0]


def _suffix(count: int) -> str:
    return " ({count} of this kind since the last such line)" if count > 1 else ""
