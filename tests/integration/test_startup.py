"""Services that can't start: each says why in one line, and exits with a nonzero status."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.handlers import FAULTS, TASKS
from tests.integration.services import (
    TWISTD,
    Launcher,
    Service,
    free_port,
    is_alive,
    kill_if_alive,
    run_to_end,
    script,
    until,
)
from uwsgitwisted import __version__, blocking
from uwsgitwisted.errors import UwsgiError

pytestmark = pytest.mark.integration

#: A ``twistd`` whose store can be opened once, which is when it is looked at before the start.
_FAILING_LATER = """
import sys
from twisted.scripts.twistd import run
from uwsgitwisted.errors import StoreUnavailable
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
opened = []

def open(self, woken, original=SqliteStore.open):
    opened.append(self)
    if len(opened) > 1:
        raise StoreUnavailable("the disk is on fire")
    original(self, woken)

SqliteStore.open = open
sys.argv[0] = "twistd"
run()
"""

MODULES = {
    "raising": ("raise RuntimeError('on purpose')", "RuntimeError: on purpose"),
    "exiting": ("import sys; sys.exit(7)", "called exit(7) while it was imported"),
    "exiting_well": ("import sys; sys.exit()", "called exit(None) while it was imported"),
    "setting_nothing": ("import uwsgi", "'setting_nothing' set no"),
    "misspelt": ("def f(:", "SyntaxError"),
    "lacking": ("import no_such_library", "No module named 'no_such_library'"),
    "asking": ("import uwsgi; uwsgi.no_such_name", "there is no uwsgi.no_such_name"),
}


def _fail(directory: Path, *arguments: str) -> str:
    """Run twistd in the foreground, which doesn't start, and return what it says.

    What is found out before its log begins is on the standard error, the rest in its log: the standard output.
    """
    ended = run_to_end([*TWISTD, "-n", "--pidfile=", *arguments], directory)
    assert ended.returncode == 1, ended.stdout
    said = ended.stderr + ended.stdout
    assert "uwsgitwisted/services" not in said, "a traceback of ours"
    assert "takes requests" not in said
    return said


def _unix(directory: Path) -> tuple[str, str]:
    return "--listen", f"unix:{directory}/socket"


# Handler modules.


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("command", ["uwsgi-node", "uwsgi-spooler"])
def test_a_module_that_cannot_be_loaded(tmp_path: Path, command: str, name: str) -> None:
    """A handler module that can't be imported, or sets nothing, is named with the reason."""
    source, told = MODULES[name]
    (tmp_path / f"{name}.py").write_text(source)
    spool = ("--spool", "sqlite:s") if command == "uwsgi-spooler" else ()
    said = _fail(tmp_path, command, *_unix(tmp_path), "--handler", name, *spool)
    assert told in said
    assert f"'{name}'" in said
    assert "engines/worker.py" not in said
    assert not (tmp_path / "socket").exists()


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    """A module that is missing is named, and where it was looked for."""
    said = _fail(tmp_path, "uwsgi-node", *_unix(tmp_path), "--handler", "absent")
    assert "there is no handler module 'absent'" in said
    assert str(tmp_path) in said


def test_a_file_instead_of_a_module(tmp_path: Path) -> None:
    """If --handler names a file, the error has the module's name."""
    said = _fail(tmp_path, "uwsgi-node", *_unix(tmp_path), "--handler", "my_server.py")
    assert "'my_server'" in said


def test_a_template_directory_that_is_not_there(tmp_path: Path) -> None:
    """A renderer without its directory says so."""
    said = _fail(tmp_path, "uwsgi-renderer", *_unix(tmp_path), "--templates", "absent")
    assert "absent: there is no such directory" in said


