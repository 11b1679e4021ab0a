"""Templates over HTTP (modifier1 0): PATH_INFO names the template; its output is the answer's body.

The variables are the query string's and those of a JSON object in the body, which count more. A page of up to
:data:`~uwsgitwisted.worker.templates.output.PART` bytes, and any page of a renderer with a result cache, has an
ETag. A longer one is sent as it is rendered, so that it starts at once and never is in memory as a whole.
"""

from __future__ import annotations

import traceback
from http import HTTPStatus
from urllib.parse import parse_qsl

from uwsgitwisted.errors import MisuseError, UwsgiError
from uwsgitwisted.wire.packet import WSGI
from uwsgitwisted.worker.exchange import AnyExchange
from uwsgitwisted.worker.handlers.handler import StreamHandler
from uwsgitwisted.worker.templates.debug_page import debug_page
from uwsgitwisted.worker.templates.errors import (
    NoTemplate,
    OutputTooLarge,
    TemplateFailed,
    TemplateRefused,
    place,
)
from uwsgitwisted.worker.templates.json_variables import key_of, variables_of
from uwsgitwisted.worker.templates.output import PART
from uwsgitwisted.worker.templates.renderer import Renderer, split
from uwsgitwisted.worker.templates.results import Page
from uwsgitwisted.worker.web.environ import Environ, read_request
from uwsgitwisted.worker.web.response import Headers, Response

_FAILED, _HTML = HTTPStatus.INTERNAL_SERVER_ERROR, "text/html; charset=utf-8"
_METHODS = ("GET", "HEAD", "POST")
_ALLOW = ", ".join(_METHODS)
#: The most variables of a query string.
_MAX_FIELDS = 1_000


class PageFailed(UwsgiError):
    """A template has failed: 500. The text, which the caller gets, has its name and line and nothing else."""


def table(renderer: Renderer, *, debug: bool = False) -> dict[int, StreamHandler]:
    """Return the handler of web requests for pages, by modifier1.

    :param debug: whether callers get a page about a template that failed.
    """
    return {WSGI: StreamHandler(Pages(renderer, debug=debug).serve, read)}


def read(exchange: AnyExchange) -> tuple[Environ, bytes]:
    """Decode a request; return its variables and its body. The service passes on no body as a stream.

    :raises MalformedPacket: if it is no web request.
    """
    environ, body = read_request(exchange.packet.payload, streamed=False)
    environ.setdefault("SERVER_PROTOCOL", "HTTP/1.0")
    return environ, body


class Pages:
    """Answers web requests with pages.

    :param renderer: renders them.
    :param debug: whether callers get a page about a template that failed.
    """

    def __init__(self, renderer: Renderer, *, debug: bool) -> None:
        self._renderer = renderer
        self._debug = debug

    def serve(self, exchange: AnyExchange, asked: tuple[Environ, bytes]) -> None:
        """Answer a request.

        :raises PageFailed: if a template has failed.
        """
        environ, body = asked
        answer = _Answer(Response(exchange, environ), environ)
        if environ["REQUEST_METHOD"] not in _METHODS:
            text = f"the methods here are {_ALLOW}"
            answer.refuse(HTTPStatus.METHOD_NOT_ALLOWED, text, ("Allow", _ALLOW))
            return
        try:
            name, variables = _asked(environ, body)
        except MisuseError as error:
            answer.refuse(HTTPStatus.BAD_REQUEST, error.text)
            return
        answer.kind = self._renderer.content_type(name)
        self._renderer.begin()
        try:
            self._render(name, variables, answer)
        except TemplateFailed as error:
            if self._debug and not answer.begun:
                traceback.print_exc()
                answer.fail(_FAILED, _HTML, debug_page(self._renderer, error, variables))
                return
            raise PageFailed(place(error.name, error.line)) from error
        except OutputTooLarge as error:
            raise PageFailed(f"{place(split(name)[0], 0)}: its page is too large") from error
        except NoTemplate as error:
            if error.name != split(name)[0] or answer.begun:  # a template has asked for it
                raise PageFailed(error.text) from error
            refused = isinstance(error, TemplateRefused) and name
            answer.refuse(HTTPStatus.BAD_REQUEST if refused else HTTPStatus.NOT_FOUND, error.text)

    def _render(self, name: str, variables: dict[str, object], answer: _Answer) -> None:
        if not self._renderer.caches:
            self._renderer.stream(name, variables, answer.add)
            answer.end()
            return
        answer.send(self._renderer.kept_page(name, variables, key_of(name, variables)))


class _Answer:
    """The answer to a request: a whole page, if it is short, or its parts as they come.

    :param response: where it goes.
    """

    def __init__(self, response: Response, environ: Environ) -> None:
        self._response = response
        # The answer to POST is none that a cache keeps, so its caller can't have it.
        may_have = environ["REQUEST_METHOD"] != "POST"
        self._known = environ.get("HTTP_IF_NONE_MATCH", "") if may_have else ""
        self._held = b""
        #: The page's Content-Type.
        self.kind = ""
        #: Whether a part of the answer was sent.
        self.begun = False

    def add(self, data: bytes) -> None:
        """Add a part of the page. The first one is held until there is a second, unless it is large."""
        if not self.begun:
            if not self._held and len(data) <= PART:
                self._held = data
                return
            self.begun = True
            self._response.start("200 OK", [("Content-Type", self.kind)])
            data = self._held + data
        self._response.write(data)

    def end(self) -> None:
        """Note that the page has ended."""
        if self.begun:
            self._response.send(())
        else:
            self.send(Page(self._held))

    def send(self, page: Page) -> None:
        """Send a whole page, or 304, if the caller has it."""
        headers: Headers = [("Content-Type", self.kind), ("ETag", page.etag)]
        if _has(self._known, page.etag):
            self._response.start("304 Not Modified", headers)
            self._response.send(())
            return
        self._response.start("200 OK", [*headers, ("Content-Length", str(len(page.body)))])
        self._response.send([page.body])

    def refuse(self, status: HTTPStatus, text: str, *headers: tuple[str, str]) -> None:
        """Send a text that says what is wrong with the request, and more headers."""
        page = f"{status.value} {status.phrase}\n{text}\n".encode("utf-8", "backslashreplace")
        self.fail(status, "text/plain; charset=utf-8", page, *headers)

    def fail(self, status: HTTPStatus, kind: str, page: bytes, *headers: tuple[str, str]) -> None:
        """Send a page about a failure, and more headers."""
        length = ("Content-Length", str(len(page)))
        self._response.start(f"{status.value} {status.phrase}", [("Content-Type", kind), length, *headers])
        self._response.send([page])


def _asked(environ: Environ, body: bytes) -> tuple[str, dict[str, object]]:
    """Return the name and the variables that a request has.

    :raises MisuseError: if it is not one for a page.
    """
    try:
        name = environ.get("PATH_INFO", "").encode("latin-1").decode().removeprefix("/")
        given = environ.get("QUERY_STRING", "").encode("latin-1").decode()
        query = parse_qsl(given, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
        return name, {**dict(query), **variables_of(body)}
    except MisuseError:  # it is a ValueError too
        raise
    except ValueError:
        raise MisuseError("the path or the query is not UTF-8, or has too many variables") from None


def _has(known: str, etag: str) -> bool:
    """Whether If-None-Match has an ETag, by the weak comparison: a web server that compresses makes it weak."""
    return known.strip() == "*" or etag in (each.strip().removeprefix("W/") for each in known.split(","))
