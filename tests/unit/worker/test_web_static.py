"""The application that sends files: which, and what HTTP says about them."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.message import Message
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from uwsgitwisted.wire.packet import WSGI, Packet
from uwsgitwisted.worker.web import static as static_module
from uwsgitwisted.worker.web.response import FileWrapper, Response, run
from uwsgitwisted.worker.web.static import StaticFiles

MODIFIED = 1_700_000_000
DATE = formatdate(MODIFIED, usegmt=True)
EARLIER = formatdate(MODIFIED - 1, usegmt=True)
TEXT = b"0123456789"
ETAG = f'"{MODIFIED * 1_000_000_000:x}-a"'


class Answer(NamedTuple):
    """An answer: what a client gets."""

    status: int
    headers: Message
    body: bytes


def parse_answer(data: bytes) -> Answer:
    line, _, rest = data.partition(b"\r\n")
    head, _, body = rest.partition(b"\r\n\r\n")
    return Answer(int(line.split()[1]), message_from_bytes(head), body)


class Exchange:
    """Keeps what is sent.

    :param meanwhile: is called before a file is sent.
    """

    packet = Packet(WSGI, 0)
    streamed = False

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.sent = b""
        self._meanwhile = meanwhile

    def read(self, size: int) -> bytes:
        return b""

    def send(self, data: bytes) -> None:
        self.sent += data

    def send_file(self, descriptor: int, offset: int, size: int) -> None:
        self._meanwhile()
        data = os.pread(descriptor, size, offset)
        self.sent += data
        if len(data) < size:
            raise RuntimeError("a file became shorter while it was being sent")

    def finish(self, data: bytes = b"") -> None:
        self.sent += data


def environ_of(path: str, method: str = "GET", script: str = "/static", **variables: str) -> dict[str, Any]:
    """Return the environment of a request below a mount, for a path in UTF-8."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": script,
        "PATH_INFO": os.fsencode(path).decode("latin-1"),
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        **variables,
    }
    setup_testing_defaults(environ)
    environ["wsgi.file_wrapper"] = FileWrapper
    return environ


def ask(root: Path, path: str, method: str = "GET", script: str = "/static", **variables: str) -> Answer:
    """Return the answer to a request."""
    environ, exchange = environ_of(path, method, script, **variables), Exchange()
    run(StaticFiles(str(root)), environ, Response(exchange, environ))
    return parse_answer(exchange.sent)


