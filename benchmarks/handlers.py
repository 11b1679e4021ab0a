"""The handler of the benchmarks' nodes."""

from __future__ import annotations

import time

import uwsgi

from benchmarks.messages import COMPUTE, MAKE


def handle(message: object, modifier2: int) -> object:
    """Return *message*, compute for that many seconds, or return that many bytes."""
    if modifier2 == COMPUTE:
        assert isinstance(message, float)
        end = time.monotonic() + message
        while time.monotonic() < end:
            pass
        return None
    if modifier2 == MAKE:
        assert isinstance(message, int)
        return bytes(message)
    return message


uwsgi.message_manager_marshal = handle
