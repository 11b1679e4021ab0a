"""Which of a request's variables a template has by their names; ``attributes`` has all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from keyword import iskeyword
from typing import Any

#: How many names are known to be free, at most, and how long these are: they come from callers.
_MAX_KNOWN, _MAX_LENGTH = 4_096, 64


class VariableNames:
    """Selects the variables whose names disturb nothing.

    :param reserved: the names that mean something else in a template.
    """

    def __init__(self, reserved: Iterable[str]) -> None:
        #: The names that mean something else.
        self.reserved = frozenset(reserved)
        self._known: set[object] = set()

    def select(self, variables: Mapping[Any, object]) -> dict[str, object]:
        """Return the names that are defined in a template, with their values."""
        if self._known.issuperset(variables):
            return {**variables, "attributes": variables}
        names = {key: value for key, value in variables.items() if self._is_free(key)}
        names["attributes"] = variables
        return names

    def _is_free(self, name: object) -> bool:
        if not isinstance(name, str) or not name.isidentifier() or iskeyword(name):
            return False
        if name in self.reserved or name.startswith("__"):
            return False
        if len(name) <= _MAX_LENGTH:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known.add(name)
        return True
