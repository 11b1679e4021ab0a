"""The ``uwsgidecorators`` module: from the call of a decorated function to its run in a worker."""

from __future__ import annotations

import importlib
import marshal
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tests.unit.servers import (
    ScriptedServer,
    answering,
    frame,
    plain_peers,  # noqa: F401 - a fixture
)
from uwsgitwisted.engines.inline import InlineEngine
from uwsgitwisted.errors import MisuseError, SpoolError, StartupError, UnencodableMessage, UnsafeObject
from uwsgitwisted.interfaces import Request
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.tasks import AGAIN, DONE, IGNORE, RETRY, encode_run
from uwsgitwisted.wire.vars import decode_vars, encode_vars
from uwsgitwisted.worker.compat import calls, decorators, signals, uwsgi, uwsgidecorators
from uwsgitwisted.worker.compat.install import configure, install
from uwsgitwisted.worker.handlers import spool as spool_handler
from uwsgitwisted.worker.spec import Loader, WorkerSpec

YES = frame(255, 1)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, plain_peers: None) -> None:  # noqa: F811
    """Be a process that has decorated nothing yet, in which ``import uwsgi`` gives ours."""
    monkeypatch.setattr(uwsgi, "spooler", None)
    for name in ("spooler_functions", "periodic"):
        monkeypatch.setattr(decorators, name, {})
    monkeypatch.setattr(decorators, "postfork_chain", [])
    monkeypatch.setattr(signals, "_functions", {})
    monkeypatch.setattr(calls.process, "is_spooler", False)
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor", raising=False)
    monkeypatch.setitem(sys.modules, "my_tasks", types.ModuleType("my_tasks"))
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    monkeypatch.setitem(sys.modules, "uwsgidecorators", uwsgidecorators)


class Queue:
    """A spooler that takes every task."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    @property
    def tasks(self) -> list[dict[bytes, bytes]]:
        """The variables of what was enqueued."""
        return [decode_vars(request[4:]) for request in self._server.requests]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    with ScriptedServer(answering(YES)) as server:
        monkeypatch.setenv(calls.SPOOLER_VARIABLE, f"127.0.0.1:{server.port}")
        yield Queue(server)


def request(variables: dict[bytes, bytes] | dict[str, Any], body: bytes = b"") -> Packet:
    """Return what a worker gets."""
    return encode_run(0, encode_vars(variables), body)  # type: ignore[arg-type]


def run(variables: dict[bytes, bytes] | dict[str, Any], body: bytes = b"", **options: Any) -> Packet:
    """Run a task as a worker does."""
    handler = spool_handler.load("my_tasks", **options)[17]
    asked = request(variables, body)
    return handler.answer(asked, handler.run(handler.read(asked)))  # whose exceptions come out as they are


# Tasks.


@pytest.mark.integration
@pytest.mark.parametrize("text", [False, True])
def test_spool(queue: Queue, text: bool) -> None:
    """A call enqueues its dict, and the function gets it as text, with what it knows of the task."""
    got = []

    @uwsgidecorators.spool
    def send(task: dict[str, str]) -> str:
        """Send a mail."""
        got.append(task)
        return "sent"

    assert send({"to": "ann", b"raw": b"\xff"}, priority=3) is True
    assert got == []
    (task,) = queue.tasks
    assert task == {
        b"ud_spool_func": b"send",
        b"ud_spool_ret": b"-2",
        b"to": b"ann",
        b"raw": b"\xff",
        b"priority": b"3",
    }
    assert run(task, b"\x00body\xff", text=text) == Packet(255, DONE, marshal.dumps("sent", 2))
    assert got == [
        {
            "ud_spool_func": "send",
            "ud_spool_ret": "-2",
            "to": "ann",
            "raw": "\udcff",
            "priority": "3",
            "spooler_task_name": "0",
            "body": "\x00body\udcff",
        }
    ]
    assert (send.__name__, send.__doc__) == ("send", "Send a mail.")


@pytest.mark.integration
def test_the_old_spelling(queue: Queue) -> None:
    """``f.spool`` does what ``f`` does."""

    @uwsgidecorators.spool
    def send(task: dict[str, str]) -> None:
        """Do nothing."""

    assert send.spool({"a": "1"}, b="2") is True
    assert send.spool(a="1", b="2") is True
    assert send() is True
    assert queue.tasks[0] == queue.tasks[1]
    assert queue.tasks[2] == {b"ud_spool_func": b"send", b"ud_spool_ret": b"-2"}


@pytest.mark.integration
@pytest.mark.parametrize("text", [False, True])
def test_pass_arguments(queue: Queue, text: bool) -> None:
    """The function gets the arguments of the call, as they were; what is the spooler's stays with it."""
    got = []

    @uwsgidecorators.spool(pass_arguments=True)
    def add(*args: object, **kwargs: object) -> int:
        got.append((args, kwargs))
        return 5

    arguments = (1, 2.5, "é\x80", b"\xff\x80", [None, {"k": (True,)}], {1})
    assert add(*arguments, key={"a": b"\xfe"}, at=4_000_000_000, priority=2, spooler="mail", body=b"x") is True
    assert add() is True
    task, empty = queue.tasks
    assert [task[key] for key in (b"at", b"priority", b"spooler")] == [b"4000000000", b"2", b"mail"]
    assert run(task, text=text) == Packet(255, DONE, marshal.dumps(5, 2))
    run(empty, text=text)
    assert got == [(arguments, {"key": {"a": b"\xfe"}}), ((), {})]