def test_broken_templates(tmp_path: Path) -> None:
    """With --preload, all templates that are broken are listed, and the port isn't opened."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "a.html").write_text("\n${1 +}")
    (tmp_path / "templates" / "b.j2").write_text("{% for %}")
    said = _fail(tmp_path, "uwsgi-renderer", *_unix(tmp_path), "--templates", "templates", "--preload")
    assert "template 'a.html', line 2" in said
    assert "template 'b.j2', line 1" in said


# Ports.


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_in_use(tmp_path: Path, taken_port: int) -> None:
    """A port in use is named, with what to do."""
    (tmp_path / "faults.py").write_text(FAULTS)
    said = _fail(tmp_path, "uwsgi-node", "--listen", f"tcp:{taken_port}", "--handler", "faults")
    assert f"can't listen on tcp:{taken_port}" in said
    assert "Address already in use" in said
    assert "name another port with --listen" in said


def test_the_second_port_in_use(tmp_path: Path, taken_port: int) -> None:
    """One of several ports in use keeps the service from starting as well."""
    (tmp_path / "faults.py").write_text(FAULTS)
    said = _fail(tmp_path, "uwsgi-node", *_unix(tmp_path), "-l", f"tcp:{taken_port}", "--handler", "faults")
    assert f"can't listen on tcp:{taken_port}" in said


def test_a_socket_in_a_missing_directory(tmp_path: Path) -> None:
    """A UNIX socket that can't be made is named, with what is missing."""
    (tmp_path / "faults.py").write_text(FAULTS)
    said = _fail(tmp_path, "uwsgi-node", "--listen", f"unix:{tmp_path}/absent/s", "--handler", "faults")
    assert f"can't listen on unix:{tmp_path}/absent/s: No such file or directory" in said
    assert f"Create the directory {tmp_path}/absent" in said
    assert "service that listens there" not in said


def test_a_socket_in_place_of_a_file(tmp_path: Path) -> None:
    """A file that is in the way of a UNIX socket is left alone, and named."""
    (tmp_path / "faults.py").write_text(FAULTS)
    (tmp_path / "notes").write_text("mine")
    said = _fail(tmp_path, "uwsgi-node", "--listen", f"unix:{tmp_path}/notes", "--handler", "faults")
    assert f"or remove what is at {tmp_path}/notes" in said
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("interface", ["192.0.2.1", "no-such-host.invalid"])
def test_an_interface_of_another_machine(tmp_path: Path, interface: str) -> None:
    """An interface that this machine doesn't have is no service in the way."""
    (tmp_path / "faults.py").write_text(FAULTS)
    listen = f"tcp:{free_port()}:interface={interface}"
    said = _fail(tmp_path, "uwsgi-node", "--listen", listen, "--handler", "faults")
    assert f"can't listen on {listen}: " in said
    assert "Name an IP address of this machine" in said
    assert "service that listens there" not in said


def test_a_socket_that_a_killed_node_left(launch: Launcher) -> None:
    """A UNIX socket that a killed node left behind doesn't keep the next one from starting."""
    first = launch.start("uwsgi-node", "--engine", "reactor", handler=FAULTS)
    first.kill()
    second = launch.start("uwsgi-node", "--engine", "reactor", handler=FAULTS, directory=first.directory)
    assert second.ask(("echo", 1)) == 1


