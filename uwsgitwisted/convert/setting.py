"""An option in a configuration, and where it was read."""

from __future__ import annotations

from dataclasses import dataclass, field

from uwsgitwisted.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Place:
    """Where an option stands.

    :param path: the file, as its name was written.
    :param line: the number of the line; 0 if it isn't known, as in JSON.
    """

    path: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path

    def error(self, text: str) -> ConfigurationError:
        """Make an error that names this place."""
        return ConfigurationError(text, path=self.path, line=self.line)


@dataclass(slots=True)
class Setting:
    """An option and its value.

    :param is_final: whether uWSGI uses the value at once, before it replaces placeholders.
    """

    key: str
    value: str
    place: Place
    is_final: bool = False
    #: The value before placeholders were replaced.
    written: str = field(init=False)

    def __post_init__(self) -> None:
        self.written = self.value
