"""A node's static files, by way of nginx and without it, whichever way a request takes."""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.nginx import Nginx
from tests.integration.services import PATIENCE, Launcher, Service
from tests.integration.web.test_web_node import WAYS, both_ways, by_way, packet
from tests.integration.web_apps import GREETING
from tests.integration.web_servers import (
    UNBUFFERED,
    ask,
    connect,
    nginx_before,
    parse_response,
    start_node,
)

pytestmark = pytest.mark.integration

LARGE = 100_000_000
#: How much memory a process may need more for a large file: far less than its bytes.
GROWTH = 16 << 20
TEXT = b"0123456789"


def make_files(root: Path) -> None:
    """Make files and links, and a secret beside them."""
    (root / "sub").mkdir(parents=True)
    (root.parent / "secret").write_text("secret")
    (root / "page.txt").write_bytes(TEXT)
    (root / "sub" / "index.html").write_bytes(TEXT)
    (root / ".env").write_text("secret")
    (root / "link").symlink_to("../secret")
    (root / "up").symlink_to("..")
    (root / "absolute").symlink_to(root.parent / "secret")
    (root / "inside").symlink_to("sub/index.html")
    os.mkfifo(root / "pipe")
    block = os.urandom(1 << 20)
    with (root / "large").open("wb") as file:
        while file.tell() < LARGE:
            file.write(block[: LARGE - file.tell()])


class Started(NamedTuple):
    """A node with files below /static, and the applications."""

    node: Service
    root: Path


@pytest.fixture(scope="module")
def started(shared: Launcher) -> Started:
    """Start a node that ends with the module."""
    root = shared.new_directory() / "root"
    make_files(root)
    statics = ("--static", f"/static={root}", "--static", f"/ü={root}")
    options = (*statics, "--mount", "/static/app=web_apps:application")
    return Started(start_node(shared, *options), root)


@pytest.fixture(scope="module")
def nginx(started: Started, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """An nginx in front of it."""
    with nginx_before(started.node.address, tmp_path_factory.mktemp("n") / "nginx") as running:
        yield running


def digest_of(file: Any) -> str:
    """Return the digest of what a file or an answer has, without keeping it."""
    found = hashlib.sha256()
    while data := file.read(1 << 20):
        found.update(data)
    return found.hexdigest()


def peaks(node: Service) -> list[int]:
    """Return the most memory that the front and each worker have had, in bytes."""
    found = [Path(f"/proc/{pid}/status").read_text() for pid in (node.pid, *node.workers())]
    return [int(status.partition("VmHWM:")[2].split()[0]) * 1024 for status in found]


@both_ways
def test_files_beside_applications(started: Started, way: str) -> None:
    """The longest path that fits wins, be it of a directory or of an application."""
    address = started.node.address
    assert parse_response(WAYS[way](address, packet("/static/page.txt"))).body == TEXT
    assert parse_response(WAYS[way](address, packet("/static/inside"))).body == TEXT
    assert parse_response(WAYS[way](address, packet("/ü/page.txt"))).body == TEXT
    assert parse_response(WAYS[way](address, packet("/static/app/"))).body == GREETING
    assert parse_response(WAYS[way](address, packet("/"))).body == GREETING
    assert parse_response(WAYS[way](address, packet("/staticpage.txt"))).body == b"no such path"


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("prefix", ["", UNBUFFERED], ids=["buffered", "unbuffered"])
def test_a_large_file(started: Started, nginx: Nginx, prefix: str) -> None:
    """100 MB arrive as they are, in constant memory."""
    before = peaks(started.node)
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=PATIENCE)
    try:
        connection.request("GET", f"{prefix}/static/large")
        answer = connection.getresponse()
        assert answer.headers["Content-Length"] == str(LARGE)
        received = digest_of(answer)
    finally:
        connection.close()
    with (started.root / "large").open("rb") as file:
        assert received == digest_of(file)
    assert all(after - first < GROWTH for first, after in zip(before, peaks(started.node), strict=True))


@both_ways
def test_a_large_file_without_nginx(started: Started, way: str) -> None:
    """So they do whichever way the request takes."""
    before = peaks(started.node)
    with connect(started.node.address) as connection:
        connection.sendall(by_way(way, packet("/static/large")))
        with connection.makefile("rb") as answer, (started.root / "large").open("rb") as file:
            while answer.readline() != b"\r\n":
                pass
            assert digest_of(answer) == digest_of(file)
    assert all(after - first < GROWTH for first, after in zip(before, peaks(started.node), strict=True))


