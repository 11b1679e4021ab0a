"""Engines by their descriptions: ``processes:4``, ``reactor``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from uwsgitwisted.engines.inline import InlineEngine
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.engines.worker import WorkerSpec
from uwsgitwisted.interfaces import IEngine, IProcessReactor

#: What a service uses that isn't told.
DEFAULT = "processes"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What every engine is told.

    :param reactor: starts processes and keeps the time.
    :param spec: which handlers run.
    :param timeout: seconds that a request may run.
    :param max_queue: how many requests may wait.
    :param node: the node's name, for error texts.
    """

    reactor: IProcessReactor
    spec: WorkerSpec
    timeout: float
    max_queue: int
    node: str


def _processes(argument: str, settings: EngineSettings) -> IEngine:
    return ProcessEngine(
        settings.reactor,
        settings.spec,
        processes=int(argument) if argument else available_cores(),
        timeout=settings.timeout,
        max_queue=settings.max_queue,
        node=settings.node,
    )


def _reactor(argument: str, settings: EngineSettings) -> IEngine:
    return InlineEngine(settings.spec, node=settings.node)


_ENGINES: dict[str, Callable[[str, EngineSettings], IEngine]] = {"processes": _processes, "reactor": _reactor}


def check_description(description: str) -> str:
    """Return *description* if it is an engine's.

    :raises ValueError: if it is not; its text says what is.
    """
    name, _, argument = description.partition(":")
    valid = name in _ENGINES and (
        not argument or (name == "processes" and argument.isdigit() and int(argument))
    )
    if not valid:
        raise ValueError(
            f"{description!r} is no engine; there are 'processes:N' (N worker processes) and 'reactor'"
        )
    return description


def make_engine(description: str, settings: EngineSettings) -> IEngine:
    """Return the engine of a description.

    :raises ValueError: as :func:`check_description`.
    """
    name, _, argument = check_description(description).partition(":")
    return _ENGINES[name](argument, settings)


def available_cores() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
