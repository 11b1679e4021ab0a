"""Servers of web requests for the tests: our node and a real uWSGI, nginx in front, and a plain client.

All serve the applications of :mod:`tests.integration.web_apps`.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.integration import web_apps
from tests.integration.nginx import Nginx, Response
from tests.integration.real_uwsgi import RealUwsgi, real_web_server
from tests.integration.services import PATIENCE, Launcher, Service, read_to_end
from uwsgitwisted.wire.packet import Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

#: nginx's locations in front of a server: everything buffered, as by default; nothing; and as with TLS. It
#: accepts as many headers as a packet can have.
LOCATIONS = """
        large_client_header_buffers 16 8k;
        include /etc/nginx/uwsgi_params;
        location / {{ uwsgi_pass {address}; }}
        location /unbuffered/ {{
            rewrite ^/unbuffered(/.*)$ $1 break;
            uwsgi_buffering off;
            uwsgi_request_buffering off;
            uwsgi_pass {address};
        }}
        location /secure/ {{
            rewrite ^/secure(/.*)$ $1 break;
            include /etc/nginx/uwsgi_params;
            uwsgi_param HTTPS on;
            uwsgi_pass {address};
        }}
"""
#: What nginx puts before a path so that nothing is buffered.
UNBUFFERED = "/unbuffered"


def start_node(launch: Launcher, *options: str, engine: str = "processes:2", tcp: bool = False) -> Service:
    """Start one of our nodes with the applications; it runs in a directory of its own."""
    directory = launch.new_directory()
    application = f"{web_apps.copy_to(directory)}:application"
    return launch.start(
        *("uwsgi-node", "--engine", engine, "--wsgi", application, *options), directory=directory, tcp=tcp
    )


@contextlib.contextmanager
def real_server(directory: Path, *options: str) -> Iterator[tuple[RealUwsgi, str]]:
    """Run a real uWSGI with two processes and the applications, and give it and its address."""
    address = f"unix:{directory}/socket"
    with real_web_server(directory, f"{web_apps.copy_to(directory)}:application", *options) as running:
        yield running, address


@contextlib.contextmanager
def nginx_before(address: str, directory: Path, locations: str = LOCATIONS) -> Iterator[Nginx]:
    """Run an nginx in front of a server.

    :param address: the server's, as nginx writes it.
    """
    directory.mkdir()
    running = Nginx(directory, locations.format(address=address))
    try:
        yield running
    finally:
        running.stop()


def request_variables(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the variables of a request, such as nginx sends with its ``uwsgi_params``."""
    path_info, _, query = path.partition("?")
    made = {
        "QUERY_STRING": query,
        "REQUEST_METHOD": method,
        "CONTENT_TYPE": "",
        "CONTENT_LENGTH": str(len(body)) if body else "",
        "REQUEST_URI": path,
        "PATH_INFO": path_info,
        "DOCUMENT_ROOT": "/usr/share/nginx/html",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REQUEST_SCHEME": "http",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "40000",
        "SERVER_PORT": "80",
        "SERVER_NAME": "localhost",
        "HTTP_HOST": "localhost",
    }
    for name, value in (headers or {}).items():
        key = name.upper().replace("-", "_")
        made[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return made


def request_packet(variables: Mapping[str, str], modifier1: int = 0) -> bytes:
    """Return the packet of a web request, without a body."""
    return encode_packet(Packet(modifier1, 0, encode_vars(variables)))


class _Received(io.BytesIO):
    """Bytes in the place of a socket."""

    def makefile(self, *_: Any) -> _Received:
        return self


def parse_response(data: bytes, method: str = "GET") -> Response:
    """Return the answer that a server's bytes are; it ends where they end.

    :raises http.client.HTTPException: if they are no answer.
    """
    answer = http.client.HTTPResponse(_Received(data), method=method)  # type: ignore[arg-type]
    answer.begin()
    return Response(answer.status, answer.headers, answer.read())


def connect(address: Any, seconds: float = PATIENCE) -> socket.socket:
    """Return a connection to a server, by the path of its socket or by host and port.

    :param seconds: how long it may be silent.
    """
    path = isinstance(address, str)
    connection = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    connection.settimeout(seconds)
    try:
        connection.connect(address.removeprefix("unix:") if path else address)
    except BaseException:
        connection.close()
        raise
    return connection


def exchange(address: Any, data: bytes, seconds: float = PATIENCE) -> bytes:
    """Send bytes on a connection of their own, and return what comes back until it is closed.

    :param seconds: how long the connection may be silent.
    """
    with connect(address, seconds) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may refuse before the end
            connection.sendall(data)
        return read_to_end(connection)


def ask(
    address: Any,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    **variables: str,
) -> Response:
    """Send a request as nginx does, without it, and return the answer.

    :param variables: more variables, or others.
    """
    made = {**request_variables(method, path, body, headers), **variables}
    return parse_response(exchange(address, request_packet(made) + body), method)