def opened_below(directory: Path) -> list[str]:
    """Return the files and directories below one that this process has open."""
    found = []
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{each}"))
    return [path for path in found if path.startswith(str(directory))]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A directory with files, and a secret beside it; no file may be left open."""
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    (root / "sub" / ".hidden").mkdir(parents=True)
    (root / "bare").mkdir()
    names = ("page.html", "sub/index.html", ".env", "sub/.hidden/x", "ü b.txt", "empty", "archive.tar.gz")
    for name in names:
        (root / name).write_bytes(b"" if name == "empty" else TEXT)
        os.utime(root / name, (MODIFIED, MODIFIED))
    yield root
    assert opened_below(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/page.html", "text/html; charset=utf-8"),
        ("/sub/index.html", "text/html; charset=utf-8"),
        ("/sub/", "text/html; charset=utf-8"),
        ("/ü b.txt", "text/plain; charset=utf-8"),
        ("/archive.tar.gz", "application/octet-stream"),
    ],
)
def test_files(root: Path, path: str, kind: str) -> None:
    """A file is sent with its type, its size and its time."""
    answer = ask(root, path)
    assert (answer.status, answer.body) == (200, TEXT)
    assert dict(answer.headers) == {
        "Content-Type": kind,
        "Content-Length": "10",
        "Accept-Ranges": "bytes",
        "Last-Modified": DATE,
        "ETag": ETAG,
        "X-Content-Type-Options": "nosniff",
    }
    head = ask(root, path, "HEAD", HTTP_RANGE="bytes=1-2")
    assert (head.status, head.body) == (200, b"")
    assert dict(head.headers) == dict(answer.headers)


def test_an_empty_file(root: Path) -> None:
    """It has no bytes, and no part."""
    answer = ask(root, "/empty")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert ask(root, "/empty", HTTP_RANGE="bytes=0-").status == 416


def test_the_root_of_all_paths(root: Path) -> None:
    """A directory may be mounted at the root, whose path may even be empty."""
    assert ask(root, "/page.html", script="").body == TEXT
    assert ask(root, "/", script="").status == ask(root, "", script="").status == 404
    (root / "index.html").write_text("start")
    assert ask(root, "/", script="").body == ask(root, "", script="").body == b"start"


@pytest.mark.parametrize(
    "path",
    [
        "/absent",
        "/page.html/",
        "/page.html/x",
        "/",
        "/bare/",
        "/.env",
        "/sub/.hidden/x",
        "/sub/.hidden",
        "/.",
        "/..",
        "/../secret",
        "/sub/../../secret",
        "/sub/../page.html",
        "//page.html",
        "/sub//index.html",
        "{root}/page.html",
        "/{root}/page.html",
        "/page.html\0",
        "/page.html\0.txt",
        "/page.html\n",
        "/..\\secret",
        "/\udcff",
        "/link",
        "/up/secret",
        "/up/root/page.html/../../secret",
        "/absolute",
        "/chain",
        "/loop",
        "/pipe",
        "/socket",
        "/x" + "y" * 300,
        "/sub" * 20_000,
        "/page.html" + "/x" * 20_000,
    ],
)
def test_what_is_not_sent(root: Path, path: str) -> None:
    """What is outside, hidden, or no file is not there."""
    (root / "link").symlink_to("../secret")
    (root / "up").symlink_to("..")
    (root / "absolute").symlink_to(root.parent / "secret")
    (root / "chain").symlink_to("sub/chain")
    (root / "sub" / "chain").symlink_to("../../secret")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "socket"))
        answer = ask(root, path.format(root=root))
    assert (answer.status, answer.body) == (404, b"404 Not Found\n")


def test_links_that_stay_inside(root: Path) -> None:
    """They are followed, and a file's type is that of the name that was asked for."""
    (root / "link.txt").symlink_to("sub/index.html")
    (root / "again").symlink_to("sub")
    assert ask(root, "/link.txt").headers["Content-Type"] == "text/plain; charset=utf-8"
    assert ask(root, "/again/").body == TEXT


def test_a_directory_that_is_turned(root: Path) -> None:
    """The directory may be a link, which leads to another release from now on."""
    current = root.parent / "current"
    current.symlink_to("root")
    application = StaticFiles(str(current))

    def get() -> bytes:
        environ, exchange = environ_of("/page.html"), Exchange()
        run(application, environ, Response(exchange, environ))
        return parse_answer(exchange.sent).body

    assert get() == TEXT
    release = root.parent / "release"
    release.mkdir()
    (release / "page.html").write_text("new")
    current.unlink()
    current.symlink_to("release")
    assert get() == b"new"


def test_unreadable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read isn't there; a failure of the system is one of the request."""

    def fail(number: int) -> Callable[[str, str], int]:
        def open_it(directory: str, name: str) -> int:
            raise OSError(number, os.strerror(number))

        return open_it

    monkeypatch.setattr(static_module, "open_below", fail(13))
    assert ask(root, "/page.html").status == 404
    monkeypatch.setattr(static_module, "open_below", fail(24))
    with pytest.raises(OSError, match="Too many open files"):
        ask(root, "/page.html")


