"""Compares web requests with a real uWSGI and gunicorn, behind nginx: ``python -m benchmarks.web``.

Each server runs the same WSGI application in two worker processes. nginx in front of it opens a connection for
each request. ``wrk`` keeps 32 requests in flight.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from benchmarks.harness import Contender, MissingError, Scale, Table, compare, main
from benchmarks.processes import HOST, Server, Servers, free_port, require, uwsgi_binary
from tests.integration.web_apps import GREETING, TEN_KILOBYTES

_APPLICATION = "tests.integration.web_apps:application"
#: The pages: title, path and body.
_PAGES = [("Hello world", "/", GREETING), ("10 KB", "/10k", TEN_KILOBYTES)]
_CONNECTIONS = 32
#: wrk measures whole seconds, so a run takes longer than in other benchmarks.
_LONGER = 4
_RATE = re.compile(r"^Requests/sec: +([\d.]+)$", re.MULTILINE)
#: How nginx passes requests to a gunicorn that doesn't speak uwsgi.
_TOO_OLD = ("HTTP: it is too old for uwsgi", "proxy_pass http://")
_ERRORS = re.compile(r"^ *(?:Non-2xx or 3xx responses|Socket errors): .*$", re.MULTILINE)

_NGINX = """
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 10000000;
    client_body_temp_path {directory}/client;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include /etc/nginx/uwsgi_params;
    server {{
        listen {host}:{port};
        location / {{ {directive}{host}:{behind}; }}
    }}
}}
"""


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _node(port: int) -> list[str]:
    options = ["--listen", f"tcp:{port}", "--engine", "processes:2", "--wsgi", _APPLICATION]
    return [_script("twistd"), "-n", "--pidfile=", "uwsgi-node", *options]


def _uwsgi(port: int) -> list[str]:
    options = ["--socket", f"{HOST}:{port}", "--wsgi", _APPLICATION, "--need-app", "--disable-logging"]
    return [uwsgi_binary(), "--master", "--processes", "2", "--die-on-term", *options]


def _gunicorn(port: int) -> list[str]:
    require("gunicorn")
    protocol = ["--protocol", "uwsgi"] if _gunicorn_speaks_uwsgi() else []
    options = ["--bind", f"{HOST}:{port}", "--workers", "2", "--worker-class", "sync"]
    return [_script("gunicorn"), *options, *protocol, _APPLICATION]


@cache
def _gunicorn_speaks_uwsgi() -> bool:
    try:
        shown = subprocess.run([_script("gunicorn"), "--help"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        return True
    return "--protocol" in shown.stdout


def _wrk() -> str | None:
    return shutil.which("wrk")


def _nginx() -> str:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise MissingError("nginx is not installed: apt install nginx-light")
    return program


class _Site:
    """A server, and nginx in front of it. Both are started when they are first needed.

    :param servers: starts them.
    :param command: makes the server's command line from its port.
    :param directive: by which nginx passes requests to it.
    :param seconds: how long a run takes.
    """

    def __init__(
        self,
        servers: Servers,
        command: Callable[[int], list[str]],
        seconds: int,
        directive: str = "uwsgi_pass ",
    ) -> None:
        self._servers = servers
        self._command = command
        self._seconds = seconds
        self._directive = directive
        self._start = cache(self._start_both)
        self._busy: list[float] = []

    def _start_both(self) -> tuple[Server, Server]:
        program, behind, port = _nginx(), free_port(), free_port()
        server = self._servers.start(self._command(behind), behind)
        directory = self._servers.directory / f"nginx-{port}"
        directory.mkdir()
        configuration = directory / "nginx.conf"
        configuration.write_text(
            _NGINX.format(directory=directory, host=HOST, port=port, directive=self._directive, behind=behind)
        )
        line = [program, "-e", str(directory / "log"), "-p", str(directory), "-c", str(configuration)]
        return server, self._servers.start(line, port)

    def rate(self, path: str, body: bytes) -> float:
        """Return the answered requests for a page per second."""
        server, front = self._start()
        url = f"http://{HOST}:{front.port}{path}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            if answer.read() != body:
                raise RuntimeError(f"{url} is not the page that was to be measured")
        before = server.all_processor_seconds
        rate = self._load(front, url, path)
        self._busy.append(rate * self._seconds / (server.all_processor_seconds - before))
        return rate

    def busy_rate(self) -> float:
        """Return the answered requests per second of the server's processor time, of the next of those runs."""
        if not self._busy:
            raise MissingError("it was not measured")
        return self._busy.pop(0)

    def _load(self, front: Server, url: str, path: str) -> float:
        wrk = _wrk()
        if wrk is None:
            return self._servers.drive("web:run", front.port, self._seconds, path, _CONNECTIONS)[0]
        command = [wrk, "-t1", f"-c{_CONNECTIONS}", f"-d{self._seconds}s", url]
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=self._seconds + 60, check=True
        ).stdout
        found = _RATE.search(shown)
        if found is None or _ERRORS.search(shown):
            raise RuntimeError(f"requests have failed:\n{shown}")
        return float(found[1])


def _tables(sites: list[tuple[str, _Site, str]], rounds: int) -> Iterator[Table]:
    generator = "`wrk -t1 -c32`" if _wrk() else "32 at a time by a Python client, for want of wrk (apt)"
    for title, path, body in _PAGES:
        name = f"{title} behind nginx, {generator}"
        by_clock = [Contender(each, partial(site.rate, path, body), wanted) for each, site, wanted in sites]
        yield compare(name, "requests/s", by_clock, rounds)
        by_processor = [Contender(each, site.busy_rate) for each, site, _ in sites]
        yield compare(f"{name}, by the server's own time", "requests/processor-s", by_processor, rounds)


def run(scale: Scale) -> list[Table]:
    """Run the comparison for each page."""
    seconds = max(1, round(_LONGER * scale.seconds))
    protocol, directive = ("uwsgi", "uwsgi_pass ") if _gunicorn_speaks_uwsgi() else _TOO_OLD
    with Servers() as servers:
        sites = [
            ("ours: `--wsgi`, `processes:2`", _Site(servers, _node, seconds), ""),
            ("uWSGI, 2 processes", _Site(servers, _uwsgi, seconds), "0.65 or more"),
            (
                f"gunicorn, 2 sync workers, {protocol}",
                _Site(servers, _gunicorn, seconds, directive),
                "1.6 or more",
            ),
        ]
        return list(_tables(sites, scale.rounds))


if __name__ == "__main__":
    main(__doc__, run)