@pytest.mark.integration
def test_arguments_that_cannot_travel(queue: Queue) -> None:
    """An argument that can't be marshalled is an error where the call is, and nothing is enqueued."""

    @uwsgidecorators.spool(pass_arguments=True)
    def add(*args: object, **kwargs: object) -> None:
        """Do nothing."""

    with pytest.raises(UnencodableMessage, match=r"the value at \[1\]: its type, builtins.object, is not one"):
        add(1, object())
    with pytest.raises(UnencodableMessage, match=r"the value at \['key'\]: its type"):
        add(1, key=object())
    assert queue.tasks == []


def test_without_a_spooler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A task that can't be handed over is None and a line in the log, as ``uwsgi.spool`` has it."""
    monkeypatch.delenv(calls.SPOOLER_VARIABLE, raising=False)

    @uwsgidecorators.spool
    def send(task: dict[str, str]) -> None:
        """Do nothing."""

    assert send(a="1") is None
    assert "no spooler is known" in caplog.text


@pytest.mark.parametrize("returned", [None, uwsgi.SPOOL_RETRY, uwsgi.SPOOL_IGNORE, uwsgi.SPOOL_OK, 17])
def test_spool_is_done(returned: object) -> None:
    """What a function of ``spool`` returns is its result, and never a code."""
    uwsgidecorators.spool(function("work", returned))
    payload = b"" if returned is None else marshal.dumps(returned, 2)
    assert run({"ud_spool_func": "work"}) == Packet(255, DONE, payload)
    assert run({"ud_spool_func": "work", "ud_spool_ret": "-1"}, return_codes="0.9") == Packet(
        255, DONE, payload
    )


@pytest.mark.parametrize("returned", [None, uwsgi.SPOOL_OK, "text"])
def test_spoolforever_runs_again(returned: object) -> None:
    """What a function of ``spoolforever`` returns is nothing: it runs again."""
    uwsgidecorators.spoolforever(function("work", returned))
    assert run({"ud_spool_func": "work"}) == Packet(255, AGAIN)


@pytest.mark.integration
def test_what_uwsgi_would_read(queue: Queue) -> None:
    """A task says what becomes of it to a real uWSGI, too."""
    for decorate in (uwsgidecorators.spool, uwsgidecorators.spoolforever, uwsgidecorators.spoolraw):
        decorate(function("work", None))()
    assert [task.get(b"ud_spool_ret") for task in queue.tasks] == [b"-2", b"-1", None]


