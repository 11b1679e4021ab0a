"""A queue in which groups take turns, each with its first item, however many items the others have."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar


class Grouped(Protocol):
    """An item of the queue."""

    @property
    def group(self) -> str:
        """The group that it belongs to."""


T = TypeVar("T", bound=Grouped)


class Turns(Generic[T]):
    """The items that wait."""

    def __init__(self) -> None:
        #: How many items wait. A plain number: this is looked at several times for every request.
        self.length = 0
        # By group, the next one first; and by item, so that removing one takes the same time however many wait.
        self._items: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()

    def count(self, group: str) -> int:
        """Return how many items of *group* wait."""
        return len(self._items.get(group, ()))

    def append(self, item: T) -> None:
        """Add *item* behind the others of its group."""
        items = self._items.get(item.group)
        if items is None:
            items = self._items[item.group] = OrderedDict()
        items[item] = None
        self.length += 1

    def pop(self) -> T:
        """Remove and return the next item."""
        items = next(iter(self._items.values()))
        item, _ = items.popitem(last=False)
        if not items:
            del self._items[item.group]
        elif len(self._items) > 1:
            self._items.move_to_end(item.group)
        self.length -= 1
        return item

    def discard(self, item: T) -> bool:
        """Remove *item*; return whether it was waiting."""
        items = self._items.get(item.group)
        if items is None or item not in items:
            return False
        del items[item]
        if not items:
            del self._items[item.group]
        self.length -= 1
        return True

    def put_back(self, items: Iterable[T]) -> None:
        """Return *items* to the front of the queue, in their order."""
        for item in reversed(list(items)):
            self.append(item)
            self._items[item.group].move_to_end(item, last=False)
            self._items.move_to_end(item.group, last=False)
