"""What a service changes in its own process when it starts."""

from __future__ import annotations

import time
from typing import Any

from twisted.python import runtime

from uwsgitwisted.memory import keep_large_blocks


def prepare_process(reactor: Any) -> None:
    """Have this process keep the memory of large messages, and its reactor go by the monotonic clock.

    Twisted's timers go by the wall clock: when that is set back by an hour, every timer fires an hour late. A
    reactor stays as it is if it has another clock, or timers: those would go wrong with the change.
    """
    keep_large_blocks()
    if reactor.seconds is runtime.seconds and not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
