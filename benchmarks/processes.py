"""Starts the servers and drivers of a benchmark as processes, and ends them by their ids."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from benchmarks.harness import HOW_TO_INSTALL, MissingError

ROOT = Path(__file__).resolve().parents[1]
#: The address of all servers, which only this machine can reach.
HOST = "127.0.0.1"
#: The prefix of a driver's figures.
RESULT = "result "

_START_TIME, _END_TIME = 20.0, 10.0
#: Seconds that a driver may take beyond its given time.
_PATIENCE = 60.0
_POLL = 0.01


def _environment() -> dict[str, str]:
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([path] if path else [])])}


def _pinned(core: int | None) -> Callable[[], None] | None:
    """Make the function by which a new process pins itself to one core, as ``taskset`` does."""
    return None if core is None else lambda: os.sched_setaffinity(0, {core})


def a_core() -> int:
    """Return the core that both sides share: the last one, which has the fewest interrupts."""
    return max(os.sched_getaffinity(0))


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def uwsgi_binary() -> str:
    """Return the real uWSGI's path.

    :raises MissingError: if it isn't installed.
    """
    beside = Path(sys.executable).with_name("uwsgi")
    found = str(beside) if beside.exists() else shutil.which("uwsgi")
    if found is None:
        raise MissingError(f"uWSGI is not installed: {HOW_TO_INSTALL}")
    return found


def require(module: str) -> None:
    """Raise :class:`MissingError` if *module* can't be imported."""
    if find_spec(module) is None:
        raise MissingError(f"{module} is not installed: {HOW_TO_INSTALL}")


class Server:
    """A started server.

    :param command: its command line.
    :param port: its port.
    :param directory: its working directory, which has its log.
    :param core: the only core it may use; None for all.
    """

    def __init__(self, command: Sequence[str], port: int, directory: Path, core: int | None) -> None:
        self.port = port
        self._log = directory / f"{port}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_pinned(core),
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def wait(self) -> None:
        """Wait until it accepts connections.

        :raises RuntimeError: if it doesn't; the text is its log.
        """
        deadline = time.monotonic() + _START_TIME
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
                return
            time.sleep(_POLL)
        raise RuntimeError(f"a server did not start:\n{self._log.read_text(errors='replace')}")

    @property
    def processor_seconds(self) -> float:
        """The processor time of its main thread so far."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    @property
    def all_processor_seconds(self) -> float:
        """The processor time so far of it and of the processes below it."""
        below: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    below.setdefault(parent, []).append(int(entry.name))
        total, pids = 0, [self.pid]
        for pid in pids:
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
            pids += below.get(pid, [])
        return total / 1e9

    @property
    def memory(self) -> int:
        """Its memory in bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(_END_TIME)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Servers:
    """The servers of one benchmark; leaving its ``with`` block ends them all.

    :param core: the only core that they, and the drivers, may use; None for all.
    """

    def __init__(self, core: int | None = None) -> None:
        self._core = core
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Servers:
        self.directory = Path(self._ends.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        self._ends.close()

    def node(self, engine: str, *options: str) -> Server:
        """Start one of our nodes."""
        port = free_port()
        twistd = str(Path(sys.executable).with_name("twistd"))
        listen = ["--listen", f"tcp:{port}", "--handler", "benchmarks.handlers", "--engine", engine]
        return self.start([twistd, "-n", "--pidfile=", "uwsgi-node", *listen, *options], port)

    def renderer(self, templates: Path, *options: str) -> Server:
        """Start one of our renderers, with two worker processes."""
        port = free_port()
        twistd = str(Path(sys.executable).with_name("twistd"))
        listen = ["--listen", f"tcp:{port}", "--templates", str(templates), "--engine", "processes:2"]
        return self.start([twistd, "-n", "--pidfile=", "uwsgi-renderer", *listen, *options], port)

    def spooler(self, *options: str) -> Server:
        """Start one of our spoolers, with its own file."""
        port = free_port()
        twistd = str(Path(sys.executable).with_name("twistd"))
        listen = ["--listen", f"tcp:{port}", "--handler", "benchmarks.spool_tasks"]
        spool = ["--spool", f"sqlite:{port}.sqlite"]
        return self.start([twistd, "-n", "--pidfile=", "uwsgi-spooler", *listen, *spool, *options], port)

    def huey(self) -> None:
        """Start Huey's consumer with two processes."""
        consumer = str(Path(sys.executable).with_name("huey_consumer"))
        command = [consumer, "benchmarks.huey_tasks.huey", "--workers", "2", "--worker-type", "process"]
        self._ends.callback(Server(command, 0, self.directory, self._core).stop)

    def uwsgi(self) -> Server:
        """Start a real uWSGI with one process, which has an RPC function and logs no requests."""
        port = free_port()
        application = str(ROOT / "benchmarks" / "uwsgi_functions.py")
        options = ["--socket", f"{HOST}:{port}", "--import", application, "--disable-logging", "--die-on-term"]
        return self.start([uwsgi_binary(), *options], port)

    def peer(self, name: str) -> Server:
        """Start one of the servers in :mod:`benchmarks.serve`."""
        port = free_port()
        return self.start([sys.executable, "-m", "benchmarks.serve", name, str(port)], port)

    def start(self, command: Sequence[str], port: int) -> Server:
        """Start a server, and wait until it accepts connections at *port*."""
        server = Server(command, port, self.directory, self._core)
        self._ends.callback(server.stop)
        server.wait()
        return server

    def drive(self, driver: str, port: int, seconds: float, *arguments: object) -> list[float]:
        """Run a driver of :mod:`benchmarks.drivers` and return its figures.

        :param driver: its module and name, as in ``calls:blocking``.
        """
        texts = [driver, str(port), str(seconds), *map(str, arguments)]
        return self._run([sys.executable, "-m", "benchmarks.drive", *texts], seconds)

    def drive_in_uwsgi(self, driver: str, port: int, seconds: float) -> list[float]:
        """Run a driver in a real uWSGI, since only there its ``uwsgi`` module exists."""
        program = str(ROOT / "benchmarks" / "drive.py")
        arguments = ["--enable-threads", "--pyrun", program, "--pyargv", f"{driver} {port} {seconds}"]
        return self._run([uwsgi_binary(), *arguments], seconds)

    def _run(self, command: Sequence[str], seconds: float) -> list[float]:
        ended = subprocess.run(
            command,
            cwd=self.directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds + _PATIENCE,
            preexec_fn=_pinned(self._core),
            check=False,
        )
        for line in reversed(ended.stdout.splitlines()):
            if line.startswith(RESULT):
                figures: list[float] = json.loads(line.removeprefix(RESULT))
                return figures
        raise RuntimeError(f"a driver gave no result:\n{' '.join(command)}\n{ended.stdout}")
