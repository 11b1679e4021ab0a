"""Answers modifier1 17: a task for the spooler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.interfaces import IResponder, Request
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.wire.packet import NO, YES

if TYPE_CHECKING:
    from uwsgitwisted.interfaces import Answer

#: A peer can send refused tasks as fast as the network carries them; the log gets one line in this many
#: seconds, which says how many it stands for.
REPORT_INTERVAL = 1.0

_log = Logger()


@implementer(IResponder)
class SpoolResponder:
    """Hands the vars block of each request to the spooler.

    The answer is ``{255, 0, 1}`` when the task is on the disk, and ``{255, 0, 0}`` when it was refused: its
    bytes are malformed, a key of it can't be understood, too many wait, or the disk is full. The log says
    which. modifier2 is ignored, as uWSGI does.

    :param monotonic: a clock that is never set, in seconds.
    """

    def __init__(self, spooler: Spooler, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._spooler = spooler
        self._monotonic = monotonic
        self._silent_until = float("-inf")
        self._unreported = 0

    def respond(self, request: Request) -> Deferred[Answer]:
        """Enqueue the task and return a Deferred of the answer.

        Cancelling it takes the task out if its commit has not begun.
        """
        enqueued = self._spooler.enqueue(request.packet.payload)
        return enqueued.addCallbacks(_accepted, self._refused, errbackArgs=(request.peer,))

    def _refused(self, failure: Failure, peer: str) -> Answer:
        """Answer no, with the reason in the log; a request that was withdrawn needs neither."""
        if isinstance(failure.value, CancelledError):
            failure.raiseException()
        self._unreported += 1
        if self._monotonic() >= self._silent_until:
            self._silent_until = self._monotonic() + REPORT_INTERVAL
            count, self._unreported = self._unreported, 0
            self._report(failure, peer, count)
        return NO

    def _report(self, failure: Failure, peer: str, count: int) -> None:
        if isinstance(failure.value, UwsgiError):
            reason = failure.getErrorMessage()
            _log.warn(
                "refused {count} tasks, the last from {peer}: {reason}", count=count, peer=peer, reason=reason
            )
        else:
            _log.failure("refused {count} tasks, the last from {peer}", failure, count=count, peer=peer)


def _accepted(_identifier: int) -> Answer:
    return YES