@pytest.mark.parametrize(
    ("returned", "verdict", "value"),
    [
        (uwsgi.SPOOL_OK, DONE, None),
        (uwsgi.SPOOL_RETRY, RETRY, None),
        (uwsgi.SPOOL_IGNORE, IGNORE, None),
        (None, DONE, None),
        (5, DONE, 5),
    ],
)
@pytest.mark.parametrize("pass_arguments", [False, True])
def test_spoolraw_says_it(returned: object, verdict: int, value: object, pass_arguments: bool) -> None:
    """What a function of ``spoolraw`` returns is taken as from ``uwsgi.spooler``."""
    uwsgidecorators.spoolraw(pass_arguments=pass_arguments)(function("work", returned))
    payload = b"" if value is None else marshal.dumps(value, 2)
    assert run({"ud_spool_func": "work"}) == Packet(255, verdict, payload)


def function(name: str, returned: object) -> Callable[..., object]:
    """Return a function of that name."""

    def work(*args: object, **kwargs: object) -> object:
        return returned

    work.__name__ = name
    return work


def test_exceptions() -> None:
    """What a function raises comes out as it is."""

    @uwsgidecorators.spool
    def work(task: dict[str, str]) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run({"ud_spool_func": "work"})


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"ud_spool_func": "evil"}, "'evil'"),
        ({"ud_spool_func": "os.system"}, "'os.system'"),
        ({}, "''"),
        ({"ud_spool_func": b"\xff" * 5000}, "'" + "\\udcff" * 100 + "'"),
    ],
)
def test_functions_that_are_not_there(variables: dict[str, Any], name: str) -> None:
    """A task for a function that isn't decorated fails, and says which are."""
    uwsgidecorators.spool(function("one", None))
    uwsgidecorators.spool(function("two", None))
    with pytest.raises(SpoolError, match=r"there are: one, two") as caught:
        run(variables)
    assert f"ud_spool_func is {name}, " in str(caught.value)


# Nothing is unpickled.


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self._path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", ["args", "kwargs"])
@pytest.mark.parametrize("text", [False, True])
def test_pickle_bombs(tmp_path: Path, protocol: int, key: str, text: bool) -> None:
    """A pickle that somebody sends as arguments runs nothing: the task fails, and says why."""
    called = []

    @uwsgidecorators.spool(pass_arguments=True)
    def work(*args: object, **kwargs: object) -> None:
        called.append(args)

    exploded = tmp_path / "exploded"
    bomb = pickle.dumps((Bomb(exploded),), protocol)
    arguments = {"args": marshal.dumps((), 2), "kwargs": marshal.dumps({}, 2), key: bomb}
    with pytest.raises(UnsafeObject, match=f"the task's '{key}' are no marshalled objects .*pickles is never"):
        run({"ud_spool_func": "work", **arguments}, text=text)
    assert (called, exploded.exists()) == ([], False)
    pickle.loads(bomb)
    assert exploded.exists(), "the bomb was none"


def test_pickle_bombs_for_others(tmp_path: Path) -> None:
    """A function that takes the dict gets the bytes as text, which are never loaded."""
    got = []
    uwsgidecorators.spool(got.append)  # type: ignore[arg-type]
    bomb = pickle.dumps((Bomb(tmp_path / "exploded"),))
    run({"ud_spool_func": "append", "args": bomb, "kwargs": bomb})
    assert got[0]["args"] == bomb.decode(errors="surrogateescape")
    assert not (tmp_path / "exploded").exists()


def test_no_pickle_is_imported() -> None:
    """Neither the module nor what it needs knows pickle."""
    module = "uwsgitwisted.worker.handlers.spool"
    code = f"import sys, {module}; print('pickle' in sys.modules or '_pickle' in sys.modules)"
    # Coverage, if it measures this, would import it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert output == "False\n"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("args", marshal.dumps([1], 2), "the task's 'args' are of type list, not tuple"),
        ("kwargs", marshal.dumps(None, 2), "the task's 'kwargs' are of type NoneType, not dict"),
        ("kwargs", b"", "the task's 'kwargs' are no marshalled objects"),
        (
            "args",
            marshal.dumps(test_no_pickle_is_imported.__code__),
            "the task's 'args' are no marshalled objects",
        ),
    ],
)
def test_odd_arguments(key: str, value: bytes, reason: str) -> None:
    """Arguments that are none fail the task."""
    uwsgidecorators.spool(pass_arguments=True)(function("work", None))
    arguments = {"args": marshal.dumps((), 2), "kwargs": marshal.dumps({}, 2), key: value}
    with pytest.raises(UnsafeObject, match=reason):
        run({"ud_spool_func": "work", **arguments})


