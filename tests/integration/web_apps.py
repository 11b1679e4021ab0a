"""WSGI applications that the tests of web requests and the benchmarks share; each is behind a path.

The module imports only the standard library, so that a server can run a copy of it. ``application`` has them
all. Their arguments come in the query string.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.validate import validator

Environ = dict[str, Any]
Application = Callable[[Environ, Any], Iterable[bytes]]

#: What a benchmark asks for, besides the greeting.
TEN_KILOBYTES = b"0123456789" * 1_024
GREETING = b"Hello, world!\n"
#: Bytes of the pieces in which bodies are read and answers are made.
PIECE = 65_536
#: A length that divides no buffer's size, so that bytes in the wrong place are seen.
_CYCLE = bytes(range(251))
#: For how many seconds a request waits for its file: a test may await several things meanwhile.
WAITING_TIME = 60.0
_POLL = 0.005


def pattern(size: int) -> bytes:
    """Return *size* bytes, always the same ones."""
    return (_CYCLE * (size // len(_CYCLE) + 1))[:size]


def _query(environ: Environ) -> dict[str, str]:
    return dict(parse_qsl(environ.get("QUERY_STRING", "")))


def _wait_for(path: str) -> None:
    """Wait until there is a file, for a while."""
    ends = time.monotonic() + WAITING_TIME
    while not os.path.exists(path):
        if time.monotonic() > ends:
            raise TimeoutError(path)
        time.sleep(_POLL)


def _note(path: str, text: str) -> None:
    """Have a file with *text*, at once."""
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.rename(f"{path}.new", path)


def _pieces(data: bytes, size: int = PIECE) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _read(environ: Environ) -> Iterator[bytes]:
    while piece := environ["wsgi.input"].read(PIECE):
        yield piece


def _text(start_response: Any, text: str, status: str = "200 OK") -> list[bytes]:
    body = text.encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def _json(start_response: Any, value: object) -> list[bytes]:
    body = json.dumps(value).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def hello(environ: Environ, start_response: Any) -> list[bytes]:
    """Greet."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(GREETING)))])
    return [GREETING]


