"""A real uWSGI for tests: its spooler, an application that spools, or a server of web requests."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.integration.services import PATIENCE, until

UWSGI = Path(sys.executable).with_name("uwsgi")

#: What handler modules for it begin with: ``note`` appends a line to the file ``runs`` beside the module. A
#: spooler's current directory is the spool.
PREAMBLE = """
import json, os, time, uwsgi

def note(**what):
    line = json.dumps({"pid": os.getpid(), "time": time.time(), **what}, default=repr)
    path = os.path.join(os.path.dirname(__file__), "runs")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, line.encode() + b"\\n")
    os.close(descriptor)
"""


class RealUwsgi:
    """A uWSGI process that runs in *directory*, with the module ``real_handler`` there.

    :param handler: the module's source, behind :data:`PREAMBLE`.
    """

    def __init__(self, directory: Path, handler: str, *options: str) -> None:
        self._directory = directory
        (directory / "real_handler.py").write_text(PREAMBLE + handler)
        with (directory / "uwsgi.log").open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(UWSGI, "--master", "--die-on-term", "--pythonpath", directory),
                    *("--import", "real_handler", *options),
                ],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def runs(self) -> list[dict[str, Any]]:
        """Return the handler's notes, in order."""
        try:
            lines = (self._directory / "runs").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def wait_for_runs(self, count: int) -> list[dict[str, Any]]:
        """Wait for that many notes of the handler, and return them."""
        try:
            until(lambda: len(self.runs()) >= count, f"{count} notes")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.runs()}\n{self.log}") from None
        return self.runs()

    @property
    def log(self) -> str:
        """Its output."""
        return (self._directory / "uwsgi.log").read_text(errors="replace")

    def end(self) -> None:
        """End it; while it starts it may take no notice of a signal, so that it gets more than one."""
        for _ in range(int(PATIENCE)):
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
                return
        self._process.kill()
        self._process.wait(PATIENCE)
        raise AssertionError(f"it did not end:\n{self.log}")


@contextlib.contextmanager
def real_uwsgi(directory: Path, handler: str, *options: str) -> Iterator[RealUwsgi]:
    running = RealUwsgi(directory, handler, *options)
    try:
        yield running
    finally:
        running.end()


def real_spooler(directory: Path, spool: Path, handler: str) -> AbstractContextManager[RealUwsgi]:
    """Run a spooler that looks into *spool* every second, and into numbered subdirectories of it."""
    return real_uwsgi(
        directory, handler, "--spooler", str(spool), "--spooler-ordered", "--spooler-frequency", "1"
    )


def real_application(directory: Path, spool: Path, handler: str) -> AbstractContextManager[RealUwsgi]:
    """Run an application that writes tasks into *spool*, without a spooler."""
    return real_uwsgi(directory, handler, "--spooler-external", str(spool))


@contextlib.contextmanager
def real_web_server(directory: Path, application: str, *options: str) -> Iterator[RealUwsgi]:
    """Run a WSGI application in two processes behind the file ``socket`` in *directory*.

    :param application: its module there, and its name in it.
    """
    listen = ("--socket", str(directory / "socket"), "--wsgi", application, "--need-app")
    # By default, it refuses more than 4096 bytes of variables, and waits a minute for workers that don't end.
    limits = ("--buffer-size", "65535", "--reload-mercy", "2", "--worker-reload-mercy", "2")
    with real_uwsgi(directory, "", *listen, "--processes", "2", *limits, *options) as running:
        until(lambda: "spawned uWSGI worker 2" in running.log, "the workers")
        yield running
