"""Attacks with streamed answers of a session: clients that take little of them, or nothing."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.attacks.callers import get_page, limit_beside
from tests.attacks.hostile import streams
from tests.attacks.hostile.peer import Peer
from tests.attacks.witness import assert_within, watching
from tests.integration.services import Launcher, RawSession, Service
from tests.integration.web_servers import request_variables, start_node
from uwsgitwisted.errors import Busy, RequestTimeout
from uwsgitwisted.wire.events import ErrorReceived, Event
from uwsgitwisted.wire.packet import WSGI, Packet
from uwsgitwisted.wire.vars import encode_vars

pytestmark = pytest.mark.integration

MIB = 1 << 20
#: What the node may hold for its peers, and how much more it may grow, in bytes.
BUDGET, BESIDE = 32 * MIB, 48 * MIB
#: Seconds after which an answer is cancelled of which its client takes nothing.
STALLED = 1.0
#: What a page beside an attack may always take, in seconds.
FLOOR = 0.3
BEHAVIOURS = (streams.untaken, streams.trickled, streams.overgranted, streams.cancelled)


@pytest.fixture(scope="module")
def node(shared: Launcher) -> Service:
    """A node with two workers, of which one may wait for a hostile client."""
    options = ("--max-buffered", str(BUDGET), "--write-timeout", str(STALLED))
    return start_node(shared, *options, tcp=True)


def ask_for_pages(session: RawSession, number: int, size: int) -> None:
    """Ask for pages of that size, and grant nothing of them."""
    block = encode_vars(request_variables("GET", f"/size?size={size}&as=generator"))
    for request in range(1, number + 1):
        session.session.send_request(request, Packet(WSGI, 0, block))
    session.flush()


def test_beside(node: Service) -> None:
    """Whatever hostile clients do with streams, others get their pages quickly."""
    limit = limit_beside(FLOOR, lambda: get_page(node))

    def attack() -> float:
        peer = Peer("node", node.address, "127.0.0.2", "streams")
        with watching(lambda: get_page(node)) as witness, contextlib.closing(peer):
            for behave in BEHAVIOURS:
                with contextlib.suppress(OSError):
                    behave(peer, time.monotonic() + 1)
        assert not witness.errors
        return witness.slowest

    assert_within(limit, attack, "a page beside hostile streams")


def test_pages_that_nobody_takes(node: Service) -> None:
    """Hundreds of pages, of which nobody takes anything, don't fill the memory; what has no room is refused."""
    before = peak = node.memory()
    events: list[Event] = []
    with (
        contextlib.closing(RawSession(node, window=1)) as session,
        watching(lambda: get_page(node)) as witness,
    ):
        ask_for_pages(session, 400, 200_000)
        session.connection.settimeout(10)
        while sum(isinstance(event, ErrorReceived) for event in events) < 300:
            events += session.events()
            peak = max(peak, node.memory())
    errors = {type(event.error) for event in events if isinstance(event, ErrorReceived)}
    assert Busy in errors
    assert errors <= {Busy, RequestTimeout}
    assert peak - before < BUDGET + BESIDE
    assert not witness.errors


def test_a_worker_that_waits(node: Service) -> None:
    """A worker that waits for a client is free again when that has taken nothing for the time limit."""
    with contextlib.closing(RawSession(node, window=1)) as session:
        began = time.monotonic()
        ask_for_pages(session, 2, 10 * MIB)  # one for each worker
        session.connection.settimeout(10)
        errors: list[Event] = []
        while len(errors) < 2:
            errors += [event for event in session.events() if isinstance(event, ErrorReceived)]
        assert time.monotonic() - began >= STALLED
        assert {type(event.error) for event in errors if isinstance(event, ErrorReceived)} == {RequestTimeout}
        get_page(node)
    node.wait_for("took nothing of an answer")
