"""The queue of uWSGI's ``queue_*`` calls: a ring of slots.

One end takes the oldest item (``pull``), the other the newest (``pop``). Where uWSGI's two positions get out of
step, when a full queue is pushed to or an empty one is popped from, the order of the items holds here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.shared.client import NOTHING, YES, Client
from uwsgitwisted.wire.calls import decode_number, encode_number


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What the queue may hold.

    :param slots: how many items.
    :param size: how many bytes they may have together.
    """

    slots: int = 1_000
    size: int = 16 * 1024 * 1024


class Ring:
    """The queue.

    :param limits: what it may hold.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._items: list[bytes | None] = [None] * limits.slots
        # Where the next item goes, and where the oldest is.
        self._push_at = self._pull_at = 0
        #: How many bytes the items have.
        self.size = 0

    def push(self, client: Client, item: bytes) -> Sequence[bytes]:
        """Add an item; in a full queue, it replaces the oldest."""
        position = self._push_at
        replaced = self._items[position] is not None
        if not self._put(position, item):
            return NOTHING
        self._push_at = (position + 1) % self._limits.slots
        if replaced and position == self._pull_at:
            self._pull_at = self._push_at
        return YES

    def pull(self, client: Client) -> Sequence[bytes]:
        """Remove and return the oldest item."""
        item = self._take(self._pull_at)
        if item is None:
            return NOTHING
        self._pull_at = (self._pull_at + 1) % self._limits.slots
        return (item,)

    def pop(self, client: Client) -> Sequence[bytes]:
        """Remove and return the newest item."""
        last = (self._push_at - 1) % self._limits.slots
        item = self._take(last)
        if item is None:
            return NOTHING
        self._push_at = last
        return (item,)

    def get(self, client: Client, number: bytes) -> Sequence[bytes]:
        """Return the item in a slot."""
        slot = decode_number(number)
        item = self._items[slot] if 0 <= slot < self._limits.slots else None
        return NOTHING if item is None else (item,)

    def set(self, client: Client, number: bytes, item: bytes) -> Sequence[bytes]:
        """Put an item into a slot."""
        slot = decode_number(number)
        return YES if 0 <= slot < self._limits.slots and self._put(slot, item) else NOTHING

    def last(self, client: Client, number: bytes) -> Sequence[bytes]:
        """Return the newest items, the newest first; an empty slot is an empty item."""
        wanted = decode_number(number)
        if not 0 <= wanted <= self._limits.slots:
            raise MisuseError(f"queue_last({wanted}): the queue has {self._limits.slots} slots")
        slots = ((self._push_at - 1 - back) % self._limits.slots for back in range(wanted))
        return [self._items[slot] or b"" for slot in slots]

    def slot(self, client: Client) -> Sequence[bytes]:
        """Return where the next item goes."""
        return (encode_number(self._push_at),)

    def pull_slot(self, client: Client) -> Sequence[bytes]:
        """Return where the oldest item is."""
        return (encode_number(self._pull_at),)

    def _put(self, slot: int, item: bytes) -> bool:
        size = self.size + len(item) - len(self._items[slot] or b"")
        if not item or size > self._limits.size:
            return False
        self._items[slot] = item
        self.size = size
        return True

    def _take(self, slot: int) -> bytes | None:
        item = self._items[slot]
        if item is not None:
            self._items[slot] = None
            self.size -= len(item)
        return item
