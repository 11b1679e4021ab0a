"""Support for demo.py: starts twistd processes, stops them in any case, and prints readable output."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from uwsgitwisted.blocking import ping
from uwsgitwisted.errors import ConnectionFailed, NoAnswer, RequestTimeout

HOST = "127.0.0.1"
#: Seconds that a service may take to start. Twelve of them share the processors meanwhile.
START_LIMIT = 120.0
#: Seconds that a service may take to end after SIGTERM.
STOP_LIMIT = 20.0
#: A service logs this when its workers are ready.
READY = b" takes requests on "
#: Seconds between two checks of a condition.
PAUSE = 0.05


class DemoFailed(Exception):
    """The demo did not run as expected; the text says why."""


@dataclass(slots=True)
class Service:
    """A twistd process, with all that starting it again needs.

    :param name: its name in the demo's output.
    :param port: its port on loopback.
    :param command: its command line.
    :param directory: its working directory, which contains its handler module.
    :param environment: its environment variables besides ours.
    :param log: the file of its output.
    :param process: the running process, once it has been started.
    :param log_start: the position in the log at which the current process begins.
    """

    name: str
    port: int
    command: tuple[str, ...]
    directory: Path
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    log_start: int = 0

    @property
    def pid(self) -> int:
        """The id of the process; 0 if none was started."""
        return 0 if self.process is None else self.process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it has logged that its workers are ready, and answers a ping."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            if READY not in log.read():
                return False
        with suppress(ConnectionFailed, NoAnswer, RequestTimeout):
            ping((HOST, self.port), 2)
            return True
        return False

    def last_lines(self, count: int = 15) -> str:
        """Return the end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-count:])


class Services:
    """Starts twistd processes on free loopback ports; leaving its ``with`` block stops every one.

    :param logs: a directory for their logs.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._services: list[Service] = []
        self._held: list[socket.socket] = []
        self._twistd = find_twistd()

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __len__(self) -> int:
        return len(self._services)

    def add(
        self,
        name: str,
        command: str,
        *options: str,
        directory: Path,
        environment: Mapping[str, str] | None = None,
    ) -> Service:
        """Describe a service; :meth:`start_all` starts it.

        :param command: ``uwsgi-node``, ``uwsgi-renderer`` or ``uwsgi-spooler``.
        :param options: its further arguments, besides ``--listen``.
        """
        port = self._free_port()
        # twistd may write a pid file even in the foreground; two services in one directory would clash.
        line = (self._twistd, "-n", "--pidfile=", command, "--listen", f"tcp:{port}:interface={HOST}", *options)
        log = self._logs / f"{len(self._services):02}.log"
        service = Service(name, port, line, directory, environment or {}, log)
        self._services.append(service)
        return service

    def start_all(self) -> Iterator[Service]:
        """Start all added services in parallel; yield each one when it accepts requests."""
        while self._held:
            self._held.pop().close()
        for service in self._services:
            self.start(service)
        for service in self._services:
            self.wait_until_up(service)
            yield service

    def start(self, service: Service) -> None:
        """Start a service, for the first time or again."""
        with service.log.open("ab") as log:
            service.log_start = log.tell()
            service.process = subprocess.Popen(
                service.command,
                cwd=service.directory,
                env={**os.environ, **service.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only the demo, which then stops the services in order
            )

    def wait_until_up(self, service: Service) -> None:
        """Wait until a service accepts requests.

        :raises DemoFailed: if it ends instead, or takes too long.
        """
        assert service.process is not None, "not started"
        limit = time.monotonic() + START_LIMIT
        while not service.is_ready:
            if service.process.poll() is not None:
                raise DemoFailed(f"the {service.name} did not start")
            if time.monotonic() > limit:
                raise DemoFailed(f"the {service.name} did not start within {START_LIMIT:g} s")
            time.sleep(PAUSE)

    def kill(self, service: Service) -> None:
        """Kill a service as a power failure would, without a chance to clean up."""
        assert service.process is not None, "not started"
        service.process.send_signal(signal.SIGKILL)
        service.process.wait()

    def stop(self) -> list[Service]:
        """Stop all services; return those that had to be killed."""
        while self._held:
            self._held.pop().close()
        running = [s for s in self._services if s.process is not None and s.process.poll() is None]
        for service in running:
            service.process.terminate()  # type: ignore[union-attr]
        return [service for service in running if not self._has_ended(service)]

    def complaints(self) -> dict[str, str]:
        """Return the ends of the logs that contain errors, by the service's name."""
        ends = {service.name: service.last_lines() for service in self._services}
        return {name: end for name, end in ends.items() if "error" in end.lower()}

    def _has_ended(self, service: Service) -> bool:
        assert service.process is not None
        try:
            service.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill(service)
            return False
        return True

    def _free_port(self) -> int:
        """Reserve a free port until the services start."""
        holder = socket.socket()
        holder.bind((HOST, 0))
        self._held.append(holder)
        port: int = holder.getsockname()[1]
        return port


