"""A real router with real uWSGI nodes behind it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.nginx import Nginx
from tests.integration.routers import Answer, Router, Routers, WebNode, ask, digest, routers
from tests.integration.services import PATIENCE, TERMINATED, free_port, read_to_end, until

pytestmark = [pytest.mark.integration, pytest.mark.needs("uwsgi")]

SIZES = [0, 1, 65_535, 65_536, 1_000_000]
MEBIBYTE = 1 << 20


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Routers]:
    """Start nodes and routers that end with the test."""
    with routers(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebNode]:
    """Give a node that ends with the module."""
    with routers(tmp_path_factory.mktemp("n")) as started:
        yield started.node()


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory, node: WebNode) -> Iterator[Router]:
    """Give a router in front of it, which sends files too."""
    directory = tmp_path_factory.mktemp("r")
    files = directory / "files"
    files.mkdir()
    (files / "page.txt").write_text("0123456789")
    (files / "large").write_bytes(os.urandom(3 * MEBIBYTE))
    with routers(directory) as started:
        yield started.router(node.address, options=["--static", f"/static={files}"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize("query", ["", "?unsized"], ids=["length", "to the end"])
def test_bodies(router: Router, size: int, chunked: bool, query: str) -> None:
    """Bodies and answers of each size arrive as they were sent, in each form."""
    body = os.urandom(size)
    sent = [body[:1000], body[1000:]] if chunked else body
    answer = router.request("POST", f"/echo{query}", sent)
    assert answer.status == 200
    assert digest(answer.body) == digest(body)
    if query:
        assert answer.headers["Transfer-Encoding"] == "chunked"
    else:
        assert answer.headers["Content-Length"] == str(size)


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_large_bodies(router: Router, chunked: bool) -> None:
    """100 MB arrive as they were sent, up and down, and the router's memory doesn't grow with them."""
    block = os.urandom(MEBIBYTE)
    before = router.memory()
    body = iter([block] * 100) if chunked else block * 100
    answer = router.request("POST", "/echo?unsized", body)
    assert answer.body == block * 100
    assert router.memory() - before < 16 * MEBIBYTE


def test_keep_alive(router: Router) -> None:
    """A connection takes any number of requests, of each kind."""
    with contextlib.closing(router.client()) as client:
        client.connect()
        port = client.sock.getsockname()[1]
        for number in range(20):
            body = str(number).encode()
            assert ask(client, "POST", "/echo", body).body == body
            assert ask(client, "POST", "/echo", iter([body, body])).body == body * 2
            assert ask(client, "GET", "/name").body == b"node0"
            assert ask(client, "GET", "/static/page.txt").body == b"0123456789"
            assert ask(client, "GET", "/static/absent").status == 404
            assert ask(client, "HEAD", "/headers").status == 202
            assert json.loads(ask(client, "GET", "/env").body)["REMOTE_PORT"] == str(port)


def test_pipelining(router: Router) -> None:
    """Requests that are sent at once are answered in order, and HTTP/1.0 ends the connection."""
    request = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"
    posts = b"".join(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n%02d" % number for number in range(20)
    )
    received = router.raw(request + posts + b"GET /name HTTP/1.0\r\n\r\n" + request)
    assert received.count(b"HTTP/1.1 200 OK") == 21
    assert received.count(b"HTTP/1.0 200 OK") == 1
    assert [received.index(b"\r\n\r\n%02d" % number) for number in range(20)] == sorted(
        received.index(b"\r\n\r\n%02d" % number) for number in range(20)
    )
    assert received.endswith(b"\r\n\r\nnode0")


def test_old_clients(router: Router) -> None:
    """A client of HTTP/1.0 gets no chunks, and needs no Host."""
    head, _, body = router.raw(b"GET /name HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"chunked" not in head
    assert body == b"node0"


def test_pieces(start: Routers) -> None:
    """The head of an answer, and each of its pieces, arrive as soon as the application has sent them."""
    node = start.node()
    router = start.router(node.address)
    with contextlib.closing(router.client()) as client:
        client.request("GET", "/pieces")
        (node.directory / "go0").touch()
        answer = client.getresponse()
        for number in range(3):
            (node.directory / f"go{number}").touch()
            assert answer.readline() == b"piece %d\n" % number
        assert answer.read() == b""


def test_answers(router: Router) -> None:
    """Status, reason and headers are the application's; those of the connection are the router's."""
    answer = router.request("GET", "/headers")
    assert answer.status == 202
    assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert answer.headers["X-One"] == "1"
    assert answer.headers["Connection"] is None
    assert answer.headers["Date"]
    assert b"202 Quite Fine" in router.raw(b"GET /headers HTTP/1.0\r\n\r\n")


def test_answers_without_a_body(router: Router) -> None:
    """HEAD, 204 and 304 have no body, whatever the application sends, and the connection stays usable."""
    with contextlib.closing(router.client()) as client:
        for method, status in (("HEAD", "200+OK"), ("GET", "204+No+Content"), ("GET", "304+Not+Modified")) * 2:
            answer = ask(client, method, f"/nothing?{status}")
            assert answer.status == int(status[:3])
            assert answer.headers["X-Is"] == "here"
            assert answer.body == b""
            assert answer.headers["Content-Length"] == (None if answer.status == 204 else "4")
        assert ask(client, "GET", "/name").body == b"node0"


#: What nginx sends that the router doesn't, and the other way round.
_ONLY_NGINX = {
    "DOCUMENT_ROOT",
    "HTTP_CONNECTION",
    "HTTP_CONTENT_TYPE",
    "HTTP_CONTENT_LENGTH",
    "HTTP_X_FORWARDED_PREFIX",
}
_ONLY_ROUTER = {"HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO"}
#: What differs: each has a port of its own, Debian's nginx sends HTTP_HOST without a port, and SERVER_NAME is a
#: setting.
_OTHERWISE = {"SERVER_PORT", "REMOTE_PORT", "HTTP_HOST", "SERVER_NAME"}


@pytest.mark.needs("nginx")
@pytest.mark.parametrize(
    "target",
    [
        "/env",
        "/env?a=1&b=%20+",
        "//env",
        "/a/../env?x",
        "/./env",
        "/%65nv",
        "/e%6ev?q?r",
        "/a/b/../../env",
        "/env/%2e%2e/env",
        "/x%2Fy/../../env",
        "http://other:80/env?a",
    ],
)
def test_variables(tmp_path: Path, node: WebNode, router: Router, target: str) -> None:
    """The application gets the variables that nginx would send, except those listed here."""
    headers = {
        "Content-Type": "text/plain",
        "X-Two-Words": "a  b",
        "Cookie": "a=1",
        "Accept": "*/*",
        "Proxy": "http://evil/",
        "X_Underscore": "no",
        "X.Dot": "no",
        "Authorization": "Basic abc",
    }
    del headers["Proxy"]  # nginx sends it on
    locations = f"location / {{ include /etc/nginx/uwsgi_params; uwsgi_pass {node.address}; }}"
    nginx = Nginx(tmp_path, locations)
    try:
        theirs = json.loads(nginx.ask("POST", target, b"body", headers).body)
    finally:
        nginx.stop()
    ours = json.loads(router.request("POST", target, b"body", headers).body)
    assert theirs.keys() - ours.keys() <= _ONLY_NGINX
    assert ours.keys() - theirs.keys() == _ONLY_ROUTER
    for name in (ours.keys() & theirs.keys()) - _OTHERWISE:
        assert ours[name] == theirs[name], name


def test_proxies(start: Routers, node: WebNode) -> None:
    """What a client says about itself is dropped, unless it comes from a proxy that is trusted."""
    headers = {
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "there",
        "X-Forwarded-Port": "1",
        "Forwarded": "for=1.2.3.4",
        "X-Real-IP": "1.2.3.4",
        "Proxy": "http://evil/",
    }
    plain, trusting = start.router(node.address), start.router(node.address, options=["--trust", "127.0.0.0/8"])
    seen = json.loads(plain.request("GET", "/env", headers=headers).body)
    assert "1.2.3.4" not in str(seen)
    assert seen["HTTP_X_FORWARDED_FOR"] == "127.0.0.1"
    assert seen["HTTP_X_FORWARDED_PROTO"] == "http"
    assert seen["HTTP_X_FORWARDED_HOST"] == seen["HTTP_HOST"]
    assert not {"HTTP_X_FORWARDED_PORT", "HTTP_PROXY", "HTTP_FORWARDED"} & seen.keys()
    seen = json.loads(trusting.request("GET", "/env", headers=headers).body)
    assert seen["HTTP_X_FORWARDED_FOR"] == "1.2.3.4, 127.0.0.1"
    assert seen["HTTP_X_FORWARDED_PROTO"] == "https"
    assert seen["HTTP_X_FORWARDED_HOST"] == "there"
    assert seen["HTTP_FORWARDED"] == "for=1.2.3.4"
    assert "HTTP_PROXY" not in seen


def test_static_files(router: Router) -> None:
    """Files are sent whole, in part, or not at all if the client has them."""
    answer = router.request("GET", "/static/page.txt")
    assert (answer.status, answer.body) == (200, b"0123456789")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    modified = answer.headers["Last-Modified"]
    assert router.request("GET", "/static/page.txt", headers={"If-Modified-Since": modified}).status == 304
    part = router.request("GET", "/static/page.txt", headers={"Range": "bytes=2-4", "If-Range": modified})
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert router.request("GET", "/static/page.txt", headers={"Range": "bytes=10-"}).status == 416
    head = router.request("HEAD", "/static/page.txt")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "10")
    assert router.request("GET", "/static/").status == 404
    assert router.request("POST", "/static/page.txt", b"x").status == 405
    assert digest(router.request("GET", "/static/large").body) == digest(
        (router.directory.parent / "files" / "large").read_bytes()
    )


def test_an_answer_before_the_body(router: Router) -> None:
    """A client that sends a large body gets the answer that was given without it.

    The node, a real uWSGI, resets the connection behind its answer, while the router sends the body.
    """
    answer = router.request("POST", "/early", bytes(20 * MEBIBYTE))
    assert (answer.status, answer.body) == (403, b"no")


def test_a_body_that_is_too_large(start: Routers, node: WebNode) -> None:
    """A body beyond the limit is refused, whether its size was announced or not."""
    router = start.router(node.address, options=["--max-body", "1M"])
    for size, status in ((MEBIBYTE, 200), (MEBIBYTE + 1, 413)):
        assert router.request("POST", "/count", bytes(size)).status == status
        assert router.request("POST", "/count", iter([bytes(size)])).status == status


def test_a_worker_that_dies(start: Routers) -> None:
    """A request whose worker dies gets 502, after three nodes have tried it if it may run twice."""
    nodes = [start.node() for _ in range(2)]
    router = start.router(*(each.address for each in nodes))
    assert router.request("POST", "/killed", b"x").status == 502
    assert router.request("GET", "/killed").status == 502
    assert router.request("GET", "/name").status == 200
    until(lambda: sum(each.log.count("DAMN ! worker") for each in nodes) == 3, "the third death")


def test_an_answer_that_is_cut(router: Router) -> None:
    """A client notices that an answer is not whole."""
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        router.request("GET", "/cut")


def test_no_node(start: Routers) -> None:
    """Without a node, the client is told to try again, and a node that starts later is used."""
    node = start.node()
    router = start.router(node.address)
    node.stop()
    answer = router.request("GET", "/name")
    assert answer.status == 503
    assert 1 <= int(answer.headers["Retry-After"]) <= 8
    node.start()
    until(lambda: router.request("GET", "/name").status == 200, "the node's return")
    assert "is back" in router.log


def test_a_node_that_hangs(start: Routers) -> None:
    """A node that doesn't answer in time gives 504, and the others go on."""
    node = start.node()
    router = start.router(node.address, options=["--timeout", "1"])
    assert router.request("GET", "/wait").status == 504
    assert router.request("GET", "/name").status == 200


