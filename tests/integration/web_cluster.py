"""The public web server that docs/nginx.md describes: nginx with TLS, three nodes, and a renderer."""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.documents import ROOT, blocks
from tests.integration.nginx import Nginx
from tests.integration.services import PATIENCE, Launcher, Service, free_port

MAKO = ROOT / "examples" / "mako_cluster"
_TLS = ROOT / "tests" / "unit" / "tls"
_NODES = ("10.0.0.5:3031", "10.0.0.6:3031", "10.0.0.7:3031")


class Cluster:
    """Three nodes and a renderer, with nginx in front.

    :param launch: starts the services.
    :param directory: for nginx's files.
    """

    def __init__(self, launch: Launcher, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._launch = launch
        self.renderer = launch.start(
            *("uwsgi-renderer", "--engine", "processes:1", "--templates", str(MAKO / "templates")), tcp=True
        )
        monkeypatch.setenv("RENDERERS", "{}:{}".format(*self.renderer.address))
        monkeypatch.setenv("PYTHONPATH", str(MAKO), prepend=os.pathsep)
        self.nodes: list[Service] = []
        for number in range(3):
            monkeypatch.setenv("NODE", f"node {number}")
            self.nodes.append(self.start_node())
        (directory / "static").mkdir()
        (directory / "static" / "style.css").write_text("body { color: black }")
        self.plain_port, self.port = free_port(), free_port()
        self.nginx = Nginx(directory, "", self._configuration(directory))

    def start_node(self) -> Service:
        """Start a front node."""
        return self._launch.start(
            *("uwsgi-node", "--engine", "processes:2", "--wsgi", "web_front:application"), tcp=True
        )

    def _configuration(self, directory: Path) -> str:
        """Return docs/nginx.md's configuration, with this machine's ports and files."""
        (text,) = [block.code for block in blocks("nginx") if block.document == "nginx"]
        here = {
            "listen 80;": f"listen 127.0.0.1:{self.plain_port};",
            "listen 443 ": f"listen 127.0.0.1:{self.port} ",
            "/etc/ssl/www.example.com.pem": str(_TLS / "roots" / "node.pem"),
            "/etc/ssl/www.example.com.key": str(_TLS / "key.pem"),
            "include uwsgi_params": "include /etc/nginx/uwsgi_params",
            "/srv/www": str(directory),
        }
        for place, node in zip(_NODES, self.nodes, strict=True):
            here[place] = "{}:{}".format(*node.address)
        for there, changed in here.items():
            assert there in text, f"docs/nginx.md lacks {there}"
            text = text.replace(there, changed)
        return text

    def browser(self) -> http.client.HTTPSConnection:
        """Return a connection like a browser's."""
        trusted = ssl.create_default_context(cafile=str(_TLS / "roots" / "node.pem"))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE, context=trusted)

    def get(self, path: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, bytes]:
        """Ask for a page."""
        browser = self.browser()
        try:
            browser.request(method, path)
            answer = browser.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            browser.close()


@contextmanager
def running_cluster(launch: Launcher, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Give a cluster whose nginx ends with the block; its services end with *launch*."""
    made = Cluster(launch, directory, monkeypatch)
    try:
        yield made
    finally:
        made.nginx.stop()
