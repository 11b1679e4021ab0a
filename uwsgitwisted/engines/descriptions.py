"""Makes engines from descriptions, as Twisted does endpoints: ``processes:4``, ``threads:8``, ``reactor``.

Another package adds an engine with an entry point in the group ``uwsgitwisted.engines``. The entry point's name
is the word before the colon, and its object is an :data:`EngineParser`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points

from uwsgitwisted.engines.executor import ExecutorEngine
from uwsgitwisted.engines.inline import InlineEngine
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.interfaces import IEngine, IProcessReactor
from uwsgitwisted.worker.compat.install import number_thread
from uwsgitwisted.worker.handlers.module import load_module
from uwsgitwisted.worker.spec import WorkerSpec

#: The default engine of a service.
DEFAULT = "processes"
_GROUP = "uwsgitwisted.engines"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings of every engine.

    :param reactor: starts processes and keeps the time.
    :param spec: the handlers.
    :param timeout: seconds that a request may run.
    :param max_queue: how many requests may wait.
    :param node: the node's name, for error texts.
    """

    reactor: IProcessReactor
    spec: WorkerSpec
    timeout: float
    max_queue: int
    node: str


#: Makes an engine.
EngineMaker = Callable[[EngineSettings], IEngine]
#: Parses the text after the colon; raises ValueError if it is invalid.
EngineParser = Callable[[str], EngineMaker]


def _number(argument: str) -> int:
    if not argument:
        return available_cores()
    if not argument.isascii() or not argument.isdecimal() or not 1 <= int(argument) <= 10_000:
        raise ValueError(f"{argument!r} is not a number from 1 to 10000")
    return int(argument)


def _processes(argument: str) -> EngineMaker:
    number = _number(argument)
    return lambda settings: ProcessEngine(
        settings.reactor,
        settings.spec,
        processes=number,
        timeout=settings.timeout,
        max_queue=settings.max_queue,
        node=settings.node,
    )


def _reactor(argument: str) -> EngineMaker:
    if argument:
        raise ValueError("'reactor' takes nothing behind it")
    return lambda settings: InlineEngine(
        settings.reactor,
        settings.spec,
        timeout=settings.timeout,
        max_queue=settings.max_queue,
        node=settings.node,
    )


def _threads(argument: str) -> EngineMaker:
    number = _number(argument)

    def make() -> Executor:
        numbers = itertools.count(1)
        return ThreadPoolExecutor(number, "handler", initializer=number_thread, initargs=(numbers,))

    return _in_executor(make, f"threads:{number}")


def _executor(argument: str) -> EngineMaker:
    module, _, name = argument.partition(":")
    if not module or not name:
        raise ValueError("write 'executor:module:callable'; the callable returns a concurrent.futures.Executor")

    def make() -> Executor:
        executor: Executor = getattr(load_module(module), name)()
        return executor

    return _in_executor(make, f"executor:{argument}")


def _in_executor(make: Callable[[], Executor], description: str) -> EngineMaker:
    return lambda settings: ExecutorEngine(
        settings.reactor,
        settings.spec,
        make,
        description=description,
        timeout=settings.timeout,
        max_queue=settings.max_queue,
        node=settings.node,
    )


_ENGINES: dict[str, EngineParser] = {
    "processes": _processes,
    "threads": _threads,
    "reactor": _reactor,
    "executor": _executor,
}

#: Those with a number behind the colon.
_NUMBERED = ("processes", "threads")


def parse_engine(description: str) -> EngineMaker:
    """Return the maker of the engine that *description* names.

    :raises ValueError: if the description is invalid; the text lists the valid ones.
    """
    name, _, argument = description.partition(":")
    parser = _ENGINES.get(name)
    for entry_point in entry_points(group=_GROUP, name=name) if parser is None else ():
        parser = entry_point.load()
    if parser is None:
        raise ValueError(
            f"no engine is called {name!r}; there are processes:N, threads:N, reactor, executor:module:callable"
        )
    return parser(argument)


def worker_count(description: str) -> int:
    """Return how many workers the engine of a description has: 1 if it doesn't say.

    :raises ValueError: if it says a number that makes no sense.
    """
    name, _, argument = description.partition(":")
    return _number(argument) if name in _NUMBERED else 1


def known_workers(description: str) -> int:
    """Return how many workers the engine of a description has; 0 if it doesn't say."""
    return worker_count(description) if description.partition(":")[0] in _NUMBERED else 0


def available_cores() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
