"""Which handlers a worker process runs, and within which bounds: what the front tells it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from uwsgitwisted.errors import StartupError
from uwsgitwisted.wire.packet import BUNDLE, MARSHAL
from uwsgitwisted.wire.terms import MAX_MESSAGE
from uwsgitwisted.worker.compat.install import configure
from uwsgitwisted.worker.compat.signals import forget_all
from uwsgitwisted.worker.handlers import signals
from uwsgitwisted.worker.handlers.bundle import BundleHandler
from uwsgitwisted.worker.handlers.handler import Handler, StreamHandler

#: Handlers by modifier1.
HandlerTable = Mapping[int, Handler | StreamHandler]

#: The same, for engines that have no streams.
FunctionTable = Mapping[int, Handler]

#: A service's options by their long names, without dashes in front: a text, a list of texts where one was given
#: several times, or True for a flag.
OptionValues = Mapping[str, str | Sequence[str] | bool]

#: The id of an error that belongs to no request of the front: one that a worker has accepted itself has failed.
NO_REQUEST = 0
#: The most ports from which a worker accepts connections.
MAX_PORTS = 64
#: Where the front puts the session's socket, the pipe of tokens, the access log, if there is one, the activity
#: of a worker that is watched, in a worker that accepts connections the socket over which connections go to the
#: front, the socket over which calls for shared state go there, if there is one, and the ports, the first of
#: them there.
SOCKET_FD, TOKENS_FD, ACCESS_LOG_FD, ACTIVITY_FD, HANDOFF_FD, SHARED_FD, LISTENER_FD = range(3, 10)


@dataclass(frozen=True, slots=True)
class Loader:
    """A function that gives handlers.

    :param function: ``module:function``; it returns a table of handlers by modifier1.
    :param arguments: its keyword arguments, of types that JSON has.
    """

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the call, as code has it."""
        return f"{self.function}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    def load(self) -> HandlerTable:
        """Import and call the function.

        :raises StartupError: if the handlers can't be loaded; its text says why.
        """
        module, _, function = self.function.partition(":")
        table: HandlerTable = getattr(importlib.import_module(module), function)(**self.arguments)
        return table


@dataclass(frozen=True, slots=True)
class Accepting:
    """How a worker takes web requests from the service's own ports.

    :param ports: how many ports there are.
    :param networks: whose connections it takes itself, as texts; None for all.
    :param max_body: the largest body, in bytes.
    :param write_timeout: for how many seconds a peer may read nothing while bytes wait for it.
    """

    ports: int
    networks: Sequence[str] | None
    max_body: int
    write_timeout: float


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Which handlers a worker runs; it travels to the worker as JSON on its command line.

    :param loaders: what gives the handlers; each answers other values of modifier1.
    :param max_message: the largest answer that is passed on, in bytes.
    :param max_requests: after so many requests a worker is replaced; None for never.
    :param descriptors: how many file descriptors a worker may have, where the front has raised its own limit;
        None for as many as the front.
    :param max_memory: how much memory a worker may allocate, in bytes; None for no limit. A request that needs
        more fails with ``MemoryError``, and its worker is replaced.
    :param reload_on_rss: a worker with more resident memory after a request is replaced, in bytes; None for no
        limit.
    :param max_lifetime: a worker that is older after a request is replaced, in seconds; None for never.
    :param options: what ``uwsgi.opt`` holds. No secrets: other users of the machine can read the command line.
    :param numproc: how many workers there are.
    :param accepting: how the worker accepts connections; None if it doesn't.
    :param threads: how many requests a worker runs at a time, each in a thread of its own.
    :param shares: whether its front has state that its workers share.
    :param mule: the program of a mule, or empty for one that has none; None for a worker.
    :param traces: whether a worker that is killed for its time logs where its code was.
    :param masterpid: the front's process id. The front has it only once it runs, as twistd may fork before.
    :param spooler: in a spooler, the address at which its workers reach it, empty if there is none; otherwise
        None.
    """

    loaders: tuple[Loader, ...]
    max_message: int = MAX_MESSAGE
    max_requests: int | None = None
    max_memory: int | None = None
    reload_on_rss: int | None = None
    max_lifetime: float | None = None
    descriptors: int | None = None
    options: OptionValues = field(default_factory=dict)
    numproc: int = 1
    masterpid: int = 0
    accepting: Accepting | None = None
    threads: int = 1
    spooler: str | None = None
    shares: bool = False
    mule: str | None = None
    traces: bool = False

    @property
    def is_watched(self) -> bool:
        """Whether the front sees in shared memory what a worker does."""
        return self.accepting is not None or self.threads > 1

    def encode(self) -> str:
        """Return the JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> WorkerSpec:
        """Return what :meth:`encode` gave."""
        values = json.loads(text)
        loaders = tuple(Loader(**loader) for loader in values.pop("loaders"))
        accepting = values.pop("accepting")
        return cls(loaders, accepting=accepting and Accepting(**accepting), **values)

    def load_functions(self, worker_id: int = 0) -> FunctionTable:
        """Load the handlers for an engine that has no worker processes, and so no streams; see :meth:`load`.

        :raises StartupError: if they can't be loaded, or one of them answers with streams.
        """
        functions: dict[int, Handler] = {}
        for modifier1, handler in self.load(worker_id).items():
            if not isinstance(handler, Handler):
                raise StartupError("web applications need worker processes: --engine processes:N")
            functions[modifier1] = handler
        return functions

    def load(self, worker_id: int = 0) -> HandlerTable:
        """Tell the ``uwsgi`` module about the service, and load the handlers of all loaders.

        :param worker_id: which worker this process is, from 1; 0 if it is none, or its threads are.
        :raises StartupError: if they can't be loaded, or two loaders answer the same modifier1; its text says
            why.
        """
        configure(
            worker_id=worker_id,
            masterpid=self.masterpid,
            numproc=self.numproc,
            options=self.options,
            spooler=self.spooler,
            threads=self.threads,
        )
        forget_all()
        table: dict[int, Handler | StreamHandler] = {**signals.table()}
        sources: dict[int, Loader] = {}
        for loader in self.loaders:
            for modifier1, handler in loader.load().items():
                first = sources.setdefault(modifier1, loader)
                if first is not loader:
                    raise StartupError(f"both {first} and {loader} answer modifier1 {modifier1}; leave one out")
                table[modifier1] = handler
        objects = table.get(MARSHAL)
        if isinstance(objects, Handler):
            table.setdefault(BUNDLE, BundleHandler.of(objects, self.max_message))
        return table
