"""Web requests by way of a real nginx, answered by our node and by a real uWSGI: the same bytes and headers.

Known differences are in :data:`DIFFERENT`, :data:`ADDED` and :data:`FRAMING`, and nowhere else.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.nginx import Nginx
from tests.integration.services import PATIENCE, Launcher, until
from tests.integration.web_apps import GREETING, pattern
from tests.integration.web_servers import LOCATIONS, UNBUFFERED, nginx_before, real_server, start_node
from uwsgitwisted.wire.packet import HEADER_SIZE
from uwsgitwisted.wire.vars import decode_vars

pytestmark = [pytest.mark.integration, pytest.mark.needs("nginx", "uwsgi")]

#: Sizes at and beside the limits of packets, of nginx's buffers and of our pieces.
SIZES = [0, 1, 4_095, 4_096, 65_535, 65_536, 1_000_000]
#: Too much for any buffer.
LARGE = 100_000_000
BUFFERING = pytest.mark.parametrize("prefix", ["", UNBUFFERED], ids=["buffered", "unbuffered"])
#: Headers that nginx sets by its clock.
_OF_THE_TIME = {"Date"}

#: Requests with the same answers, to the byte.
SAME = [
    ("GET", "/"),
    ("HEAD", "/"),
    ("OPTIONS", "/"),
    ("BREW", "/"),
    ("GET", "/nowhere?x=1"),
    ("GET", "/headers"),
    ("GET", "/nothing"),
    ("GET", "/empty-pieces"),
    ("HEAD", "/empty-pieces"),
    ("HEAD", "/status?code=200&body=abc&length=1"),
    ("HEAD", "/status?code=404&body=abc"),
    ("GET", "/status?code=204"),
    ("GET", "/status?code=304"),
    ("GET", "/status?code=304&body=xx"),
    ("GET", "/status?code=404&body=abc&length=1"),
    ("GET", "/raises?when=later"),
    ("GET", "/restarts?sent=1"),
    ("GET", "/lies?says=100&sends=10"),
    ("GET", "/lies?says=10&sends=100"),
    ("GET", "/lies?says=10&sends=10"),
    ("GET", "/status?code=204&body=x"),
    ("POST", "/unread"),
]


class Seen(NamedTuple):
    """What a browser gets.

    :param whole: whether the body was as long as was announced.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    whole: bool = True


_FAILED = (500, b"500 Internal Server Error\n")
#: Requests that are answered differently on purpose: the status and the body from us, and from uWSGI. None is
#: nginx's own page for a server that has answered nothing, or nothing that it can read.
DIFFERENT: dict[tuple[str, str], tuple[tuple[int, bytes | None], tuple[int, bytes | None]]] = {
    # An application that fails: we answer 500, uWSGI closes the connection, or sends headers alone.
    ("GET", "/raises?when=before"): (_FAILED, (502, None)),
    ("GET", "/raises?when=after"): (_FAILED, (200, b"")),
    ("GET", "/exits?how=sys"): (_FAILED, (502, None)),
    # An application that breaks the rules of PEP 3333.
    ("GET", "/never-starts"): (_FAILED, (502, None)),
    ("GET", "/starts-twice"): (_FAILED, (200, b"twice")),
    ("GET", "/texts"): (_FAILED, (200, b"")),
    ("GET", "/bad-headers?name=X-A&value=a%0d%0aX-B:%20b"): (_FAILED, (200, b"headers")),
    ("GET", "/bad-headers?name=X-A&value=a%00"): (_FAILED, (502, None)),
    ("GET", "/bad-headers?name=X%20A&value=a"): (_FAILED, (502, None)),
    # What follows a start_response with exc_info: uWSGI sends only the headers.
    ("GET", "/restarts"): ((503, b"sorry"), (503, b"")),
    # uWSGI's variables lack SCRIPT_NAME.
    ("GET", "/validated"): ((200, GREETING), (502, None)),
}
#: Variables that our node adds. PEP 3333 wants the first. For the second, Werkzeug reads bodies in chunks.
ADDED = {"SCRIPT_NAME": "", "wsgi.input_terminated": True}
#: How a body's end is told. Our node says a length that it knows where the application doesn't say it.
FRAMING = {"Content-Length", "Transfer-Encoding"}