def test_the_node_with_the_fewest(start: Routers) -> None:
    """A node with a long request gets no other one while there is a free node."""
    nodes = [start.node() for _ in range(2)]
    router = start.router(*(each.address for each in nodes))
    with contextlib.closing(router.client()) as client:
        client.request("GET", "/wait")
        until(lambda: any((each.directory / "waiting").exists() for each in nodes), "the request")
        busy = next(each for each in nodes if (each.directory / "waiting").exists())
        answered = {router.request("GET", "/name").body.decode() for _ in range(10)}
        assert answered == {each.name for each in nodes if each is not busy}
        (busy.directory / "go").touch()
        assert client.getresponse().read() == b"waited"


def test_a_node_killed_under_load(start: Routers) -> None:
    """While a node is killed and started again, no request fails that may run twice."""
    nodes = [start.node() for _ in range(3)]
    router = start.router(*(each.address for each in nodes))
    answers: list[Answer] = []
    errors: list[BaseException] = []
    stopping = threading.Event()

    def load() -> None:
        with contextlib.closing(router.client()) as client:
            while not stopping.is_set():
                try:
                    answers.append(ask(client, "GET", "/name"))
                except (OSError, http.client.HTTPException) as error:
                    errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            for killed in nodes[:2]:
                more = len(answers) + 50
                until(lambda: len(answers) >= more, "requests")  # noqa: B023 - called at once
                killed.stop()
                until(lambda: len(answers) >= more + 50, "requests without it")  # noqa: B023
                killed.start()
                until(lambda: router.log.count("is back") >= router.log.count("left out"), "its return")
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert {answer.status for answer in answers} == {200}
    assert {answer.body for answer in answers} == {b"node0", b"node1", b"node2"}


