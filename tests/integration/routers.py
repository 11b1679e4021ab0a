"""Real routers for tests, with real uWSGI nodes behind them, and a client that reads answers as they come."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.integration.real_uwsgi import UWSGI
from tests.integration.services import PATIENCE, TWISTD, Service, free_port, until

#: The application of the nodes. ``NAME`` is the node's.
APPLICATION = """
import hashlib, json, os, tempfile, time, uwsgi

def pieces_of(environ):
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0:
        piece = environ["wsgi.input"].read(min(left, 65536))
        if not piece:
            break
        left -= len(piece)
        yield piece

def echo(environ, start):
    kept = tempfile.TemporaryFile()
    for piece in pieces_of(environ):
        kept.write(piece)
    size = kept.tell()
    kept.seek(0)
    headers = [("Content-Type", "application/octet-stream")]
    if environ["QUERY_STRING"] != "unsized":
        headers.append(("Content-Length", str(size)))
    start("200 OK", headers)
    return iter(lambda: kept.read(65536), b"")

def env(environ, start):
    body = json.dumps({k: v for k, v in environ.items() if isinstance(v, str)}).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]

def name(environ, start):
    start("200 OK", [("Content-Type", "text/plain")])
    return [os.environ["NAME"].encode()]

def count(environ, start):
    size = sum(map(len, pieces_of(environ)))
    start("200 OK", [("Content-Type", "text/plain")])
    return [str(size).encode()]

def zeros(environ, start):
    left = int(environ["QUERY_STRING"])
    start("200 OK", [("Content-Length", str(left))])
    block = bytes(65536)
    while left > 0:
        yield block[:left]
        left -= len(block)

def pieces(environ, start):
    # one more piece for each file that the test makes
    start("200 OK", [("Content-Type", "text/event-stream")])
    for number in range(3):
        while not os.path.exists("go%d" % number):
            time.sleep(0.005)
        yield b"piece %d\\n" % number

def wait(environ, start):
    open("waiting", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.005)
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"waited"]

def early(environ, start):
    start("403 Forbidden", [("Content-Length", "2")])
    return [b"no"]

def killed(environ, start):
    os.kill(os.getpid(), 9)

def cut(environ, start):
    start("200 OK", [("Content-Length", "100000")])
    yield bytes(50000)
    os.kill(os.getpid(), 9)

def headers(environ, start):
    cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    start("202 Quite Fine", [("X-One", "1"), *cookies, ("Connection", "close")])
    return [b"body"]

def nothing(environ, start):
    start(environ["QUERY_STRING"].replace("+", " "), [("X-Is", "here"), ("Content-Length", "4")])
    return [b"body"]

def application(environ, start):
    return globals()[environ["PATH_INFO"].strip("/") or "name"](environ, start)
"""


class WebNode:
    """A uWSGI that serves :data:`APPLICATION`.

    :param directory: where it runs.
    :param options: more options of it.
    """

    def __init__(self, directory: Path, name: str, *options: str) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.name = name
        self._options = options
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        (directory / "application.py").write_text(APPLICATION)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with (self.directory / "uwsgi.log").open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(UWSGI, "--socket", self.address, "--master", "--die-on-term", "--processes", "2"),
                    *("--wsgi-file", "application.py", "--buffer-size", "32768"),
                    *("--env", f"NAME={self.name}", "--disable-logging", *self._options),
                ],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        until(self._listens, f"uWSGI:\n{self.log}")

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log
        return self._is_open()

    def _is_open(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def log(self) -> str:
        """Its output."""
        return (self.directory / "uwsgi.log").read_text(errors="replace")

    def stop(self) -> None:
        """End it, workers included, as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        # A worker may have its copy of the port a moment longer than the master.
        until(lambda: not self._is_open(), "the end of the workers")


class Answer(NamedTuple):
    """An answer of the router."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Router(Service):
    """A router, and nodes behind it.

    :param nodes: the addresses of the nodes.
    """

    def __init__(self, directory: Path, nodes: Iterable[str], *options: str) -> None:
        directory.mkdir(exist_ok=True)
        port = free_port()
        line = [
            *TWISTD,
            "-n",
            "--pidfile=",
            "uwsgi-router",
            "--http",
            f"tcp:{port}",
            "--nodes",
            ",".join(nodes),
        ]
        super().__init__([*line, *options], directory, ("127.0.0.1", port))
        self.wait_for("takes requests on")

    def client(self) -> http.client.HTTPConnection:
        """Return a client; it connects at its first request, and keeps the connection."""
        return http.client.HTTPConnection(*self.address, timeout=PATIENCE)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request on a connection of its own, and return the answer.

        :param body: bytes, or pieces that are sent in chunks.
        """
        with contextlib.closing(self.client()) as client:
            return ask(client, method, path, body, headers)

    def raw(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own, and return all that comes back."""
        return self.exchange(data)


def ask(
    client: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send a request, and return the answer."""
    client.request(method, path, body, dict(headers or {}))
    answer = client.getresponse()
    return Answer(answer.status, answer.headers, answer.read())


class Routers:
    """Starts nodes and routers in directories of their own, and ends all of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nodes: list[WebNode] = []
        self._routers: list[Router] = []

    def node(self, *options: str) -> WebNode:
        """Start a node."""
        name = f"node{len(self._nodes)}"
        started = WebNode(self._directory / name, name, *options)
        self._nodes.append(started)
        return started

    def router(self, *nodes: str, options: Iterable[str] = ()) -> Router:
        """Start a router for the nodes at these addresses."""
        started = Router(self._directory / f"router{len(self._routers)}", nodes, *options)
        self._routers.append(started)
        return started

    def end_all(self) -> None:
        """End all of them."""
        with contextlib.ExitStack() as stack:
            for node in self._nodes:
                stack.callback(node.stop)
            for router in self._routers:
                stack.callback(router.terminate)


@contextlib.contextmanager
def routers(directory: Path) -> Iterator[Routers]:
    """Give something that starts nodes and routers, which are ended whatever happens."""
    started = Routers(directory)
    try:
        yield started
    finally:
        started.end_all()


def digest(data: bytes) -> str:
    """Return a digest of *data*, which an assertion can show."""
    return hashlib.sha256(data).hexdigest()