@pytest.fixture(scope="module")
def fronts(shared: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Nginx]]:
    """An nginx in front of each server."""
    directory = tmp_path_factory.mktemp("w")
    with ExitStack() as stack:
        _, uwsgi = stack.enter_context(real_server(directory))
        yield {
            "ours": stack.enter_context(nginx_before(start_node(shared).address, directory / "ours")),
            "uWSGI": stack.enter_context(nginx_before(uwsgi, directory / "uwsgi")),
        }


@pytest.fixture(params=["ours", "uWSGI"])
def front(request: pytest.FixtureRequest, fronts: dict[str, Nginx]) -> Nginx:
    """The nginx in front of one of the servers."""
    return fronts[request.param]


def see(front: Nginx, method: str, path: str, body: Any = None, headers: Any = None) -> Seen:
    """Send a request, and return what comes back."""
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        kept = [(name, value) for name, value in answer.getheaders() if name not in _OF_THE_TIME]
        try:
            return Seen(answer.status, kept, answer.read())
        except http.client.IncompleteRead as error:
            return Seen(answer.status, kept, error.partial, whole=False)
    finally:
        connection.close()


def see_the_same(fronts: dict[str, Nginx], method: str, path: str, body: Any = None) -> Seen:
    """Send a request to each server, and return the answer, which has to be the same from all."""
    ours, uwsgi = [see(front, method, path, body() if callable(body) else body) for front in fronts.values()]
    assert ours.status == uwsgi.status
    assert ours.body == uwsgi.body, "the bodies differ"
    assert ours.whole == uwsgi.whole
    if ours.headers != uwsgi.headers:
        assert _without_framing(ours) == _without_framing(uwsgi)
        assert ("Content-Length", str(len(ours.body))) in ours.headers
        assert ("Transfer-Encoding", "chunked") in uwsgi.headers
    return ours


def _without_framing(seen: Seen) -> list[tuple[str, str]]:
    return [(name, value) for name, value in seen.headers if name not in FRAMING]


@pytest.mark.parametrize(("method", "path"), SAME)
def test_same(fronts: dict[str, Nginx], method: str, path: str) -> None:
    """Status, headers and body are the same."""
    see_the_same(fronts, method, path)


@pytest.mark.parametrize(("method", "path"), DIFFERENT)
def test_different(fronts: dict[str, Nginx], method: str, path: str) -> None:
    """Known differences are as they are listed, and no reason for a failure is shown."""
    for front, (status, body) in zip(fronts.values(), DIFFERENT[method, path], strict=True):
        seen = see(front, method, path)
        assert seen.status == status
        assert b"secret" not in seen.body
        assert seen.body == body or (body is None and b"nginx" in seen.body)


def test_a_worker_that_dies(front: Nginx) -> None:
    """The request that has killed its worker gets 502, and the next one is answered."""
    assert see(front, "POST", "/exits?how=kill").status == 502
    assert see(front, "GET", "/").body == GREETING


@BUFFERING
@pytest.mark.parametrize("way", ["whole", "list", "generator", "write", "both"])
@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 200_000])
def test_ways_to_answer(fronts: dict[str, Nginx], prefix: str, way: str, length: int, size: int) -> None:
    """Whole, in pieces or written, with a Content-Length or without: the same arrives."""
    seen = see_the_same(fronts, "GET", f"{prefix}/size?size={size}&as={way}&length={length}")
    assert (seen.status, seen.body, seen.whole) == (200, pattern(size), True)


@BUFFERING
@pytest.mark.parametrize("size", [*SIZES, LARGE])
def test_sizes_of_answers(fronts: dict[str, Nginx], prefix: str, size: int) -> None:
    """An answer of each size arrives as it was made."""
    seen = see_the_same(fronts, "GET", f"{prefix}/size?size={size}&as=generator&length=0")
    assert seen.status == 200
    assert seen.body == pattern(size), "the body is another one"


