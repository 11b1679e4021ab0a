"""Which handlers a worker process runs, and within which bounds: what the front tells it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from uwsgitwisted.wire.terms import MAX_MESSAGE
from uwsgitwisted.worker.handlers.handler import Handler

#: Handlers by modifier1.
HandlerTable = Mapping[int, Handler]

#: Where the front puts the session's socket, and the pipe of tokens.
SOCKET_FD, TOKENS_FD = 3, 4


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Which handlers a worker runs; it travels to the worker as JSON on its command line.

    :param loader: ``module:function``; calling it with *arguments* gives the table of handlers.
    :param arguments: its keyword arguments, of types that JSON has.
    :param max_message: the largest answer that is passed on, in bytes.
    :param max_requests: after so many requests a worker is replaced; None for never.
    :param descriptors: how many file descriptors a worker may have, where the front has raised its own limit;
        None for as many as the front.
    :param max_memory: how much memory a worker may allocate, in bytes; None for no limit. A request that needs
        more fails with ``MemoryError``, and its worker is replaced.
    """

    loader: str
    arguments: dict[str, Any] = field(default_factory=dict)
    max_message: int = MAX_MESSAGE
    max_requests: int | None = None
    max_memory: int | None = None
    descriptors: int | None = None

    def encode(self) -> str:
        """Return the JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> WorkerSpec:
        """Return what :meth:`encode` gave."""
        return cls(**json.loads(text))

    def load(self) -> HandlerTable:
        """Import and call the loader.

        :raises StartupError: if the handlers can't be loaded; its text says why.
        """
        module, _, function = self.loader.partition(":")
        table: HandlerTable = getattr(importlib.import_module(module), function)(**self.arguments)
        return table
