"""Tasks over HTTP, as nginx forwards them: reads the web request, and writes the answer's bytes.

It only converts values; :mod:`uwsgitwisted.responders.spool` calls the spooler.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

from uwsgitwisted.errors import (
    MessageTooLarge,
    MisuseError,
    ProtocolError,
    SpoolCorrupt,
    SpoolError,
    StoreUnavailable,
    Unavailable,
)
from uwsgitwisted.wire.vars import decode_vars, encode_vars

#: The variables of a web request that its task gets, unless ``--http-vars`` says otherwise.
HTTP_VARS = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE")
#: The variables for the spooler. The task always gets them: only nginx's ``uwsgi_param`` can set them, since
#: a browser's headers have names that begin with HTTP_.
_TASK_VARS = (b"at", b"priority", b"spooler", b"idempotency_key")
#: This header becomes the ``idempotency_key`` if nginx sets none. The prefix keeps a browser's key from
#: equalling a key that another caller has chosen.
_KEY_HEADER, _KEY_PREFIX = b"HTTP_IDEMPOTENCY_KEY", b"http:"

#: Seconds after which a client should try again.
RETRY_AFTER = 5
#: The methods that enqueue a task, and those that query its state.
ENQUEUING, QUERYING = frozenset({b"POST", b"PUT"}), frozenset({b"GET", b"HEAD"})
_ALLOW = "GET, HEAD, POST, PUT"

#: The characters besides letters and digits that a path may contain unescaped (RFC 3986, 3.3).
_PATH = "/:@!$&'()*+,;=~-._"
#: A path that ends with a task's id. The id has at most as many digits as fit into a store's 64 bits.
_TASK_PATH = re.compile(r".*/([0-9]{1,18})")
_UNSAFE = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A web request.

    :param method: such as ``b"POST"``.
    :param path: percent-encoded, with a leading slash and no trailing one; empty for the root.
    :param variables: the variables that nginx sends.
    """

    method: bytes
    path: str
    variables: Mapping[bytes, bytes]

    @classmethod
    def read(cls, block: bytes) -> HttpRequest:
        """Read the request from its vars block.

        :raises MalformedPacket: if *block* is not a vars block.
        """
        variables = decode_vars(block)
        # DOCUMENT_URI is the path as nginx has normalized and unescaped it; REQUEST_URI is the original.
        path = quote(variables.get(b"DOCUMENT_URI", b""), safe=_PATH)
        if not path:
            path = quote(variables.get(b"REQUEST_URI", b"").partition(b"?")[0], safe=_PATH + "%")
        if not path:  # a server other than nginx, which sends the two parts of the path
            parts = variables.get(b"SCRIPT_NAME", b"") + variables.get(b"PATH_INFO", b"")
            path = quote(parts, safe=_PATH)
        path = path.strip("/")  # a Location with two leading slashes would name a host
        return cls(variables.get(b"REQUEST_METHOD", b""), f"/{path}" if path else "", variables)

    @property
    def task(self) -> int | None:
        """The task id at the end of the path, if there is one."""
        found = _TASK_PATH.fullmatch(self.path)
        return int(found.group(1)) if found else None

    def task_variables(self, names: Iterable[bytes]) -> bytes:
        """Make the vars block of the task that the request enqueues.

        :param names: the variables of the request that the task gets.
        """
        given = self.variables
        task = {name: given[name] for name in (*names, *_TASK_VARS) if name in given}
        if not task.get(b"idempotency_key") and given.get(_KEY_HEADER):
            task[b"idempotency_key"] = _KEY_PREFIX + given[_KEY_HEADER]
        return encode_vars(task.items())


def json_answer(
    status: HTTPStatus, value: object, headers: Iterable[tuple[str, str]] = (), *, head: bool = False
) -> bytes:
    """Make the bytes of an answer, in the form that nginx reads: HTTP/1.0, with its length.

    :param value: the body, which is sent as JSON.
    :param headers: names and values of further headers.
    :param head: whether to omit the body, as for HEAD.
    :raises ValueError: if a header contains a line end, or any other character that is not printable ASCII.
    """
    body = json.dumps(value, allow_nan=False).encode() + b"\n"
    lines = [f"HTTP/1.0 {status.value} {status.phrase}"]
    for name, text in (
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        *headers,
    ):
        if _UNSAFE.search(name + text):
            raise ValueError(f"the header {name!r} can't be {text!r}")
        lines.append(f"{name}: {text}")
    head_bytes = "\r\n".join((*lines, "", "")).encode()
    return head_bytes if head else head_bytes + body


def accepted_answer(request: HttpRequest, identifier: int, state: str) -> bytes:
    """Make the answer to a request whose task was stored."""
    location = f"{request.path}/{identifier}"
    return json_answer(HTTPStatus.ACCEPTED, {"id": identifier, "state": state}, [("Location", location)])


def not_found_answer(text: str, *, head: bool) -> bytes:
    """Make the answer to a request for something that doesn't exist."""
    return json_answer(HTTPStatus.NOT_FOUND, {"error": text}, head=head)


def not_allowed_answer(method: bytes) -> bytes:
    """Make the answer to a request that neither enqueues a task nor queries one."""
    if not method:
        text = "no REQUEST_METHOD came from nginx; its configuration needs: include uwsgi_params;"
        return json_answer(HTTPStatus.BAD_REQUEST, {"error": text})
    return json_answer(
        HTTPStatus.METHOD_NOT_ALLOWED, {"error": f"the methods here are {_ALLOW}"}, [("Allow", _ALLOW)]
    )


_DEFECT = "the spooler failed; its log says why"
#: The answers to failed requests; the first matching class wins. Where the text is None, the error's own text
#: is sent; the texts of the other errors could reveal files and machines to strangers.
_REFUSALS: tuple[tuple[type[BaseException], HTTPStatus, str | None], ...] = (
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE, None),
    (StoreUnavailable, HTTPStatus.SERVICE_UNAVAILABLE, "the queue can't be reached now; try again later"),
    (SpoolCorrupt, HTTPStatus.INTERNAL_SERVER_ERROR, _DEFECT),
    (MessageTooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, None),
    (SpoolError, HTTPStatus.BAD_REQUEST, None),
    (ProtocolError, HTTPStatus.BAD_REQUEST, None),
    (MisuseError, HTTPStatus.BAD_REQUEST, None),
    (BaseException, HTTPStatus.INTERNAL_SERVER_ERROR, _DEFECT),
)


def refused_answer(error: BaseException) -> bytes:
    """Make the answer to a request that failed with *error*."""
    status, text = next((status, text) for kind, status, text in _REFUSALS if isinstance(error, kind))
    again = status is HTTPStatus.SERVICE_UNAVAILABLE
    headers = [("Retry-After", str(RETRY_AFTER))] if again else []
    return json_answer(status, {"error": str(error) if text is None else text}, headers)
