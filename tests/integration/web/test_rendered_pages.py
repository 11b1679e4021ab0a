"""A renderer's pages over HTTP, behind nginx and behind a router, over RPC, and from a shell."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import pytest_twisted

from tests.integration.nginx import Nginx
from tests.integration.real_uwsgi import real_web_server
from tests.integration.routers import Router
from tests.integration.services import Launcher, Service, script
from tests.integration.web_servers import ask, connect, request_packet, request_variables
from tests.template_files import write_templates
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import RemoteError, UnknownFunction, WorkerDied
from uwsgitwisted.wire.array import encode_array
from uwsgitwisted.wire.packet import RPC, Packet, encode_packet
from uwsgitwisted.wire.rpc import RPC_RAW

pytestmark = [pytest.mark.integration, pytest.mark.needs("nginx")]

MEBIBYTE = 1 << 20
LOCATIONS = """
        include /etc/nginx/uwsgi_params;
        location / {{ uwsgi_pass {address}; }}
        location /render/ {{ uwsgi_modifier1 173; uwsgi_modifier2 2; uwsgi_pass {address}; }}
"""
TEMPLATES = {
    "page.html": "<p>${name}</p>",
    "parts.html": "<%def name='side(x)'>side ${x}</%def>all",
    "sub/hello.html": "hello",
    "raises.html": "first\n${1 / 0}",
    # In its middle it waits until a named pipe is opened.
    "gate.txt": """${"x" * 100_000}
<% open(gate).close() %>
end""",
    "dies.txt": "${'x' * 100_000}<% import os; os.abort() %>",
    "large.txt": "% for _ in range(50_000):\n${'x' * 999}\n% endfor\n",
}


#: An application for a real uWSGI.
CALLING = """
import json, uwsgi

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html")])
    variables = json.dumps({{"name": "Zoë"}}).encode()
    return [uwsgi.rpc({address!r}, b"render", b"page.html", variables)]
"""


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The templates."""
    return write_templates(tmp_path_factory.mktemp("templates"), TEMPLATES)


@pytest.fixture(scope="module")
def renderer(shared: Launcher, templates: Path) -> Service:
    """A renderer."""
    options = ("--templates", str(templates), "--engine", "processes:2")
    return shared.start("uwsgi-renderer", *options, tcp=True)