# What uwsgi.spooler is.


def test_the_spooler_is_set() -> None:
    """The first decorator sets ``uwsgi.spooler``; without one, a module without it is refused as ever."""
    with pytest.raises(StartupError, match=r"set no uwsgi\.spooler"):
        spool_handler.load("my_tasks")
    uwsgidecorators.spool(function("work", None))
    assert uwsgi.spooler is uwsgidecorators.manage_spool_request


def test_a_spooler_of_its_own() -> None:
    """A module's own function stays, and its timers run nevertheless."""
    uwsgi.spooler = lambda task: "own"
    ticks: list[int] = []
    uwsgidecorators.timer(5)(ticks.append)
    uwsgidecorators.spool(function("work", "decorated"))
    assert run({"ud_spool_func": "work"}).payload == marshal.dumps("own", 2)
    (name,) = decorators.periodic
    assert run({"ud_spool_func": name}) == Packet(255, DONE)
    assert ticks == [0]


def test_a_wrapped_spooler() -> None:
    """A module may put a function of its own before the decorated ones."""
    uwsgidecorators.spoolforever(function("work", None))
    uwsgi.spooler = lambda task: uwsgidecorators.manage_spool_request(task)
    assert run({"ud_spool_func": "work"}) == Packet(255, AGAIN)


def test_functions_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the reactor's own engine, a decorated function may be a coroutine or return a Deferred."""

    @uwsgidecorators.spool
    async def later(task: dict[str, str]) -> str:
        return await succeed("waited")  # type: ignore[no-any-return]

    @uwsgidecorators.spoolforever
    def forever(task: dict[str, str]) -> Deferred[None]:
        return succeed(None)

    spec = WorkerSpec((Loader("uwsgitwisted.worker.handlers.spool:load", {"module": "my_tasks"}),))
    engine = InlineEngine(Clock(), spec, timeout=10, max_queue=10)
    engine.start()
    answers: list[Packet] = []
    for name in ("later", "forever"):
        submitted = engine.submit(Request(request({"ud_spool_func": name})))
        assert isinstance(submitted, Deferred)
        submitted.addCallback(answers.append)
    assert answers == [Packet(255, DONE, marshal.dumps("waited", 2)), Packet(255, AGAIN)]


# What comes again and again.


def tick(signum: int) -> int:
    return signum + 1


def test_timers() -> None:
    """A timer is noted under the function's full name, and its task calls the function with its number."""
    assert uwsgidecorators.timer(2.5, target="spooler")(tick) is tick
    name = f"{__name__}.tick"
    assert decorators.periodic == {name: decorators.PeriodicFunction(name, tick, 0, seconds=2.5)}
    assert spool_handler.periodic() == [{"name": name, "seconds": 2.5}]
    assert run({"ud_spool_func": name}) == Packet(255, DONE, marshal.dumps(1, 2))


def test_many_timers() -> None:
    """A function that has several has them under several names; a number that is asked for is given."""
    uwsgidecorators.timer(1)(tick)
    uwsgidecorators.rbtimer(2, signum=40)(tick)
    uwsgidecorators.cron(0, 5, -1, -1, -1)(tick)
    name = f"{__name__}.tick"
    assert spool_handler.periodic() == [
        {"name": name, "seconds": 1.0},
        {"name": f"{name}#2", "seconds": 2.0},
        {"name": f"{name}#3", "cron": "0 5 * * *"},
    ]
    assert [one.signum for one in decorators.periodic.values()] == [0, 40, 1]
    assert run({"ud_spool_func": f"{name}#2"}).payload == marshal.dumps(41, 2)


@pytest.mark.parametrize("seconds", [0, -1, 0.0, float("nan"), float("inf"), "5", None, True])
def test_timers_that_make_no_sense(seconds: Any) -> None:
    """A timer takes a number of seconds above 0."""
    with pytest.raises(MisuseError, match="it takes a time above 0"):
        uwsgidecorators.timer(seconds)


