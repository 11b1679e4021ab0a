"""Answers of WSGI applications, as PEP 3333 has them: heads, bodies of every kind, lengths that lie, ends."""

from __future__ import annotations

import gzip
import io
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwsgitwisted.wire.packet import WSGI, Packet
from uwsgitwisted.wire.vars import encode_vars
from uwsgitwisted.worker.exchange import ClientGone
from uwsgitwisted.worker.web.environ import Environ, complete, read_request
from uwsgitwisted.worker.web.response import FileWrapper, Response, run

TEXT = [("Content-Type", "text/plain")]


class FakeExchange:
    """Records what is sent.

    :param body: the stream of the request's body, if there is one.
    :param gone: after how many parts the client is gone.
    """

    def __init__(self, body: list[bytes] | None = None, gone: int = 1_000_000) -> None:
        self.packet = Packet(WSGI, 0)
        self.streamed = body is not None
        self.body = body or []
        self.parts: list[bytes] = []
        self.files = 0
        self.finished = False
        self._gone = gone

    def read(self, size: int) -> bytes:
        if not self.body:
            return b""
        data = self.body.pop(0)
        if len(data) > size:
            self.body.insert(0, data[size:])
        return data[:size]

    def send(self, data: bytes) -> None:
        assert not self.finished
        assert isinstance(data, bytes)
        if len(self.parts) >= self._gone:
            raise ClientGone("the client has gone")
        self.parts.append(data)

    def send_file(self, descriptor: int, offset: int, size: int) -> None:
        with open(descriptor, "rb", closefd=False) as file:
            position = file.tell()
            file.seek(offset)
            data = file.read(size)
            file.seek(position)
        assert len(data) == size
        self.files += 1
        self.send(data)

    def finish(self, data: bytes = b"") -> None:
        assert not self.finished
        if data:
            self.send(data)
        self.finished = True

    @property
    def answer(self) -> bytes:
        return b"".join(self.parts)


def environ_of(exchange: FakeExchange, *more: tuple[str, str], body: bytes = b"") -> Environ:
    """Return the environment of a request, as a worker makes it."""
    given = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SERVER_NAME": "here", "SERVER_PORT": "80"} | dict(more)
    environ, read = read_request(encode_vars(given) + body, streamed=exchange.streamed)
    shared = {"wsgi.version": (1, 0), "wsgi.file_wrapper": FileWrapper, **FLAGS}
    return complete(environ, exchange, read, shared)


FLAGS = {"wsgi.multithread": False, "wsgi.multiprocess": True, "wsgi.run_once": False}


class Got:
    """What came of a request.

    :param application: what answers it.
    """

    def __init__(self, application: Any, *more: tuple[str, str], gone: int = 1_000_000) -> None:
        self.exchange = FakeExchange(gone=gone)
        environ = environ_of(self.exchange, *more)
        self.response = Response(self.exchange, environ)
        self.error: BaseException | None = None
        try:
            run(application, environ, self.response)
        except Exception as error:
            self.error = error
        head, _, self.body = self.exchange.answer.partition(b"\r\n\r\n")
        self.status, *self.headers = head.decode("latin-1").split("\r\n")

    @property
    def parts(self) -> list[bytes]:
        return self.exchange.parts


def application(
    result: Any = None,
    headers: Iterable[tuple[str, str]] = (),
    status: str = "200 OK",
    writes: Iterable[bytes] = (),
) -> Callable[[Environ, Any], Any]:
    """Make an application."""

    def application(environ: Environ, start_response: Any) -> Any:
        write = start_response(status, [*TEXT, *headers])
        for data in writes:
            write(data)
        return [] if result is None else result

    return application