@pytest.mark.parametrize(
    ("script", "path", "query", "location"),
    [
        ("/static", "/sub", "", "./sub/"),
        ("/static", "/sub", "a=%20b&c", "./sub/?a=%20b&c"),
        ("/static", "/sub", "a\r\nSet-Cookie: x", "./sub/?a%0D%0ASet-Cookie:%20x"),
        ("/static", "", "", "./static/"),
        ("", "/sub", "", "./sub/"),
        ("//evil", "/sub", "", "./sub/"),
        ("//evil.example", "", "", "./evil.example/"),
        ("/http:evil", "", "", "./http%3Aevil/"),
        ("/\\evil", "", "", "./%5Cevil/"),
        ("/a\r\nb", "", "", "./a%0D%0Ab/"),
    ],
)
def test_directories(root: Path, script: str, path: str, query: str, location: str) -> None:
    """The path of a directory gets its slash, and the client never another host."""
    for method in ("GET", "HEAD"):
        answer = ask(root, path, method, script, QUERY_STRING=query)
        assert (answer.status, answer.headers["Location"]) == (301, location)


@pytest.mark.parametrize("path", ["//evil.example", "//evil.example/", "/\\evil.example"])
def test_no_redirect_elsewhere(root: Path, path: str) -> None:
    """A path that looks like another host is none of ours, even if there is such a directory."""
    (root / "evil.example").mkdir()
    assert ask(root, path, script="").status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "BREW"])
def test_methods(root: Path, method: str) -> None:
    """A file is read, and nothing else."""
    answer = ask(root, "/page.html", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({"IF_MODIFIED_SINCE": DATE}, 304, b""),
        ({"IF_MODIFIED_SINCE": formatdate(MODIFIED + 1, usegmt=True)}, 304, b""),
        ({"IF_MODIFIED_SINCE": "Tue, 14 Nov 2023 22:13:20 -0000"}, 304, b""),
        ({"IF_MODIFIED_SINCE": EARLIER}, 200, TEXT),
        ({"IF_MODIFIED_SINCE": "never"}, 200, TEXT),
        ({"IF_MODIFIED_SINCE": ""}, 200, TEXT),
        ({"IF_MODIFIED_SINCE": "Tue, 14 Nov 99999999999999999999 22:13:20 GMT"}, 200, TEXT),
        ({"IF_MODIFIED_SINCE": "Tue, 14 Nov 2023 22:13:20 +9999999999"}, 200, TEXT),
        ({"IF_NONE_MATCH": ETAG}, 304, b""),
        ({"IF_NONE_MATCH": f"W/{ETAG}"}, 304, b""),
        ({"IF_NONE_MATCH": f'"other", {ETAG}'}, 304, b""),
        ({"IF_NONE_MATCH": " * "}, 304, b""),
        ({"IF_NONE_MATCH": '"other"'}, 200, TEXT),
        ({"IF_NONE_MATCH": ETAG.strip('"')}, 200, TEXT),
        ({"IF_NONE_MATCH": '"other"', "IF_MODIFIED_SINCE": DATE}, 200, TEXT),
        ({"RANGE": "bytes=2-4"}, 206, b"234"),
        ({"RANGE": "bytes=2-"}, 206, b"23456789"),
        ({"RANGE": "bytes=-3"}, 206, b"789"),
        ({"RANGE": "bytes=0-100"}, 206, TEXT),
        ({"RANGE": "bytes=10-"}, 416, b""),
        ({"RANGE": "bytes=1-2,4-5"}, 200, TEXT),
        ({"RANGE": "lines=1-2"}, 200, TEXT),
        ({"RANGE": "bytes=\xb2-\xb3"}, 200, TEXT),
        ({"RANGE": "bytes=2-4", "IF_RANGE": DATE}, 206, b"234"),
        ({"RANGE": "bytes=2-4", "IF_RANGE": ETAG}, 206, b"234"),
        ({"RANGE": "bytes=2-4", "IF_RANGE": f"W/{ETAG}"}, 200, TEXT),
        ({"RANGE": "bytes=2-4", "IF_RANGE": EARLIER}, 200, TEXT),
        ({"RANGE": "bytes=10-", "IF_RANGE": '"other"'}, 200, TEXT),
        ({"RANGE": "bytes=2-4", "IF_NONE_MATCH": ETAG}, 304, b""),
    ],
)
def test_conditions(root: Path, headers: dict[str, str], status: int, body: bytes) -> None:
    """A client gets the part that it wants, and nothing if it has the file."""
    answer = ask(root, "/page.html", **{f"HTTP_{name}": value for name, value in headers.items()})
    assert (answer.status, answer.body) == (status, body)
    if status in (200, 206, 304):
        assert (answer.headers["ETag"], answer.headers["Last-Modified"]) == (ETAG, DATE)
    if status == 206:
        start = TEXT.index(body)
        assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/10"
        assert answer.headers["Content-Length"] == str(len(body))
    if status == 416:
        assert answer.headers["Content-Range"] == "bytes */10"


