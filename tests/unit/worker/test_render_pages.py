"""Pages over HTTP and RPC, as a worker renders them: names, variables, parts, ETags, failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.web_servers import parse_response, request_variables
from tests.template_files import write_templates
from uwsgitwisted.errors import MalformedPacket, MisuseError, RemoteError, UnknownFunction
from uwsgitwisted.wire.array import encode_array
from uwsgitwisted.wire.packet import RPC, WSGI, Packet
from uwsgitwisted.wire.rpc import RPC_FRAMED, RPC_HTTP, RPC_RAW
from uwsgitwisted.wire.vars import encode_vars
from uwsgitwisted.worker.handlers import pages, render_rpc
from uwsgitwisted.worker.templates.json_variables import variables_of
from uwsgitwisted.worker.templates.output import PART
from uwsgitwisted.worker.templates.renderer import Renderer, RenderSettings

TEMPLATES = {
    "page.html": "Hello ${name}<%def name=\"side()\">Side ${attributes['x']}</%def>",
    "plain": "plain ${attributes}",
    "sub/data.json": "{}",
    "raises.html": "<b>\n${1 / 0} ${'<script>'}\n</b>",
    "broken.html": "${1 +}",
    "includes.html": "\n<%include file='missing.html'/>",
    "long.txt": "% for i in range(n):\n${'x' * 999}\n% endfor\n% if fail:\n${1 / 0}\n% endif\n",
}


class FakeExchange:
    """A request, and what was sent for it."""

    streamed = False

    def __init__(self, packet: Packet) -> None:
        self.packet = packet
        self.parts: list[bytes] = []
        self.finished = False

    def read(self, size: int) -> bytes:
        return b""

    def send(self, data: bytes) -> None:
        self.parts.append(data)

    def send_file(self, descriptor: int, offset: int, size: int) -> None:
        raise AssertionError("a page is no file")

    def finish(self, data: bytes = b"") -> None:
        self.parts += [data] if data else []
        self.finished = True


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The templates."""
    return write_templates(tmp_path_factory.mktemp("templates"), TEMPLATES)


@pytest.fixture(scope="module", params=[0, 1_000_000], ids=["no cache", "result cache"])
def renderer(directory: Path, request: pytest.FixtureRequest) -> Renderer:
    """A renderer, without a result cache and with one."""
    return Renderer(RenderSettings([str(directory)], result_cache=request.param))


def run(
    renderer: Renderer,
    path: str,
    method: str = "GET",
    body: bytes = b"",
    *,
    debug: bool = False,
    **variables: str,
) -> FakeExchange:
    """Answer a request."""
    block = encode_vars({**request_variables(method, path, body), **variables})
    exchange = FakeExchange(Packet(WSGI, 0, block + body))
    pages.table(renderer, debug=debug)[WSGI](exchange, "n1 worker 1")
    return exchange


def ask(renderer: Renderer, path: str, method: str = "GET", body: bytes = b"", **options: Any) -> Any:
    """Answer a request, and return the answer."""
    exchange = run(renderer, path, method, body, **options)
    assert exchange.finished
    return parse_response(b"".join(exchange.parts), method)


def test_variables(renderer: Renderer) -> None:
    """They are in the query string and in a JSON body, which counts more; names and texts are UTF-8."""
    assert ask(renderer, "/page.html?name=Zo%C3%AB+%26&name2=").body == "Hello Zoë &".encode()
    body = b'{"name": ["\\u00e9", 1]}'
    answer = ask(renderer, "/page.html?name=other", "POST", body)
    assert answer.body == "Hello ['é', 1]".encode()
    assert ask(renderer, "/plain?a=1", "POST", b'{"b": null}').body == b"plain {'a': '1', 'b': None}"
    assert ask(renderer, "/page.html#side?x=5").body == b"Side 5"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/page.html?name=a", "text/html; charset=utf-8"),
        ("/plain", "text/plain; charset=utf-8"),
        ("/sub/data.json", "application/json"),
    ],
)
def test_content_type(renderer: Renderer, path: str, kind: str) -> None:
    """It is that of the template's extension."""
    assert ask(renderer, path).headers["Content-Type"].startswith(kind)


def test_etag(renderer: Renderer) -> None:
    """Who has the page gets 304, also if the ETag was made weak; other variables make another page."""
    first = ask(renderer, "/page.html?name=a")
    etag = first.headers["ETag"]
    assert first.headers["Content-Length"] == "7"
    for known in (etag, f'"other", W/{etag}', "*"):
        again = ask(renderer, "/page.html?name=a", HTTP_IF_NONE_MATCH=known)
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", etag)
    assert ask(renderer, "/page.html?name=b", HTTP_IF_NONE_MATCH=etag).status == 200


def test_post_is_never_unchanged(renderer: Renderer) -> None:
    """POST gets the page, whatever its caller has; so does nobody else who hasn't it."""
    etag = ask(renderer, "/page.html?name=a", "HEAD").headers["ETag"]
    assert ask(renderer, "/page.html?name=a", "HEAD", HTTP_IF_NONE_MATCH=etag).status == 304
    for known in (etag, "*"):
        answer = ask(renderer, "/page.html", "POST", b'{"name": "a"}', HTTP_IF_NONE_MATCH=known)
        assert (answer.status, answer.body) == (200, b"Hello a")


