"""The answers to web requests that no application has answered: which status an error has, and its bytes."""

from __future__ import annotations

from http import HTTPStatus

from uwsgitwisted.errors import (
    Busy,
    Interrupted,
    MessageTooLarge,
    ProtocolError,
    RemoteError,
    RequestTimeout,
    Unavailable,
    WorkerDied,
)

#: Which status the errors of a class have.
Statuses = tuple[tuple[type[BaseException], HTTPStatus], ...]

#: Seconds after which a client should try again.
RETRY_AFTER = 5
#: The statuses of errors; the first class that fits counts. Only the status is sent: the texts of the errors
#: could reveal to strangers what the application is made of.
STATUSES: Statuses = (
    (RemoteError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (Busy, HTTPStatus.SERVICE_UNAVAILABLE),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (RequestTimeout, HTTPStatus.GATEWAY_TIMEOUT),
    (WorkerDied, HTTPStatus.BAD_GATEWAY),
    (Interrupted, HTTPStatus.BAD_GATEWAY),
    (MessageTooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (ProtocolError, HTTPStatus.BAD_REQUEST),
    (BaseException, HTTPStatus.INTERNAL_SERVER_ERROR),
)


def status_of(error: BaseException, special: Statuses = ()) -> HTTPStatus:
    """Return the status of a request that failed with *error*.

    :param special: what counts before :data:`STATUSES`.
    """
    return next(status for kind, status in (*special, *STATUSES) if isinstance(error, kind))


def status_answer(status: HTTPStatus, text: str = "") -> bytes:
    """Return an HTTP answer that has only its status to say, in the form that nginx reads.

    :param text: what else there is to say, for people.
    """
    lines = (f"{status.value} {status.phrase}", *([text] if text else []), "")
    body = "\n".join(lines).encode("utf-8", "backslashreplace")
    kind = "text/plain; charset=utf-8" if text else "text/plain"
    retry = f"Retry-After: {RETRY_AFTER}\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else ""
    head = (
        f"HTTP/1.0 {status.value} {status.phrase}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{retry}\r\n"
    )
    return head.encode() + body