def ten_kilobytes(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with ten kilobytes."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(TEN_KILOBYTES)))])
    return [TEN_KILOBYTES]


def variables(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with the variables that are texts, and with the flags, in JSON."""
    return _json(
        start_response, {key: value for key, value in environ.items() if isinstance(value, (str, bool))}
    )


def process(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with the process's id."""
    return _text(start_response, str(os.getpid()))


def echo(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with the request's body."""
    body = b"".join(_read(environ))
    start_response("200 OK", [("Content-Type", "application/x-echo"), ("Content-Length", str(len(body)))])
    return [body]


def echo_in_pieces(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Answer with the request's body while it comes."""
    start_response("200 OK", [("Content-Type", "application/x-echo")])
    return _read(environ)


def digest(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with the size and the digest of the request's body, in JSON."""
    size, found = 0, hashlib.sha256()
    for piece in _read(environ):
        size += len(piece)
        found.update(piece)
    return _json(start_response, {"size": size, "digest": found.hexdigest()})


def unread(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer without having read the body."""
    return _text(start_response, "not read")


def reads(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with what each way to read a body gives, one after another, in JSON; the body has lines."""
    source = environ["wsgi.input"]
    found = [source.readline(), source.read(3), source.readline(), *islice(source, 1), *source.readlines()]
    return _json(start_response, [each.decode() for each in (*found, *source, source.read(), source.read(10))])


def size(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Answer with ``size`` bytes, in the way that ``as`` says; ``length`` is 0 for no Content-Length."""
    query = _query(environ)
    data, way = pattern(int(query["size"])), query.get("as", "whole")
    headers = [("Content-Type", "application/x-pattern")]
    if query.get("length", "1") == "1":
        headers.append(("Content-Length", str(len(data))))
    write = start_response("200 OK", headers)
    if way == "write":
        for piece in _pieces(data):
            write(piece)
        return []
    if way == "both":
        write(data[: len(data) // 2])
        return [data[len(data) // 2 :]]
    return {"whole": [data], "list": list(_pieces(data)), "generator": _pieces(data)}[way]


def file(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Answer with the file ``path`` by the server's file wrapper, from ``offset``; ``length`` as above."""
    query = _query(environ)
    source = open(query["path"], "rb")  # noqa: SIM115 - the server closes it
    source.seek(int(query.get("offset", "0")))
    headers = [("Content-Type", "application/x-file")]
    if query.get("length", "1") == "1":
        headers.append(("Content-Length", str(os.path.getsize(query["path"]) - source.tell())))
    start_response("200 OK", headers)
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](source, PIECE)
    return wrapped


def wait(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer when there is the file ``until``; make the file ``started`` before."""
    query = _query(environ)
    if started := query.get("started"):
        _note(started, str(os.getpid()))
    _wait_for(query["until"])
    return _text(start_response, "waited")


def hang(environ: Environ, start_response: Any) -> list[bytes]:
    """Never answer."""
    while True:
        time.sleep(60)


def events(environ: Environ, start_response: Any) -> Iterator[bytes]:
    """Send ``count`` server-sent events: number N when there is the file ``path`` with N behind its name."""
    query = _query(environ)
    start_response("200 OK", [("Content-Type", "text/event-stream"), ("X-Accel-Buffering", "no")])
    for number in range(int(query["count"])):
        _wait_for(f"{query['path']}{number}")
        yield f"data: {number}\n\n".encode()


class _Closing:
    """An answer that never ends; its end is noted in a file, with how many pieces were taken."""

    def __init__(self, path: str, piece: bytes, most: int) -> None:
        self._path, self._piece, self._most, self._taken = path, piece, most, 0

    def __iter__(self) -> _Closing:
        return self

    def __next__(self) -> bytes:
        if self._taken == self._most:
            raise StopIteration
        self._taken += 1
        return self._piece

    def close(self) -> None:
        _note(self._path, str(self._taken))


def closing(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Answer with ``pieces`` pieces of ``size`` bytes; the file ``path`` says how many when it is closed.

    Without ``pieces`` the answer doesn't end.
    """
    query = _query(environ)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return _Closing(query["path"], b"x" * int(query.get("size", "1000")), int(query.get("pieces", "-1")))


def raises(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Raise ``before`` the start of the answer, ``after`` it, or ``later``, when a piece was sent."""
    when = _query(environ)["when"]
    if when == "before":
        raise ValueError("the secret of the application")
    start_response("200 OK", [("Content-Type", "text/plain")])
    if when == "after":
        raise ValueError("the secret of the application")
    return _raising_later()


def _raising_later() -> Iterator[bytes]:
    yield b"the first piece"
    raise ValueError("the secret of the application")


def exits(environ: Environ, start_response: Any) -> list[bytes]:
    """End the process, ``how`` it says: by sys.exit, os._exit, or SIGKILL."""
    how = _query(environ)["how"]
    if how == "sys":
        sys.exit("leaving")
    if how == "kill":
        os.kill(os.getpid(), 9)
    os._exit(3)


def restarts(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Start an answer, fail, and start another one by ``exc_info``; ``sent`` is 1 for a piece before it."""
    write = start_response("200 OK", [("Content-Type", "text/plain"), ("X-First", "yes")])
    if _query(environ).get("sent") == "1":
        write(b"the first piece")
    try:
        raise ValueError("on purpose")
    except ValueError:
        start_response("503 Sorry", [("Content-Type", "text/x-sorry")], sys.exc_info())
    return [b"sorry"]


def starts_twice(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Start two answers, which is an error."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"twice"]


def never_starts(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Return a body without having started an answer, which is an error."""
    return [b"a body"]


def texts(environ: Environ, start_response: Any) -> Any:
    """Return text where bytes belong, which is an error."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["text"]


def lies(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Announce ``says`` bytes, and send ``sends``."""
    query = _query(environ)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", query["says"])])
    return _pieces(b"x" * int(query["sends"]), 10)


def status(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Answer with the status ``code`` and a ``body``, also where none belongs; ``length`` as above."""
    query = _query(environ)
    body = query.get("body", "").encode()
    headers = [("X-Sent", "yes")]
    if query.get("length") == "1":
        headers.append(("Content-Length", str(len(body))))
    start_response(f"{query['code']} As Asked", headers)
    return [body] if body else []


def headers(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with headers of each allowed kind."""
    several = [("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2"), ("X-Latin", "caf\xe9"), ("X-Empty", "")]
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), *several, ("x-lower", "Kept")])
    return [b"headers"]


def bad_headers(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with a header of which ``name`` and ``value`` may be anything."""
    query = _query(environ)
    start_response("200 OK", [("Content-Type", "text/plain"), (query["name"], query["value"])])
    return [b"headers"]


def nothing(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with headers only."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Sent", "yes")])
    return []


def empty_pieces(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with pieces of which some are empty."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"", b"some", b"", b"thing", b""]


#: What a page of today does: it posts more than a packet holds, and listens to server-sent events.
_PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>Requests of a page</title></head>
<body><p id="posted">nothing</p><p id="events"></p>
<script>
fetch("/digest", {method: "POST", body: new Uint8Array(SIZE)})
    .then((answer) => answer.json())
    .then((found) => { document.getElementById("posted").textContent = found.size + " " + found.digest; });
const source = new EventSource("/events?count=3&path=PATH");
source.onmessage = (event) => {
    document.getElementById("events").textContent += event.data + ";";
    if (event.data === "2") source.close();
};
</script></body></html>
"""


def page(environ: Environ, start_response: Any) -> list[bytes]:
    """Answer with a page that posts ``size`` zeros, and gets the events of ``path``."""
    query = _query(environ)
    body = _PAGE.replace("SIZE", query["size"]).replace("PATH", query["path"]).encode()
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]


def missing(environ: Environ, start_response: Any) -> list[bytes]:
    """Say that there is no such application."""
    return _text(start_response, "no such path", "404 Not Found")


#: The applications by their paths.
APPLICATIONS: dict[str, Application] = {
    "/": hello,
    "/10k": ten_kilobytes,
    "/variables": variables,
    "/process": process,
    "/echo": echo,
    "/echo-in-pieces": echo_in_pieces,
    "/digest": digest,
    "/unread": unread,
    "/reads": reads,
    "/size": size,
    "/file": file,
    "/wait": wait,
    "/hang": hang,
    "/events": events,
    "/closing": closing,
    "/raises": raises,
    "/exits": exits,
    "/restarts": restarts,
    "/starts-twice": starts_twice,
    "/never-starts": never_starts,
    "/texts": texts,
    "/lies": lies,
    "/status": status,
    "/headers": headers,
    "/bad-headers": bad_headers,
    "/nothing": nothing,
    "/empty-pieces": empty_pieces,
    "/page": page,
    "/validated": validator(hello),
}


def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Run the application of the request's path."""
    return APPLICATIONS.get(environ.get("PATH_INFO", ""), missing)(environ, start_response)


def copy_to(directory: Path) -> str:
    """Put a copy of this module into *directory*, and return its name."""
    (directory / "web_apps.py").write_bytes(Path(__file__).read_bytes())
    return "web_apps"
