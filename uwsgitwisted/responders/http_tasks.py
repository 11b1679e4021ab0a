"""Tasks over HTTP, as nginx forwards them: what a web request means, and the bytes of its answer.

Values in, values out; :mod:`uwsgitwisted.responders.spool` asks the spooler.
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

#: The variables of a web request that enter its task, unless ``--http-vars`` says otherwise.
HTTP_VARS = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE")
#: The variables that are meant for the spooler. They always enter: only nginx's ``uwsgi_param`` can set them,
#: since the names of what a browser sends begin with HTTP_.
_TASK_VARS = (b"at", b"priority", b"spooler", b"idempotency_key")
#: This header becomes the ``idempotency_key`` if nginx sets none, with the prefix: a browser's key never equals
#: one that another caller has chosen.
_KEY_HEADER, _KEY_PREFIX = b"HTTP_IDEMPOTENCY_KEY", b"http:"

#: After how many seconds a client should try again.
RETRY_AFTER = 5
#: The methods that enqueue a task, and those that ask for its state.
ENQUEUING, QUERYING = frozenset({b"POST", b"PUT"}), frozenset({b"GET", b"HEAD"})
_ALLOW = "GET, HEAD, POST, PUT"

#: What a path may hold besides letters and digits without being escaped (RFC 3986, 3.3).
_PATH = "/:@!$&'()*+,;=~-._"
#: A path that ends with a task's id, which has no more digits than fit into a store's 64 bits.
_TASK_PATH = re.compile(r".*/([0-9]{1,18})")
_UNSAFE = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A web request.

    :param method: such as ``b"POST"``.
    :param path: percent-encoded, with a slash in front and none behind; empty for the root.
    :param variables: the variables that nginx sends.
    """

    method: bytes
    path: str
    variables: Mapping[bytes, bytes]

    @classmethod
    def read(cls, block: bytes) -> HttpRequest:
        """Return the request that a vars block describes.

        :raises MalformedPacket: if *block* is none.
        """
        variables = decode_vars(block)
        # The first is what nginx made of the path, unescaped; the second the path as it came.
        path = quote(variables.get(b"DOCUMENT_URI", b""), safe=_PATH)
        if not path:
            path = quote(variables.get(b"REQUEST_URI", b"").partition(b"?")[0], safe=_PATH + "%")
        path = path.strip("/")  # two slashes in front would name a host
        return cls(variables.get(b"REQUEST_METHOD", b""), f"/{path}" if path else "", variables)

    @property
    def task(self) -> int | None:
        """The id at the end of the path, if there is one."""
        found = _TASK_PATH.fullmatch(self.path)
        return int(found.group(1)) if found else None

    def task_variables(self, names: Iterable[bytes]) -> bytes:
        """Return the vars block of the task that the request enqueues.

        :param names: which of the request's variables enter it.
        """
        given = self.variables
        task = {name: given[name] for name in (*names, *_TASK_VARS) if name in given}
        if not task.get(b"idempotency_key") and given.get(_KEY_HEADER):
            task[b"idempotency_key"] = _KEY_PREFIX + given[_KEY_HEADER]
        return encode_vars(task.items())


def json_answer(
    status: HTTPStatus, value: object, headers: Iterable[tuple[str, str]] = (), *, head: bool = False
) -> bytes:
    """Return the bytes of an answer, in the form that nginx reads: HTTP/1.0, with its length.

    :param value: the body, as JSON.
    :param headers: names and values of further headers.
    :param head: whether to leave out the body, as for HEAD.
    :raises ValueError: if a header has a line end, or anything else that is not printable ASCII.
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
    """Return the answer to a request whose task was stored."""
    location = f"{request.path}/{identifier}"
    return json_answer(HTTPStatus.ACCEPTED, {"id": identifier, "state": state}, [("Location", location)])


def not_found_answer(text: str, *, head: bool) -> bytes:
    """Return the answer to a request for something that doesn't exist."""
    return json_answer(HTTPStatus.NOT_FOUND, {"error": text}, head=head)


def not_allowed_answer(method: bytes) -> bytes:
    """Return the answer to a request that neither enqueues a task nor asks for one."""
    if not method:
        text = "no REQUEST_METHOD came from nginx; its configuration needs: include uwsgi_params;"
        return json_answer(HTTPStatus.BAD_REQUEST, {"error": text})
    return json_answer(
        HTTPStatus.METHOD_NOT_ALLOWED, {"error": f"the methods here are {_ALLOW}"}, [("Allow", _ALLOW)]
    )


_DEFECT = "the spooler failed; its log says why"
#: The answers to requests that failed; the first line counts whose class fits. Where there is no text, the
#: error's own is sent; that of others would tell strangers about files and machines.
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
    """Return the answer to a request that failed with *error*."""
    status, text = next((status, text) for kind, status, text in _REFUSALS if isinstance(error, kind))
    again = status is HTTPStatus.SERVICE_UNAVAILABLE
    headers = [("Retry-After", str(RETRY_AFTER))] if again else []
    return json_answer(status, {"error": str(error) if text is None else text}, headers)
