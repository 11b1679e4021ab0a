"""Applications of twisted.web in a node, behind a real nginx."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nginx import Nginx
from tests.integration.services import PATIENCE, TERMINATED, Launcher, Service, until
from tests.integration.web.test_web_node import refuses
from tests.integration.web_apps import pattern
from tests.integration.web_servers import (
    UNBUFFERED,
    ask,
    connect,
    nginx_before,
    parse_response,
    request_packet,
    request_variables,
)

pytestmark = [pytest.mark.integration, pytest.mark.needs("nginx")]

BUFFERING = pytest.mark.parametrize("prefix", ["", UNBUFFERED], ids=["buffered", "unbuffered"])
LARGE = 100_000_000
#: How much a service's memory may grow with requests and answers of :data:`LARGE` bytes.
GROWTH = 32_000_000
LOCATIONS = """
        large_client_header_buffers 16 8k;
        uwsgi_max_temp_file_size 0;
        include /etc/nginx/uwsgi_params;
        location / {{ uwsgi_pass {address}; }}
        location /unbuffered/ {{
            rewrite ^/unbuffered(/.*)$ $1 break;
            uwsgi_buffering off;
            uwsgi_request_buffering off;
            uwsgi_pass {address};
        }}
        location /mounted/ {{
            include /etc/nginx/uwsgi_params;
            uwsgi_param SCRIPT_NAME /mounted;
            uwsgi_modifier1 30;
            uwsgi_pass {address};
        }}
"""
HANDLER = "import uwsgi\nuwsgi.message_manager_marshal = lambda value, modifier2: ('got', value)\n"


def start(launch: Launcher, *options: str, name: str = "Root", **how: Any) -> Service:
    """Start a node with a site of ``resource_apps.py``."""
    directory = launch.new_directory()
    # It isn't imported here: the import of twisted.web.static warns.
    (directory / "my_site.py").write_text(Path(__file__).parents[1].joinpath("resource_apps.py").read_text())
    (directory / "files").mkdir()
    return launch.start("uwsgi-node", "--resource", f"my_site.{name}", *options, directory=directory, **how)


@pytest.fixture(scope="module")
def node(shared: Launcher) -> Service:
    """A node with the site, on a UNIX socket."""
    return start(shared)


@pytest.fixture(scope="module")
def front(node: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """The nginx in front of it."""
    with nginx_before(str(node.address), tmp_path_factory.mktemp("n") / "nginx", LOCATIONS) as running:
        yield running


def peak(service: Service) -> int:
    """Return the most memory that a service has had, in bytes."""
    status = Path(f"/proc/{service.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found.group(1)) * 1024


def test_facts(front: Nginx) -> None:
    """An application sees what it would see if the browser were connected to it."""
    answer = front.ask("GET", "/facts/a%2Fb?x=1&x=%20", headers={"X-Given": "some", "Host": f"h:{front.port}"})
    assert json.loads(answer.body) == {
        "method": "GET",
        "uri": "/facts/a%2Fb?x=1&x=%20",
        "client": "127.0.0.1",
        "host": "",  # nginx's server_name
        "port": front.port,
        "secure": False,
        "protocol": "HTTP/1.0",
        "url": f"http://h:{front.port}/facts",
        "x": "some",
        "args": [["x", "1"], ["x", " "]],
    }


def test_mount(front: Nginx) -> None:
    """Below a path, the site is found, and its URLs have the path."""
    answer = front.ask("GET", "/mounted/facts", headers={"Host": f"h:{front.port}"})
    assert json.loads(answer.body)["url"] == f"http://h:{front.port}/mounted/facts"


def test_rewritten(front: Nginx) -> None:
    """The path is the one that nginx has made of it."""
    assert json.loads(front.ask("GET", f"{UNBUFFERED}/facts").body)["uri"] == "/facts"


@BUFFERING
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_methods(front: Nginx, prefix: str, method: str) -> None:
    """GET gives a page, and HEAD its headers."""
    answer = front.ask(method, f"{prefix}/")
    assert (answer.status, answer.headers["Content-Length"]) == (200, "8")
    assert answer.body == (b"the root" if method == "GET" else b"")


@BUFFERING
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 262_144, 262_145, 1_000_000])
def test_bodies(front: Nginx, prefix: str, size: int) -> None:
    """A body reaches the application, and comes back."""
    answer = front.ask("POST", f"{prefix}/echo", pattern(size))
    assert answer.status == 200
    assert answer.body == pattern(size), "it is another one"


def test_chunks(front: Nginx) -> None:
    """A body in chunks reaches it without them."""
    assert front.ask("POST", "/echo", iter([b"one", b"two"] * 1_000)).body == b"onetwo" * 1_000


def test_not_modified(front: Nginx) -> None:
    """A page that has not changed isn't sent again."""
    first = front.ask("GET", "/etag")
    again = front.ask("GET", "/etag", headers={"If-None-Match": first.headers["ETag"]})
    assert (first.status, first.body, again.status, again.body) == (200, b"some", 304, b"")


