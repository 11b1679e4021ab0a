"""What the ``uwsgi`` module has of the running request and of the service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uwsgitwisted.access_log import Entry, as_json, combined
from uwsgitwisted.errors import MisuseError
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.worker.compat import decorators, requests, service, uwsgi
from uwsgitwisted.worker.compat.install import configure
from uwsgitwisted.worker.compat.requests import web_request
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.web.environ import Environ
from uwsgitwisted.worker.web.response import Response, StartResponse, run


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    """Leave no request and no process behind."""
    yield
    web_request.response = None
    configure()


@pytest.mark.parametrize("call", ["set_logvar('a', 'b')", "add_var('a', 'b')", "cl()", "sendfile('x')"])
def test_without_a_web_request(call: str) -> None:
    """What is for a web request raises outside one."""
    with pytest.raises(MisuseError, match="is for a web request, and none is being answered"):
        eval(f"uwsgi.{call}", {"uwsgi": uwsgi})
    assert uwsgi.get_logvar("a") is None


def test_variables() -> None:
    """A request's variables can be set, and variables for the log; the log's are bounded."""
    environ: Environ = {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.0", "CONTENT_LENGTH": "17"}
    web_request.response = Response(Sink(), environ)  # type: ignore[arg-type]
    assert uwsgi.add_var(b"REMOTE_USER", "ann") is True
    assert (environ["REMOTE_USER"], uwsgi.cl()) == ("ann", 17)
    uwsgi.set_logvar("user", b"ann")
    assert (uwsgi.get_logvar(b"user"), uwsgi.get_logvar("other")) == (b"ann", None)
    for number in range(requests.MAX_LOG_VARIABLES - 1):
        uwsgi.set_logvar(str(number), "")
    uwsgi.set_logvar("user", "bob")
    with pytest.raises(MisuseError, match="at most 100 variables"):
        uwsgi.set_logvar("one more", "")


def test_variables_in_the_log() -> None:
    """The lines of both formats have them, escaped and bounded."""
    entry = Entry({}, "200", 5, 0.1, 1, 0.0, {"user": 'a"n\n', "long": "x" * 5_000, "late": "y"})
    line = combined(entry)
    assert ' 1 user="a\\x22n\\x0a" long="xxx' in line
    assert len(line) < 2_000
    values = json.loads(as_json(entry))["logvars"]
    assert values["user"] == 'a"n\n'
    assert "late" not in values
    assert "logvars" not in json.loads(as_json(Entry({}, "200", 5, 0.1, 1, 0.0)))


class Sink:
    """Takes an answer, as an exchange does."""

    def __init__(self) -> None:
        self.sent = b""

    def send(self, data: bytes) -> None:
        self.sent += data

    def send_file(self, descriptor: int, offset: int, size: int) -> None:
        self.sent += os.pread(descriptor, size, offset)

    def finish(self, data: bytes = b"") -> None:
        self.sent += data


@pytest.mark.parametrize("returns_true", [False, True])
@pytest.mark.parametrize("kind", ["path", "descriptor", "file"])
def test_sendfile(tmp_path: Path, kind: str, returns_true: bool) -> None:
    """A file, or a part of it, is the answer's body, whether or not the application returns True."""
    path = tmp_path / "logo.png"
    path.write_bytes(b"0123456789")

    def application(environ: Environ, start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        with path.open("rb") as file:
            given: Any = {"path": str(path), "descriptor": file.fileno(), "file": file}[kind]
            assert uwsgi.sendfile(given, 0, 2, filesize=5) is True
        return True if returns_true else ""

    environ: Environ = {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.0"}
    sink = Sink()
    response = Response(sink, environ)  # type: ignore[arg-type]
    web_request.response = response
    run(application, environ, response)
    assert sink.sent == b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n23456"
    assert response.size == 5


def test_request_id() -> None:
    """Each request has a number, and its time limit ends with it."""
    configure(worker_id=1, masterpid=1)
    before = uwsgi.request_id()
    seen = []

    def handle(request: Packet) -> None:
        seen.append(uwsgi.request_id())
        uwsgi.set_user_harakiri(60)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0

    handler = Handler(handle, lambda request, result: request)
    handler(Packet(33, 0))
    handler(Packet(33, 0))
    assert seen == [before + 1, before + 2]
    assert uwsgi.total_requests() == before + 2
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_harakiri_needs_a_worker() -> None:
    """A limit that would kill the service itself is refused."""
    for worker_id, masterpid in ((0, 0), (0, 1), (1, os.getpid())):
        configure(worker_id=worker_id, masterpid=masterpid)
        with pytest.raises(MisuseError, match="is for worker processes"):
            uwsgi.set_user_harakiri(1)
        uwsgi.set_user_harakiri(0)


_SLOW = """
import signal, time
from uwsgitwisted.worker.compat import uwsgidecorators
from uwsgitwisted.worker.compat.install import configure
configure(worker_id=1, masterpid=1)

@uwsgidecorators.harakiri(1)
def slow(seconds):
    time.sleep(seconds)
    return "done"

assert slow(0) == "done"
assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
print("alive", flush=True)
slow(60)
"""


def test_harakiri() -> None:
    """A call that takes too long kills its worker; one that ends in time doesn't."""
    ended = subprocess.run(
        [sys.executable, "-c", _SLOW], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.stdout, ended.returncode) == ("alive\n", -signal.SIGALRM), ended.stderr


def test_thread() -> None:
    """The function runs in a thread of its own, a daemon."""
    seen: list[tuple[object, bool]] = []
    done = threading.Event()

    @decorators.thread
    def work(value: object) -> None:
        seen.append((value, threading.current_thread().daemon))
        done.set()

    work(7)
    assert done.wait(10)
    assert seen == [(7, True)]


def test_the_machine() -> None:
    """What the module says of its process is true."""
    configure(worker_id=2, masterpid=1, numproc=3, threads=4)
    assert uwsgi.hostname == os.uname().nodename.encode()
    resident, virtual = uwsgi.mem()
    assert 1_000_000 < resident < virtual
    assert abs(uwsgi.micros() - time.time() * 1e6) < 5e6
    assert (uwsgi.cores, uwsgi.numproc, uwsgi.logsize(), uwsgi.ready()) == (4, 3, 0, True)
    (worker,) = uwsgi.workers()
    assert (worker["id"], worker["pid"], worker["status"]) == (2, os.getpid(), b"busy")
    assert 1_000_000 < worker["rss"] < worker["vsz"]
    assert (uwsgi.suspend(), uwsgi.green_schedule()) == (True, True)
    assert uwsgi.version_info > (2, 0)
    assert service.decorators.spool is decorators.spool


def test_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker can have its service reload or stop; the check of its handlers can't."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    configure(masterpid=4711)
    assert (uwsgi.reload(), uwsgi.stop(), sent) == (None, None, [])
    configure(worker_id=1, masterpid=4711)
    assert (uwsgi.reload(), uwsgi.stop()) == (True, True)
    assert sent == [(4711, signal.SIGHUP), (4711, signal.SIGTERM)]


def test_setprocname() -> None:
    """The system shows the new name."""
    code = (
        "from uwsgitwisted.worker.compat import uwsgi; uwsgi.setprocname('mailer-of-some-length');"
        "print(open('/proc/self/comm').read())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "mailer-of-some-length"[:15]