class TestHead:
    def test_whole(self) -> None:
        """An answer of one part goes out at once, with its length."""
        got = Got(application([b"hello"]))
        assert got.parts == [b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"]
        assert got.exchange.finished
        assert (got.response.status, got.response.size) == ("200", 5)

    @pytest.mark.parametrize(
        ("protocol", "version"),
        [
            ("HTTP/1.1", "HTTP/1.1"),
            ("HTTP/1.0", "HTTP/1.0"),
            ("HTTP/2.0", "HTTP/1.0"),
            ("", "HTTP/1.0"),
            ("X\r\nSet-Cookie: a", "HTTP/1.0"),
        ],
    )
    def test_version(self, protocol: str, version: str) -> None:
        """The version is that of the request, if it is one that a server of HTTP/1 has."""
        assert Got(application(), ("SERVER_PROTOCOL", protocol)).status == f"{version} 200 OK"

    def test_hop_by_hop(self) -> None:
        """Headers of the connection are left out, whatever their case; others stay in their order."""
        dropped = "Connection keep-alive TE Trailer transfer-ENCODING Upgrade Proxy-Connection"
        headers = [(name, "x") for name in dropped.split()] + [
            ("X-B", "1"),
            ("Set-Cookie", "a"),
            ("Set-Cookie", "b"),
        ]
        got = Got(application(headers=headers))
        assert got.headers == [
            "Content-Type: text/plain",
            "X-B: 1",
            "Set-Cookie: a",
            "Set-Cookie: b",
            "Content-Length: 0",
        ]

    def test_latin_1(self) -> None:
        """Characters are bytes, as PEP 3333 has it."""
        got = Got(application(headers=[("X-A", "\xe4\xff")], status="200 \xfc"))
        assert b"\xfc\r\n" in got.exchange.answer
        assert b"X-A: \xe4\xff\r\n" in got.exchange.answer

    @pytest.mark.parametrize(
        "status",
        [
            "",
            "OK",
            "20",
            "2000",
            "099 X",
            "200OK",
            "200 O\rK",
            "200 O\nK",
            "200 \0",
            " 200 OK",
            200,
            b"200 OK",
            None,
        ],
    )
    def test_bad_status(self, status: Any) -> None:
        """A status that isn't one is the application's error; nothing was sent."""
        got = Got(application([b"x"], status=status))
        assert isinstance(got.error, ValueError)
        assert got.parts == []
        assert got.response.status == "500"

    @pytest.mark.parametrize("status", ["200", "200 ", "299 Whatever: it, is", "999 x"])
    def test_unusual_status(self, status: str) -> None:
        """Three digits are enough."""
        assert Got(application(status=status)).status == f"HTTP/1.0 {status}"

    @pytest.mark.parametrize(
        "header",
        [
            ("X", "a\r\nSet-Cookie: x"),
            ("X", "a\n"),
            ("X", "\r"),
            ("X", "\0"),
            ("X\r\nY", "a"),
            ("X:", "a"),
            ("X Y", "a"),
            ("", "a"),
            ("\xe4", "a"),
            ("X", 5),
            ("X", None),
            ("X", b"a"),
            (b"X", "a"),
            (None, "a"),
            ("Content-Length", "x"),
            ("Content-Length", "-1"),
            ("Content-Length", "+1"),
            ("Content-Length", "1_0"),
            ("Content-Length", ""),
            ("Content-Length", "\u0661"),
            ("Content-Length", "9" * 21),
            ("X", "\u20ac"),
        ],
    )
    def test_bad_header(self, header: Any) -> None:
        """A header that HTTP can't carry, or that would be two, is the application's error; nothing is sent."""
        got = Got(application([b"x"], [header]))
        assert isinstance(got.error, ValueError)
        assert got.parts == []
        assert got.response.status == "500"

    @pytest.mark.parametrize("headers", [[("X",)], [("X", "a", "b")], [5], None, 5])
    def test_bad_headers(self, headers: Any) -> None:
        """What isn't a list of pairs is the application's error."""

        def application(environ: Environ, start_response: Any) -> Any:
            start_response("200 OK", headers)
            return []

        got = Got(application)
        assert isinstance(got.error, (TypeError, ValueError))
        assert got.parts == []

    @settings(deadline=None)  # other processes use the processors, too
    @given(st.text(), st.text(), st.text())
    def test_any_text(self, status: str, name: str, value: str) -> None:
        """Whatever an application says, either it is refused, or it makes exactly one status and one header."""
        got = Got(application([b"x"], [(name, value)], f"200 {status}"))
        if got.error is None:
            lines = got.exchange.answer.partition(b"\r\n\r\n")[0].split(b"\n")
            assert len(lines) <= 4
            assert all(line.endswith(b"\r") for line in lines[:-1])
            assert got.exchange.answer.endswith(b"\r\n\r\nx")
        else:
            assert isinstance(got.error, ValueError)
            assert got.parts == []


class TestStart:
    def test_never(self) -> None:
        """An application must call start_response before its first part."""
        got = Got(lambda environ, start_response: [b"x"])
        assert isinstance(got.error, AssertionError)
        assert got.parts == []

    def test_in_a_generator(self) -> None:
        """A generator may call it when its first part is asked for."""

        def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", TEXT)
            yield b"x"

        assert Got(application).body == b"x"

    def test_twice(self) -> None:
        """It may be called once only."""

        def application(environ: Environ, start_response: Any) -> Any:
            start_response("200 OK", TEXT)
            start_response("201 Created", TEXT)
            return []

        assert isinstance(Got(application).error, AssertionError)

    def test_replaced(self) -> None:
        """With exc_info it replaces what was set, while nothing is sent; empty parts send nothing."""

        def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [*TEXT, ("X-A", "1"), ("Content-Length", "100")])
            yield b""
            try:
                raise KeyError("x")
            except KeyError:
                start_response("500 Oops", TEXT, sys.exc_info())
            yield b"sorry"

        got = Got(application)
        assert got.error is None
        assert got.exchange.answer == b"HTTP/1.0 500 Oops\r\nContent-Type: text/plain\r\n\r\nsorry"

    def test_too_late(self) -> None:
        """With exc_info, but when the head is out, it raises that error, with its traceback."""
        closed: list[bool] = []

        def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
            try:
                start_response("200 OK", TEXT)
                yield b"begun"
                try:
                    raise KeyError("lost")
                except KeyError:
                    start_response("500 Oops", TEXT, sys.exc_info())
            finally:
                closed.append(True)

        got = Got(application)
        assert isinstance(got.error, KeyError)
        assert closed == [True]
        assert not got.exchange.finished
        assert got.body == b"begun"

    def test_after_a_head_that_could_not_be_sent(self) -> None:
        """A head that can't be sent was not sent: an application may replace it."""

        def application(environ: Environ, start_response: Any) -> Any:
            write = start_response("200 OK", [("Content-Length", "much")])
            try:
                write(b"x")
            except ValueError:
                start_response("500 Oops", TEXT, sys.exc_info())
            return [b"sorry"]

        got = Got(application)
        assert got.error is None
        assert got.status == "HTTP/1.0 500 Oops"
        assert got.body == b"sorry"