@BUFFERING
@pytest.mark.parametrize("size", SIZES)
def test_sizes_of_requests(fronts: dict[str, Nginx], prefix: str, size: int) -> None:
    """A body of each size reaches the application, and comes back.

    The application reads all of it before it answers: once nginx has an answer's headers, it sends no more of
    the body (ngx_http_upstream_send_request_handler: only gRPC has ``preserve_output``).
    """
    seen = see_the_same(fronts, "POST", f"{prefix}/echo", pattern(size))
    assert (seen.status, seen.body == pattern(size)) == (200, True)


@BUFFERING
def test_a_large_request(fronts: dict[str, Nginx], prefix: str) -> None:
    """A large body reaches the application as it was sent."""
    body = pattern(LARGE)
    seen = see_the_same(fronts, "POST", f"{prefix}/digest", body)
    assert json.loads(seen.body) == {"size": LARGE, "digest": hashlib.sha256(body).hexdigest()}


@BUFFERING
@pytest.mark.parametrize("size", SIZES)
def test_chunked_requests(fronts: dict[str, Nginx], prefix: str, size: int) -> None:
    """A body in chunks reaches the application without them."""
    pieces = [pattern(size)[start : start + 10_000] for start in range(0, size, 10_000)]
    seen = see_the_same(fronts, "POST", f"{prefix}/echo", lambda: iter(pieces))
    assert (seen.status, seen.body == pattern(size)) == (200, True)


@BUFFERING
@pytest.mark.parametrize("size", [0, 1, 65_536, 1_000_000])
@pytest.mark.parametrize("length", [0, 1])
def test_files(fronts: dict[str, Nginx], tmp_path: Path, prefix: str, size: int, length: int) -> None:
    """A file arrives by the server's file wrapper, with a Content-Length or without."""
    path = tmp_path / "file"
    path.write_bytes(pattern(size))
    seen = see_the_same(fronts, "GET", f"{prefix}/file?path={path}&length={length}")
    assert (seen.status, seen.body, seen.whole) == (200, pattern(size), True)


@pytest.mark.parametrize("body", [b"", b"one\ntwo\nthree\nfour\nfive", b"\n\n\nx\n"])
def test_ways_to_read(fronts: dict[str, Nginx], body: bytes) -> None:
    """read, readline, readlines and iteration give the same."""
    seen = see_the_same(fronts, "POST", "/reads", body)
    assert "".join(json.loads(seen.body)).encode() == body


def test_variables(fronts: dict[str, Nginx]) -> None:
    """The application gets the same variables, but for those that servers add."""
    headers = {"X-Given": "caf\xe9", "Content-Type": "text/x-some", "Cookie": "a=b"}
    told = []
    for front in fronts.values():
        found = json.loads(see(front, "PUT", "/variables?a=b%20c&d=%C3%A9", b"some", headers).body)
        for name in ("REMOTE_PORT", "SERVER_PORT", "HTTP_HOST", "DOCUMENT_ROOT"):
            found.pop(name)
        told.append({name: value for name, value in found.items() if not name.startswith("uwsgi.")})
    ours, uwsgi = told
    assert ours == uwsgi | ADDED
    assert ours["QUERY_STRING"] == "a=b%20c&d=%C3%A9"
    assert (ours["CONTENT_TYPE"], ours["CONTENT_LENGTH"]) == ("text/x-some", "4")
    assert ours["HTTP_X_GIVEN"] == "caf\xe9"


def test_scheme(front: Nginx) -> None:
    """The application knows whether the browser came by TLS."""
    for prefix, scheme in (("", "http"), ("/secure", "https")):
        assert json.loads(see(front, "GET", f"{prefix}/variables").body)["wsgi.url_scheme"] == scheme


@pytest.mark.parametrize("path", ["/caf%C3%A9", "/a%20b//c/../d", "/%ff%fe", "/plus+and%2Fslash", "/a;b=c"])
def test_paths(fronts: dict[str, Nginx], path: str) -> None:
    """A path reaches the application as PEP 3333 has it: its bytes, each a character."""
    assert see_the_same(fronts, "GET", path).status == 404


