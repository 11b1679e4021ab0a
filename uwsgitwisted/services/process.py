"""Prepares the process of a service when the service starts."""

from __future__ import annotations

import time
from typing import Any

from twisted.python import runtime

from uwsgitwisted.memory import keep_large_blocks


def prepare_process(reactor: Any) -> None:
    """Make this process keep the memory of large messages, and its reactor use the monotonic clock.

    Twisted's timers use the wall clock: if it steps back by an hour, every timer fires an hour late. The
    function leaves a reactor alone that has another clock, or that has timers already, which would fire at
    wrong times after the change.
    """
    keep_large_blocks()
    if reactor.seconds is runtime.seconds and not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
