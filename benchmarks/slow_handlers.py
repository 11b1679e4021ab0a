"""The handler of a benchmark's node that is slower than the others."""

from __future__ import annotations

import uwsgi

from benchmarks import handlers
from benchmarks.messages import COST, PRETEND, SLOWNESS


def handle(message: object, modifier2: int) -> object:
    """Do as the other nodes do; what pretends to compute takes longer."""
    if modifier2 == PRETEND:
        return handlers.pretend(message, SLOWNESS * COST)  # type: ignore[arg-type]
    return handlers.handle(message, modifier2)


uwsgi.message_manager_marshal = handle