def test_sessions(front: Nginx) -> None:
    """A browser with its cookie has its session, and another one has another."""
    first = front.ask("GET", "/session")
    cookie = first.headers["Set-Cookie"].partition(";")[0]
    assert front.ask("GET", "/session", headers={"Cookie": cookie}).body == b"2"
    assert front.ask("GET", "/session", headers={"Cookie": cookie}).body == b"3"
    assert front.ask("GET", "/session").body == b"1"


def test_events(front: Nginx, tmp_path: Path) -> None:
    """A browser has each server-sent event before the next one is made."""
    with socket.create_connection(("127.0.0.1", front.port), PATIENCE) as connection:
        request = f"GET {UNBUFFERED}/events?count=4&path={tmp_path}/event HTTP/1.0\r\nHost: x\r\n\r\n"
        connection.sendall(request.encode())
        with connection.makefile("rb") as received:
            for number in range(4):
                (tmp_path / f"event{number}").touch()
                if number == 0:
                    while received.readline() != b"\r\n":
                        pass
                assert (received.readline(), received.readline()) == (b"data: %d\n" % number, b"\n")
            assert received.read() == b""


@BUFFERING
def test_large_upload(node: Service, front: Nginx, prefix: str) -> None:
    """A large body takes no memory."""
    front.ask("POST", f"{prefix}/digest", pattern(1_000_000))
    before, body = peak(node), pattern(LARGE)
    answer = front.ask("POST", f"{prefix}/digest", body)
    assert json.loads(answer.body) == {"size": LARGE, "digest": hashlib.sha256(body).hexdigest()}
    assert peak(node) - before < GROWTH


@BUFFERING
@pytest.mark.parametrize("path", ["/push?pieces=1600", "/files/large"])
def test_large_download(node: Service, front: Nginx, prefix: str, path: str) -> None:
    """Neither does a large answer of a producer that pushes, nor of one that is asked."""
    size = 1_600 * 65_536
    (node.directory / "files" / "large").write_bytes(b"x" * size)
    front.ask("GET", f"{prefix}/push?pieces=10")
    before = peak(node)
    answer = front.ask("GET", f"{prefix}{path}")
    assert (answer.status, answer.body.count(b"x"), len(answer.body)) == (200, size, size)
    assert peak(node) - before < GROWTH


@BUFFERING
def test_a_browser_that_reads_slowly(node: Service, front: Nginx, tmp_path: Path, prefix: str) -> None:
    """A producer is paused while the browser reads nothing, and stopped when it goes away."""
    path = tmp_path / "end"
    request = f"GET {prefix}/push?path={path} HTTP/1.0\r\nHost: x\r\n\r\n"
    before = peak(node)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", front.port))
        connection.sendall(request.encode())
        assert connection.recv(1_000)
        assert front.ask("GET", "/").body == b"the root"
        assert not path.exists()
    until(path.exists, "the producer's stop")
    assert peak(node) - before < GROWTH