def find_twistd() -> str:
    """Return the path of this Python's twistd.

    :raises DemoFailed: if it isn't installed.
    """
    beside = Path(sys.executable).with_name("twistd")
    found = str(beside) if beside.exists() else shutil.which("twistd")
    if found is None:
        raise DemoFailed("there is no twistd; install the package first: pip install .")
    return found


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until *condition* is true.

    :raises DemoFailed: if it isn't after *seconds*.
    """
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise DemoFailed(f"waited {seconds:g} s for {what}, in vain")
        time.sleep(PAUSE)


class Terminal:
    """Prints the demo's progress: with colours and a spinner on a terminal, as plain lines anywhere else.

    :param stream: the output.
    """

    _SIGNS = "|/-\\"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._moves = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._coloured = self._moves and not os.environ.get("NO_COLOR")
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def headline(self, text: str) -> None:
        """Print a headline."""
        self._write(f"\n{self._paint('1;36', text)}\n{self._paint('36', '-' * len(text))}\n")

    def say(self, text: str) -> None:
        """Print a paragraph of text."""
        self._write(textwrap.fill(text, 96, initial_indent="  ", subsequent_indent="  ") + "\n")

    def show(self, lines: Iterable[str]) -> None:
        """Print lines verbatim, with a bar at the left."""
        bar = self._paint("90", "|")
        self._write("\n" + "".join(f"  {bar} {line}".rstrip() + "\n" for line in lines) + "\n")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print a table; the first row has the column titles."""
        self._write("\n")
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for place, row in enumerate(rows):
            line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            self._write(f"  {self._paint('1', line) if place == 0 else line}\n")
        self._write("\n")

    def good(self, text: str) -> None:
        """Report a success."""
        self._write(f"  {self._paint('32', 'ok')}  {text}\n")

    def bad(self, text: str) -> None:
        """Report a failure."""
        self._write(f"\n  {self._paint('1;31', 'FAILED')}  {text}\n")

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show a spinner while something runs; yield a function that updates its state."""
        began = time.monotonic()
        state = [""]
        done = threading.Event()
        mover = threading.Thread(target=self._move, args=(text, state, done), daemon=True)
        if self._moves:
            mover.start()
        else:
            self._write(f"  ..  {text}\n")
        try:
            yield lambda news: state.__setitem__(0, news)
        finally:
            done.set()
            if self._moves:
                mover.join()
                self._write("\r\x1b[K")
        self.good(f"{text} {self._paint('90', f'({time.monotonic() - began:.1f} s)')}")

    def _move(self, text: str, state: list[str], done: threading.Event) -> None:
        turn = 0
        while not done.wait(0.1):
            turn += 1
            self._write(f"\r\x1b[K  {self._SIGNS[turn % 4]}   {text} {state[0]}")

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