def test_head(renderer: Renderer) -> None:
    """HEAD gets the head of the page, of a short and of a long one."""
    (head,) = run(renderer, "/page.html?name=a", "HEAD").parts
    assert head.endswith(b"\r\n\r\n")
    assert b"Content-Length: 7\r\n" in head
    long = run(renderer, "/long.txt", "HEAD", b'{"n": 200, "fail": 0}')
    assert b"".join(long.parts).count(b"\r\n\r\n") == 1
    assert b"x" * 9 not in b"".join(long.parts)


@pytest.mark.parametrize(
    ("path", "method", "body", "status", "text"),
    [
        ("/missing.html", "GET", b"", 404, "there is no template 'missing.html'"),
        ("/", "GET", b"", 404, "it is empty"),
        ("/page.html#none", "GET", b"", 404, "none"),
        ("/../page.html", "GET", b"", 400, "is refused"),
        ("/\xff", "GET", b"", 400, "not UTF-8"),
        ("/plain?" + "a=1&" * 1_001, "GET", b"", 400, "too many variables"),
        ("/plain", "POST", b"{", 400, "not JSON"),
        ("/plain", "POST", b"[" * 100_000, 400, "not JSON"),
        ("/plain", "POST", b"[1]", 400, "not a JSON object"),
        ("/plain", "DELETE", b"", 405, "GET, HEAD, POST"),
    ],
)
def test_refused(renderer: Renderer, path: str, method: str, body: bytes, status: int, text: str) -> None:
    """What can't be rendered is answered with what is wrong, and is no failure of the renderer."""
    variables = {"PATH_INFO": "/\xff"} if path == "/\xff" else {}
    exchange = FakeExchange(
        Packet(
            WSGI,
            0,
            encode_vars(
                {
                    name: value.encode("latin-1")
                    for name, value in {**request_variables(method, path, body), **variables}.items()
                }
            )
            + body,
        )
    )
    pages.table(renderer)[WSGI](exchange, "")
    answer = parse_response(b"".join(exchange.parts), method)
    assert answer.status == status
    assert text in answer.body.decode()
    assert answer.headers["Allow"] == ("GET, HEAD, POST" if status == 405 else None)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/raises.html", "template 'raises.html', line 2"),
        ("/broken.html", "template 'broken.html', line 1"),
        ("/includes.html", "there is no template 'missing.html' in the template directories; template "),
    ],
)
def test_failures(renderer: Renderer, path: str, text: str) -> None:
    """What fails in a template has its name and line for the caller, and everything for the log."""
    with pytest.raises(RemoteError) as caught:
        run(renderer, path)
    assert caught.value.type == "PageFailed"
    assert caught.value.message.startswith(text)
    assert "ZeroDivisionError" not in caught.value.message
    assert ("ZeroDivisionError" in caught.value.traceback) == (path == "/raises.html")


def test_debug(renderer: Renderer, capsys: pytest.CaptureFixture[str]) -> None:
    """A developer gets the source around the line and the variables' names, escaped; no values."""
    answer = ask(renderer, "/raises.html?%3Ci%3E=secret", debug=True)
    page = answer.body.decode()
    assert answer.status == 500
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "template &#x27;raises.html&#x27;, line 2" in page
    assert "ZeroDivisionError" in page
    assert "<mark>    2  ${1 / 0} ${&#x27;&lt;script&gt;&#x27;}</mark>" in page
    assert "Variables: &lt;i&gt;" in page
    assert "<script>" not in page
    assert "secret" not in page
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "line"), [("page.html", "${1 / 0} é"), ("page.j2", "{{ 1 // 0 }} é")], ids=["mako", "jinja2"]
)
def test_the_line_that_failed(tmp_path: Path, name: str, line: str) -> None:
    """The log and the page for developers quote it, whatever else ends a line, and in the encoding."""
    text = f"a\u0085b\x0cc\r\n\r\n{line}\r\n"
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    renderer = Renderer(RenderSettings([str(tmp_path)], encoding="latin-1"))
    assert f"<mark>    3  {line}</mark>" in ask(renderer, f"/{name}", debug=True).body.decode()
    with pytest.raises(RemoteError) as caught:
        run(renderer, f"/{name}")
    assert "line 3, in " in caught.value.traceback
    assert f"    {line}\n" in caught.value.traceback


def test_a_long_page(directory: Path) -> None:
    """It is sent as it is rendered, in parts; if it fails then, its end is missing."""
    renderer = Renderer(RenderSettings([str(directory)]))
    exchange = run(renderer, "/long.txt", "POST", b'{"n": 1000, "fail": 0}')
    assert exchange.finished
    assert len(exchange.parts) > 20
    answer = parse_response(b"".join(exchange.parts))
    assert len(answer.body) == 1_000_000
    assert "ETag" not in answer.headers
    assert "Content-Length" not in answer.headers
    block = encode_vars(request_variables("POST", "/long.txt", b'{"n": 1000, "fail": 1}'))
    cut = FakeExchange(Packet(WSGI, 0, block + b'{"n": 1000, "fail": 1}'))
    with pytest.raises(RemoteError):
        pages.table(renderer)[WSGI](cut, "")
    assert cut.parts
    assert not cut.finished


