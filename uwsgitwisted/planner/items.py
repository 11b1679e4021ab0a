"""The items of a map: read as nodes become free, and never further ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from itertools import islice
from typing import Any

from uwsgitwisted.errors import MisuseError, UwsgiError
from uwsgitwisted.wire.bundle import MAX_BUNDLE_SIZE
from uwsgitwisted.wire.packet import Packet


class Items:
    """The items that are not given out yet.

    :param items: anything that can be iterated over; a generator is read only as far as the work has gone.
    :param chunked: whether a message is a list of items, or the bounds of a part of a ``range``.
    :raises MisuseError: if *items* can't be iterated over.
    """

    def __init__(self, items: Iterable[Any], *, chunked: bool) -> None:
        self._chunked = chunked
        self._range = items if chunked and isinstance(items, range) else None
        try:
            self._iterator = iter(items)
        except TypeError as error:
            raise MisuseError(f"the items can't be iterated over: {error}") from error
        # An item that was read and not given out; this object if there is none.
        self._held: object = self
        # How many bytes the last item of a bundle had.
        self._size = 0
        #: How many items there are; None if that is not known yet.
        self.total: int | None = len(items) if isinstance(items, Sized) else None
        #: How many items have been given out; the index of the next one.
        self.taken = 0
        #: Whether all items have been given out.
        self.exhausted = self.total == 0

    @property
    def left(self) -> float:
        """How many items are left; infinite if that is not known."""
        return math.inf if self.total is None else self.total - self.taken

    def take(self, count: int) -> tuple[int, object]:
        """Take the next items.

        :param count: how many at most; 1 unless chunked.
        :return: how many there were, and the message for the handler. With 0, there are none left.
        """
        if not self._chunked:
            message = self._next()
            got = 0 if message is self else 1
        elif self._range is not None:
            part = self._range[self.taken : self.taken + count]
            got, message = len(part), _bounds(part)
        else:
            chunk = list(islice(self._iterator, count))
            got, message = len(chunk), chunk
        self.taken += got
        if got < count or self.taken == self.total:
            self.close()
        return got, message

    def take_requests(self, count: int, encode: Callable[[Any], Packet]) -> list[Packet]:
        """Take the next items for a bundle, encoded.

        :param count: how many at most. It ends before an item that is too large for it.
        :param encode: makes the request of an item.
        :return: their requests. If there is none, the next item can't be encoded, and is left for :meth:`take`,
            or there is no item.
        """
        requests: list[Packet] = []
        room = MAX_BUNDLE_SIZE
        while len(requests) < count and (not requests or self._size <= room):
            item = self._next()
            if item is self:
                break
            try:
                request = encode(item)
            except UwsgiError:
                self._held = item
                break
            self._size = len(request.payload)
            if requests and self._size > room:
                self._held = item
                break
            requests.append(request)
            room -= self._size
        self.taken += len(requests)
        if requests and self.taken == self.total:
            self.close()
        return requests

    def _next(self) -> object:
        """Return the next item; this object if there is none."""
        held, self._held = self._held, self
        return next(self._iterator, self) if held is self else held

    def close(self) -> None:
        """Give out no further items."""
        self._held = self
        self.total = self.taken
        self.exhausted = True


def _bounds(part: range) -> list[int]:
    """Return start and stop, as the original scenario's handler takes them, and the step if it isn't 1."""
    return [part.start, part.stop] if part.step == 1 else [part.start, part.stop, part.step]
