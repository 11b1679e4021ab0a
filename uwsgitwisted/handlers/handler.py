"""What a table of handlers holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uwsgitwisted.wire.packet import Packet


@dataclass(frozen=True, slots=True)
class Handler:
    """Runs the requests of one modifier1, in two steps.

    They are apart for an engine in which a function may return a coroutine or a Deferred: the second step is
    done with what it fires with.

    :param run: decodes a request, calls the user's function, and returns what that returns.
    :param answer: makes the answer to the request of it.
    """

    run: Callable[[Packet], object]
    answer: Callable[[Packet, object], Packet]

    def __call__(self, request: Packet) -> Packet:
        """Do both."""
        return self.answer(request, self.run(request))
