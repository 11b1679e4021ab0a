"""twisted.web resources in memory: the request and the answer, producers, limits, and every way to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.web.error import UnsupportedMethod
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface.verify import verifyObject

from tests.unit.peers import peer_at
from uwsgitwisted.access import Peer
from uwsgitwisted.access_log import Entry
from uwsgitwisted.engines.resource.channel import HELD
from uwsgitwisted.engines.resource.engine import ResourceEngine
from uwsgitwisted.errors import (
    Busy,
    ConnectionFailed,
    MalformedPacket,
    MessageTooLarge,
    ProtocolError,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    Unavailable,
)
from uwsgitwisted.interfaces import IEngine, Request, StreamedAnswer
from uwsgitwisted.stream import Stream
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.vars import encode_vars

TIMEOUT = 60.0
LOCAL = Peer(UNIXAddress(None))


class Page(Resource):
    """A resource that renders each request with a function, and keeps the requests."""

    isLeaf = True  # noqa: N815

    def __init__(self, render: Callable[[Any], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._render = render
        self.requests: list[Any] = []
        self.ends: list[object] = []

    def render(self, request: Any) -> Any:
        self.requests.append(request)
        request.notifyFinish().addBoth(self.ends.append)
        return self._render(request)


BENCHES: list[Bench] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """End the requests that a test leaves: they have files."""
    yield
    while BENCHES:
        BENCHES.pop().end()


class Bench:
    """An engine with one resource, and its clock."""

    def __init__(self, render: Any = lambda _: b"page", **options: Any) -> None:
        BENCHES.append(self)
        self.clock = Clock()
        self.page: Any = render if isinstance(render, Resource) else Page(render)
        self.lines: list[Entry] = []
        settings = {"timeout": TIMEOUT, "max_queue": 8, "max_form": 1_000_000, "max_forms": 3_000_000}
        self.engine = ResourceEngine(
            self.clock,
            self.page,
            name="some.page",
            log=self.lines.append,
            **{**settings, **options},  # type: ignore[arg-type]
        )

    def ask(
        self,
        method: str = "GET",
        path: str = "/",
        body: bytes | Stream = b"",
        size: int | None = None,
        modifier1: int = 0,
        peer: Peer = LOCAL,
        **variables: str,
    ) -> Asked:
        """Send a request; its body is bytes, or a stream of a size."""
        length = size if isinstance(body, Stream) else len(body)
        made = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "CONTENT_LENGTH": str(length or ""),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_NAME": "example.org",
            "SERVER_PORT": "80",
            **variables,
        }
        block = encode_vars(made)
        if isinstance(body, Stream):
            request = Request(Packet(modifier1, 0, block), peer, body=body)
        else:
            request = Request(Packet(modifier1, 0, block + body), peer)
        return Asked(self.engine.submit(request))

    def end(self) -> None:
        """End what is in flight."""
        self.engine.stop(0)
        self.clock.advance(0)

    @property
    def request(self) -> Any:
        """The last request that the resource has got."""
        return self.page.requests[-1]


class Asked:
    """A request that was sent, and what comes back."""

    def __init__(self, answer: Deferred[Any]) -> None:
        self.deferred = answer
        self.results: list[Any] = []
        answer.addBoth(self.results.append)

    @property
    def result(self) -> Any:
        """The answer, or the failure."""
        (result,) = self.results
        return result

    @property
    def stream(self) -> Stream:
        """The stream of an answer that has begun."""
        assert isinstance(self.result, StreamedAnswer)
        assert self.result.packet.payload == b""
        return self.result.stream

    @property
    def error(self) -> Any:
        """The error with which the request has failed."""
        assert isinstance(self.result, Failure)
        return self.result.value

    @property
    def whole(self) -> bytes:
        """The whole answer, however it came."""
        if isinstance(self.result, bytes):
            return self.result
        stream = self.stream
        taken = take_all(stream)
        assert stream.finished
        assert stream.error is None
        return taken

    @property
    def status(self) -> bytes:
        """The first line of the answer."""
        return self.whole.partition(b"\r\n")[0]

    @property
    def headers(self) -> list[bytes]:
        """The headers of the answer."""
        return self.whole.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]

    @property
    def body(self) -> bytes:
        """The body of the answer."""
        return self.whole.partition(b"\r\n\r\n")[2]


def take_all(stream: Stream) -> bytes:
    """Take what is in a stream."""
    taken = b""
    while data := stream.take(100_000):
        taken += data
    return taken


def later(_: object) -> Any:
    """Answer later."""
    return NOT_DONE_YET


class Producer:
    """Keeps what it is asked for."""

    def __init__(self, on_resume: Callable[[], None] = lambda: None) -> None:
        self.calls: list[str] = []
        self._on_resume = on_resume

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")
        self._on_resume()

    def stopProducing(self) -> None:
        self.calls.append("stop")


class TestAnswers:
    def test_interface(self) -> None:
        """It is an engine."""
        assert verifyObject(IEngine, Bench().engine)

    def test_whole(self) -> None:
        """What a resource returns is answered at once, as one piece, and nothing is left."""
        bench = Bench()
        asked = bench.ask()
        assert isinstance(asked.result, bytes)
        assert asked.status == b"HTTP/1.0 200 OK"
        assert asked.body == b"page"
        assert b"Content-Length: 4" in asked.headers
        assert not bench.clock.getDelayedCalls()
        assert bench.page.ends == [None]

    def test_large(self) -> None:
        """A large answer that is complete is a stream, so that it isn't copied."""
        asked = Bench(lambda _: b"x" * (HELD + 1)).ask()
        assert isinstance(asked.result, StreamedAnswer)
        assert asked.body == b"x" * (HELD + 1)

    def test_no_chunks(self) -> None:
        """An answer without a length isn't sent in chunks, although the browser speaks HTTP/1.1."""

        def render(request: Any) -> int:
            request.write(b"one")
            request.write(b"two")
            request.finish()
            return NOT_DONE_YET

        asked = Bench(render).ask()
        assert isinstance(asked.result, bytes)
        assert asked.body == b"onetwo"
        assert not any(b"Transfer-Encoding" in header for header in asked.headers)

    def test_head(self) -> None:
        """An answer to HEAD has no body."""
        asked = Bench().ask("HEAD")
        assert (asked.status, asked.body) == (b"HTTP/1.0 200 OK", b"")
        assert b"Content-Length: 4" in asked.headers

    def test_not_modified(self) -> None:
        """A page that has not changed isn't sent again."""

        def render(request: Any) -> bytes:
            return b"" if request.setETag(b'"x"') else b"page"

        asked = Bench(render).ask(HTTP_IF_NONE_MATCH='"x"')
        assert (asked.status, asked.body) == (b"HTTP/1.0 304 Not Modified", b"")

    def test_later(self) -> None:
        """What is written later in one turn is sent as one piece."""
        bench = Bench(later)
        asked = bench.ask()
        assert asked.results == []
        bench.request.write(b"one")
        bench.request.write(b"two")
        bench.request.finish()
        assert isinstance(asked.result, bytes)
        assert asked.body == b"onetwo"
        assert not bench.clock.getDelayedCalls()

    def test_pieces(self) -> None:
        """What is written is sent at the end of each turn of the reactor."""
        bench = Bench(later)
        asked = bench.ask()
        bench.request.write(b"one")
        assert asked.results == []
        bench.clock.advance(0)
        assert take_all(asked.stream).endswith(b"\r\n\r\none")
        assert not asked.stream.ended
        bench.request.transport.writeSequence([b"t", b"wo"])
        assert take_all(asked.stream) == b"two"
        bench.request.finish()
        assert asked.stream.finished
        assert not bench.clock.getDelayedCalls()

    def test_first_piece_while_rendering(self) -> None:
        """A piece that is written while the resource renders doesn't wait for more."""

        def render(request: Any) -> int:
            request.write(b"one")
            return NOT_DONE_YET

        bench = Bench(render)
        asked = bench.ask()
        bench.clock.advance(0)
        assert take_all(asked.stream).endswith(b"\r\n\r\none")

    @pytest.mark.parametrize("unsafe", ["\r\n", "\n", "\0"])
    def test_no_line_ends(self, unsafe: str) -> None:
        """A value can't end its header, and a reason can't end its line."""

        def render(request: Any) -> bytes:
            request.setResponseCode(200, f"fine{unsafe}X-Reason: 1".encode())
            request.setHeader("X-Some", f"a{unsafe}X-Header: 1")
            return b"page"

        asked = Bench(render).ask()
        assert asked.status.startswith(b"HTTP/1.0 200 fine ")
        assert b"\0" not in asked.whole
        assert not any(header.startswith((b"X-Reason", b"X-Header")) for header in asked.headers)

    def test_access_log(self) -> None:
        """Each answer has a line with its status, its size without headers, and its time."""
        bench = Bench(later)
        bench.ask(path="/a")
        bench.clock.advance(2)
        bench.request.write(b"page")
        assert bench.lines == []
        bench.request.finish()
        (line,) = bench.lines
        assert (line.status, line.size, line.seconds, line.worker, line.uri) == ("200", 4, 2.0, 0, "/a")

    def test_access_log_of_a_slow_body(self) -> None:
        """The time begins when the body is complete."""
        bench = Bench()
        body = Stream()
        bench.ask("POST", "/", body, size=1)
        bench.clock.advance(2)
        body.write(b"x")
        body.end()
        assert [line.seconds for line in bench.lines] == [0.0]


