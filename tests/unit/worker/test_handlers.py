"""Loading handler modules, and calling the functions that they set in ``uwsgi``."""

from __future__ import annotations

import importlib
import marshal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from uwsgitwisted.errors import (
    Busy,
    MalformedPacket,
    MisuseError,
    RemoteError,
    StartupError,
    UnencodableMessage,
    UnknownModifier,
    UnsafeObject,
)
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.tasks import encode_run
from uwsgitwisted.wire.vars import encode_vars
from uwsgitwisted.worker.compat import uwsgi
from uwsgitwisted.worker.handlers import marshal as marshal_handler
from uwsgitwisted.worker.handlers import spool as spool_handler
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.handlers.module import load_module

#: Writes a module of this name and text into the current directory.
Write = Callable[[str, str], None]

DONE, RETRY, IGNORE = 1, 2, 0

CALL = Handler(marshal_handler.run, marshal_handler.answer, marshal_handler.read)


def steps(handler: Handler, request: Packet) -> Packet:
    """Do a handler's three steps; their exceptions come out as they are."""
    return handler.answer(request, handler.run(handler.read(request)))


@pytest.fixture(autouse=True)
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Start in an empty directory with a fresh ``uwsgi``; what the test imports is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "uwsgi", raising=False)
    monkeypatch.setattr(uwsgi, "message_manager_marshal", None)
    monkeypatch.setattr(uwsgi, "spooler", None)
    before = set(sys.modules)

    def write_module(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    yield write_module
    for name in set(sys.modules) - before:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_old_code(write: Write) -> None:
    """A module that looks like old uWSGI code is imported and called."""
    write(
        "my_server.py",
        "import uwsgi\ndef makogenerator(obj, id):\n    return [obj, id]\n"
        "uwsgi.message_manager_marshal = makogenerator\n",
    )
    handlers = marshal_handler.load("my_server")
    assert list(handlers) == [33]
    answer = handlers[33](Packet(33, 17, marshal.dumps("a.txt", 2)))
    assert answer == Packet(33, 17, marshal.dumps(["a.txt", 17], 2))


def test_the_current_directory_comes_first(write: Write, tmp_path: Path) -> None:
    """A module beside the user wins over one of the same name elsewhere on the path."""
    write("elsewhere/twin_server.py", "where = 'elsewhere'")
    write("twin_server.py", "where = 'here'")
    sys.path[:0] = [str(tmp_path / "elsewhere"), str(tmp_path)]
    assert load_module("twin_server").where == "here"
    length = len(sys.path)
    assert load_module("twin_server").where == "here"
    assert len(sys.path) == length


def test_a_module_in_a_package(write: Write) -> None:
    """A dotted name is a module in a package."""
    write("shop/handlers.py", "import uwsgi\nuwsgi.spooler = print")
    assert load_module("shop.handlers").uwsgi is uwsgi


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("my_server.py", "'my_server'"),
        ("apps/my_server.py", "'my_server' and start it in the directory apps"),
        ("./my_server", "'my_server'"),
    ],
)
def test_a_file_name(name: str, advice: str) -> None:
    """A file's name is refused with what to write instead."""
    with pytest.raises(StartupError, match="that is a file") as caught:
        load_module(name)
    assert str(caught.value).endswith(advice)


@pytest.mark.parametrize("name", ["", "my-server", "a..b", ".a", "my_server:app"])
def test_no_name(name: str) -> None:
    """An invalid module name is refused."""
    with pytest.raises(StartupError, match="not a module's name"):
        load_module(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_server", "there is no handler module 'no_server' ("),
        ("no_shop.handlers", "'no_shop.handlers', since there is no 'no_shop' ("),
        ("shop.no_handlers", "there is no handler module 'shop.no_handlers' ("),
    ],
)
def test_not_found(write: Write, tmp_path: Path, name: str, text: str) -> None:
    """A missing module is reported with the searched directories."""
    write("shop/__init__.py", "")
    with pytest.raises(StartupError) as caught:
        load_module(name)
    assert text in str(caught.value)
    assert f"It was looked for in\n  {tmp_path}\n" in str(caught.value)


def test_an_import_that_fails_inside(write: Write) -> None:
    """A missing module that the handler imports is not taken for the handler itself."""
    write("my_server.py", "import uwsgi\nimport not_installed_here\n")
    with pytest.raises(StartupError) as caught:
        load_module("my_server")
    assert "'my_server' raised while it was imported" in str(caught.value)
    assert "No module named 'not_installed_here'" in str(caught.value)


def test_raised(write: Write) -> None:
    """An exception at import is reported with its traceback, without our own frames in it."""
    write("my_server.py", "def boom():\n    raise KeyError('x')\nboom()\n")
    with pytest.raises(StartupError) as caught:
        load_module("my_server")
    text = str(caught.value)
    assert "my_server.py" in text
    assert text.endswith("KeyError: 'x'")
    assert "importlib" not in text
    assert "module.py" not in text


