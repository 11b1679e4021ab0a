"""The ``uwsgi`` module as old code sees it: logged failures, None, and names that it may look for."""

from __future__ import annotations

import importlib.machinery
import logging
import marshal
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import uwsgitwisted
from tests.unit.servers import (
    ScriptedServer,
    answering,
    closed_port,
    frame,
    plain_peers,  # noqa: F401 - a fixture
)
from uwsgitwisted.errors import InvalidAddress, MisuseError, TaskNotTaken
from uwsgitwisted.wire.vars import decode_vars
from uwsgitwisted.worker.compat import calls, decorators, spooling, uwsgi
from uwsgitwisted.worker.compat.install import (
    configure,
    install,
    install_in_program,
    run_post_fork_hooks,
    serve_strangers,
)

YES = frame(255, 1)
PAGE = frame(33, 17, marshal.dumps("page", 2))


@pytest.fixture(autouse=True)
def _plain_script(monkeypatch: pytest.MonkeyPatch, plain_peers: None) -> Iterator[None]:  # noqa: F811
    """Be a process without a reactor, a service or a known spooler."""
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor", raising=False)
    monkeypatch.delitem(sys.modules, "uwsgi", raising=False)
    monkeypatch.delenv(calls.SPOOLER_VARIABLE, raising=False)
    monkeypatch.setattr(calls.process, "serves_strangers", False)
    configure()
    yield
    configure()


@pytest.mark.integration
def test_send_uwsgi_message() -> None:
    """The oldest call returns the answer."""
    with ScriptedServer(answering(PAGE)) as server:
        assert uwsgi.send_uwsgi_message("127.0.0.1", server.port, 33, 17, ("a.txt", {}), 10) == "page"


@pytest.mark.integration
def test_send_multi_uwsgi_message() -> None:
    """The fan-out returns the answers in order."""
    with ScriptedServer(answering(PAGE)) as server:
        node = ("127.0.0.1", server.port, None)
        assert uwsgi.send_multi_uwsgi_message((node, node), 33, 17, 10) == ("page", "page")


@pytest.mark.integration
def test_send_message() -> None:
    """The later call takes a whole address."""
    with ScriptedServer(answering(b"HTTP")) as server:
        assert uwsgi.send_message(f"127.0.0.1:{server.port}", 0, 0, {"PATH_INFO": "/"}, 10) == b"HTTP"


