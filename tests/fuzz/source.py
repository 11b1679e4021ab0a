"""Decisions made of a fuzzer's bytes: a target takes its sizes, choices and chunks from there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

_Choice = TypeVar("_Choice")


class Source:
    """Bytes that are read from the front. At their end, every number is 0 and every choice the first.

    :param data: the fuzzer's bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def byte(self) -> int:
        """Return the next byte as a number."""
        taken = self.take(1)
        return taken[0] if taken else 0

    def choose(self, choices: Sequence[_Choice]) -> _Choice:
        """Return one of *choices*, of which there are at most 256."""
        return choices[self.byte() % len(choices)]

    def take(self, size: int) -> bytes:
        """Return the next *size* bytes, or all that are left."""
        start = self._position
        self._position = min(start + size, len(self._data))
        return self._data[start : self._position]

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data))

    def cut(self, data: bytes) -> Iterator[bytes]:
        """Cut *data* into chunks of up to 255 bytes, or into one if the next byte is 0."""
        size = self.byte() or len(data) or 1
        for start in range(0, len(data), size):
            yield data[start : start + size]

    def stretch(self) -> bytes:
        """Return all that is left, repeated up to ``STRETCHED`` bytes if the next byte says so.

        What takes more than linear time shows it on an input that is as long as a peer's may be.
        """
        times = 1 << max(0, self.byte() % 16 - 6)
        data = self.rest()
        return data * max(1, min(times, STRETCHED // max(1, len(data))))


#: How long a stretched input is at most, in bytes.
STRETCHED = 65_536