@pytest.mark.parametrize(("path", "status"), [("/zeros?1073741824", 200)])
def test_a_large_answer_in_constant_memory(router: Router, path: str, status: int) -> None:
    """1 GB comes down in constant memory."""
    before = router.memory()
    peak = size = 0
    with contextlib.closing(router.client()) as client:
        client.request("GET", path)
        answer = client.getresponse()
        assert answer.status == status
        while piece := answer.read(4 * MEBIBYTE):
            size += len(piece)
            peak = max(peak, router.memory())
    assert size == 1 << 30
    assert peak - before < 16 * MEBIBYTE


def test_a_large_body_in_constant_memory(router: Router) -> None:
    """1 GB goes up in constant memory."""
    before = router.memory()
    peak = 0

    def pieces() -> Iterator[bytes]:
        nonlocal peak
        for _ in range(256):
            yield bytes(4 * MEBIBYTE)
            peak = max(peak, router.memory())

    answer = router.request("POST", "/count", pieces(), {"Content-Length": str(1 << 30)})
    assert answer.body == str(1 << 30).encode()
    assert peak - before < 16 * MEBIBYTE


def test_a_client_that_does_not_read(router: Router) -> None:
    """An answer that its client doesn't read is not kept: the node waits."""
    before = router.memory()
    with router.connect(receive_buffer=4096) as client:
        client.sendall(b"GET /zeros?200000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert router.request("GET", "/name").status == 200
        assert router.memory() - before < 16 * MEBIBYTE


def test_stopping(start: Routers) -> None:
    """A request in flight is answered, idle connections are closed, and then the service ends."""
    node = start.node()
    router = start.router(node.address)
    with contextlib.closing(router.client()) as idle, contextlib.closing(router.client()) as busy:
        assert ask(idle, "GET", "/name").status == 200
        busy.request("GET", "/wait")
        until((node.directory / "waiting").exists, "the request")
        router.process.send_signal(signal.SIGHUP)
        router.wait_for("no code to reload")
        router.process.send_signal(signal.SIGTERM)
        assert idle.sock.recv(1) == b""
        with pytest.raises(OSError, match="refused"):
            router.connect()
        (node.directory / "go").touch()
        answer = busy.getresponse()
        assert answer.read() == b"waited"
        assert answer.headers["Connection"] == "close"
    assert router.process.wait(PATIENCE) == TERMINATED
    assert "Traceback" not in router.log


def _tls(port: int) -> str:
    """Return the endpoint of a port with TLS."""
    files = Path(__file__).parents[2] / "unit" / "tls"
    return f"ssl:{port}:privateKey={files}/key.pem:certKey={files}/roots/node.pem"


def test_tls(start: Routers, node: WebNode) -> None:
    """With --https, the application is told so."""
    port = free_port()
    start.router(node.address, options=["--https", _tls(port)])
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])  # as browsers do
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)
    with contextlib.closing(client):
        seen = json.loads(ask(client, "GET", "/env").body)
        assert (seen["HTTPS"], seen["REQUEST_SCHEME"]) == ("on", "https")
        assert seen["HTTP_X_FORWARDED_PROTO"] == "https"
        assert client.sock.selected_alpn_protocol() == "http/1.1"
        body = os.urandom(3 * MEBIBYTE)
        assert digest(ask(client, "POST", "/echo", body).body) == digest(body)


def test_whom_it_serves(start: Routers, node: WebNode) -> None:
    """A connection from outside the networks in --allow is closed at once, with TLS and without."""
    port = free_port()
    router = start.router(node.address, options=["--allow", "10.0.0.0/8", "--https", _tls(port)])
    for address in (router.address, ("127.0.0.1", port)):
        with socket.create_connection(address, PATIENCE) as client:
            assert read_to_end(client) == b""
    router.wait_for("none of the allowed networks")
    assert "Traceback" not in router.log
