"""nginx for demo.py: in front of the front nodes, on a free port of loopback. docs/nginx.md has more of it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from demo_support import HOST, PAUSE, STOP_LIMIT, DemoFailed

HOW_TO_INSTALL = "apt install nginx-light"
#: Seconds that nginx may take to start, and a page to arrive.
_LIMIT = 30.0
_CONFIGURATION = """
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/client;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream nodes {{
{nodes}
    }}
    server {{
        listen {host}:{port};
        location / {{
            uwsgi_param REQUEST_METHOD $request_method;
            uwsgi_param REQUEST_URI $request_uri;
            uwsgi_param PATH_INFO $document_uri;
            uwsgi_param QUERY_STRING $query_string;
            uwsgi_param CONTENT_TYPE $content_type;
            uwsgi_param CONTENT_LENGTH $content_length;
            uwsgi_param SERVER_PROTOCOL $server_protocol;
            uwsgi_param SERVER_NAME $server_name;
            uwsgi_param SERVER_PORT $server_port;
            uwsgi_param REMOTE_ADDR $remote_addr;
            uwsgi_pass nodes;
        }}
    }}
}}
"""


def find_nginx() -> str | None:
    """Return nginx's path, if it is installed; Debian has it where only root's PATH looks."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


class WebServer:
    """An nginx in front of nodes; leaving its ``with`` block stops it.

    :param program: nginx's path.
    :param directory: for its files.
    :param nodes: the nodes' ports.
    """

    def __init__(self, program: str, directory: Path, nodes: Sequence[int]) -> None:
        directory.mkdir()
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port: int = probe.getsockname()[1]
        self._log = directory / "log"
        lines = "\n".join(f"        server {HOST}:{port};" for port in nodes)
        configuration = directory / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(directory=directory, host=HOST, port=self.port, nodes=lines)
        )
        self._process = subprocess.Popen(
            [program, "-e", str(self._log), "-p", str(directory), "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # as the services: Ctrl-C reaches only the demo
        )

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def __enter__(self) -> WebServer:
        try:
            self._wait_until_up()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def _wait_until_up(self) -> None:
        limit = time.monotonic() + _LIMIT
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.port)) == 0:
                    return
            if self._process.poll() is not None or time.monotonic() > limit:
                raise DemoFailed(f"nginx did not start:\n{self._log.read_text(errors='replace')}")
            time.sleep(PAUSE)

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str) -> tuple[str, str]:
        """Get a page as a browser does.

        :return: the name of the node that has answered, and the page.
        :raises DemoFailed: if there is none.
        """
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{HOST}:{self.port}{path}", timeout=_LIMIT) as answer:
                return str(answer.headers["X-Node"]), answer.read().decode()
        except (OSError, urllib.error.HTTPError) as error:
            raise DemoFailed(f"nginx gave no page for {path}: {error}") from error
