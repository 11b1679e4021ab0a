"""Bounds the memory of large answers that arrive from several workers at once.

The size of an answer is known when its first piece arrives. Together, the answers in transfer may have as many
bytes as one largest message. Beyond that the front stops reading from the workers that began last, which wait
in their writes, until those before them are whole. The first one is always read, so a transfer never waits for
itself. Whole answers count against the service's budget; see :mod:`uwsgitwisted.transport.server.budget`.
"""

from __future__ import annotations

from typing import Protocol


class Source(Protocol):
    """A worker that sends an answer."""

    def set_reading(self, reading: bool) -> None:
        """Read from it, or stop for now."""


class Transfers:
    """The large answers in transfer.

    :param limit: how many bytes they may have together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # In the order in which they began.
        self._sizes: dict[Source, int] = {}

    def update(self, source: Source, size: int) -> None:
        """Set the size of the unfinished answers of *source*, in bytes; 0 if there are none any more."""
        if size:
            self._sizes[source] = size
        elif self._sizes.pop(source, None) is not None:
            source.set_reading(True)
        before = 0
        for other, others_size in self._sizes.items():
            other.set_reading(not before or before + others_size <= self._limit)
            before += others_size