class TestRequests:
    def test_facts(self) -> None:
        """A request has the facts of the browser's, not of the connection behind the web server."""
        bench = Bench(later)
        variables = {"REMOTE_ADDR": "192.0.2.9", "REMOTE_PORT": "4000", "HTTPS": "on", "SERVER_PORT": "8443"}
        bench.ask("GET", "/a/b", QUERY_STRING="x=1&x=2", HTTP_X_SOME="y", **variables)
        request = bench.request
        assert request.getClientAddress().host == "192.0.2.9"
        assert request.getHost().port == 8_443
        assert request.isSecure()
        assert (request.uri, request.path) == (b"/a/b?x=1&x=2", b"/a/b")
        assert request.args == {b"x": [b"1", b"2"]}
        assert request.getHeader("x-some") == "y"
        assert request.clientproto == b"HTTP/1.0"
        assert request.transport.getPeer() == request.getClientAddress()
        assert request.prePathURL() == b"https://example.org:8443/"

    def test_unix_socket(self) -> None:
        """Without a browser's address, the client is the peer."""
        bench = Bench()
        bench.ask(REMOTE_ADDR="unix:")
        assert bench.request.getClientAddress() == LOCAL.address

    @pytest.mark.parametrize(("modifier1", "path"), [(0, "/a/b"), (30, "/app/a/b")])
    def test_mount(self, modifier1: int, path: str) -> None:
        """Below a mount, the resource's path begins behind it, and URLs of the resource have it."""
        bench = Bench()
        bench.ask(path=path, modifier1=modifier1, SCRIPT_NAME="/app")
        request = bench.request
        assert (request.path, request.prepath, request.postpath) == (b"/app/a/b", [b"app"], [b"a", b"b"])
        assert request.prePathURL() == b"http://example.org/app"

    def test_children(self) -> None:
        """A tree of resources works."""
        root = Resource()  # type: ignore[no-untyped-call]
        for name in (b"a", b""):
            root.putChild(name, Page(lambda request: b"/".join(request.prepath)))  # type: ignore[no-untyped-call]
        bench = Bench(root)
        assert bench.ask(path="/a/b").body == b"a"
        assert bench.ask(path="/").body == b""
        assert bench.ask(path="/app/a", SCRIPT_NAME="/app", modifier1=30).body == b"app/a"

    def test_sessions(self) -> None:
        """A session is found by its cookie, until it expires."""
        bench = Bench(lambda request: request.getSession().uid)
        first = bench.ask()
        (cookie,) = [header for header in first.headers if header.startswith(b"Set-Cookie: ")]
        sent = cookie.removeprefix(b"Set-Cookie: ").partition(b";")[0].decode()
        assert bench.ask(HTTP_COOKIE=sent).body == first.body
        bench.clock.advance(1_000)
        assert bench.ask(HTTP_COOKIE=sent).body != first.body

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("application/x-www-form-urlencoded", b"x=1&y=2&x=3"),
            (
                "multipart/form-data; boundary=b",
                b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n1\r\n"
                b"--b\r\nContent-Disposition: form-data; name=y\r\n\r\n2\r\n"
                b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n3\r\n--b--\r\n",
            ),
        ],
    )
    def test_form(self, content_type: str, body: bytes) -> None:
        """A form is parsed, and its fields stand beside those of the query, or in their place."""
        bench = Bench(lambda request: request.content.read())
        asked = bench.ask("POST", "/", body, CONTENT_TYPE=content_type, QUERY_STRING="y=q&z=q")
        assert bench.request.args == {b"x": [b"1", b"3"], b"y": [b"2"], b"z": [b"q"]}
        assert bench.request.getHeader("Content-Type") == content_type
        assert asked.body == body

    def test_form_is_parsed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """twisted.web's own parser doesn't see a form."""
        parsed: list[bytes] = []
        monkeypatch.setattr("twisted.web.http.parse_qs", lambda content, *_: parsed.append(content) or {})
        bench = Bench()
        bench.ask("POST", "/", b"x=1", CONTENT_TYPE="application/x-www-form-urlencoded")
        assert bench.request.args == {b"x": [b"1"]}
        assert parsed == []

    def test_other_bodies(self) -> None:
        """Another body isn't parsed."""
        bench = Bench()
        bench.ask("POST", "/", b"x=1", CONTENT_TYPE="text/plain")
        bench.ask("POST", "/", b"", CONTENT_TYPE="multipart/form-data")
        assert [request.args for request in bench.page.requests] == [{}, {}]

    def test_bad_form(self) -> None:
        """A form that can't be parsed is a bad request."""
        bench = Bench()
        asked = bench.ask("POST", "/", b"nothing", CONTENT_TYPE="multipart/form-data")
        assert isinstance(asked.error, ProtocolError)
        assert bench.page.requests == []

    def test_large_query(self) -> None:
        """A query with too many fields is refused."""
        assert isinstance(Bench().ask(QUERY_STRING="&" * 20_000).error, MessageTooLarge)

    @pytest.mark.parametrize(
        ("variables", "body"), [({"REQUEST_METHOD": ""}, b""), ({"CONTENT_LENGTH": "5"}, b""), ({}, b"rest")]
    )
    def test_malformed(self, variables: dict[str, str], body: bytes) -> None:
        """A request that is none, or isn't complete, fails."""
        block = encode_vars({"REQUEST_METHOD": "GET", **variables})
        asked = Asked(Bench().engine.submit(Request(Packet(0, 0, block + body), LOCAL)))
        assert isinstance(asked.error, MalformedPacket)