@pytest.mark.needs("nginx")
def test_what_browsers_ask(nginx: Nginx) -> None:
    """Heads, parts and validators pass nginx."""
    whole = nginx.ask("GET", "/static/page.txt")
    assert (whole.status, whole.body, whole.headers["Content-Type"]) == (200, TEXT, "text/plain; charset=utf-8")
    head = nginx.ask("HEAD", "/static/page.txt")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "10")
    etag, date = whole.headers["ETag"], whole.headers["Last-Modified"]
    for headers in ({"If-None-Match": etag}, {"If-Modified-Since": date}):
        known = nginx.ask("GET", "/static/page.txt", headers=headers)
        assert (known.status, known.body, known.headers["ETag"]) == (304, b"", etag)
    for validator in (etag, date):
        part = nginx.ask("GET", "/static/page.txt", headers={"Range": "bytes=2-4", "If-Range": validator})
        assert (part.status, part.body) == (206, b"234")
        assert part.headers["Content-Range"] == "bytes 2-4/10"
    middle = nginx.ask("GET", "/static/large", headers={"Range": "bytes=50000000-50999999"})
    assert (middle.status, len(middle.body)) == (206, 1_000_000)
    assert nginx.ask("GET", "/static/page.txt", headers={"Range": "bytes=10-"}).status == 416
    refused = nginx.ask("POST", "/static/page.txt", b"x" * 300_000)
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("prefix", ["", UNBUFFERED])
def test_directories(nginx: Nginx, prefix: str) -> None:
    """The path of a directory gets its slash below whatever nginx has removed, and its index is sent."""
    moved = nginx.ask("GET", f"{prefix}/static/sub?a=b")
    assert (moved.status, moved.headers["Location"]) == (301, "./sub/?a=b")
    assert nginx.ask("GET", f"{prefix}/static/sub/?a=b").body == TEXT
    assert nginx.ask("GET", f"{prefix}/static").headers["Location"] == "./static/"
    assert nginx.ask("GET", f"{prefix}/static/").status == 404


@both_ways
@pytest.mark.parametrize(
    "path",
    [
        "/static/../secret",
        "/static/sub/../../secret",
        "/static//secret",
        "/static/{root}/../secret",
        "/static/link",
        "/static/up/secret",
        "/static/absolute",
        "/static/.env",
        "/static/pipe",
        "/static/page.txt\0",
        "/static/page.txt\0.html",
        "/static/..\\secret",
    ],
)
def test_what_is_not_sent(started: Started, way: str, path: str) -> None:
    """What is outside, hidden or no file is not there, whatever a peer writes."""
    answer = parse_response(WAYS[way](started.node.address, packet(path.format(root=started.root))))
    assert (answer.status, answer.body) == (404, b"404 Not Found\n")


@pytest.mark.needs("nginx")
@pytest.mark.parametrize(
    "path",
    ["/static/%2e%2e/secret", "/static/..%2fsecret", "/static/link", "/static/up/secret", "/static/%2eenv"],
)
def test_what_is_not_sent_to_browsers(nginx: Nginx, path: str) -> None:
    """Nor is it by way of nginx, which decodes the path."""
    answer = nginx.ask("GET", path)
    assert answer.status == 404
    assert b"secret" not in answer.body


@both_ways
def test_a_file_that_becomes_shorter(launch: Launcher, way: str) -> None:
    """Its answer is reset, and the worker goes on."""
    root = launch.new_directory()
    path = root / "large"
    path.write_bytes(bytes(LARGE))
    node = start_node(launch, "--static", f"/static={root}", engine="processes:1", tcp=True)
    workers = node.workers()
    with connect(node.address) as connection:
        connection.sendall(by_way(way, packet("/static/large")))
        received = len(connection.recv(1000))
        os.truncate(path, 1000)
        with pytest.raises(ConnectionResetError):  # noqa: PT012
            while more := connection.recv(1 << 20):
                received += len(more)
            raise AssertionError(f"the end of {received} bytes looks like a good one")
    assert ask(node.address, "GET", "/static/large").body == bytes(1000)
    assert node.workers() == workers


def test_reload(launch: Launcher) -> None:
    """No request fails while the workers are replaced; a directory that is a link may be turned at any time."""
    directory = launch.new_directory()
    for name in ("old", "new"):
        (directory / name).mkdir()
        (directory / name / "page.txt").write_text(name)
    (directory / "current").symlink_to("old")
    node = launch.start("uwsgi-node", "--engine", "processes:2", "--static", f"/static={directory}/current")
    assert ask(node.address, "GET", "/static/page.txt").body == b"old"
    stop = threading.Event()

    def load() -> list[bytes]:
        bodies = []
        while not stop.is_set():
            bodies.append(ask(node.address, "GET", "/static/page.txt").body)
        return bodies

    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(load) for _ in range(2)]
        try:
            node.process.send_signal(signal.SIGHUP)
            node.wait_for("every worker was replaced")
            (directory / "next").symlink_to("new")
            (directory / "next").rename(directory / "current")
            assert ask(node.address, "GET", "/static/page.txt").body == b"new"
        finally:
            stop.set()
        found = {body for each in loads for body in each.result(PATIENCE)}
    assert found <= {b"old", b"new"}
    assert ask(node.address, "GET", "/other").status == 404
