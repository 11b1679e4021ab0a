"""A cache: values by keys, which may expire, bounded in number and in bytes.

It behaves as uWSGI's does, with two differences: an item is gone at the moment at which it expires, and a
cache is bounded by the bytes that its items have together, not by each one's.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.shared.client import NOTHING, YES, Client
from uwsgitwisted.wire.calls import decode_number, encode_number

#: The name of the cache that a call means if it names none.
DEFAULT = b"default"
#: The longest key, in bytes, as in uWSGI.
MAX_KEY = 2_048
#: The bytes that an item needs besides its key and its value.
OVERHEAD = 256
#: So many more times of expiry than items may be kept, of items that were replaced.
_SPARE = 64
#: The range of a number.
_SIGN, _RANGE = 1 << 63, 1 << 64


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """What a cache may hold.

    :param items: how many items.
    :param size: how many bytes they may have together.
    :param lru: whether a new item takes the place of the one that was unused for longest. Otherwise a full
        cache refuses it.
    """

    items: int = 10_000
    size: int = 64 * 1024 * 1024
    lru: bool = False


@dataclass(slots=True)
class _Item:
    value: bytes
    expires: float


def _wrap(number: int) -> int:
    """Return *number* as 64 bits with a sign have it."""
    return (number + _SIGN) % _RANGE - _SIGN


def _divide(number: int, by: int) -> int:
    """Divide as C does, toward zero; the result by zero is 0, as in uWSGI."""
    if not by:
        return 0
    quotient = abs(number) // abs(by)
    return quotient if (number < 0) == (by < 0) else -quotient


#: What changes a number: by the names of the calls.
CALCULATIONS: dict[bytes, Callable[[int, int], int]] = {
    b"inc": lambda number, by: number + by,
    b"dec": lambda number, by: number - by,
    b"mul": lambda number, by: number * by,
    b"div": _divide,
}


class Cache:
    """One cache.

    :param limits: what it may hold.
    :param now: the time in seconds.
    """

    def __init__(self, limits: CacheLimits, now: Callable[[], float]) -> None:
        self._limits = limits
        self._now = now
        # The first was unused for longest, where that matters.
        self._items: OrderedDict[bytes, _Item] = OrderedDict()
        self._expiries: list[tuple[float, bytes]] = []
        #: How many bytes the items have, with what they need besides.
        self.size = 0

    def __len__(self) -> int:
        return len(self._items)

    def _find(self, key: bytes) -> _Item | None:
        item = self._items.get(key)
        if item is None:
            return None
        if item.expires <= self._now():
            self.delete(key)
            return None
        if self._limits.lru:
            self._items.move_to_end(key)
        return item

    def get(self, key: bytes) -> bytes | None:
        """Return the value of *key*; None if there is none."""
        item = self._find(key)
        return None if item is None else item.value

    def keys(self) -> list[bytes]:
        """Return all keys."""
        self._expire()
        return list(self._items)

    def set(self, key: bytes, value: bytes, seconds: int = 0, *, replace: bool = False) -> bool:
        """Set a value.

        :param seconds: after this time it is gone; never, if that is not above 0.
        :param replace: whether to replace another one. Otherwise a key that is there already is left alone.
        :return: whether the value was set: not if there is no room for it, or it is empty, as in uWSGI.
        """
        expires = self._now() + seconds if seconds > 0 else math.inf
        old = self._find(key)
        return (old is None or replace) and self._put(key, value, expires, old)

    def calculate(self, name: bytes, key: bytes, by: int, seconds: int = 0) -> bool:
        """Change a number, which is 0 if there is none; it keeps the time at which it expires.

        :param name: one of :data:`CALCULATIONS`.
        :return: whether there was room for it.
        """
        old = self._find(key)
        number = 0 if old is None else to_number(old.value)
        expires = self._now() + seconds if seconds > 0 else math.inf
        value = _wrap(CALCULATIONS[name](number, by)).to_bytes(8, "little", signed=True)
        return self._put(key, value, expires if old is None else old.expires, old)

    def delete(self, key: bytes) -> bool:
        """Remove a key; return whether it was there."""
        item = self._items.pop(key, None)
        if item is None:
            return False
        self.size -= _size(key, item.value)
        return item.expires > self._now()

    def clear(self) -> None:
        """Remove all keys."""
        self._items.clear()
        self._expiries.clear()
        self.size = 0

    def _put(self, key: bytes, value: bytes, expires: float, old: _Item | None) -> bool:
        needed = _size(key, value)
        if not key or not value or len(key) > MAX_KEY or needed > self._limits.size:
            return False
        freed = 0 if old is None else _size(key, old.value)
        if not self._make_room(needed - freed, 0 if old else 1, key):
            return False
        self._items[key] = _Item(value, expires)
        self.size += needed - freed
        if expires < math.inf:
            heapq.heappush(self._expiries, (expires, key))
            if len(self._expiries) > 2 * len(self._items) + _SPARE:
                self._expiries = [
                    (item.expires, key) for key, item in self._items.items() if item.expires < math.inf
                ]
                heapq.heapify(self._expiries)
        return True

    def _make_room(self, size: int, items: int, spared: bytes) -> bool:
        """Make room for *size* more bytes and for *items* more; return whether there is any."""
        self._expire()
        while self.size + size > self._limits.size or len(self._items) + items > self._limits.items:
            oldest = next((key for key in self._items if key != spared), None) if self._limits.lru else None
            if oldest is None:
                return False
            self.delete(oldest)
        return True

    def _expire(self) -> None:
        """Remove what has expired."""
        now = self._now()
        while self._expiries and self._expiries[0][0] <= now:
            expires, key = heapq.heappop(self._expiries)
            item = self._items.get(key)
            if item is not None and item.expires == expires:
                self.delete(key)


def _size(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + OVERHEAD


def to_number(value: bytes) -> int:
    """Return the number in a value, which has eight bytes for it; 0 if it is none."""
    return int.from_bytes(value, "little", signed=True) if len(value) == 8 else 0


class Caches:
    """All caches of a service, and the calls for them.

    :param limits: the caches' limits, by their names.
    :param now: the time in seconds.
    :param on_full: called with the name of a cache that has refused an item.
    """

    def __init__(
        self,
        limits: dict[bytes, CacheLimits],
        now: Callable[[], float],
        on_full: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._caches = {name: Cache(one, now) for name, one in {DEFAULT: CacheLimits(), **limits}.items()}
        self._on_full = on_full

    def _cache(self, name: bytes) -> Cache:
        cache = self._caches.get(name or DEFAULT)
        if cache is None:
            text = name.decode(errors="replace")[:100]
            raise MisuseError(f"there is no cache {text!r}; give the node --cache name={text}")
        return cache

    def _done(self, done: bool, name: bytes) -> Sequence[bytes]:
        if not done:
            self._on_full((name or DEFAULT).decode(errors="replace"))
        return YES if done else NOTHING

    def get(self, client: Client, key: bytes, name: bytes) -> Sequence[bytes]:
        """Return a value."""
        value = self._cache(name).get(key)
        return NOTHING if value is None else (value,)

    def set(self, client: Client, key: bytes, value: bytes, seconds: bytes, name: bytes) -> Sequence[bytes]:
        """Set a value, unless the key has one."""
        cache = self._cache(name)
        if cache.get(key) is not None:
            return NOTHING
        return self._done(cache.set(key, value, decode_number(seconds)), name)

    def update(self, client: Client, key: bytes, value: bytes, seconds: bytes, name: bytes) -> Sequence[bytes]:
        """Set a value."""
        return self._done(self._cache(name).set(key, value, decode_number(seconds), replace=True), name)

    def delete(self, client: Client, key: bytes, name: bytes) -> Sequence[bytes]:
        """Remove a key."""
        return YES if self._cache(name).delete(key) else NOTHING

    def clear(self, client: Client, name: bytes) -> Sequence[bytes]:
        """Remove all keys."""
        self._cache(name).clear()
        return YES

    def keys(self, client: Client, name: bytes) -> Sequence[bytes]:
        """Return the keys."""
        return self._cache(name).keys()

    def number(self, client: Client, key: bytes, name: bytes) -> Sequence[bytes]:
        """Return the number that a value is."""
        return (encode_number(to_number(self._cache(name).get(key) or b"")),)

    def calculate(
        self, client: Client, calculation: bytes, key: bytes, by: bytes, seconds: bytes, name: bytes
    ) -> Sequence[bytes]:
        """Change a number."""
        if calculation not in CALCULATIONS:
            raise MisuseError(f"no calculation {calculation!r}")
        done = self._cache(name).calculate(calculation, key, decode_number(by), decode_number(seconds))
        return self._done(done, name)