class TestBodies:
    @pytest.mark.parametrize("size", [0, 1, 99_999, 100_000, 200_000])
    def test_whole(self, size: int) -> None:
        """A body is in the request's content."""
        asked = Bench(lambda request: request.content.read()).ask("POST", "/", b"x" * size)
        assert asked.body == b"x" * size

    def test_stream(self) -> None:
        """A body that is a stream is taken as it comes, and the resource runs when it is complete."""
        bench = Bench(lambda request: request.content.read())
        taken: list[int] = []
        body = Stream(taken.append)
        asked = bench.ask("POST", "/", body, size=300_000)
        for _ in range(3):
            body.write(b"x" * 100_000)
            assert body.size == 0
        assert sum(taken) == 300_000
        assert bench.page.requests == []
        body.end()
        assert asked.body == b"x" * 300_000

    def test_that_is_there_already(self) -> None:
        """So is one that has ended before."""
        body = Stream()
        body.write(b"x" * 300_000)
        body.end()
        asked = Bench(lambda request: request.content.read()).ask("POST", "/", body, size=300_000)
        assert asked.body == b"x" * 300_000

    def test_broken_off(self) -> None:
        """A request whose body ends early never reaches the resource, and takes no place."""
        bench = Bench(max_queue=1)
        body = Stream()
        asked = bench.ask("POST", "/", body, size=300_000)
        body.write(b"x" * 1_000)
        body.end(ConnectionFailed("gone"))
        assert isinstance(asked.error, RequestCancelled)
        assert bench.page.requests == []
        assert bench.ask("POST", "/", Stream(), size=300_000).results == []

    def test_full_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a body can't be stored, the request fails, and the rest of the body is dropped."""

        class Full:
            def __init__(self, *_: object) -> None:
                pass

            def write(self, data: bytes) -> None:
                raise OSError(28, "No space left on device")

            def close(self) -> None:
                pass

        monkeypatch.setattr("twisted.web.http.tempfile.TemporaryFile", Full)
        cancelled: list[bool] = []
        body = Stream(on_cancel=lambda: cancelled.append(True))
        asked = Bench().ask("POST", "/", body, size=300_000)
        body.write(b"x")
        assert isinstance(asked.error, OSError)
        assert cancelled == [True]

    def test_no_descriptors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no file can be opened for it, its request fails."""

        def refuse() -> None:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("twisted.web.http.tempfile.TemporaryFile", refuse)
        bench = Bench()
        assert isinstance(bench.ask("POST", "/", Stream(), size=300_000).error, OSError)
        assert bench.engine.stop(1).called

    def test_many(self) -> None:
        """Requests with large bodies are limited in number, and one peer can't have all places."""
        bench = Bench(later)
        first, second = peer_at("192.0.2.1"), peer_at("192.0.2.2")
        bodies = [Stream() for _ in range(6)]
        for body in bodies:
            assert bench.ask("POST", "/", body, size=300_000, peer=first).results == []
        assert isinstance(bench.ask("POST", "/", Stream(), size=300_000, peer=first).error, Busy)
        assert bench.ask("POST", "/", Stream(), size=300_000, peer=second).results == []
        assert bench.ask("POST", "/", b"small", peer=first).results == []
        bodies[0].end()  # a request that runs still has its file
        assert isinstance(bench.ask("POST", "/", Stream(), size=300_000, peer=first).error, Busy)
        bodies[1].end()
        bench.request.finish()
        assert bench.ask("POST", "/", Stream(), size=300_000, peer=first).results == []

    def test_large_form(self) -> None:
        """A form that is too large to be parsed in memory is refused; another body of its size isn't."""
        bench = Bench()
        form = {"CONTENT_TYPE": "multipart/form-data; boundary=x"}
        error = bench.ask("POST", "/", Stream(), size=1_000_001, **form).error
        assert isinstance(error, MessageTooLarge)
        assert (error.size, error.limit) == (1_000_001, 1_000_000)
        assert bench.ask("PUT", "/", Stream(), size=1_000_001, **form).results == []

    def test_large_forms(self) -> None:
        """Large forms share a budget, in which one peer leaves room for others."""
        bench = Bench(max_forms=2_500_000)
        form = {"CONTENT_TYPE": "application/x-www-form-urlencoded"}
        body = Stream()
        first, second = peer_at("192.0.2.1"), peer_at("192.0.2.2")
        assert bench.ask("POST", "/", body, size=1_000_000, peer=first, **form).results == []
        assert isinstance(bench.ask("POST", "/", Stream(), size=1_000_000, peer=first, **form).error, Busy)
        assert bench.ask("POST", "/", Stream(), size=1_000_000, peer=second, **form).results == []
        body.end()
        assert bench.ask("POST", "/", Stream(), size=1_000_000, peer=first, **form).results == []


