"""Loading of WSGI applications, their environments, and which of them answers a request."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.worker.test_web_response import FakeExchange
from uwsgitwisted.errors import Busy, MalformedPacket, RemoteError, StartupError
from uwsgitwisted.wire.message import WSGI_STRIPPED
from uwsgitwisted.wire.packet import WSGI, Packet
from uwsgitwisted.wire.vars import body_size, decode_vars, encode_vars, may_announce_body
from uwsgitwisted.worker.compat.calls import process
from uwsgitwisted.worker.exchange import ClientGone
from uwsgitwisted.worker.handlers.wsgi import load, read_env_file
from uwsgitwisted.worker.web.environ import complete, read_request

MODULE = """
import os
from uwsgitwisted.errors import Busy

def application(environ, start_response, name="application"):
    start_response("200 OK", [])
    return ["|".join([name, environ["SCRIPT_NAME"], environ["PATH_INFO"]]).encode("latin-1")]

def other(environ, start_response):
    return application(environ, start_response, "other")

def create_app():
    return other

def broken_factory():
    raise KeyError("no settings")

def leaving_factory():
    raise SystemExit("leaving")

def busy(environ, start_response):
    raise Busy("another node is busy")

def environment(environ, start_response):
    start_response("200 OK", [])
    return [os.environ.get("SETTING", "").encode(), b"|", os.getcwd().encode()]

class Holder:
    app = staticmethod(other)

number = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Write a module with applications, in a current directory of its own; return its name."""
    (tmp_path / "wsgi_of_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "wsgi_of_test"
    sys.modules.pop("wsgi_of_test", None)


def vars_of(path: str = "/", **more: str) -> bytes:
    return encode_vars({"REQUEST_METHOD": "GET", "PATH_INFO": path} | more)


def ask(table: Any, path: str = "/", modifier1: int = WSGI, **more: str) -> bytes:
    """Have the handlers answer a request; return the answer's body."""
    exchange = FakeExchange()
    exchange.packet = Packet(modifier1, 0, vars_of(path, **more))
    table[modifier1](exchange, "n1")
    assert exchange.finished
    return exchange.answer.partition(b"\r\n\r\n")[2]


