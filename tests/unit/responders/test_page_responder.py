"""The responder of web requests to a renderer: what callers learn of failures."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from tests.unit.peers import peer_at
from tests.unit.responders.test_simple_responders import Engine
from uwsgitwisted.errors import RemoteError, RequestTimeout, WorkerDied
from uwsgitwisted.interfaces import IResponder, Request
from uwsgitwisted.responders.pages import PageResponder
from uwsgitwisted.stream import Stream
from uwsgitwisted.wire.packet import WSGI, Packet

ASKED = Request(Packet(WSGI, 0, b""), peer_at("192.0.2.7"))


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (
            RemoteError(type="PageFailed", message="template 'a', line 2", traceback="secret"),
            b"500 Internal Server Error\ntemplate 'a', line 2\n",
        ),
        (RemoteError(type="KeyError", message="secret"), b"500 Internal Server Error\n"),
        (
            RequestTimeout("too long, in template 'a', line 3"),
            b"504 Gateway Timeout\ntoo long, in template 'a', line 3\n",
        ),
        (WorkerDied("secret"), b"502 Bad Gateway\n"),
    ],
)
def test_failures(error: Exception, answer: bytes) -> None:
    """They learn the template and the line, and nothing else."""
    engine = Engine()
    responder = PageResponder(engine)
    assert verifyObject(IResponder, responder)
    reply = responder.respond(ASKED)
    assert isinstance(reply, Deferred)
    results: list[Any] = []
    reply.addBoth(results.append)
    engine.answer.errback(error)
    (page,) = results
    assert page.endswith(b"\r\n\r\n" + answer)


def test_may_run_again() -> None:
    """A page may be rendered once more, but a body that was streamed is gone."""
    engine = Engine()
    responder = PageResponder(engine)
    responder.respond(ASKED)
    responder.respond(ASKED._replace(body=Stream()))
    assert [request.idempotent for request in engine.submitted] == [True, False]