@pytest.mark.parametrize(
    ("arguments", "expression"),
    [
        ((-1, -1, -1, -1, -1), "* * * * *"),
        ((0, 0, 1, 1, 0), "0 0 1 1 0"),
        ((59, 23, 31, 12, 6), "59 23 31 12 6"),
        ((30, 4, -1, -1, 7), "30 4 * * 0"),
        ((-15, -6, -1, -1, -1), "0,15,30,45 0,6,12,18 * * *"),
        ((-60, -24, -1, -1, -7), "0 0 * * 0"),
        ((0, 0, -10, -4, -1), "0 0 10,20,30 4,8,12 *"),
        ((0, 0, -1, -1, -2), "0 0 * * 0,2,4,6"),
        ((0, 0, 13, -1, 5), "0 0 13 * 5"),
    ],
)
def test_cron(arguments: tuple[int, int, int, int, int], expression: str) -> None:
    """The numbers of uWSGI become an expression of the same times: -n means what n divides."""
    uwsgidecorators.cron(*arguments, target="spooler")(tick)
    assert spool_handler.periodic() == [{"name": f"{__name__}.tick", "cron": expression}]
    assert run({"ud_spool_func": f"{__name__}.tick"}).modifier2 == DONE


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((60, -1, -1, -1, -1), "there is no minute 60; it goes from 0 to 59"),
        ((-1, 24, -1, -1, -1), "there is no hour 24; it goes from 0 to 23"),
        ((-1, -1, 0, -1, -1), "there is no day 0; it goes from 1 to 31"),
        ((-1, -1, -32, -1, -1), "there is no day -32; it goes from 1 to 31"),
        ((-1, -1, -1, 13, -1), "there is no month 13; it goes from 1 to 12"),
        ((-1, -1, -1, -1, 8), "there is no dayweek 8; it goes from 0 to 6"),
        ((-1, -1, -2, -1, 5), "the days that are day -2 and also weekday 5"),
        ((-1, -1, 5, -1, -2), "the days that are day 5 and also weekday -2"),
        (("*/5", -1, -1, -1, -1), "it takes five integers"),
        ((-1, -1, -1, -1, None), "it takes five integers"),
    ],
)
def test_cron_that_makes_no_sense(arguments: Any, reason: str) -> None:
    """Times that never come, or that a cron expression can't say, are refused with the reason."""
    with pytest.raises(MisuseError, match=reason):
        uwsgidecorators.cron(*arguments)
    assert decorators.periodic == {}


# After the fork.


def test_postfork(capsys: pytest.CaptureFixture[str]) -> None:
    """Functions run in each worker, or in the one that they name; one that raises holds up no other."""
    ran = []

    @uwsgidecorators.postfork
    def everywhere() -> None:
        ran.append("everywhere")

    @uwsgidecorators.postfork
    def broken() -> None:
        raise KeyError("broken here")

    @uwsgidecorators.postfork(2)
    def second() -> None:
        ran.append("second")

    assert ran == []
    try:
        configure(worker_id=1)
        uwsgidecorators.postfork_chain_hook()
        assert ran == ["everywhere"]
        configure(worker_id=2)
        second()
    finally:
        configure()
    assert ran == ["everywhere", "second"]
    assert "KeyError: 'broken here'" in capsys.readouterr().err


# The module.


def test_import() -> None:
    """``import uwsgidecorators`` gives ours, once it is installed."""
    for name in ("uwsgi", "uwsgidecorators"):
        del sys.modules[name]
    install()
    assert importlib.import_module("uwsgidecorators") is uwsgidecorators
    namespace: dict[str, Any] = {}
    exec("from uwsgidecorators import *", namespace)
    assert namespace["spool"] is uwsgidecorators.spool
    assert namespace["uwsgi"] is uwsgi


def test_inside_a_real_uwsgi(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real uWSGI keeps its own."""
    real = types.ModuleType("uwsgi")
    monkeypatch.setattr(sys, "builtin_module_names", (*sys.builtin_module_names, "uwsgi"))
    monkeypatch.setitem(sys.modules, "uwsgi", real)
    monkeypatch.delitem(sys.modules, "uwsgidecorators")
    assert install() is real
    assert "uwsgidecorators" not in sys.modules
