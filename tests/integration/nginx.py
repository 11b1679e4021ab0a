"""A real nginx for the tests: one process on a port of loopback, with its files in the directory of a test."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.integration.services import PATIENCE, free_port, until

#: Debian installs it in a directory that only root's PATH has.
_PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")

_CONFIGURATION = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {directory}/client;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
{locations}
    }}
{servers}
}}
"""


class Response(NamedTuple):
    """An answer of nginx."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Nginx:
    """A running nginx.

    :param directory: for its files.
    :param locations: what stands in its ``server`` block.
    :param servers: what stands beside that block.
    """

    def __init__(self, directory: Path, locations: str, servers: str = "") -> None:
        assert _PROGRAM, "these tests need nginx; on Debian: apt install nginx-light"
        self.port = free_port()
        self._errors = directory / "error.log"
        configuration = directory / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(directory=directory, port=self.port, locations=locations, servers=servers)
        )
        self._process = subprocess.Popen(
            [_PROGRAM, "-e", str(self._errors), "-p", str(directory), "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
        )
        try:
            until(self._answers, "nginx")
        except BaseException:
            self.stop()
            raise

    @property
    def log(self) -> str:
        """Its error log."""
        return self._errors.read_text() if self._errors.exists() else ""

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"nginx ended:\n{self.log}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request and return the answer.

        :param body: bytes, or their pieces, which are sent in chunks.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Response(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def stop(self) -> None:
        """End it and wait until it has ended."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENCE)