@pytest.mark.parametrize("size", [PART, PART + 1])
def test_a_page_of_one_part(tmp_path: Path, size: int) -> None:
    """One of up to 32 KB has an ETag; a longer one begins at once, even if it is written in one piece."""
    (tmp_path / "page.txt").write_text("${'x' * int(size)}")
    answer = ask(Renderer(RenderSettings([str(tmp_path)])), f"/page.txt?size={size}")
    assert answer.body == b"x" * size
    assert ("ETag" in answer.headers) == ("Content-Length" in answer.headers) == (size <= PART)


def test_a_page_that_is_too_large(directory: Path) -> None:
    """It fails."""
    renderer = Renderer(RenderSettings([str(directory)], max_output=100))
    with pytest.raises(RemoteError) as caught:
        run(renderer, "/long.txt", "POST", b'{"n": 1, "fail": 0}')
    assert caught.value.message == "template 'long.txt': its page is too large"


def test_no_request(renderer: Renderer) -> None:
    """What is no web request is the sender's fault."""
    with pytest.raises(MalformedPacket):
        pages.table(renderer)[WSGI](FakeExchange(Packet(WSGI, 0, b"junk")), "")


class TestRpc:
    """The function ``render``."""

    @staticmethod
    def call(renderer: Renderer, *items: str) -> bytes:
        request = Packet(RPC, RPC_FRAMED, encode_array(items))
        return render_rpc.table(renderer)[RPC](request).payload

    def test_render(self, renderer: Renderer) -> None:
        """It takes a name, and variables as JSON."""
        assert self.call(renderer, "render", "page.html", json.dumps({"name": "Zoë"})) == "Hello Zoë".encode()
        assert self.call(renderer, "render", "sub/data.json") == b"{}"

    def test_json_in_several_arguments(self, renderer: Renderer) -> None:
        """Long JSON is cut into several arguments, wherever that is."""
        text = json.dumps({"name": "x" * 100_000})
        items = [text[start : start + 65_535] for start in range(0, len(text), 65_535)]
        assert self.call(renderer, "render", "page.html", *items) == b"Hello " + b"x" * 100_000

    def test_stream(self, renderer: Renderer) -> None:
        """A call that takes bytes gets them as they are rendered; a short page is whole, and a failure none."""

        def stream(*items: str) -> FakeExchange:
            exchange = FakeExchange(Packet(RPC, RPC_RAW, encode_array(("render", *items))))
            render_rpc.table(renderer)[RPC].streams[RPC_RAW](exchange, "n1 worker 1")
            return exchange

        long = stream("long.txt", json.dumps({"n": 200, "fail": False}))
        assert len(long.parts) > 3
        assert max(map(len, long.parts)) < 2 * PART
        assert len(b"".join(long.parts)) == 200_000
        assert stream("page.html", '{"name": "Ann"}').parts == [b"Hello Ann"]
        with pytest.raises(RemoteError, match="line 2"):
            stream("raises.html")
        with pytest.raises(UnknownFunction):
            render_rpc.table(renderer)[RPC].streams[RPC_RAW](FakeExchange(Packet(RPC, 1, encode_array(("f",)))))

    def test_result_cache(self, directory: Path) -> None:
        """A page that was rendered for anybody who sends JSON is there for all of them."""
        renderer = Renderer(RenderSettings([str(directory)], result_cache=1_000_000))
        for _ in range(2):
            assert self.call(renderer, "render", "page.html", '{"name": "Ann"}') == b"Hello Ann"
        assert ask(renderer, "/page.html?name=Ann").body == b"Hello Ann"
        assert self.call(renderer, "render", "page.html", '{"name": "Bob"}') == b"Hello Bob"
        assert (renderer.statistics.hits, renderer.statistics.misses) == (2, 2)

    def test_over_http(self, renderer: Renderer) -> None:
        """In a path, the name may have slashes."""
        block = encode_vars({"PATH_INFO": "/render/sub/data.json"})
        answer = render_rpc.table(renderer)[RPC](Packet(RPC, RPC_HTTP, block)).payload
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n{}")

    def test_refused(self, renderer: Renderer) -> None:
        """Other functions and other arguments are the caller's mistakes."""
        with pytest.raises(UnknownFunction):
            self.call(renderer, "other", "page.html")
        for items in ((), ("page.html", "1"), ("page.html", "{}", "{}")):
            with pytest.raises(MisuseError):
                self.call(renderer, "render", *items)
        with pytest.raises(RemoteError, match="line 2"):
            self.call(renderer, "render", "raises.html")


@pytest.mark.parametrize("text", [b"\xff", b"nul", b"9" * 10_000, b"NaN,"])
def test_variables_that_are_none(text: bytes) -> None:
    """What isn't a JSON object is refused; nothing is none."""
    assert variables_of(b"") == {}
    with pytest.raises(MisuseError):
        variables_of(text)