class TestLoad:
    @pytest.mark.parametrize(
        ("target", "name"),
        [
            ("{}", b"application"),
            ("{}:application", b"application"),
            ("{}:other", b"other"),
            ("{}:create_app()", b"other"),
            ("{}:Holder.app", b"other"),
        ],
    )
    def test_targets(self, module: str, target: str, name: bytes) -> None:
        """A target is a module, a callable of it, or a factory; both modifiers of web requests are answered."""
        table = load({"": target.format(module)})
        for modifier1 in (WSGI, WSGI_STRIPPED):
            assert ask(table, modifier1=modifier1) == name + b"||/"
        assert set(table) == {WSGI, WSGI_STRIPPED}

    @pytest.mark.parametrize(
        ("target", "text"),
        [
            ("{}:missing", "has no 'missing'"),
            ("{}:Holder.missing", "has no 'Holder.missing'"),
            ("{}:number", "'number' is a int"),
            ("{}:broken_factory()", "KeyError: 'no settings'"),
            ("{}:leaving_factory()", "leaving"),
            ("{}:create_app(1)", "write 'module:callable'"),
            ("{}:", "write 'module:callable'"),
            ("", "write 'module:callable'"),
            ("a b", "write 'module:callable'"),
            ("missing_module_of_test:app", "missing_module_of_test"),
            ("{}.py", "module"),
        ],
    )
    def test_mistakes(self, module: str, target: str, text: str) -> None:
        """What can't be loaded is an error that says why."""
        with pytest.raises(StartupError) as caught:
            load({"": target.format(module)})
        assert text in str(caught.value)

    def test_directory_and_environment(
        self, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Applications are imported in their directory, with their environment."""
        monkeypatch.setenv("SETTING", "old")
        place = tmp_path / "place"
        place.mkdir()
        (tmp_path / "wsgi_of_test.py").rename(place / "wsgi_of_test.py")
        (tmp_path / "env").write_text("SETTING=new\n")
        table = load({"": f"{module}:environment"}, chdir=str(place), env_file=str(tmp_path / "env"))
        assert ask(table) == f"new|{place}".encode()

    def test_no_directory(self, module: str, tmp_path: Path) -> None:
        """A directory that isn't there is the user's mistake, and named."""
        with pytest.raises(StartupError, match=f"--chdir {tmp_path}/missing: No such file"):
            load({"": module}, chdir=f"{tmp_path}/missing")


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "answer"),
        [
            ("/", b"application||/"),
            ("", b"application||"),
            ("/a", b"other|/a|"),
            ("/a/", b"other|/a|/"),
            ("/a/x/y", b"other|/a|/x/y"),
            ("/ab", b"application||/ab"),
            ("/a/b", b"application|/a/b|"),
            ("/a/b/c", b"application|/a/b|/c"),
            ("/a/bc", b"other|/a|/bc"),
            ("/A", b"application||/A"),
        ],
    )
    def test_mounts(self, module: str, path: str, answer: bytes) -> None:
        """The longest mount that is a part of the path, by whole names, answers; the path is divided there."""
        table = load({"": module, "/a": f"{module}:other", "/a/b": module})
        assert ask(table, path) == answer

    def test_no_application(self, module: str) -> None:
        """A path without an application is answered with 404."""
        table = load({"/a": module})
        exchange = FakeExchange()
        exchange.packet = Packet(WSGI, 0, vars_of("/b"))
        table[WSGI](exchange, "n1")  # type: ignore[arg-type]
        assert exchange.answer.startswith(b"HTTP/1.0 404 Not Found\r\n")

    def test_mount_behind_a_script(self, module: str) -> None:
        """A mount comes behind what the web server calls the script."""
        table = load({"/a": module})
        assert ask(table, "/a/x", SCRIPT_NAME="/outer") == b"application|/outer/a|/x"

    @pytest.mark.parametrize(
        ("script", "path", "answer"),
        [
            ("/app", "/app/x", b"application|/app|/x"),
            ("/app", "/app", b"application|/app|"),
            ("/app/", "/app/x", b"application|/app|/x"),
            ("/app", "/apple/x", b"application|/app|/apple/x"),
            ("/app", "/other", b"application|/app|/other"),
            ("", "/x", b"application||/x"),
            ("/", "/x", b"application||/x"),
        ],
    )
    def test_stripped(self, module: str, script: str, path: str, answer: bytes) -> None:
        """Modifier 30 takes the script's name off the path, whole names only."""
        assert ask(load({"": module}), path, WSGI_STRIPPED, SCRIPT_NAME=script) == answer

    def test_not_stripped(self, module: str) -> None:
        """Modifier 0 doesn't."""
        assert ask(load({"": module}), "/app/x", SCRIPT_NAME="/app") == b"application|/app|/app/x"

    def test_stripped_in_front_of_a_mount(self, module: str) -> None:
        """Mounts of modifier 30 are looked for in what is left of the path."""
        table = load({"/a": module})
        assert ask(table, "/outer/a/x", WSGI_STRIPPED, SCRIPT_NAME="/outer") == b"application|/outer/a|/x"


class TestErrors:
    def test_malformed(self, module: str) -> None:
        """A malformed request is its sender's fault."""
        exchange = FakeExchange()
        exchange.packet = Packet(WSGI, 0, b"\xff")
        with pytest.raises(MalformedPacket):
            load({"": module})[WSGI](exchange, "n1")  # type: ignore[arg-type]

    def test_error_of_this_package(self, module: str) -> None:
        """An error of this package that an application raises is the application's: the node isn't busy."""
        exchange = FakeExchange()
        exchange.packet = Packet(WSGI, 0, vars_of())
        with pytest.raises(RemoteError) as caught:
            load({"": f"{module}:busy"})[WSGI](exchange, "n1")  # type: ignore[arg-type]
        assert isinstance(caught.value.__cause__, Busy)
        assert caught.value.type == "Busy"
        assert "in busy" in caught.value.traceback


class TestEnvironmentFile:
    def read(self, tmp_path: Path, text: str) -> dict[str, str]:
        path = tmp_path / "env"
        path.write_bytes(text.encode())
        return read_env_file(str(path))

    def test_lines(self, tmp_path: Path) -> None:
        """Lines are as systemd and Docker have them."""
        text = (
            "# a comment\n\n  A=1\r\nexport B = two words \nC=\n"
            "D=\"quoted = 'x' \"\nE='#'\nF=a=b\nG=\"\nH=\u00e4\n"
        )
        assert self.read(tmp_path, text) == {
            "A": "1",
            "B": "two words",
            "C": "",
            "D": "quoted = 'x' ",
            "E": "#",
            "F": "a=b",
            "G": '"',
            "H": "\u00e4",
        }

    @pytest.mark.parametrize("line", ["A", "=1", "1A=2", "A B=1", "A-B=1", "A=\0"])
    def test_mistakes(self, tmp_path: Path, line: str) -> None:
        """Anything else is an error that names the line."""
        with pytest.raises(StartupError, match="env, line 2: write NAME=value"):
            self.read(tmp_path, f"OK=1\n{line}\n")

    def test_unreadable(self, tmp_path: Path) -> None:
        """So is a file that can't be read, or is no text."""
        with pytest.raises(StartupError, match="No such file"):
            read_env_file(str(tmp_path / "missing"))
        (tmp_path / "env").write_bytes(b"A=\xff\n")
        with pytest.raises(StartupError, match="utf-8"):
            read_env_file(str(tmp_path / "env"))


class TestEnviron:
    def test_defaults(self) -> None:
        """What PEP 3333 requires is there, whatever the web server sends."""
        exchange = FakeExchange()
        environ, body = read_request(encode_vars({"REQUEST_METHOD": "GET"}), streamed=False)
        environ = complete(environ, exchange, body, {"wsgi.version": (1, 0)})
        assert environ.pop("wsgi.errors") is sys.stderr
        assert environ.pop("wsgi.input").read() == b""
        assert environ == {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "",
            "QUERY_STRING": "",
            "SERVER_NAME": "",
            "SERVER_PORT": "",
            "SERVER_PROTOCOL": "HTTP/1.0",
            "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0),
        }

    @pytest.mark.parametrize(
        ("name", "value", "scheme"),
        [
            ("HTTPS", "on", "https"),
            ("HTTPS", "ON", "https"),
            ("HTTPS", "1", "https"),
            ("HTTPS", "off", "http"),
            ("HTTPS", "", "http"),
            ("REQUEST_SCHEME", "https", "https"),
            ("REQUEST_SCHEME", "http", "http"),
            ("HTTP_X_FORWARDED_PROTO", "https", "http"),
        ],
    )
    def test_scheme(self, name: str, value: str, scheme: str) -> None:
        """The scheme is what the web server says, not what a client does."""
        exchange = FakeExchange()
        environ, body = read_request(encode_vars({"REQUEST_METHOD": "GET", name: value}), streamed=False)
        environ = complete(environ, exchange, body, {})
        assert environ["wsgi.url_scheme"] == scheme

    def test_names_of_the_server(self) -> None:
        """A peer can't say what only the server may, and what would be a command to uWSGI is dropped."""
        sent = {"REQUEST_METHOD": "GET", "wsgi.input": "x", "wsgi.version": "y", "UWSGI_FILE": "/evil.py"}
        environ, body = read_request(encode_vars(sent), streamed=False)
        environ = complete(environ, FakeExchange(), body, {"wsgi.version": (1, 0)})
        assert isinstance(environ["wsgi.input"], io.BytesIO)
        assert environ["wsgi.version"] == (1, 0)
        assert not [name for name in environ if name.startswith("UWSGI_")]

    def test_text(self) -> None:
        """Each byte is a character; the last of several values counts."""
        block = encode_vars([(b"REQUEST_METHOD", b"GET"), (b"A", b"1"), (b"\xe4", b"\xff\0"), (b"A", b"2")])
        environ, _ = read_request(block, streamed=False)
        assert environ["\xe4"] == "\xff\0"
        assert environ["A"] == "2"

    @pytest.mark.parametrize("size", [0, 1, 1_000])
    def test_body(self, size: int) -> None:
        """The body is what is behind the variables."""
        block = vars_of(CONTENT_LENGTH=str(size))
        environ, body = read_request(block + b"x" * size, streamed=False)
        assert body == b"x" * size
        assert environ["CONTENT_LENGTH"] == str(size)

    @pytest.mark.parametrize(
        "message",
        [
            b"",
            b"\x01",
            b"\x01\x00a",
            b"\x01\x00a\x05\x00b",
            encode_vars({"A": "1"}),
            encode_vars({"REQUEST_METHOD": ""}),
            b"\x00\x00\x01\x00a" + encode_vars({"REQUEST_METHOD": "GET"}),
            vars_of(CONTENT_LENGTH="5") + b"four",
            vars_of(CONTENT_LENGTH="5"),
            vars_of(CONTENT_LENGTH="5") + b"sixsix",
            vars_of(CONTENT_LENGTH="") + b"x",
            vars_of() + b"x",
            vars_of(CONTENT_LENGTH="-1"),
            vars_of(CONTENT_LENGTH="x"),
            vars_of(CONTENT_LENGTH="1" * 21),
            encode_vars([("REQUEST_METHOD", "GET"), ("CONTENT_LENGTH", "0"), ("CONTENT_LENGTH", "5")])
            + b"12345",
        ],
    )
    def test_malformed(self, message: bytes) -> None:
        """A request that doesn't add up is refused."""
        with pytest.raises(MalformedPacket):
            read_request(message, streamed=False)

    @given(
        st.dictionaries(st.binary(min_size=1, max_size=20), st.binary(max_size=20), max_size=5),
        st.binary(max_size=50),
        st.booleans(),
    )
    def test_any_request(self, variables: dict[bytes, bytes], body: bytes, announced: bool) -> None:
        """Whatever the names and values, what was sent is read."""
        variables = {name: value for name, value in variables.items() if not name.startswith(b"UWSGI_")}
        variables.pop(b"CONTENT_LENGTH", None)
        if announced:
            variables[b"CONTENT_LENGTH"] = str(len(body)).encode()
        else:
            body = b""
        variables[b"REQUEST_METHOD"] = b"GET"
        environ, read = read_request(encode_vars(variables) + body, streamed=False)
        assert read == body
        assert {name.encode("latin-1"): value.encode("latin-1") for name, value in environ.items()} == variables

    @given(st.binary(max_size=100), st.booleans())
    def test_junk(self, junk: bytes, streamed: bool) -> None:
        """Junk is either refused, or read as the front reads it."""
        try:
            environ, body = read_request(junk, streamed=streamed)
        except MalformedPacket:
            return
        block = junk[: len(junk) - len(body)]
        assert {
            name.encode("latin-1"): value.encode("latin-1") for name, value in environ.items()
        } == decode_vars(block)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(
                    [b"CONTENT_LENGTH", b"A", b"\x0e\x00CONTENT_LENGTH", b"CONTENT_LENGTH\x00\x00"]
                ),
                st.sampled_from([b"", b"0", b"5", b"\x0e\x00CONTENT_LENGTH\x00\x00", b"CONTENT_LENGTH"]),
            ),
            max_size=4,
        )
    )
    def test_may_announce_body(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """A block that can't announce a body, judging by a search, announces none."""
        block = encode_vars(pairs)
        if not may_announce_body(block):
            assert body_size(block) == 0

    def test_most_requests_need_no_search(self) -> None:
        """The requests that nginx sends without a body can't announce one."""
        assert not may_announce_body(vars_of())
        assert not may_announce_body(vars_of(CONTENT_LENGTH=""))
        assert may_announce_body(vars_of(CONTENT_LENGTH="0"))


class TestStreamedBody:
    def opened(self, parts: list[bytes], size: int) -> Any:
        exchange = FakeExchange(list(parts))
        environ, body = read_request(vars_of(CONTENT_LENGTH=str(size)), streamed=True)
        environ = complete(environ, exchange, body, {})
        return environ["wsgi.input"]

    def test_read(self) -> None:
        """It is read like a file, to its end and no further."""
        opened = self.opened([b"first\nsec", b"ond", b"\nthird"], 18)
        assert opened.readline() == b"first\n"
        assert opened.read(3) == b"sec"
        assert list(opened) == [b"ond\n", b"third"]
        assert opened.read() == b""
        assert opened.read(5) == b""

    def test_read_all(self) -> None:
        """It may be read at once."""
        assert self.opened([b"ab", b"c"], 3).read() == b"abc"

    @pytest.mark.parametrize("read", [lambda body: body.read(), lambda body: body.read(10), list])
    def test_client_goes(self, read: Any) -> None:
        """A body that ends early is no complete one: the application is told."""
        with pytest.raises(ClientGone, match="2 bytes of the body are missing"):
            read(self.opened([b"abc"], 5))


def test_applications_that_handlers_know(module: str, tmp_path: Path) -> None:
    """``uwsgi.workers()`` gets the paths of the applications, and where they run, but not those of files."""
    load({"": module, "/api": f"{module}:other"}, static={"/files": str(tmp_path)}, chdir=str(tmp_path))
    assert process.applications == (("", str(tmp_path)), ("/api", str(tmp_path)))
