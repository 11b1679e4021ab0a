"""The log of requests that fail, in plain uwsgi and in a session."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, fail
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent

from tests.unit.transports import CLIENT, Link
from uwsgitwisted.errors import Busy, RemoteError, RequestCancelled
from uwsgitwisted.interfaces import Reply, Request
from uwsgitwisted.transport.server.factory import ServerFactory
from uwsgitwisted.wire.packet import Packet, encode_packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import Terms, encode_offer

ASK = Packet(33, 5, b"ask")
ERRORS = [
    (
        RemoteError(type="KeyError", message="x", traceback="File y, line 3"),
        "raised KeyError: x\nFile y, line 3",
    ),
    (Busy("full"), "modifier1 33: full"),
    (KeyError("a bug"), "modifier1 33"),
]


def request_bytes(session: bool) -> bytes:
    """Return what a client sends that asks once."""
    if not session:
        return encode_packet(ASK)
    client = Session(Role.CLIENT, Terms(), Terms())
    client.send_request(1, ASK)
    return encode_offer(Terms()) + client.data_to_send()


def logs_of(error: Exception, *, session: bool, later: bool) -> list[LogEvent]:
    """Return what is logged when a request fails with *error*, at once or with a Deferred."""

    def respond(_: Request) -> Reply:
        if later:
            return fail(error)
        raise error

    server = ServerFactory(Clock(), respond, terms=Terms()).buildProtocol(CLIENT)
    assert server is not None
    link = Link(Protocol(), server)
    with capturedLogs() as logs:
        link.client.write(request_bytes(session))
        link.flush()
    return list(logs)


@pytest.mark.parametrize(("error", "text"), ERRORS)
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("session", [False, True])
def test_failures_are_logged(error: Exception, text: str, later: bool, session: bool) -> None:
    """Every failure is logged once, with the peer."""
    [event] = logs_of(error, session=session, later=later)
    line = formatEvent(event)
    assert text in line
    assert "192.0.2.7:40001" in line
    assert ("log_failure" in event) is isinstance(error, KeyError)


@pytest.mark.parametrize("error", [CancelledError(), RequestCancelled("x")])
@pytest.mark.parametrize("session", [False, True])
def test_cancelled_requests_are_not_logged(error: Exception, session: bool) -> None:
    """A cancelled request is not logged as a failure."""
    assert logs_of(error, session=session, later=True) == []
