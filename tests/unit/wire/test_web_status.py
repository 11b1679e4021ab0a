"""The answers to web requests that no application has answered."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from uwsgitwisted.errors import (
    Busy,
    Interrupted,
    MalformedPacket,
    MessageTooLarge,
    PacketTooLarge,
    RemoteError,
    RequestTimeout,
    Unavailable,
    UnknownModifier,
    WorkerDied,
)
from uwsgitwisted.wire.web_status import status_answer, status_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RemoteError("secret"), 500),
        (Busy("full"), 503),
        (Unavailable("stopping"), 503),
        (RequestTimeout("slow"), 504),
        (WorkerDied("killed"), 502),
        (Interrupted("stopped"), 502),
        (MessageTooLarge("large"), 413),
        (MalformedPacket("broken"), 400),
        (PacketTooLarge("large"), 400),
        (UnknownModifier("9"), 500),
        (KeyError("a bug"), 500),
        (SystemExit(1), 500),
    ],
)
def test_statuses(error: BaseException, status: int) -> None:
    """Each error has the status that says who may do what about it."""
    assert status_of(error) == status


def test_answer() -> None:
    """The answer is complete, and says no more than its status."""
    assert status_answer(HTTPStatus.BAD_REQUEST) == (
        b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\r\n400 Bad Request\n"
    )


def test_retry() -> None:
    """A client of a busy node is told when to try again."""
    assert b"\r\nRetry-After: 5\r\n" in status_answer(HTTPStatus.SERVICE_UNAVAILABLE)
