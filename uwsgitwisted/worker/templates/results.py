"""The result cache: pages that were rendered before, for as long as their templates don't change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from time import monotonic
from typing import Generic, TypeVar

from uwsgitwisted.activity import CacheCounts

_F = TypeVar("_F")

#: Bytes that an entry takes besides its key and its page, and for each file of it.
_OVERHEAD, PER_FILE = 1_000, 60


@dataclass(slots=True)
class Page:
    """A page.

    :param body: its text, in UTF-8.
    """

    body: bytes
    _etag: str = ""

    @property
    def etag(self) -> str:
        """The page's ETag, with its quotes; it is worked out once."""
        if not self._etag:
            self._etag = f'"{blake2b(self.body, digest_size=12).hexdigest()}"'
        return self._etag


@dataclass(slots=True)
class _Entry(Generic[_F]):
    page: Page
    files: _F
    until: float
    size: int


class Results(Generic[_F]):
    """A cache of pages, by what they were made from.

    :param limit: how many bytes they may take together; those that were used last are kept.
    :param age: for how many seconds a page is kept.
    :param are_current: whether the files that a page was made from are still what they were.
    """

    def __init__(self, limit: int, age: float, are_current: Callable[[_F], bool]) -> None:
        self._limit = limit
        self._age = age
        self._are_current = are_current
        self._entries: OrderedDict[bytes, _Entry[_F]] = OrderedDict()
        self._size = 0
        self._hits = self._misses = 0

    def get(self, key: bytes) -> Page | None:
        """Return a page, if it is there and its templates are what they were."""
        entry = self._entries.get(key)
        if entry is not None:
            if monotonic() < entry.until and self._are_current(entry.files):
                self._hits += 1
                self._entries.move_to_end(key)
                return entry.page
            self._remove(key)
        self._misses += 1
        return None

    def put(self, key: bytes, page: Page, files: _F, files_size: int) -> None:
        """Keep a page, unless it is large.

        :param files: the files from which it was made.
        :param files_size: how many bytes these take.
        """
        size = len(key) + len(page.body) + _OVERHEAD + files_size
        self._remove(key)
        if size > self._limit // 4:
            return
        self._entries[key] = _Entry(page, files, monotonic() + self._age, size)
        self._size += size
        while self._size > self._limit:
            self._remove(next(iter(self._entries)))

    def clear(self) -> None:
        """Drop all pages."""
        self._entries.clear()
        self._size = 0

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= entry.size

    @property
    def statistics(self) -> CacheCounts:
        """The figures."""
        return CacheCounts(self._hits, self._misses, len(self._entries), self._size)
