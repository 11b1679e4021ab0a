"""A site of twisted.web for the tests, and one of Klein. They import nothing of ours."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from klein import Klein
from twisted.internet import reactor
from twisted.internet.task import LoopingCall, deferLater
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.static import File

PIECE = 65_536
app = Klein()


def argument(request: Any, name: str, default: str = "") -> str:
    """Return an argument of the query."""
    return request.args.get(name.encode(), [default.encode()])[0].decode()


def note(request: Any, what: object) -> None:
    """Write something to the file that the query names, at once and whole."""
    path = argument(request, "path")
    with open(f"{path}.new", "w") as file:
        file.write(str(what))
    os.rename(f"{path}.new", path)


class Pushing:
    """A push producer of so many pieces; None for no end."""

    def __init__(self, request: Any, pieces: int | None) -> None:
        self.request = request
        self.left = pieces
        self.written = 0
        self.paused = False
        request.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self.paused = False
        while not self.paused and self.request is not None:
            if self.written == self.left:
                request, self.request = self.request, None
                request.unregisterProducer()
                request.finish()
                return
            self.written += 1
            self.request.write(b"x" * PIECE)

    def pauseProducing(self) -> None:
        self.paused = True

    def stopProducing(self) -> None:
        if self.request is not None:
            note(self.request, self.written)
        self.request = None


class Page(Resource):
    """One page of the site, by the name of one of the functions below."""

    isLeaf = True  # noqa: N815

    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function

    def render(self, request: Any) -> Any:
        return self._function(request)


def facts(request: Any) -> bytes:
    client, host = request.getClientAddress(), request.getHost()
    made = {
        "method": request.method,
        "uri": request.uri,
        "client": str(getattr(client, "host", client)),
        "host": host.host,
        "port": host.port,
        "secure": request.isSecure(),
        "protocol": request.clientproto,
        "url": request.prePathURL(),
        "x": request.getHeader("x-given"),
        "args": [[name.decode(), value.decode()] for name, values in request.args.items() for value in values],
    }
    return json.dumps(made, default=lambda value: value.decode("latin-1")).encode()


def echo(request: Any) -> bytes:
    return request.content.read()


def digest(request: Any) -> bytes:
    found, size = hashlib.sha256(), 0
    while data := request.content.read(PIECE):
        found.update(data)
        size += len(data)
    return json.dumps({"size": size, "digest": found.hexdigest()}).encode()


def push(request: Any) -> int:
    pieces = int(argument(request, "pieces", "0"))
    if pieces:
        request.setHeader("Content-Length", str(pieces * PIECE))
    Pushing(request, pieces or None)
    return NOT_DONE_YET


def hang(request: Any) -> int:
    request.notifyFinish().addErrback(lambda failure: note(request, failure.type.__name__))
    note(request, "began")
    return NOT_DONE_YET


def wait(request: Any) -> int:
    """Answer as soon as the file is gone that says that the request has begun."""

    def look() -> None:
        if not os.path.exists(argument(request, "path")):
            calls.stop()
            request.write(b"waited")
            request.finish()

    note(request, "began")
    calls = LoopingCall(look)
    calls.start(0.01)
    return NOT_DONE_YET


def events(request: Any) -> int:
    count, path = int(argument(request, "count")), argument(request, "path")
    sent = 0

    def send_next() -> None:
        nonlocal sent
        if os.path.exists(f"{path}{sent}"):
            request.write(b"data: %d\n\n" % sent)
            sent += 1
        if sent == count:
            calls.stop()
            request.finish()

    request.setHeader("Content-Type", "text/event-stream")
    calls = LoopingCall(send_next)
    calls.start(0.01)
    return NOT_DONE_YET


def session(request: Any) -> bytes:
    found = request.getSession()
    found.visits = getattr(found, "visits", 0) + 1
    return b"%d" % found.visits


def etag(request: Any) -> bytes:
    return b"" if request.setETag(b'"some"') else b"some"


def broken(request: Any) -> bytes:
    if argument(request, "late"):
        request.setHeader("Content-Length", "1000")
        request.write(b"begin")
        deferLater(reactor, 0.1).addCallback(lambda _: 1 / 0).addErrback(request.processingFailed)
        return NOT_DONE_YET
    raise RuntimeError("a secret")


class Root(Resource):
    """The site."""

    def __init__(self) -> None:
        super().__init__()
        for function in (facts, echo, digest, push, hang, wait, events, session, etag, broken):
            self.putChild(function.__name__.encode(), Page(function))
        self.putChild(b"files", File("files"))
        self.putChild(b"", Page(lambda _: b"the root"))


@app.route("/hello/<name>", methods=["GET"])
def hello(request: Any, name: str) -> str:
    return f"hello, {name}"


@app.route("/later")
async def later(request: Any) -> bytes:
    await deferLater(reactor, 0.01)
    return b"later"


@app.route("/broken")
def broken_page(request: Any) -> str:
    raise RuntimeError("a secret")


@app.route("/post", methods=["POST"])
def post(request: Any) -> bytes:
    return request.args[b"name"][0]