def test_a_change(root: Path) -> None:
    """A file that changes has another ETag, even in the same second, or with the same time."""
    path, seen = root / "page.html", {ETAG}
    for text, after in (("abcdefghij", 1), ("abc", 1), ("abcdefghij", 2)):
        path.write_text(text)
        os.utime(path, ns=(0, MODIFIED * 1_000_000_000 + after))
        seen.add(ask(root, "/page.html").headers["ETag"])
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("modified", "date"),
    [(-5, "Thu, 01 Jan 1970 00:00:00 GMT"), (10**12, "Fri, 31 Dec 9999 23:59:59 GMT")],
)
def test_odd_times(root: Path, modified: int, date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that HTTP can't tell is the nearest that it can."""
    fstat = os.fstat

    def with_time(descriptor: int) -> Any:
        status = fstat(descriptor)
        return os.stat_result(status, {"st_mtime_ns": modified * 1_000_000_000})

    monkeypatch.setattr(static_module.os, "fstat", with_time)
    assert ask(root, "/page.html").headers["Last-Modified"] == date


def test_the_rules_of_wsgi(root: Path) -> None:
    """The standard library's validator has no objection to any kind of answer."""
    for path, variables in [
        ("/page.html", {}),
        ("/page.html", {"HTTP_RANGE": "bytes=20-"}),
        ("/page.html", {"HTTP_IF_NONE_MATCH": "*"}),
        ("/sub", {}),
        ("/absent", {}),
    ]:
        environ = environ_of(path, **variables)
        environ["wsgi.input"] = io.BytesIO()
        result = validator(StaticFiles(str(root)))(environ, lambda *_: lambda data: None)
        assert b"".join(result) in (TEXT, b"", b"301 Moved Permanently\n", b"404 Not Found\n")
        result.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("size", "sent"), [(4, TEXT[:4]), (0, b""), (20, TEXT)])
def test_a_file_that_changes_meanwhile(root: Path, size: int, sent: bytes) -> None:
    """An answer is never longer than it says; one that becomes shorter fails, and the file is closed."""
    environ = environ_of("/page.html")
    exchange = Exchange(lambda: os.truncate(root / "page.html", size))
    if size < len(TEXT):
        with pytest.raises(RuntimeError, match="shorter"):
            run(StaticFiles(str(root)), environ, Response(exchange, environ))
    else:
        run(StaticFiles(str(root)), environ, Response(exchange, environ))
    assert exchange.sent.partition(b"\r\n\r\n")[2] == sent


def test_a_file_that_is_shorter_before_it_is_sent(root: Path) -> None:
    """The answer that says more fails too."""
    environ, exchange = environ_of("/page.html"), Exchange()
    response = Response(exchange, environ)
    result = StaticFiles(str(root))(environ, response.start)
    os.truncate(root / "page.html", 4)
    with pytest.raises(ValueError, match="6 bytes less than its Content-Length"):
        run(lambda *_: result, environ, response)