class TestProducers:
    def begin(self, producer: Producer, streaming: bool) -> tuple[Bench, Stream]:
        """Begin an answer, and then register a producer."""
        bench = Bench(later)
        asked = bench.ask()
        bench.request.write(b"head")
        bench.clock.advance(0)
        bench.request.registerProducer(producer, streaming)
        return bench, asked.stream

    def test_push(self) -> None:
        """A push producer pauses when much waits, and goes on when little does."""
        producer = Producer()
        bench, stream = self.begin(producer, streaming=True)
        bench.request.write(b"x" * HELD)
        assert producer.calls == ["pause"]
        bench.request.write(b"x")
        stream.take(100)  # the head
        stream.take(HELD // 4)
        bench.clock.advance(0)
        assert producer.calls == ["pause"]
        take_all(stream)
        assert producer.calls == ["pause"]  # not within the call that takes, whose bytes are not written yet
        bench.clock.advance(0)
        assert producer.calls == ["pause", "resume"]
        take_all(stream)
        bench.clock.advance(0)
        assert producer.calls == ["pause", "resume"]

    def test_pull(self) -> None:
        """A pull producer is asked once in a turn, while little waits."""
        producer = Producer(lambda: bench.request.write(b"x" * HELD))
        bench, stream = self.begin(producer, streaming=False)
        assert producer.calls == []
        for turn in range(1, 5):
            bench.clock.advance(0)
            assert producer.calls == ["resume"] * turn
            stream.take(1_000)
            bench.clock.advance(0)
            assert producer.calls == ["resume"] * turn
            take_all(stream)

    def test_pull_while_rendering(self) -> None:
        """One that is registered before anything is written has its first piece sent."""
        producer = Producer(lambda: bench.request.write(b"piece"))

        def render(request: Any) -> int:
            request.registerProducer(producer, False)
            return NOT_DONE_YET

        bench = Bench(render)
        asked = bench.ask()
        bench.clock.advance(0)
        bench.clock.advance(0)
        assert take_all(asked.stream).endswith(b"piece")

    def test_unregistered(self) -> None:
        """A producer that has finished isn't asked any more."""
        producer = Producer(lambda: bench.request.unregisterProducer() or bench.request.finish())
        bench, stream = self.begin(producer, streaming=False)
        bench.clock.advance(0)
        take_all(stream)
        assert stream.finished
        assert producer.calls == ["resume"]
        assert not bench.clock.getDelayedCalls()

    @pytest.mark.parametrize("streaming", [True, False])
    def test_unregistered_before_it_goes_on(self, streaming: bool) -> None:
        """One that is unregistered before its next turn isn't asked, and the answer goes on."""
        producer = Producer()
        bench, stream = self.begin(producer, streaming)
        bench.request.write(b"x" * HELD)
        take_all(stream)
        bench.request.unregisterProducer()
        bench.clock.advance(0)
        bench.request.write(b"end")
        bench.request.finish()
        assert take_all(stream) == b"end"
        assert stream.error is None
        assert "resume" not in producer.calls

    def test_second(self) -> None:
        """There is only one at a time."""
        bench, _ = self.begin(Producer(), streaming=True)
        with pytest.raises(ValueError, match="registering producer"):
            bench.request.registerProducer(Producer(), True)
        with pytest.raises(RuntimeError, match="another producer"):
            bench.request.channel.registerProducer(Producer(), True)

    def test_raises(self) -> None:
        """A producer that raises has its answer cut off."""
        producer = Producer(lambda: 1 / 0)  # type: ignore[arg-type]
        bench, stream = self.begin(producer, streaming=False)
        with capturedLogs() as logs:
            bench.clock.advance(0)
        take_all(stream)
        assert isinstance(stream.error, ConnectionFailed)
        assert "ZeroDivisionError" in formatEvent(logs[0])

    def test_raises_when_stopped(self) -> None:
        """One that raises when it is stopped is logged, and the application is told all the same."""
        producer = Producer()
        producer.stopProducing = lambda: 1 / 0  # type: ignore[method-assign]
        bench, stream = self.begin(producer, streaming=True)
        with capturedLogs() as logs:
            stream.cancel()
        assert "ZeroDivisionError" in formatEvent(logs[0])
        assert bench.page.ends[0].check(ConnectionLost)

    def test_peer_goes_away(self) -> None:
        """When the peer has gone, the producer is stopped, and the application is told."""
        producer = Producer()
        bench, stream = self.begin(producer, streaming=True)
        request = bench.request
        stream.cancel()
        assert producer.calls == ["stop"]
        assert bench.page.ends[0].check(ConnectionLost)
        request.write(b"more")  # nobody reads it
        assert stream.size == 0
        assert not bench.clock.getDelayedCalls()


class TestEnds:
    def test_peer_goes_away(self) -> None:
        """When the peer goes away before an answer has begun, the application is told."""
        bench = Bench(later)
        asked = bench.ask()
        asked.deferred.cancel()
        assert isinstance(asked.error, RequestCancelled)
        assert bench.page.ends[0].check(ConnectionLost)
        assert not bench.clock.getDelayedCalls()
        assert bench.lines == []

    def test_raises(self) -> None:
        """An exception is logged with its traceback, and the browser sees nothing of it."""
        with capturedLogs() as logs:
            asked = Bench(lambda _: {}["secret"]).ask()  # type: ignore[index]
        assert asked.status == b"HTTP/1.0 500 Internal Server Error"
        assert b"secret" not in asked.whole
        (event,) = logs
        assert "KeyError" in formatEvent(event)
        assert "test_resource_engine.py" in formatEvent(event)

    def test_many_exceptions(self) -> None:
        """The log has few lines of the same exception."""
        bench = Bench(lambda _: 1 / 0)
        with capturedLogs() as logs:
            for _ in range(100):
                bench.ask()
        assert 1 <= len(logs) < 10  # one a second at most

    def test_heads_are_not_logged(self) -> None:
        """twisted.web's remarks about HEAD don't reach the log, since any peer can cause them."""
        with capturedLogs() as logs:
            Bench().ask("HEAD")
        assert logs == []

    def test_raises_in_head(self) -> None:
        """An exception in a page that is rendered for its headers alone is answered too."""

        def render(request: Any) -> bytes:
            if request.method == b"HEAD":
                raise UnsupportedMethod([b"GET"])
            raise KeyError("secret")

        asked = Bench(render).ask("HEAD")
        assert asked.status == b"HTTP/1.0 500 Internal Server Error"
        assert asked.body == b""

    def test_raises_in_the_middle(self) -> None:
        """An exception after the begin of an answer cuts it off."""

        def render(request: Any) -> int:
            request.write(b"begin")
            return NOT_DONE_YET

        bench = Bench(render)
        asked = bench.ask()
        bench.clock.advance(0)
        with capturedLogs() as logs:
            bench.request.processingFailed(Failure(KeyError("secret")))
        assert take_all(asked.stream).endswith(b"begin")
        assert isinstance(asked.stream.error, ConnectionFailed)
        assert len(logs) == 1
        assert bench.page.ends[0].check(RemoteError)

    def test_raises_before_anything_is_sent(self) -> None:
        """If nothing of the answer is sent yet, the request fails."""

        def render(request: Any) -> int:
            request.write(b"begin")
            raise KeyError("secret")

        bench = Bench(render)
        asked = bench.ask()
        assert isinstance(asked.error, RemoteError)
        assert [(line.status, line.size) for line in bench.lines] == [("500", 0)]
        assert not bench.clock.getDelayedCalls()

    def test_raises_after_the_peer_has_gone(self) -> None:
        """An exception after that is logged."""
        bench = Bench(later)
        bench.ask().deferred.cancel()
        with capturedLogs() as logs:
            bench.request.processingFailed(Failure(KeyError("late")))
        assert "KeyError" in formatEvent(logs[0])

    def test_timeout(self) -> None:
        """An answer that doesn't begin in time is given up."""
        bench = Bench(later)
        asked = bench.ask()
        bench.clock.advance(TIMEOUT - 1)
        assert asked.results == []
        bench.clock.advance(1)
        assert isinstance(asked.error, RequestTimeout)
        assert bench.page.ends[0].check(RequestTimeout)
        assert bench.lines == []

    def test_no_timeout_after_the_begin(self) -> None:
        """One that has begun may take long."""
        bench = Bench(later)
        asked = bench.ask()
        bench.request.write(b"begin")
        bench.clock.advance(0)
        bench.clock.advance(10 * TIMEOUT)
        bench.request.finish()
        assert asked.body == b"begin"

    def test_slow_body(self) -> None:
        """The time limit begins when the body is complete."""
        bench = Bench(later)
        body = Stream()
        asked = bench.ask("POST", "/", body, size=1)
        bench.clock.advance(2 * TIMEOUT)
        body.write(b"x")
        body.end()
        assert asked.results == []
        bench.clock.advance(TIMEOUT)
        assert isinstance(asked.error, RequestTimeout)

    @pytest.mark.parametrize("began", [False, True])
    def test_lose_connection(self, began: bool) -> None:
        """An application may end an answer where it is."""
        bench = Bench(later)
        asked = bench.ask()
        bench.request.write(b"begin")
        if began:
            bench.clock.advance(0)
        bench.request.loseConnection()
        assert asked.body == b"begin"
        assert bench.page.ends[0].check(ConnectionDone)
        assert not bench.clock.getDelayedCalls()

    @pytest.mark.parametrize("began", [False, True])
    def test_abort_connection(self, began: bool) -> None:
        """It may abort it, which the peer can tell from an end."""
        bench = Bench(later)
        asked = bench.ask()
        bench.request.write(b"begin")
        if began:
            bench.clock.advance(0)
        bench.request.transport.abortConnection()
        assert isinstance(asked.stream.error, ConnectionFailed)
        assert not bench.clock.getDelayedCalls()

    def test_abort_before_the_answer(self) -> None:
        """Where nothing is written, nothing is answered."""
        bench = Bench(later)
        asked = bench.ask()
        bench.request.transport.abortConnection()
        assert asked.result == b""


class TestStop:
    def test_drain(self) -> None:
        """Requests in flight finish; further ones are refused."""
        bench = Bench(later)
        asked = bench.ask()
        stopped: list[None] = []
        bench.engine.stop(10).addCallback(stopped.append)
        assert isinstance(bench.ask().error, Unavailable)
        assert stopped == []
        bench.request.finish()
        assert asked.status == b"HTTP/1.0 200 OK"
        assert stopped == [None]
        assert not bench.clock.getDelayedCalls()

    def test_idle(self) -> None:
        """Without requests, it stops at once."""
        assert Bench().engine.stop(10).called

    def test_overdue(self) -> None:
        """Requests that take too long are ended: a new answer with an error, and a begun one is cut off."""
        bench = Bench(later)
        waiting, begun = bench.ask(), bench.ask()
        bench.request.write(b"begin")
        bench.clock.advance(0)
        stopped = bench.engine.stop(100)
        bench.engine.stop(10)
        bench.clock.advance(10)
        assert isinstance(waiting.error, Unavailable)
        assert isinstance(begun.stream.error, ConnectionFailed)
        assert stopped.called