# Options.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("uwsgi-node",), "--handler is missing"),
        (("uwsgi-renderer",), "--templates is missing"),
        (("uwsgi-spooler", "--handler", "m"), "--spool is missing"),
        (("uwsgi-spooler", "--spool", "sqlite:s"), "--handler is missing"),
        (("uwsgi-router",), "--nodes is missing"),
        (("uwsgi-router", "--nodes", "nowhere"), "--nodes nowhere"),
        (("uwsgi-router", "--nodes", "h:1", "--https", "tcp:8443"), "it has no TLS"),
        (
            ("uwsgi-router", "--nodes", "h:1", "--static", "/static"),
            "--static /static: write /path=DIRECTORY",
        ),
        (("uwsgi-node", "--handler", "m", "--engine", "rockets"), "rockets"),
        (("uwsgi-node", "--handler", "m", "--engine", "processes:many"), "--engine processes:many: 'many'"),
        (("uwsgi-node", "--handler", "m", "--timeout", "soon"), "--timeout soon: not a number"),
        (("uwsgi-node", "--handler", "m", "--max-queue", "0"), "--max-queue 0: not a whole number"),
        (("uwsgi-node", "--handler", "m", "--max-message", "1X"), "--max-message 1X: not a whole number"),
        (("uwsgi-node", "--handler", "m", "--allow", "everybody"), "--allow everybody"),
        (("uwsgi-node", "--handler", "m", "--no-such-option"), "no-such-option"),
        (("uwsgi-node", "--handler", "m", "surplus"), "'surplus' belongs to no option"),
        (("uwsgi-spooler", "--handler", "m", "--spool", "sqlite:s", "--return-codes", "3"), "--return-codes 3"),
        (("uwsgi-spooler", "--handler", "m", "--spool", "sqlite:s", "--first-delay", "9999"), "--first-delay"),
    ],
)
def test_an_option_that_is_wrong(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    """A wrong option, or a missing one, is named in a line; another says where all options are explained."""
    ended = run_to_end([*TWISTD, "-n", *arguments], tmp_path)
    assert ended.returncode == 1
    mistake, hint = ended.stderr.splitlines()
    assert told in mistake
    assert hint == f"See 'twistd {arguments[0]} --help'."
    assert not ended.stdout


@pytest.mark.parametrize("listen", ["tcp:many", "tcp:99999", "nonsense:1", "tcp", "", "unix:"])
def test_a_wrong_listen(tmp_path: Path, listen: str) -> None:
    """An endpoint that is none is named; no traceback."""
    (tmp_path / "faults.py").write_text(FAULTS)
    said = _fail(tmp_path, "uwsgi-node", "--listen", listen, "--handler", "faults")
    assert f"listen {listen}" in said or f"listen on {listen}" in said
    assert "Traceback" not in said


def test_the_commands_in_the_help(tmp_path: Path) -> None:
    """`twistd --help` lists the commands."""
    ended = run_to_end([*TWISTD, "--help"], tmp_path)
    assert ended.returncode == 0
    for command in ("uwsgi-node", "uwsgi-renderer", "uwsgi-spooler", "uwsgi-router"):
        assert re.search(rf"^ +{command} +A uwsgi ", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "option"),
    [("uwsgi-node", "--handler"), ("uwsgi-renderer", "--templates"), ("uwsgi-spooler", "--spool")],
)
def test_the_help_of_each_command(tmp_path: Path, command: str, option: str) -> None:
    """Each command's --help explains its options."""
    ended = run_to_end([*TWISTD, command, "--help"], tmp_path)
    assert ended.returncode == 0
    assert f"Usage: twistd [options] {command}" in ended.stdout
    for name in (option, "--listen", "--engine", "--timeout", "--allow", "--max-connections"):
        assert name in ended.stdout


@pytest.mark.parametrize("command", ["uwsgi-node", "uwsgi-renderer", "uwsgi-spooler", "uwsgi-router"])
def test_the_version_of_each_command(tmp_path: Path, command: str) -> None:
    """Each command's --version is ours."""
    ended = run_to_end([*TWISTD, command, "--version"], tmp_path)
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"uwsgitwisted {__version__}, Twisted ")


# Several in one directory.


def test_a_node_and_a_spooler_in_one_directory(tmp_path: Path) -> None:
    """Two services in the foreground need no different pid files, as they have none."""
    (tmp_path / "faults.py").write_text(FAULTS)
    (tmp_path / "my_tasks.py").write_text(TASKS)
    ports = free_port(), free_port()
    node = ("uwsgi-node", "--engine", "reactor", "-l", f"tcp:{ports[0]}", "--handler", "faults")
    spool = ("--spool", "sqlite:spool.db", "--handler", "my_tasks")
    spooler = ("uwsgi-spooler", "--engine", "reactor", "-l", f"tcp:{ports[1]}", *spool)
    services = []
    try:
        for port, line in zip(ports, (node, spooler), strict=True):
            services.append(Service([*TWISTD, "-n", *line], tmp_path, ("127.0.0.1", port)))
            services[-1].wait_for("takes requests on")
        assert all(script(blocking.ping, ("127.0.0.1", port)) for port in ports)
        assert not list(tmp_path.glob("*.pid"))
    finally:
        for service in services:
            service.kill()


def test_two_daemons_in_one_directory(tmp_path: Path) -> None:
    """In the background each has a pid file of its own, by its port, which goes with it."""
    (tmp_path / "faults.py").write_text(FAULTS)
    ports = free_port(), free_port()
    try:
        for port in ports:
            line = ("uwsgi-node", "--engine", "reactor", "-l", f"tcp:{port}", "--handler", "faults")
            ended = run_to_end([*TWISTD, *line], tmp_path)
            assert ended.returncode == 0, ended.stderr
            assert script(blocking.ping, ("127.0.0.1", port))
        pids = {path.name: int(path.read_text()) for path in tmp_path.glob("*.pid")}
        assert set(pids) == {f"uwsgi-node-{port}.pid" for port in ports}
        for pid in pids.values():
            os.kill(pid, signal.SIGTERM)
        until(lambda: not any(map(is_alive, pids.values())), "the daemons' end")
        assert not list(tmp_path.glob("*.pid"))
    finally:
        for path in tmp_path.glob("*.pid"):
            kill_if_alive(int(path.read_text()))


