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
from functools import cache
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


def _nginx() -> str:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise MissingError("nginx is not installed: apt install nginx-light")
    return program


class _Runs:
    """Makes runs. It starts a server, and nginx in front, when they are first needed."""

    def __init__(self, servers: Servers, scale: Scale) -> None:
        self._servers = servers
        self._seconds = max(1, round(_LONGER * scale.seconds))
        self._rounds = scale.rounds
        self._wrk = shutil.which("wrk")
        self._node = cache(lambda: self._start(_node(port := free_port()), port))
        self._uwsgi = cache(lambda: self._start(_uwsgi(port := free_port()), port))
        self._gunicorn = cache(self._start_gunicorn)

    def _start_gunicorn(self) -> Server:
        port = free_port()
        directive = "uwsgi_pass " if _gunicorn_speaks_uwsgi() else "proxy_pass http://"
        return self._start(_gunicorn(port), port, directive)

    def _start(self, command: list[str], behind: int, directive: str = "uwsgi_pass ") -> Server:
        """Start a server and return the nginx in front of it."""
        program, port = _nginx(), free_port()
        self._servers.start(command, behind)
        directory = self._servers.directory / f"nginx-{port}"
        directory.mkdir()
        configuration = directory / "nginx.conf"
        configuration.write_text(
            _NGINX.format(directory=directory, host=HOST, port=port, directive=directive, behind=behind)
        )
        line = [program, "-e", str(directory / "log"), "-p", str(directory), "-c", str(configuration)]
        return self._servers.start(line, port)

    def _rate(self, front: Server, path: str, body: bytes) -> float:
        url = f"http://{HOST}:{front.port}{path}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            if answer.read() != body:
                raise RuntimeError(f"{url} is not the page that was to be measured")
        if self._wrk is None:
            return self._servers.drive("web:run", front.port, self._seconds, path, _CONNECTIONS)[0]
        return self._rate_by_wrk(self._wrk, url)

    def _rate_by_wrk(self, wrk: str, url: str) -> float:
        command = [wrk, "-t1", f"-c{_CONNECTIONS}", f"-d{self._seconds}s", url]
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=self._seconds + 60, check=True
        ).stdout
        found = _RATE.search(shown)
        if found is None or _ERRORS.search(shown):
            raise RuntimeError(f"requests have failed:\n{shown}")
        return float(found[1])

    def table(self, title: str, path: str, body: bytes) -> Table:
        """Measure one page of each server, in turn."""
        generator = "`wrk -t1 -c32`" if self._wrk else "32 at a time by a Python client, for want of wrk (apt)"
        protocol = "uwsgi" if _gunicorn_speaks_uwsgi() else "HTTP: it is too old for uwsgi"
        contenders = [
            Contender("ours: `--wsgi`, `processes:2`", lambda: self._rate(self._node(), path, body)),
            Contender("uWSGI, 2 processes", lambda: self._rate(self._uwsgi(), path, body), "0.65 or more"),
            Contender(
                f"gunicorn, 2 sync workers, {protocol}",
                lambda: self._rate(self._gunicorn(), path, body),
                "1.6 or more",
            ),
        ]
        return compare(f"{title} behind nginx, {generator}", "requests/s", contenders, self._rounds)


def run(scale: Scale) -> list[Table]:
    """Run the comparison for each page."""
    with Servers() as servers:
        runs = _Runs(servers, scale)
        return [runs.table(*page) for page in _PAGES]


if __name__ == "__main__":
    main(__doc__, run)