def test_many_headers(fronts: dict[str, Nginx]) -> None:
    """Variables up to the size of a packet are taken."""
    headers = {f"X-{number}": "x" * 4_000 for number in range(15)}
    for front in fronts.values():
        found = json.loads(see(front, "GET", "/variables", None, headers).body)
        assert all(found[f"HTTP_X_{number}"] == "x" * 4_000 for number in range(15))


def test_events(front: Nginx, tmp_path: Path) -> None:
    """A browser has each server-sent event before the next one is made."""
    with socket.create_connection(("127.0.0.1", front.port), PATIENCE) as connection:
        request = f"GET /events?count=5&path={tmp_path}/event HTTP/1.0\r\nHost: x\r\n\r\n"
        connection.sendall(request.encode())
        with connection.makefile("rb") as received:
            for number in range(5):
                (tmp_path / f"event{number}").touch()
                if number == 0:  # a server sends the headers with the first piece
                    while received.readline() != b"\r\n":
                        pass
                assert (received.readline(), received.readline()) == (b"data: %d\n" % number, b"\n")
            assert received.read() == b""


@pytest.mark.parametrize("pieces", [1, 100])
def test_close(front: Nginx, tmp_path: Path, pieces: int) -> None:
    """An answer's ``close`` is called when all of it was taken."""
    assert front.ask("GET", f"/closing?path={tmp_path}/end&pieces={pieces}").body == b"x" * 1_000 * pieces
    until((tmp_path / "end").exists, "the call of close")
    assert int((tmp_path / "end").read_text()) == pieces


@BUFFERING
def test_a_browser_that_goes_away(front: Nginx, tmp_path: Path, prefix: str) -> None:
    """An endless answer ends, and its ``close`` is called, when nobody reads any more."""
    with socket.create_connection(("127.0.0.1", front.port), PATIENCE) as connection:
        request = f"GET {prefix}/closing?path={tmp_path}/end HTTP/1.0\r\nHost: x\r\n\r\n"
        connection.sendall(request.encode())
        assert connection.recv(1_000)
        assert not (tmp_path / "end").exists()
    until((tmp_path / "end").exists, "the call of close")
    assert see(front, "GET", "/").body == GREETING


class _Taken(NamedTuple):
    variables: dict[bytes, bytes]
    body: bytes


def _take_one(listener: socket.socket, taken: list[_Taken]) -> None:
    """Take a request as a server does, note it, and answer."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as received:
        header = received.read(HEADER_SIZE)
        variables = dict(decode_vars(received.read(int.from_bytes(header[1:3], "little"))))
        body = received.read(int(variables[b"CONTENT_LENGTH"] or 0))
        taken.append(_Taken(variables, body))
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\ndone")


@BUFFERING
def test_what_nginx_makes_of_chunks(tmp_path: Path, prefix: str) -> None:
    """A body in chunks is read to its end by nginx, and its length is sent, whatever the buffering.

    uWSGI's protocol has no way to say that a body's length is unknown. nginx therefore buffers such a body even
    with ``uwsgi_request_buffering off`` (ngx_http_uwsgi_handler leaves buffering on if ``headers_in.chunked``;
    the variable ``$content_length`` is then what was read), and takes the chunks apart. It still passes
    ``Transfer-Encoding`` on with the other headers, so nobody may look for chunks because of that variable.
    """
    taken: list[_Taken] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        server = threading.Thread(target=_take_one, args=(listener, taken))
        server.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with nginx_before(address, tmp_path / "n", LOCATIONS) as front:
            answer = front.ask("POST", f"{prefix}/x", iter([b"one", b"", b"two"] * 10))
        server.join(PATIENCE)
    assert (answer.status, answer.body) == (200, b"done")
    (request,) = taken
    assert request.variables[b"CONTENT_LENGTH"] == b"60"
    assert request.variables[b"HTTP_TRANSFER_ENCODING"] == b"chunked"
    assert request.body == b"onetwo" * 10


def test_greeting(fronts: dict[str, Nginx]) -> None:
    """The applications answer."""
    assert see_the_same(fronts, "GET", "/").body == GREETING