@BUFFERING
def test_a_browser_that_goes_away(front: Nginx, tmp_path: Path, prefix: str) -> None:
    """An application that waits is told when the browser has gone."""
    path = tmp_path / "end"
    with socket.create_connection(("127.0.0.1", front.port), PATIENCE) as connection:
        connection.sendall(f"GET {prefix}/hang?path={path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        until(path.exists, "the request")
    until(lambda: path.read_text() != "began", "the end of the request")
    assert path.read_text() == "ConnectionLost"


def test_a_peer_that_goes_away(launch: Launcher, tmp_path: Path) -> None:
    """It is told on a port of TCP too, where a peer that closes one side looks like one that has gone."""
    node, path = start(launch, tcp=True), tmp_path / "end"
    with connect(node.address) as connection:
        connection.sendall(request_packet(request_variables("GET", f"/hang?path={path}")))
        until(path.exists, "the request")
    until(lambda: path.read_text() != "began", "the end of the request")


def test_an_exception(node: Service, front: Nginx) -> None:
    """An exception is answered with 500, and only the log says more."""
    answer = front.ask("GET", "/broken")
    assert answer.status == 500
    assert b"secret" not in answer.body
    node.wait_for("RuntimeError: a secret")
    assert "my_site.py" in node.log


def test_an_exception_in_the_middle(node: Service, front: Nginx) -> None:
    """One in the middle of an answer cuts it off."""
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        front.ask("GET", f"{UNBUFFERED}/broken?late=1")
    node.wait_for("ZeroDivisionError")


def test_not_done_yet(front: Nginx, tmp_path: Path) -> None:
    """Requests that wait don't keep others from being answered."""
    paths = [tmp_path / str(number) for number in range(20)]
    with ThreadPoolExecutor(len(paths)) as pool:
        answers = [pool.submit(front.ask, "GET", f"/wait?path={path}") for path in paths]
        for path in paths:
            until(path.exists, "the begin of each")
        assert front.ask("GET", "/").body == b"the root"
        assert not any(answer.done() for answer in answers)
        for path in paths:
            path.unlink()
        assert {answer.result(PATIENCE).body for answer in answers} == {b"waited"}


def test_malformed(node: Service) -> None:
    """A request that is none is answered with 400, and a modifier that nobody knows with an end."""
    assert ask(node.address, "GET", "/", REQUEST_METHOD="").status == 400
    assert ask(node.address, "GET", "/", **{"HTTP_A B": "x"}).status == 400
    assert ask(node.address, "GET", "/").body == b"the root"


def test_large_form(launch: Launcher) -> None:
    """A form that would be parsed in memory has the limit of messages, before it is read."""
    node = start(launch, "--max-message", "1M")
    form = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "1048577"}
    with connect(node.address) as connection:
        connection.sendall(request_packet(request_variables("POST", "/echo", headers=form)))
        connection.sendall(bytes(300_000))
        assert connection.recv(100).startswith(b"HTTP/1.0 413 ")


def test_max_body(launch: Launcher) -> None:
    """A body that is too large is refused before any of it has come."""
    node = start(launch, "--max-body", "1M", tcp=True)
    variables = request_variables("POST", "/echo", headers={"Content-Length": "1048577"})
    with connect(node.address) as connection:
        connection.sendall(request_packet(variables))
        assert connection.recv(100).startswith(b"HTTP/1.0 413 ")
    assert ask(node.address, "POST", "/echo", b"x" * 1_048_576).body == b"x" * 1_048_576


def test_klein(launch: Launcher, tmp_path: Path) -> None:
    """An application of Klein is served as it is, with routes, coroutines, forms and errors."""
    node = start(launch, name="app", tcp=True)
    host, port = node.address
    with nginx_before(f"{host}:{port}", tmp_path / "nginx", LOCATIONS) as front:
        assert front.ask("GET", "/hello/caf%C3%A9").body == "hello, café".encode()
        assert front.ask("HEAD", "/hello/you").body == b""
        assert front.ask("GET", "/mounted/hello/you").body == b"hello, you"
        assert front.ask("GET", "/later").body == b"later"
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert front.ask("POST", "/post", b"name=value", form).body == b"value"
        assert front.ask("GET", "/nowhere").status == 404
        assert front.ask("PUT", "/hello/you").status == 405
        broken = front.ask("GET", "/broken")
        assert (broken.status, b"secret" in broken.body) == (500, False)
    node.wait_for("RuntimeError: a secret")


