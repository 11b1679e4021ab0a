"""How a map works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.planner.piece import OnError

#: How long a chunk should take on its node, in seconds.
TARGET = 0.2


@dataclass(frozen=True, slots=True)
class Settings:
    """How a map works.

    :param ordered: whether results come in the order of the items.
    :param chunked: whether a request carries a chunk of items.
    :param bundled: whether small items may go in one request, as a bundle, while the handler gets one by one.
    :param chunk: how many items a chunk or a bundle has; None to size them by time.
    :param target: how long a chunk should take, in seconds.
    :param idempotent: whether an item may run twice.
    :param on_error: with ``"raise"``, nothing more is done behind an item that has failed.
    :param timeout: seconds for each request, which the shell enforces. If no node is well for so long, the map
        ends with ``Unavailable``.
    :raises MisuseError: if the values don't fit together.
    """

    ordered: bool = True
    chunked: bool = False
    bundled: bool = False
    chunk: int | None = None
    target: float = TARGET
    idempotent: bool = False
    on_error: OnError = "return"
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.chunk is not None and (type(self.chunk) is not int or self.chunk < 1):
            raise MisuseError(f"chunk is {self.chunk!r}; it is a number of items from 1, or None")
        if self.chunk not in (None, 1) and not (self.chunked or self.bundled):
            raise MisuseError("only items of modifier1 33 go in one request without chunked=True")
        if self.on_error not in get_args(OnError):
            raise MisuseError(f"on_error is {self.on_error!r}; it is 'raise' or 'return'")

    @property
    def bundles(self) -> bool:
        """Whether there are bundles."""
        return self.bundled and not self.chunked and self.chunk != 1