def test_syntax_error(write: Write) -> None:
    """A syntax error is reported with its line."""
    write("my_server.py", "def broken(:\n")
    with pytest.raises(StartupError) as caught:
        load_module("my_server")
    assert "def broken(:" in str(caught.value)
    assert "importlib" not in str(caught.value)


def test_exit(write: Write) -> None:
    """A module that exits while it is imported is reported, and doesn't end the process."""
    write("my_server.py", "raise SystemExit(3)")
    with pytest.raises(StartupError, match=r"called exit\(3\)"):
        load_module("my_server")


def test_only_the_other_one_is_set(write: Write) -> None:
    """A module without the service's function is refused; the error says what it has to set."""
    write("my_tasks.py", "import uwsgi\nuwsgi.spooler = lambda task: uwsgi.SPOOL_OK")
    with pytest.raises(StartupError, match=r"'my_tasks' set no uwsgi\.message_manager_marshal; set it to"):
        marshal_handler.load("my_tasks")
    write("my_server.py", "import uwsgi\nuwsgi.spooler = None\nuwsgi.message_manager_marshal = print")
    with pytest.raises(StartupError, match=r"'my_server' set no uwsgi\.spooler; set it to a function of one"):
        spool_handler.load("my_server")


def test_the_function_is_taken_away(write: Write) -> None:
    """A module may remove its function again; then each request fails with what is missing."""
    write("my_both.py", "import uwsgi\nuwsgi.spooler = uwsgi.message_manager_marshal = print")
    objects = marshal_handler.load("my_both")
    tasks = spool_handler.load("my_both")
    uwsgi.spooler = uwsgi.message_manager_marshal = None
    with pytest.raises(UnknownModifier, match=r"set no uwsgi\.message_manager_marshal") as caught:
        steps(objects[33], Packet(33, 0, b"N"))
    assert caught.value.modifier1 == 33
    with pytest.raises(UnknownModifier, match=r"set no uwsgi\.spooler") as caught:
        steps(tasks[17], a_run())
    assert caught.value.modifier1 == 17


def test_the_function_is_looked_up_for_each_call(write: Write) -> None:
    """A module may set another function while it runs."""
    uwsgi.message_manager_marshal = lambda message, modifier2: "old"
    assert steps(CALL, Packet(33, 0, b"N")).payload == marshal.dumps("old", 2)
    uwsgi.message_manager_marshal = lambda message, modifier2: "new"
    assert steps(CALL, Packet(33, 0, b"N")).payload == marshal.dumps("new", 2)


def test_what_marshal_handlers_raise() -> None:
    """Unsafe bytes never reach the function; its own exceptions and unusable results come out as they are."""
    calls = []

    def function(message: object, modifier2: int) -> object:
        calls.append(message)
        if message is None:
            return object()
        raise KeyError(message)

    uwsgi.message_manager_marshal = function
    with pytest.raises(UnsafeObject):
        steps(CALL, Packet(33, 0, b"c"))
    assert calls == []
    with pytest.raises(UnencodableMessage):
        steps(CALL, Packet(33, 0, b"N"))
    with pytest.raises(KeyError):
        steps(CALL, Packet(33, 0, marshal.dumps(1, 2)))


def test_whose_fault_it_is() -> None:
    """An error in decoding is passed on unchanged; any other, even one of ours, is the function's own."""

    def function(message: object, modifier2: int) -> object:
        raise Busy("another node's") if message else SystemExit("leaving")

    uwsgi.message_manager_marshal = function
    with pytest.raises(UnsafeObject):
        CALL(Packet(33, 0, b"c"))
    for message, kind in ((1, Busy), (0, SystemExit)):
        with pytest.raises(RemoteError) as caught:
            CALL(Packet(33, 0, marshal.dumps(message, 2)), "n1 worker 1")
        assert (caught.value.type, caught.value.node) == (kind.__name__, "n1 worker 1")
        assert isinstance(caught.value.__cause__, kind)
    with pytest.raises(RemoteError) as caught:
        Handler(bytes, marshal_handler.answer, lambda request: b"x" * (1 << 62))(Packet(33, 0))
    assert isinstance(caught.value.__cause__, (MemoryError, OverflowError))


def a_run(variables: bytes = b"", body: bytes = b"") -> Packet:
    """Return what a worker gets for the task 12."""
    return encode_run(12, variables, body)


def run_task(
    task: dict[str, bytes], result: object = None, body: bytes = b"", **options: object
) -> tuple[object, Packet]:
    """Run *task* with a function that returns *result*; return what the function got, and the answer."""
    sys.modules["some_tasks"] = types.ModuleType("some_tasks")
    got: list[object] = []

    def spooler(task: object) -> object:
        got.append(task)
        return result

    uwsgi.spooler = spooler
    handlers = spool_handler.load("some_tasks", **options)  # type: ignore[arg-type]
    answer = handlers[17](a_run(encode_vars(task), body))
    return got[0], answer