# In the background.


def _daemon(directory: Path, *arguments: str) -> list[str]:
    files = ("--pidfile", str(directory / "pid"), "--logfile", str(directory / "log"))
    return [*TWISTD, *files, *arguments]


def _read_pid(directory: Path) -> int:
    return int((directory / "pid").read_text())


def test_a_daemon_that_starts(tmp_path: Path) -> None:
    """Without -n it goes to the background, takes requests, and ends at SIGTERM without a trace."""
    (tmp_path / "faults.py").write_text(FAULTS)
    port = free_port()
    arguments = ("uwsgi-node", "--engine", "processes:1", "-l", f"tcp:{port}", "--handler", "faults")
    ended = run_to_end(_daemon(tmp_path, *arguments), tmp_path)
    assert ended.returncode == 0, ended.stderr
    pid = _read_pid(tmp_path)
    try:
        until(lambda: "takes requests on" in (tmp_path / "log").read_text(), "the daemon's start")
        worker = script(blocking.send_uwsgi_message, "127.0.0.1", port, 33, 17, ("pid",))
        assert isinstance(worker, int)
        run_to_end(["kill", "-TERM", str(pid)], tmp_path)
        until(lambda: not is_alive(pid), "the daemon's end")
        assert not is_alive(worker)
        assert not (tmp_path / "pid").exists()
    finally:
        kill_if_alive(pid)


@pytest.mark.parametrize("name", ["raising", "exiting", "setting_nothing"])
def test_a_daemon_whose_module_cannot_be_loaded(tmp_path: Path, name: str) -> None:
    """The terminal that starts a daemon shows why it doesn't start, and no process is left."""
    source, told = MODULES[name]
    (tmp_path / f"{name}.py").write_text(source)
    _fail_in_background(tmp_path, told, "uwsgi-node", *_unix(tmp_path), "--handler", name)


def test_a_daemon_whose_port_is_in_use(tmp_path: Path, taken_port: int) -> None:
    """The same for a port in use, which is found out only in the background."""
    (tmp_path / "faults.py").write_text(FAULTS)
    _fail_in_background(
        tmp_path,
        f"can't listen on tcp:{taken_port}",
        *("uwsgi-node", "-l", f"tcp:{taken_port}", "--handler", "faults"),
    )


def test_a_daemon_whose_spool_is_no_database(tmp_path: Path) -> None:
    """The same for a spool."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "notes").write_text("this is no database\n" * 100)
    arguments = ("uwsgi-spooler", *_unix(tmp_path), "--handler", "tasks", "--spool", "sqlite:notes")
    _fail_in_background(tmp_path, "notes", *arguments)


def _fail_in_background(directory: Path, told: str, *arguments: str) -> None:
    ended = run_to_end(_daemon(directory, *arguments), directory)
    try:
        assert ended.returncode != 0
        # A daemon's reason goes through a pipe of 100 bytes, on one line.
        assert told in ended.stderr + ended.stdout
    finally:
        if (directory / "pid").exists():
            kill_if_alive(_read_pid(directory))


def test_a_store_that_fails_after_the_start(tmp_path: Path) -> None:
    """A service whose store fails once the reactor runs ends with status 1 and says why."""
    (tmp_path / "my_tasks.py").write_text(TASKS)
    command = [sys.executable, "-c", _FAILING_LATER, "-n", "--pidfile=", "uwsgi-spooler"]
    options = ["--listen", f"tcp:{free_port()}", "--spool", "sqlite:spool.db", "--handler", "my_tasks"]
    ended = run_to_end([*command, *options], tmp_path)
    assert ended.returncode == 1
    assert "the service can't start: the disk is on fire" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "takes requests" not in ended.stdout


def test_nothing_answers_where_nothing_started(tmp_path: Path) -> None:
    """A service that doesn't start leaves nothing that answers on its port."""
    port = free_port()
    _fail(tmp_path, "uwsgi-node", "--listen", f"tcp:{port}", "--handler", "absent")
    with pytest.raises(UwsgiError):
        script(blocking.ping, ("127.0.0.1", port))