@pytest.fixture(scope="module")
def nginx(renderer: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """An nginx in front of it."""
    host, port = renderer.address
    locations = LOCATIONS.format(address=f"{host}:{port}")
    running = Nginx(tmp_path_factory.mktemp("nginx"), locations)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def router(renderer: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """A router in front of it."""
    host, port = renderer.address
    running = Router(tmp_path_factory.mktemp("router"), [f"{host}:{port}"])
    yield running
    running.terminate()


@pytest.mark.parametrize("front", ["nginx", "router"])
def test_pages(front: str, nginx: Nginx, router: Router, renderer: Service) -> None:
    """Pages, their heads, 304, and errors arrive as HTTP; the log has what a failure's caller doesn't get."""
    get = nginx.ask if front == "nginx" else router.request
    page = get("GET", "/page.html?name=Zo%C3%AB")
    assert (page.status, page.body) == (200, "<p>Zoë</p>".encode())
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    known = get("GET", "/page.html?name=Zo%C3%AB", None, {"If-None-Match": page.headers["ETag"]})
    assert (known.status, known.body) == (304, b"")
    head = get("HEAD", "/page.html?name=Zo%C3%AB")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "11")
    assert get("POST", "/page.html", b'{"name": 5}').body == b"<p>5</p>"
    large = b'{"name": "%s"}' % (b"x" * MEBIBYTE)
    assert len(get("POST", "/page.html", large).body) == MEBIBYTE + len("<p></p>")
    assert get("POST", "/page.html", b"{").status == 400
    assert get("GET", "/parts.html%23side?x=5").body == b"side 5"
    assert get("GET", "/none.html").status == 404
    failed = get("GET", "/raises.html")
    assert failed.status == 500
    assert failed.body == b"500 Internal Server Error\ntemplate 'raises.html', line 2\n"
    renderer.wait_for("ZeroDivisionError: division by zero")


def test_variables_that_are_too_large(renderer: Service) -> None:
    """They are refused before they arrive."""
    variables = {**request_variables("POST", "/page.html"), "CONTENT_LENGTH": str(100 * MEBIBYTE)}
    with connect(renderer.address) as connection:
        connection.sendall(request_packet(variables))
        assert connection.recv(1_000).startswith(b"HTTP/1.0 413 ")


def test_a_long_page_starts_at_once(renderer: Service, router: Router, tmp_path: Path) -> None:
    """Its beginning arrives before its end is rendered, also through a router."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    path = f"/gate.txt?gate={gate}"
    with connect(renderer.address) as connection:
        connection.sendall(request_packet(request_variables("GET", path)))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.read(30_000).lstrip().strip(b"x") == b""
        client = router.client()
        client.request("GET", path)
        other = client.getresponse()
        assert other.read(30_000).lstrip().strip(b"x") == b""
        opened = os.open(gate, os.O_RDWR)  # this never waits
        assert answer.read().endswith(b"end")
        assert other.read().endswith(b"end")
        os.close(opened)
        client.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A named pipe for a template to wait at; at the end it is open, so that nothing waits for ever."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR))


def rendering(name: str, **variables: str) -> tuple[str, ...]:
    """Return a call of the renderer's function."""
    return ("render", name, json.dumps(variables))


@pytest_twisted.ensureDeferred
async def test_a_page_in_a_session_starts_at_once(renderer: Service, gate: Path, client: Client) -> None:
    """So does one in a session, beside which other calls of the same connection go on."""
    async with await client.stream(renderer.address, 173, 1, rendering("gate.txt", gate=str(gate))) as page:
        assert (await page.read()).strip(b"x") == b""
        assert await client.rpc(renderer.address, "render", "sub/hello.html") == b"hello"
        opened = os.open(gate, os.O_RDWR)  # this never waits
        rest = b"".join([part async for part in page])
        os.close(opened)
    assert rest.strip().endswith(b"end")
    web = await client.stream(renderer.address, 0, 0, request_variables("GET", "/page.html?name=Ann"))
    answer = b"".join([part async for part in web])
    assert answer.startswith(b"HTTP/")
    assert answer.endswith(b"\r\n\r\n<p>Ann</p>")


def test_a_page_for_a_script_starts_at_once(renderer: Service, gate: Path) -> None:
    """So does one for a script, and what the command prints."""
    host, port = renderer.address
    line = [sys.executable, "-m", "uwsgitwisted", "render", f"{host}:{port}", "gate.txt", f"gate={gate}"]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stdout.read(30_000).strip(b"x") == b""
        page = script(blocking.stream, renderer.address, 173, 1, rendering("gate.txt", gate=str(gate)), 30)
        assert page.read().strip(b"x") == b""
        opened = os.open(gate, os.O_RDWR)
        assert command.stdout.read().strip().endswith(b"end")
        assert b"".join(page).strip().endswith(b"end")
        os.close(opened)
        assert command.wait(30) == 0


@pytest_twisted.ensureDeferred
async def test_a_worker_that_dies_in_a_page(renderer: Service, client: Client) -> None:
    """What has arrived is not taken for the whole page: the error is raised behind it."""
    page = await client.stream(renderer.address, 173, 1, rendering("dies.txt"))
    received = bytearray()

    async def read() -> None:
        async for part in page:
            received.extend(part)

    with pytest.raises(WorkerDied):
        await read()
    assert 0 < len(received) <= 100_000
    page = await client.stream(renderer.address, 173, 1, rendering("sub/hello.html"))
    assert [part async for part in page] == [b"hello"]


@pytest.mark.parametrize("way", ["plain", "session"])
def test_a_large_page_in_constant_memory(way: str, renderer: Service) -> None:
    """50 MB pass through the front, which never has them all."""
    before = peak = renderer.memory()
    size = 0
    with contextlib.ExitStack() as stack:
        if way == "plain":
            connection = stack.enter_context(connect(renderer.address))
            connection.sendall(request_packet(request_variables("GET", "/large.txt")))
            parts = iter(partial(connection.recv, MEBIBYTE), b"")
        else:
            parts = script(blocking.stream, renderer.address, 173, 1, rendering("large.txt"), 30)
        for count, part in enumerate(parts):
            size += len(part)
            if not count % 50:
                peak = max(peak, renderer.memory())
    assert size >= 50_000_000
    assert peak - before < 16 * MEBIBYTE


@pytest_twisted.ensureDeferred
async def test_rpc(renderer: Service, nginx: Nginx, client: Client) -> None:
    """The function render takes a name and JSON; over HTTP, its path has the name."""
    assert await client.rpc(renderer.address, "render", "page.html", '{"name": "rpc"}') == b"<p>rpc</p>"
    with pytest.raises(RemoteError, match=r"template 'raises.html', line 2"):
        await client.rpc(renderer.address, "render", "raises.html")
    with pytest.raises(UnknownFunction):
        await client.rpc(renderer.address, "other")
    with connect(renderer.address) as connection:  # in plain uwsgi, a call of modifier2 1 gets bytes to the end
        connection.sendall(encode_packet(Packet(RPC, RPC_RAW, encode_array(rendering("large.txt")))))
        size = sum(map(len, iter(partial(connection.recv, MEBIBYTE), b"")))
    assert size == 50_000_000
    page = nginx.ask("GET", "/render/sub/hello.html")
    assert (page.status, page.body) == (200, b"hello")


@pytest.mark.needs("uwsgi")
def test_a_real_uwsgi_calls(renderer: Service, tmp_path: Path) -> None:
    """An application in uWSGI gets a page with uwsgi.rpc."""
    host, port = renderer.address
    (tmp_path / "calling.py").write_text(CALLING.format(address=f"{host}:{port}"))
    with real_web_server(tmp_path, "calling:application"):
        assert ask(f"unix:{tmp_path}/socket", "GET", "/").body == "<p>Zoë</p>".encode()


def test_from_a_shell(renderer: Service) -> None:
    """The command prints the page; a failure has the template's name and line, and status 1."""

    def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        host, port = renderer.address
        line = [sys.executable, "-m", "uwsgitwisted", "render", f"{host}:{port}", *arguments]
        return subprocess.run(line, input=given, capture_output=True, text=True, timeout=30)

    assert run("page.html", "name=a=b").stdout == "<p>a=b</p>"
    assert run("page.html", given='{"name": [1]}').stdout == "<p>[1]</p>"
    failed = run("raises.html")
    assert failed.returncode == 1
    assert "template 'raises.html', line 2" in failed.stderr