def test_tasks_are_bytes() -> None:
    """As in uWSGI on Python 3, a task's keys and values are bytes, except the keys of its name and its body."""
    got, _ = run_task({"key1": b"value1", "body": b"\xff", "spooler_task_name": b"x"}, body=b"\x00raw")
    assert got == {
        b"key1": b"value1",
        b"body": b"\xff",
        b"spooler_task_name": b"x",
        "spooler_task_name": b"12",
        "body": b"\x00raw",
    }


def test_tasks_as_text() -> None:
    """On request keys and values are text, from which any bytes can be got back."""
    got, _ = run_task({"key1": "é".encode(), "body": b"\xff", "spooler_task_name": b"x"}, text=True)
    assert got == {"key1": "é", "body": "\udcff", "spooler_task_name": "12"}


def test_bodies_are_bytes() -> None:
    """A body stays bytes, even beside text; without a body there is no key for it."""
    got, _ = run_task({"k": b"v"}, body=b"\xff\x00", text=True)
    assert got == {"k": "v", "spooler_task_name": "12", "body": b"\xff\x00"}
    got, _ = run_task({"k": b"v"})
    assert got == {b"k": b"v", "spooler_task_name": b"12"}


@pytest.mark.parametrize(
    ("return_codes", "result", "verdict"),
    [
        ("2.0", uwsgi.SPOOL_OK, DONE),
        ("2.0", uwsgi.SPOOL_RETRY, RETRY),
        ("2.0", uwsgi.SPOOL_IGNORE, IGNORE),
        ("2.0", False, IGNORE),
        ("2.0", None, DONE),
        ("0.9", 17, RETRY),
        ("0.9", None, DONE),
    ],
)
def test_verdicts(return_codes: str, result: object, verdict: int) -> None:
    """The number that the function returns is a verdict, as the chosen uWSGI has it."""
    _, answer = run_task({}, result, return_codes=return_codes)
    assert answer == Packet(255, verdict)


@pytest.mark.parametrize(
    ("return_codes", "result"),
    [
        ("2.0", True),
        ("2.0", 17),
        ("2.0", -3),
        ("2.0", -1.0),
        ("2.0", []),
        ("2.0", {"a": [b"b"]}),
        ("0.9", -1),
        ("0.9", 0),
        ("0.9", False),
        ("0.9", "text"),
    ],
)
def test_results(return_codes: str, result: object) -> None:
    """Any other value is the task's result, and means done."""
    _, answer = run_task({}, result, return_codes=return_codes)
    assert answer == Packet(255, DONE, marshal.dumps(result, 2))


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (object(), "its type, builtins.object, is not one that can be sent"),
        (bytes(1024 * 1024), "it has 1048581 bytes, and 1048576 is the most"),
    ],
)
def test_results_that_are_not_kept(result: object, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A result that can't be kept is dropped, with a line in the worker's log; the task is done."""
    _, answer = run_task({}, result)
    assert answer == Packet(255, DONE)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("task 12 is done, but its result is not kept: ")
    assert reason in line


def test_the_largest_result() -> None:
    """A result of just the limit is kept."""
    _, answer = run_task({}, bytes(1024 * 1024 - 5))
    assert len(answer.payload) == 1024 * 1024


def test_what_has_not_run_is_not_done() -> None:
    """A coroutine function, which a worker can't run, fails with the engine that can."""

    async def spooler(task: object) -> None:
        """Never run."""

    sys.modules["some_tasks"] = types.ModuleType("some_tasks")
    uwsgi.spooler = spooler
    run = spool_handler.load("some_tasks")[17]
    with pytest.raises(MisuseError, match="--engine reactor"):
        steps(run, a_run())


def test_unknown_return_codes() -> None:
    """Unknown return codes are refused before anything is imported."""
    with pytest.raises(StartupError, match=r"uWSGI '1\.9' are unknown; there are 0\.9, 2\.0"):
        spool_handler.load("not_there", return_codes="1.9")


def test_what_spool_handlers_raise() -> None:
    """A malformed task never reaches the function; its own exceptions come out as they are."""
    sys.modules["some_tasks"] = types.ModuleType("some_tasks")

    def spooler(task: object) -> object:
        raise KeyError("x")

    uwsgi.spooler = spooler
    run = spool_handler.load("some_tasks")[17]
    with pytest.raises(MalformedPacket):
        steps(run, a_run(b"\xff"))
    with pytest.raises(MalformedPacket):
        steps(run, Packet(17, 0, b"\xff"))
    with pytest.raises(KeyError):
        steps(run, a_run())