def test_no_workers(node: Service) -> None:
    """A node with a resource alone starts no worker processes."""
    assert node.workers() == []


def test_beside_a_handler(launch: Launcher) -> None:
    """Objects are answered on the same port, by workers."""
    node = start(launch, "--engine", "processes:1", handler=HANDLER)
    assert node.ask(("a", 1)) == ("got", ("a", 1))
    assert ask(node.address, "GET", "/").body == b"the root"
    assert len(node.workers()) == 1
    assert node.terminate() == TERMINATED


@pytest.mark.parametrize("handler", [None, HANDLER], ids=["alone", "beside a handler"])
def test_drain(launch: Launcher, tmp_path: Path, handler: str | None) -> None:
    """A request in flight finishes when the service stops."""
    node = start(launch, "--engine", "processes:1", handler=handler)
    with connect(node.address) as connection, ThreadPoolExecutor(1) as pool:
        connection.sendall(request_packet(request_variables("GET", f"/wait?path={tmp_path}/began")))
        until((tmp_path / "began").exists, "the request")
        ended = pool.submit(node.terminate)
        until(lambda: refuses(node), "a refusal")
        (tmp_path / "began").unlink()
        assert connection.makefile("rb").read().endswith(b"\r\n\r\nwaited")
        assert ended.result(PATIENCE) == TERMINATED


@pytest.mark.parametrize("handler", [None, HANDLER], ids=["alone", "beside a handler"])
def test_overdue(launch: Launcher, tmp_path: Path, handler: str | None) -> None:
    """One that takes too long is answered with 503, and the service stops."""
    node = start(launch, "--engine", "processes:1", "--drain-timeout", "0.2", handler=handler)
    with connect(node.address) as connection, ThreadPoolExecutor(1) as pool:
        connection.sendall(request_packet(request_variables("GET", f"/hang?path={tmp_path}/began")))
        until((tmp_path / "began").exists, "the request")
        ended = pool.submit(node.terminate)
        assert parse_response(connection.makefile("rb").read()).status == 503
        assert ended.result(PATIENCE) == TERMINATED


def test_timeout(launch: Launcher, tmp_path: Path) -> None:
    """An answer that doesn't begin within --timeout is given up."""
    node = start(launch, "--timeout", "0.2")
    assert ask(node.address, "GET", f"/hang?path={tmp_path}/began").status == 504


def test_access_log(launch: Launcher, tmp_path: Path) -> None:
    """Each request has a line, and SIGHUP opens the file again."""
    log = tmp_path / "access.log"
    node = start(launch, "--access-log", str(log))
    for method, path in (("GET", "/etag?a=b"), ("GET", "/broken"), ("POST", "/echo")):
        ask(node.address, method, path, b"12345" if method == "POST" else b"")
    ask(node.address, "GET", "/", REQUEST_METHOD="")
    until(lambda: len(log.read_text().splitlines()) >= 3, "all lines")
    found = re.findall(r'"(\S+) (\S+) HTTP/1.1" (\d+) (\d+) ', log.read_text())
    assert found == [
        ("GET", "/etag?a=b", "200", "4"),
        ("GET", "/broken", "500", "26"),
        ("POST", "/echo", "200", "5"),
    ]
    log.rename(tmp_path / "old")
    node.process.send_signal(signal.SIGHUP)
    until(log.exists, "the new file")
    ask(node.address, "GET", "/")
    until(lambda: len(log.read_text().splitlines()) == 1, "its line")


def test_mistakes(launch: Launcher) -> None:
    """A name of nothing ends the start, and the error says what is wrong."""
    with pytest.raises(AssertionError, match="has no 'nothing'"):
        start(launch, name="nothing")
