"""What handler modules have registered, so that a reload with other code leaves nothing behind.

Each worker that starts registers the same again. An entry knows with which *generations* of the code it was
registered: a reload begins a new one, and when it has succeeded, only what the new code has registered stays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from uwsgitwisted.errors import MisuseError

_Key = TypeVar("_Key", bound=Hashable)

#: How many entries of each kind there may be. uWSGI has 64.
MAX_ENTRIES = 256


class Registry(Generic[_Key]):
    """Entries of one kind.

    :param kind: what they are, for error texts.
    :param start: called with a new entry; returns what ends it. It may raise one of our errors.
    """

    def __init__(self, kind: str, start: Callable[[_Key], Callable[[], object]]) -> None:
        self._kind = kind
        self._start = start
        self._entries: dict[_Key, tuple[Callable[[], object], set[int]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: _Key, generation: int) -> None:
        """Add an entry, or note that code of *generation* has registered it too.

        :raises MisuseError: if there are too many.
        """
        if key not in self._entries:
            if len(self._entries) >= MAX_ENTRIES:
                raise MisuseError(f"there are {MAX_ENTRIES} {self._kind} already, which is the most")
            self._entries[key] = self._start(key), set()
        self._entries[key][1].add(generation)

    def keep(self, generation: int) -> None:
        """Remove what code of *generation* has not registered."""
        self._remove(lambda generations: generation in generations)

    def undo(self, generation: int) -> None:
        """Remove what only code of *generation* has registered."""
        self._remove(lambda generations: generations - {generation})

    def clear(self) -> None:
        """Remove everything."""
        self._remove(lambda generations: False)

    def _remove(self, stays: Callable[[set[int]], object]) -> None:
        for key, (end, generations) in list(self._entries.items()):
            if not stays(generations):
                del self._entries[key]
                end()