class TestBodies:
    def test_parts(self) -> None:
        """Each part of a generator goes out when it comes, the head with the first one that isn't empty."""
        got = Got(application(iter([b"", b"one", b"", b"two"])))
        assert got.parts == [b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\none", b"two"]
        assert got.exchange.finished
        assert got.response.size == 6

    @pytest.mark.parametrize("result", [[], (), [b""], iter([]), iter([b"", b""])])
    def test_empty(self, result: Any) -> None:
        """An answer without a byte has a head, and a length."""
        got = Got(application(result))
        assert got.headers == ["Content-Type: text/plain", "Content-Length: 0"]
        assert got.body == b""
        assert got.exchange.finished

    def test_several_parts_at_once(self) -> None:
        """A list or tuple of parts is one."""
        for result in ([b"a", b"b"], (b"a", b"b")):
            got = Got(application(result))
            assert len(got.parts) == 1
            assert got.body == b"ab"

    def test_write(self) -> None:
        """What is written goes out at once, in front of what is returned."""
        got = Got(application([b"c", b"d"], writes=[b"a", b"", b"b"]))
        assert got.parts == [b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\na", b"b", b"c", b"d"]
        assert got.exchange.finished

    def test_write_nothing(self) -> None:
        """An empty write sends the head."""
        got = Got(application(writes=[b""]))
        assert got.parts == [b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n"]

    @pytest.mark.parametrize(
        "result", [None, 5, [5], ["text"], iter(["text"]), "text", b"bytes", [b"a", None], iter([b"a", 5])]
    )
    def test_no_bytes(self, result: Any) -> None:
        """What isn't an iterable of bytes is the application's error."""

        def application(environ: Environ, start_response: Any) -> Any:
            start_response("200 OK", TEXT)
            return result

        got = Got(application)
        assert isinstance(got.error, TypeError)
        assert not got.exchange.finished

    def test_raises(self) -> None:
        """An error of the application, before or after its first part, leaves the answer without an end."""

        def early(environ: Environ, start_response: Any) -> Any:
            start_response("200 OK", TEXT)
            raise KeyError("early")

        def late(environ: Environ, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", TEXT)
            yield b"a"
            raise KeyError("late")

        assert Got(early).parts == []
        assert Got(late).body == b"a"
        for each in (early, late):
            got = Got(each)
            assert isinstance(got.error, KeyError)
            assert not got.exchange.finished

    def test_client_goes(self) -> None:
        """An application whose client has gone is told at its next part; it is closed all the same."""
        result = Closing([b"a", b"b", b"c", b"d"])
        got = Got(application(result), gone=2)
        assert isinstance(got.error, ClientGone)
        assert result.closed == 1
        assert list(result) == [b"d"]


class Closing:
    """An iterable that counts how often it is closed."""

    def __init__(self, parts: Iterable[bytes], error: Exception | None = None) -> None:
        self._parts = iter(parts)
        self._error = error
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        self.closed += 1
        if self._error is not None:
            raise self._error


class TestClose:
    @pytest.mark.parametrize("parts", [[], [b"a"], [b"a", 5]])
    def test_always(self, parts: list[Any]) -> None:
        """What has a close method is closed, once, whatever happens."""
        result = Closing(parts)
        Got(application(result))
        assert result.closed == 1

    def test_generator(self) -> None:
        """A generator that isn't read to its end is closed."""
        closed: list[bool] = []

        def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Length", "2")])
            try:
                while True:
                    yield b"a"
            finally:
                closed.append(True)

        got = Got(application)
        assert got.body == b"aa"
        assert got.error is None
        assert closed == [True]

    def test_raises(self, capsys: pytest.CaptureFixture[str]) -> None:
        """An error while closing is logged only: the answer is out."""
        got = Got(application(Closing([b"a"], KeyError("while closing"))))
        assert got.error is None
        assert got.exchange.finished
        assert "while closing" in capsys.readouterr().err

    def test_raises_after_an_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        """An error while closing doesn't hide an earlier one."""
        got = Got(application(Closing([b"a", 5], KeyError("while closing"))))  # type: ignore[list-item]
        assert isinstance(got.error, TypeError)
        assert "while closing" in capsys.readouterr().err


class TestLengths:
    @pytest.mark.parametrize(
        "result", [[b"hello"], iter([b"he", b"llo"]), [b"hello, world"], iter([b"hello, ", b"x"])]
    )
    def test_given(self, result: Any) -> None:
        """The application's length counts; what is beyond it is not sent."""
        got = Got(application(result, [("content-LENGTH", "5")]))
        assert got.headers == ["Content-Type: text/plain", "content-LENGTH: 5"]
        assert got.body == b"hello"
        assert got.exchange.finished

    def test_beyond_with_write(self) -> None:
        """The length counts for what is written, too."""
        got = Got(application([b"more"], [("Content-Length", "3")], writes=[b"ab", b"cd", b"ef"]))
        assert got.body == b"abc"
        assert got.exchange.finished

    def test_too_little_at_once(self) -> None:
        """An answer of one part with fewer bytes than its length is an error, before anything is sent."""
        got = Got(application([b"abc"], [("Content-Length", "5")]))
        assert isinstance(got.error, ValueError)
        assert "2 bytes less" in str(got.error)
        assert got.parts == []
        assert got.response.status == "500"

    def test_too_little_in_parts(self) -> None:
        """An answer in parts with fewer bytes than its length has no end: nobody must take it for the whole."""
        got = Got(application(iter([b"abc"]), [("Content-Length", "5")]))
        assert isinstance(got.error, ValueError)
        assert not got.exchange.finished

    def test_two(self) -> None:
        """Two lengths are an error: web servers don't agree which one counts."""
        got = Got(application([b"abc"], [("Content-Length", "3"), ("Content-Length", "2")]))
        assert isinstance(got.error, ValueError)
        assert got.parts == []

    def test_zero(self) -> None:
        """With a length of 0 nothing but the head is sent."""
        got = Got(application(iter([b"abc"]), [("Content-Length", "0")]))
        assert got.body == b""
        assert got.exchange.finished


class TestBodiless:
    @pytest.mark.parametrize("result", [[b"body"], iter([b"bo", b"dy"])])
    @pytest.mark.parametrize("writes", [[], [b"written"]])
    def test_head(self, result: Any, writes: list[bytes]) -> None:
        """The answer to a HEAD has no body, whatever the application returns, and its length stays."""
        got = Got(application(result, [("Content-Length", "4")], writes=writes), ("REQUEST_METHOD", "HEAD"))
        assert got.headers == ["Content-Type: text/plain", "Content-Length: 4"]
        assert got.body == b""
        assert got.exchange.finished
        assert got.response.size == 0

    def test_head_without_a_length(self) -> None:
        """A HEAD has no length that the application didn't give: it may leave the body out by itself."""
        got = Got(application([]), ("REQUEST_METHOD", "HEAD"))
        assert got.headers == ["Content-Type: text/plain"]

    def test_head_without_an_end(self) -> None:
        """The parts of a HEAD are not asked for when the head is out."""

        def forever() -> Iterator[bytes]:
            while True:
                yield b"x"

        assert Got(application(forever()), ("REQUEST_METHOD", "HEAD")).exchange.finished

    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "100 Continue"])
    @pytest.mark.parametrize("result", [[b"body"], iter([b"bo", b"dy"])])
    def test_status(self, status: str, result: Any) -> None:
        """These answers have no body, and no length that the application didn't give."""
        got = Got(application(result, status=status))
        assert got.headers == ["Content-Type: text/plain"]
        assert got.body == b""
        assert got.exchange.finished

    @pytest.mark.parametrize(
        ("status", "kept"), [("204 No Content", []), ("304 Not Modified", ["Content-Length: 4"])]
    )
    def test_status_with_a_length(self, status: str, kept: list[str]) -> None:
        """A 304 may say how long the body would be; a 204 may not."""
        got = Got(application([b"body"], [("Content-Length", "4")], status))
        assert got.headers == ["Content-Type: text/plain", *kept]
        assert got.body == b""


class TestFiles:
    def wrapped(self, file: Any, *headers: tuple[str, str], size: int = 4) -> Callable[[Environ, Any], Any]:
        def application(environ: Environ, start_response: Any) -> Any:
            start_response("200 OK", [*TEXT, *headers])
            return environ["wsgi.file_wrapper"](file, size)

        return application

    @pytest.mark.parametrize("buffering", [-1, 0])
    def test_real(self, tmp_path: Path, buffering: int) -> None:
        """A file is sent from where it stands, without being read, and closed."""
        path = tmp_path / "file"
        path.write_bytes(b"0123456789")
        file = path.open("rb", buffering)
        file.read(3)
        got = Got(self.wrapped(file))
        assert got.exchange.files == 1
        assert got.body == b"3456789"
        assert got.headers[-1] == "Content-Length: 7"
        assert got.response.size == 7
        assert got.exchange.finished
        assert file.closed

    @pytest.mark.parametrize(("length", "body"), [("4", b"0123"), ("0", b"")])
    def test_part(self, tmp_path: Path, length: str, body: bytes) -> None:
        """No more is sent of a file than its answer's length says."""
        path = tmp_path / "file"
        path.write_bytes(b"0123456789")
        got = Got(self.wrapped(path.open("rb"), ("Content-Length", length)))
        assert got.body == body
        assert got.exchange.finished

    def test_too_short(self, tmp_path: Path) -> None:
        """A file that is shorter than its answer's length leaves the answer without an end."""
        path = tmp_path / "file"
        path.write_bytes(b"0123")
        got = Got(self.wrapped(path.open("rb"), ("Content-Length", "5")))
        assert isinstance(got.error, ValueError)
        assert not got.exchange.finished

    def test_head(self, tmp_path: Path) -> None:
        """A HEAD for a file has no body."""
        path = tmp_path / "file"
        path.write_bytes(b"0123")
        got = Got(self.wrapped(path.open("rb")), ("REQUEST_METHOD", "HEAD"))
        assert got.body == b""
        assert got.exchange.finished

    def test_without_a_start(self, tmp_path: Path) -> None:
        """A file needs a start_response as well."""
        path = tmp_path / "file"
        path.write_bytes(b"0123")
        file = path.open("rb")
        got = Got(lambda environ, start_response: environ["wsgi.file_wrapper"](file))
        assert isinstance(got.error, AssertionError)
        assert got.parts == []
        assert file.closed

    def test_behind_a_write(self, tmp_path: Path) -> None:
        """A file may follow what was written."""
        path = tmp_path / "file"
        path.write_bytes(b"0123")
        got = Got(application(FileWrapper(path.open("rb")), writes=[b"first "]))
        assert got.body == b"first 0123"

    @pytest.mark.parametrize("kind", [io.BytesIO, gzip.GzipFile], ids=["memory", "gzip"])
    def test_no_real_one(self, kind: Any, tmp_path: Path) -> None:
        """What isn't a file of the system, or has other content than that, is read in blocks, and closed."""
        if kind is gzip.GzipFile:
            with gzip.open(tmp_path / "file.gz", "wb") as packed:
                packed.write(b"0123456789")
            file: Any = gzip.GzipFile(tmp_path / "file.gz")
        else:
            file = io.BytesIO(b"0123456789")
        got = Got(self.wrapped(file))
        assert got.exchange.files == 0
        assert got.body == b"0123456789"
        assert len(got.parts) == 3
        assert file.closed

    def test_text(self, tmp_path: Path) -> None:
        """A file that was opened as text is sent without being read, too."""
        path = tmp_path / "file"
        path.write_bytes(b"0123")
        got = Got(self.wrapped(path.open(encoding="ascii")))
        assert got.body == b"0123"

    def test_temporary(self) -> None:
        """A temporary file, which is wrapped itself, is sent without being read."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"0123")
            file.seek(0)
            got = Got(self.wrapped(file))
        assert got.body == b"0123"
        assert got.exchange.files == 1

    def test_special(self) -> None:
        """A file whose size the system doesn't know is read."""
        path = Path("/proc/self/stat")
        got = Got(self.wrapped(path.open("rb"), size=1_000))
        assert got.body.endswith(b"\n")

    def test_no_close(self) -> None:
        """What has only a read method will do."""
        parts = [b"ab", b"c", b""]

        class Reader:
            def read(self, size: int) -> bytes:
                return parts.pop(0)

        wrapper = FileWrapper(Reader())
        assert not hasattr(wrapper, "close")
        assert Got(application(wrapper)).body == b"abc"


class TestValidator:
    """With the standard library's validator between the server and the application, which checks both."""

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize("parts", [[], [b"hello"], [b"", b"a", b"b"]])
    def test_answers(self, method: str, parts: list[bytes]) -> None:
        """Lists and generators are answered as PEP 3333 wants it."""
        got = Got(validator(application(parts)), ("REQUEST_METHOD", method))
        assert got.error is None
        assert got.exchange.finished
        assert got.body == (b"" if method == "HEAD" else b"".join(parts))

    def test_write(self) -> None:
        """So is what is written."""
        got = Got(validator(application([b"b"], writes=[b"a"])))
        assert got.error is None
        assert got.body == b"ab"

    @pytest.mark.parametrize("streamed", [False, True])
    def test_input(self, streamed: bool) -> None:
        """The input has all the methods of PEP 3333, whether the body is complete or a stream."""
        body = b"first\nsecond\nthird\n4\n5"
        read: list[bytes] = []

        def application(environ: Environ, start_response: Any) -> Any:
            source = environ["wsgi.input"]
            read.extend([source.read(2), source.readline(), source.readline(3), next(iter(source))])
            read.extend(source.readlines())
            read.append(source.read(5))
            environ["wsgi.errors"].write("noted\n")
            environ["wsgi.errors"].flush()
            start_response("200 OK", TEXT)
            return [b"ok"]

        exchange = FakeExchange([body[:4], body[4:9], body[9:]] if streamed else None)
        size = ("CONTENT_LENGTH", str(len(body)))
        environ = environ_of(exchange, size, body=b"" if streamed else body)
        run(validator(application), environ, Response(exchange, environ))
        assert b"".join(read) == body
        assert read[:4] == [b"fi", b"rst\n", b"sec", b"ond\n"]
        assert exchange.answer.endswith(b"ok")
