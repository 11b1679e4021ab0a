"""Engines by their descriptions: every form, every mistake, and other packages' engines."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from uwsgitwisted.engines import descriptions
from uwsgitwisted.engines.descriptions import (
    EngineMaker,
    EngineSettings,
    available_cores,
    parse_engine,
    worker_count,
)
from uwsgitwisted.engines.executor import ExecutorEngine
from uwsgitwisted.engines.inline import InlineEngine
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.errors import StartupError
from uwsgitwisted.interfaces import IEngine, IReloadable, Request
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.worker.spec import Loader, WorkerSpec

SETTINGS = EngineSettings(
    reactor=Clock(),  # type: ignore[arg-type]
    spec=WorkerSpec((Loader("no_module:load"),)),
    timeout=1.0,
    max_queue=10,
    node="n1",
)


@pytest.mark.parametrize(
    ("description", "kind", "told"),
    [
        ("processes:3", ProcessEngine, "processes:3"),
        ("processes", ProcessEngine, f"processes:{available_cores()}"),
        ("processes:", ProcessEngine, f"processes:{available_cores()}"),
        ("threads:8", ExecutorEngine, "threads:8"),
        ("threads", ExecutorEngine, f"threads:{available_cores()}"),
        ("reactor", InlineEngine, "reactor"),
        ("executor:my.module:make", ExecutorEngine, "executor:my.module:make"),
    ],
)
def test_descriptions(description: str, kind: type[Any], told: str) -> None:
    """Each form makes its engine, which can say what describes it; nothing runs before it is started."""
    engine = parse_engine(description)(SETTINGS)
    assert isinstance(engine, kind)
    assert engine.description == told
    verifyObject(IEngine, engine)
    assert IReloadable.providedBy(engine) == (kind is ProcessEngine)


@pytest.mark.parametrize(
    ("description", "text"),
    [
        ("processes:0", "'0' is not a number from 1 to 10000"),
        ("processes:10001", "'10001' is not a number from 1 to 10000"),
        ("processes:-1", "'-1' is not a number"),
        ("processes:two", "'two' is not a number"),
        ("processes:1.5", "'1.5' is not a number"),
        ("processes:\u0663", "is not a number"),
        ("threads:0", "'0' is not a number"),
        ("reactor:2", "'reactor' takes nothing behind it"),
        ("executor", "write 'executor:module:callable'"),
        ("executor:module", "write 'executor:module:callable'"),
        ("executor::make", "write 'executor:module:callable'"),
        ("greenlets:3", "no engine is called 'greenlets'; there are processes:N, threads:N"),
        ("", "no engine is called ''"),
    ],
)
def test_mistakes(description: str, text: str) -> None:
    """An invalid description is refused, with a list of valid ones."""
    with pytest.raises(ValueError, match=text):
        parse_engine(description)


def test_how_many_workers() -> None:
    """A description says how many workers there are, with a number or without."""
    assert [worker_count(text) for text in ("processes:3", "threads:8")] == [3, 8]
    assert [worker_count(text) for text in ("processes", "threads:")] == [available_cores()] * 2
    assert [worker_count(text) for text in ("reactor", "executor:m:f", "greenlets:3")] == [1, 1, 1]


@implementer(IEngine)
class Greenlets:
    """An engine of another package."""

    def __init__(self, description: str) -> None:
        self.description = description

    def start(self) -> Deferred[None]:
        return succeed(None)

    def stop(self, seconds: float) -> Deferred[None]:
        return succeed(None)

    def submit(self, request: Request) -> Deferred[Packet]:
        return succeed(request.packet)


def parse_greenlets(argument: str) -> EngineMaker:
    """Parse the text after ``greenlets:``."""
    if not argument:
        raise ValueError("how many?")
    return lambda settings: Greenlets(f"greenlets:{argument} on {settings.node}")


def test_another_packages_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point adds one; ours come first, and are not looked for there."""
    asked = []

    def entry_points(*, group: str, name: str) -> list[EntryPoint]:
        asked.append((group, name))
        return [EntryPoint(name, f"{__name__}:parse_greenlets", group)] if name == "greenlets" else []

    monkeypatch.setattr(descriptions, "entry_points", entry_points)
    assert parse_engine("greenlets:3")(SETTINGS).description == "greenlets:3 on n1"
    with pytest.raises(ValueError, match="how many"):
        parse_engine("greenlets")
    with pytest.raises(ValueError, match="no engine is called 'fibers'"):
        parse_engine("fibers:3")
    parse_engine("reactor")
    assert set(asked) == {("uwsgitwisted.engines", "greenlets"), ("uwsgitwisted.engines", "fibers")}


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the processors that this process may use count; where the system can't tell, all do."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert available_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


made: list[ThreadPoolExecutor] = []


def make() -> ThreadPoolExecutor:
    """Make an executor."""
    made.append(ThreadPoolExecutor(1))
    return made[-1]


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("no_such_module:make", "no_such_module:make: there is no handler module 'no_such_module'"),
        (f"{__name__}:no_such_function", "AttributeError: .*no_such_function"),
    ],
)
def test_an_executor_that_is_not_there(place: str, text: str) -> None:
    """What can't be found is the start's failure, with the option that named it."""
    engine = parse_engine(f"executor:{place}")(SETTINGS)
    failures: list[Any] = []
    engine.start().addErrback(failures.append)
    (failure,) = failures
    failure.trap(StartupError)
    assert failure.value.args[0].startswith(f"--engine executor:{place}: ")
    with pytest.raises(StartupError, match=text):
        raise failure.value


@pytest_twisted.ensureDeferred
async def test_an_executor() -> None:
    """The function that is named makes the executor when the engine is started."""
    engine = parse_engine(f"executor:{__name__}:make")(dataclasses.replace(SETTINGS, reactor=reactor))
    assert made == []
    await engine.start()
    assert len(made) == 1
    await engine.stop(1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        made[0].submit(print)
