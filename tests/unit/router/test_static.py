"""Files that the router sends itself."""

from __future__ import annotations

import os
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.unit.router.world import Client, World, status
from uwsgitwisted.router.static import StaticFiles

MODIFIED = 1_700_000_000
DATE = formatdate(MODIFIED, usegmt=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with files, with a secret beside it."""
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for name in ("page.html", "sub/style.css", "archive.tar.gz", "odd.zzz", "empty"):
        (root / name).write_text("" if name == "empty" else "0123456789")
        os.utime(root / name, (MODIFIED, MODIFIED))
    return root


@pytest.fixture
def world(root: Path) -> World:
    """A router that sends them."""
    return World(static=[StaticFiles("/static/", str(root))])


def get(world: World, path: str, *headers: str, method: str = "GET") -> tuple[bytes, bytes]:
    """Return the head and the body of an answer."""
    lines = [f"{method} {path} HTTP/1.1", "Host: a", *headers, "", ""]
    head, _, body = world.client().send("\r\n".join(lines).encode()).take().partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/static/page.html", b"text/html; charset=utf-8"),
        ("/static/sub/style.css", b"text/css; charset=utf-8"),
        ("/static//sub/./%73tyle.css", b"text/css; charset=utf-8"),
        ("/static/archive.tar.gz", b"application/octet-stream"),
        ("/static/odd.zzz", b"application/octet-stream"),
    ],
)
def test_files(world: World, path: str, kind: bytes) -> None:
    """A file is sent with its type, its size and its time; no node is asked."""
    head, body = get(world, path)
    assert status(head) == 200
    assert body == b"0123456789"
    assert b"Content-Type: " + kind in head
    assert b"Content-Length: 10" in head
    assert b"Last-Modified: " + DATE.encode() in head
    assert world.node.requests == []


def test_an_empty_file(world: World) -> None:
    """It has no bytes."""
    head, body = get(world, "/static/empty")
    assert (status(head), body) == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/sub",
        "/static/sub/",
        "/static/absent",
        "/static/page.html/x",
        "/static/page.html/",
        "/static/%2e%2e/secret",
        "/static/sub/%2e%2e/%2e%2e/secret",
        "/static/..%2fsecret",
        "/static/link",
        "/static/link-within",
        "/static/directory/secret",
        "/static/pipe",
        "/static/x%0ay",
        "/static/" + "x" * 5_000,
        "/static/%ff",
    ],
)
def test_what_is_not_sent(world: World, root: Path, path: str) -> None:
    """Directories, links, what is no file, and what is outside of the directory, are not there."""
    (root / "link").symlink_to(root.parent / "secret")
    (root / "link-within").symlink_to("page.html")
    (root / "directory").symlink_to(root.parent)
    os.mkfifo(root / "pipe")
    head, body = get(world, path)
    assert b"secret" not in body
    # A path that leads above the prefix is another one's.
    assert status(head) == 404 or len(world.node.requests) == 1


def test_paths_beside_the_prefix(world: World) -> None:
    """The node answers for them."""
    for path in ("/static", "/staticpage.html", "/", "/x/static/page.html"):
        get(world, path)
    assert len(world.node.requests) == 4


def test_methods(world: World) -> None:
    """A file is read, and nothing else."""
    head, body = get(world, "/static/page.html", method="HEAD")
    assert (status(head), body) == (200, b"")
    assert b"Content-Length: 10" in head
    head, body = get(world, "/static/page.html", method="POST")
    assert status(head) == 405
    assert b"Allow: GET, HEAD" in head


@pytest.mark.parametrize(
    ("headers", "code", "body"),
    [
        ([f"If-Modified-Since: {DATE}"], 304, b""),
        ([f"If-Modified-Since: {formatdate(MODIFIED - 1, usegmt=True)}"], 200, b"0123456789"),
        (["If-Modified-Since: never"], 200, b"0123456789"),
        (["Range: bytes=2-4"], 206, b"234"),
        (["Range: bytes=2-"], 206, b"23456789"),
        (["Range: bytes=-3"], 206, b"789"),
        (["Range: bytes=-30"], 206, b"0123456789"),
        (["Range: bytes=8-100"], 206, b"89"),
        (["Range: bytes=10-"], 416, None),
        (["Range: bytes=-0"], 416, None),
        (["Range: bytes=5-3"], 200, b"0123456789"),
        (["Range: bytes=1-2,4-5"], 200, b"0123456789"),
        (["Range: lines=1-2"], 200, b"0123456789"),
        (["Range: bytes=2-4", f"If-Range: {DATE}"], 206, b"234"),
        (["Range: bytes=2-4", f"If-Range: {formatdate(MODIFIED - 1, usegmt=True)}"], 200, b"0123456789"),
        (["Range: bytes=2-4", 'If-Range: "etag"'], 200, b"0123456789"),
    ],
)
def test_conditions(world: World, headers: list[str], code: int, body: bytes | None) -> None:
    """A client gets the part that it wants, and nothing if it has the file."""
    head, sent = get(world, "/static/page.html", *headers)
    assert status(head) == code
    if body is not None:
        assert sent == body
    if code == 206:
        assert b"Content-Range: bytes " in head
    if code == 416:
        assert b"Content-Range: bytes */10" in head


@pytest.fixture
def large(root: Path) -> bytes:
    """The bytes of a large file."""
    data = os.urandom(1_000_000)
    (root / "large").write_bytes(data)
    return data


def _reading(world: World) -> Client:
    """Return a client whose connection holds 100,000 bytes before it makes the router wait."""
    client = world.client()
    write = client.transport.write

    def write_and_pause(data: bytes) -> None:
        write(data)
        if len(client.transport.value()) > 100_000:
            client.channel.pauseProducing()

    client.transport.write = write_and_pause  # type: ignore[method-assign]
    return client


def test_a_slow_client(world: World, large: bytes) -> None:
    """A file is read as fast as the client takes it."""
    client = _reading(world)
    received = client.get("/static/large").take()
    while client.channel._unread:
        assert len(received) < 1_200_000
        client.channel.resumeProducing()
        received += (piece := client.take())
        assert len(piece) < 200_000
    assert received.endswith(b"\r\n\r\n" + large)
    assert client.state == "open"


def test_a_client_that_leaves(world: World, large: bytes) -> None:
    """The file is closed, which a warning would tell otherwise."""
    client = _reading(world)
    client.get("/static/large")
    client.lose()


def test_a_file_that_becomes_shorter(world: World, root: Path, large: bytes) -> None:
    """The client's connection is reset."""
    client = _reading(world)
    client.get("/static/large")
    os.truncate(root / "large", 10)
    client.take()
    client.channel.resumeProducing()
    assert client.state == "aborted"
    client.lose()


def test_a_body_that_nobody_wants(world: World) -> None:
    """A request for a file may have a body, which is dropped."""
    client = world.client().send(b"GET /static/page.html HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12")
    assert status(client.take()) == 200
    assert client.state == "half-closed"