def _one_node_of_two_fails() -> object:
    with ScriptedServer(answering(PAGE)) as server:
        nodes = (("127.0.0.1", server.port, None), ("127.0.0.1", closed_port(), None))
        return uwsgi.send_multi_uwsgi_message(nodes, 33, 17, 10)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: uwsgi.send_uwsgi_message("127.0.0.1", closed_port(), 33, 17, None),
            "uwsgi.send_uwsgi_message: ConnectionFailed: 127.0.0.1:",
        ),
        (
            lambda: uwsgi.send_uwsgi_message("127.0.0.1", 1, 33, 17, object()),
            "uwsgi.send_uwsgi_message: UnencodableMessage: ",
        ),
        (lambda: uwsgi.send_message("nowhere", 33, 17, None), "uwsgi.send_message: InvalidAddress: nowhere: "),
        (_one_node_of_two_fails, "uwsgi.send_multi_uwsgi_message: FanOutError: 1 of 2 nodes failed: "),
    ],
)
def test_failures_are_logged(call: Callable[[], object], text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever fails is a warning in the log, and None."""
    assert call() is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("uwsgitwisted.uwsgi", logging.WARNING)
    assert text in record.getMessage()


def _refused_task() -> object:
    with ScriptedServer(answering(frame(255, 0))) as server:
        return uwsgi.spool({b"k": b"v"}, spooler=f"127.0.0.1:{server.port}")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (_refused_task, TaskNotTaken, "the spooler has not taken the task: 127.0.0.1:"),
        (lambda: uwsgi.spool({}, spooler=f"127.0.0.1:{closed_port()}"), TaskNotTaken, "has not taken the task"),
        (lambda: uwsgi.spool({b"k": b"v"}), MisuseError, "UWSGITWISTED_SPOOLER=127.0.0.1:3034"),
        (lambda: uwsgi.spool({b"k": None}, spooler="127.0.0.1:1"), MisuseError, "NoneType"),
        (lambda: uwsgi.spool({b"k": [b"v"]}, spooler="127.0.0.1:1"), MisuseError, "list"),
        (lambda: uwsgi.spool({7: b"v"}, spooler="127.0.0.1:1"), MisuseError, "bytes or text, not int"),
        (lambda: uwsgi.spool({b"k": b"x" * 70_000}, spooler="127.0.0.1:1"), MisuseError, "65535"),
    ],
)
def test_tasks_that_are_not_taken(call: Callable[[], object], error: type[Exception], text: str) -> None:
    """They are a ``ValueError``, as in uWSGI 2.0, so that a caller can try again."""
    with pytest.raises(ValueError, match=text) as caught:
        call()
    assert type(caught.value) is error or isinstance(caught.value, MisuseError)


def test_message_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task may be given by that name; keywords win."""
    with ScriptedServer(answering(YES)) as server:
        monkeypatch.setenv(calls.SPOOLER_VARIABLE, f"127.0.0.1:{server.port}")
        assert uwsgi.spool(message_dict={b"k": b"1", b"l": b"2"}, k=b"3") is True
    assert decode_vars(server.requests[0][4:]) == {b"k": b"3", b"l": b"2"}


def test_the_own_spooler(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a spooler a task goes to that spooler, unless the environment or the module says otherwise."""
    with ScriptedServer(answering(YES)) as own, ScriptedServer(answering(YES)) as other:
        configure(spooler=f"127.0.0.1:{own.port}")
        assert uwsgi.i_am_the_spooler() is True
        assert uwsgi.spoolers == (f"127.0.0.1:{own.port}".encode(),)
        assert uwsgi.opt["spooler"] == uwsgi.spooler_dir() == uwsgi.spoolers[0]
        assert uwsgi.spool({b"k": b"1"}) is True
        monkeypatch.setenv(calls.SPOOLER_VARIABLE, f"127.0.0.1:{other.port}")
        assert uwsgi.spool({b"k": b"2"}) is True
        monkeypatch.delenv(calls.SPOOLER_VARIABLE)
        uwsgi.opt["spooler"] = f"127.0.0.1:{other.port}"
        assert uwsgi.spool({b"k": b"3"}) is True
    assert [len(server.requests) for server in (own, other)] == [1, 2]


def test_a_spooler_without_an_address() -> None:
    """It is among the options nevertheless, which uWSGI's own uwsgidecorators asks for."""
    configure(spooler="")
    assert (uwsgi.opt, uwsgi.spoolers, uwsgi.spooler_dir()) == ({"spooler": b""}, (), None)


def test_outside_a_spooler() -> None:
    """There is no spooler's process, and no task."""
    configure(worker_id=1, masterpid=4711)
    assert (uwsgi.i_am_the_spooler(), uwsgi.spooler_pid(), uwsgi.spooler_pids()) == (None, 0, [])
    assert (uwsgi.spooler_jobs(), uwsgi.spooler_get_task("1"), uwsgi.spooler_dir()) == ([], None, None)
    assert uwsgi.spooler_get_task("/var/spool/uwsgi_spoolfile") is None
    assert uwsgi.set_spooler_frequency(3) is True
    configure(masterpid=4711, spooler="")
    assert (uwsgi.spooler_pid(), uwsgi.spooler_pids()) == (4711, [4711])


def test_spooler_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks that wait or run are found, however many have ended before them."""
    states = {**dict.fromkeys(range(1, 2_001), "dead"), 2_001: "ready", 2_002: "running", 2_003: "scheduled"}

    def manage(address: str, operation: str, arguments: dict[str, Any], timeout: float) -> list[object]:
        assert operation == "list"
        wanted = arguments.get("state")
        tasks = [{"id": task, "state": state} for task, state in states.items() if wanted in (None, state)]
        return tasks[: arguments["limit"]]

    configure(spooler="127.0.0.1:3034")
    monkeypatch.setattr(spooling, "manage", manage)
    assert uwsgi.spooler_jobs() == [b"2001", b"2002", b"2003"]


def test_a_spooler_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """Then there are no jobs, and the log says why."""
    configure(spooler=f"127.0.0.1:{closed_port()}")
    assert (uwsgi.spooler_jobs(), uwsgi.spooler_get_task("1")) == ([], None)
    assert "uwsgi.spooler_jobs: ConnectionFailed: " in caplog.text


@pytest.mark.integration
def test_where_tasks_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task's own spooler comes before the service's, and that before the environment's."""
    with (
        ScriptedServer(answering(YES)) as own,
        ScriptedServer(answering(YES)) as service,
        ScriptedServer(answering(YES)) as environment,
    ):
        monkeypatch.setenv(calls.SPOOLER_VARIABLE, f"127.0.0.1:{environment.port}")
        assert uwsgi.spool({"k": "1"}) is True
        configure(options={"spooler": f"tcp:127.0.0.1:{service.port}"})
        assert uwsgi.spool({b"k": b"2"}) is True
        assert uwsgi.send_to_spooler(k="3", spooler=f"127.0.0.1:{own.port}") is True
    assert environment.requests == [frame(17, 0, b"\x01\x00k\x01\x001")]
    assert service.requests == [frame(17, 0, b"\x01\x00k\x01\x002")]
    assert own.requests == [frame(17, 0, b"\x01\x00k\x01\x003")]


@pytest.mark.integration
def test_a_directory_among_the_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A directory, which uWSGI has there, is no address to send tasks to."""
    with ScriptedServer(answering(YES)) as server:
        monkeypatch.setenv(calls.SPOOLER_VARIABLE, f"127.0.0.1:{server.port}")
        configure(options={"spooler": str(tmp_path)})
        assert uwsgi.spool({"k": "v"}) is True
    assert len(server.requests) == 1


@pytest.mark.integration
def test_keywords_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyword replaces the dict's own value."""
    with ScriptedServer(answering(YES)) as server:
        monkeypatch.setenv(calls.SPOOLER_VARIABLE, f"127.0.0.1:{server.port}")
        assert uwsgi.spool({b"k": b"1"}, k=2) is True
    assert server.requests == [frame(17, 0, b"\x01\x00k\x01\x002")]


@pytest.mark.integration
def test_a_strangers_spooler(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a service, a task goes only where its owner allows, whatever address the task names."""
    with ScriptedServer(answering(YES)) as server:
        address = f"127.0.0.1:{server.port}"
        serve_strangers()
        with pytest.raises(MisuseError, match=f"UWSGITWISTED_SPOOLERS={address}"):
            uwsgi.spool({b"k": b"v", b"spooler": address.encode()})
        assert server.requests == []
        with pytest.raises(MisuseError, match="no spooler is known"):
            uwsgi.spool(spooler="mail")  # a queue's name; there is no spooler to send it to
        monkeypatch.setenv(calls.SPOOLERS_VARIABLE, f"10.0.0.7:3034, tcp:{address}")
        assert uwsgi.spool({b"k": b"v", b"spooler": address.encode()}) is True
    assert len(server.requests) == 1


def test_a_spooler_that_is_no_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A directory, as uWSGI has it, or a queue's name stays in the task and goes to the usual spooler."""
    with ScriptedServer(answering(YES)) as server:
        monkeypatch.setenv(calls.SPOOLER_VARIABLE, f"127.0.0.1:{server.port}")
        assert uwsgi.spool(spooler="mail") is True
        assert uwsgi.spool(spooler=str(tmp_path).encode()) is True
    assert server.requests[0] == frame(17, 0, b"\x07\x00spooler\x04\x00mail")
    assert server.requests[1].endswith(str(tmp_path).encode())


def test_a_body_for_another_uwsgi() -> None:
    """A spooler that knows of no bodies gets it as a variable, as uWSGI sends it over a network."""
    with ScriptedServer(answering(YES)) as server:
        assert uwsgi.spool(k="v", body=b"x", spooler=f"127.0.0.1:{server.port}") is True
    assert server.requests == [frame(17, 0, b"\x01\x00k\x01\x00v\x04\x00body\x01\x00x")]


@pytest.mark.integration
def test_a_spooler_on_a_unix_socket(tmp_path: Path) -> None:
    """A path is an address if a socket is there, and one that begins with ``unix:`` always is."""
    path = str(tmp_path / "spooler.sock")
    with ScriptedServer(answering(YES), path=path) as server:
        assert uwsgi.spool(k="v", spooler=path) is True
        assert uwsgi.spool(k="v", spooler=f"unix:{path}") is True
    assert server.requests == [frame(17, 0, b"\x01\x00k\x01\x00v")] * 2


OPTIONS = {"listen": ["tcp:3033", "tcp:\udcff"], "node": "n1", "text": True}


def test_the_process() -> None:
    """In a script there is no master and no worker; in a worker, what it was told."""
    assert (uwsgi.masterpid(), uwsgi.worker_id(), uwsgi.numproc, uwsgi.opt) == (0, 0, 1, {})
    configure(worker_id=2, masterpid=4711, numproc=4, options=OPTIONS)
    assert (uwsgi.masterpid(), uwsgi.worker_id(), uwsgi.numproc) == (4711, 2, 4)
    assert uwsgi.opt == {"listen": [b"tcp:3033", b"tcp:\xff"], "node": b"n1", "text": True}
    configure()
    assert (uwsgi.masterpid(), uwsgi.worker_id(), uwsgi.numproc, uwsgi.opt) == (0, 0, 1, {})


def test_version_and_numbers() -> None:
    """The version is bytes, and the numbers are those of uWSGI 2.0."""
    assert uwsgi.version == uwsgitwisted.__version__.encode()
    assert (uwsgi.SPOOL_OK, uwsgi.SPOOL_RETRY, uwsgi.SPOOL_IGNORE) == (-2, -1, 0)


def test_log(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for the log goes to standard error."""
    assert uwsgi.log("hello") is True
    assert capsys.readouterr().err == "hello\n"


def test_install() -> None:
    """``import uwsgi`` gives ours, however often it is installed, in place of any stand-in."""
    sys.modules["uwsgi"] = types.ModuleType("uwsgi")
    assert install() is uwsgi
    assert install() is uwsgi
    import uwsgi as imported

    assert imported is uwsgi


def test_inside_a_real_uwsgi(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that is built into a uWSGI process is never replaced."""
    real = types.ModuleType("uwsgi")
    monkeypatch.setattr(sys, "builtin_module_names", (*sys.builtin_module_names, "uwsgi"))
    monkeypatch.setitem(sys.modules, "uwsgi", real)
    assert install() is real
    assert sys.modules["uwsgi"] is real


def test_inside_a_real_uwsgi_that_nobody_asked_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in module is imported if nobody has done so yet."""
    real = types.ModuleType("uwsgi")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            return importlib.machinery.ModuleSpec(name, Loader()) if name == "uwsgi" else None  # type: ignore[arg-type]

    class Loader:
        @staticmethod
        def create_module(spec: object) -> types.ModuleType:
            return real

        @staticmethod
        def exec_module(module: object) -> None:
            pass

    monkeypatch.setattr(sys, "builtin_module_names", (*sys.builtin_module_names, "uwsgi"))
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert install() is real


def test_in_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of its own names the spooler of its tasks, or has it in the environment."""
    with pytest.raises(InvalidAddress):
        install_in_program("nowhere")
    assert install_in_program("10.0.0.7:3034") is uwsgi
    assert (uwsgi.masterpid(), uwsgi.worker_id(), uwsgi.reload(), uwsgi.stop()) == (os.getpid(), 0, None, None)
    assert (uwsgi.spooler_dir(), uwsgi.opt["spooler"]) == (b"10.0.0.7:3034", b"10.0.0.7:3034")
    monkeypatch.setenv(calls.SPOOLER_VARIABLE, "10.0.0.8:3034")
    install_in_program()
    assert (uwsgi.spooler_dir(), uwsgi.opt["spooler"]) == (b"10.0.0.8:3034", b"10.0.0.8:3034")


def test_post_fork_hook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs after what @postfork has; if it raises, that is logged."""
    order: list[str] = []
    monkeypatch.setattr(decorators, "postfork_chain", [lambda: order.append("chain")])
    monkeypatch.setattr(uwsgi, "post_fork_hook", lambda: order.append("hook"))
    run_post_fork_hooks()
    assert order == ["chain", "hook"]
    monkeypatch.setattr(uwsgi, "post_fork_hook", decorators.postfork_chain_hook)
    run_post_fork_hooks()
    assert order == ["chain", "hook", "chain"]
    monkeypatch.setattr(uwsgi, "post_fork_hook", lambda: 1 / 0)
    run_post_fork_hooks()
    assert "ZeroDivisionError" in capsys.readouterr().err
