"""The queue of requests that have arrived, and of uploads, whose bodies are still arriving."""

from __future__ import annotations

import pytest

from tests.unit.peers import peer_at
from uwsgitwisted.access import Peer
from uwsgitwisted.engines.job import Job
from uwsgitwisted.engines.requests import WaitingRequests
from uwsgitwisted.errors import Busy
from uwsgitwisted.interfaces import Request
from uwsgitwisted.stream import Stream
from uwsgitwisted.wire.packet import WSGI, Packet

PEER = peer_at("192.0.2.7")


def job(*, upload: bool = False) -> Job:
    """Return a request; an upload's body is still arriving."""
    request = Request(Packet(WSGI, 0), PEER, body=Stream() if upload else None)
    return Job(request, 0.0, lambda _: None)


def queue(*jobs: Job, limit: int = 10) -> WaitingRequests:
    """Return a queue with *jobs*."""
    made = WaitingRequests(limit)
    for each in jobs:
        made.append(each, PEER)
    return made


def pop_all(waiting: WaitingRequests, *, may_upload: bool) -> list[Job]:
    """Remove all requests that may run."""
    popped = []
    while (each := waiting.pop(lambda: may_upload)) is not None:
        popped.append(each)
    return popped


def test_turns() -> None:
    """Uploads and other requests take turns."""
    uploads, others = [job(upload=True) for _ in range(2)], [job() for _ in range(3)]
    waiting = queue(*uploads, *others)
    assert waiting.length == 5
    assert pop_all(waiting, may_upload=True) == [others[0], uploads[0], others[1], uploads[1], others[2]]
    assert not waiting.length


def test_uploads_wait() -> None:
    """Other requests pass the uploads while enough of those run."""
    upload, other = job(upload=True), job()
    waiting = queue(upload, other)
    assert pop_all(waiting, may_upload=False) == [other]
    assert pop_all(waiting, may_upload=True) == [upload]


def test_first_of_a_kind() -> None:
    """A request that is the only one of its kind may be able to run, whatever else waits."""
    waiting = queue()
    assert waiting.append(job(upload=True), PEER)
    assert waiting.append(job(), PEER)
    assert not waiting.append(job(upload=True), PEER)
    assert not waiting.append(job(), PEER)


def test_an_upload_that_has_arrived() -> None:
    """An upload whose body arrives while it waits can be cancelled; put back, it waits with the others."""
    cancelled, upload = job(upload=True), job(upload=True)
    waiting = queue(cancelled, upload)
    for each in (cancelled, upload):
        assert each.body is not None
        each.body.end()
    assert waiting.discard(cancelled)
    assert not waiting.discard(cancelled)
    assert pop_all(waiting, may_upload=True) == [upload]
    waiting.put_back([upload])
    assert pop_all(waiting, may_upload=False) == [upload]


def test_put_back() -> None:
    """Requests that are put back are the next ones, in their order."""
    first, second, third = job(), job(), job()
    waiting = queue(third)
    waiting.put_back([first, second])
    assert pop_all(waiting, may_upload=True) == [first, second, third]


def test_refusals() -> None:
    """Uploads that fill their queue keep no other request out."""
    waiting = queue(*(job(upload=True) for _ in range(3)), limit=4)
    with pytest.raises(Busy):
        waiting.append(job(upload=True), PEER)
    assert waiting.append(job(), PEER)


def pinned(worker_id: int, peer: Peer = PEER) -> Job:
    """Return a request that one worker alone may run."""
    return Job(Request(Packet(WSGI, 0), peer), 0.0, lambda _: None, worker_id)


def test_pinned_requests() -> None:
    """A request for one worker waits for that one alone, and goes back to its place."""
    first, second, other = map(pinned, (1, 1, 2))
    waiting = queue(first, second, other)
    assert waiting.length == 0
    assert waiting.pop_pinned(1) is first
    assert waiting.pop_pinned(1) is second
    assert waiting.pop_pinned(1) is None
    waiting.put_back([first, second])
    assert waiting.discard(second)
    assert not waiting.discard(second)
    assert [waiting.pop_pinned(1), waiting.pop_pinned(2)] == [first, other]
    assert not waiting.pinned


def test_pinned_requests_take_turns() -> None:
    """A worker's own requests, of which those of each peer have their turn, take turns with all others."""
    flood = [pinned(1) for _ in range(3)]
    rare, common = pinned(1, peer_at("192.0.2.8")), job()
    waiting = queue(*flood, rare, common)
    assert waiting.pop_pinned(1) is flood[0]
    assert waiting.pop_pinned(1) is None
    assert waiting.pop_pinned(1) is rare
    assert waiting.pop_pinned(1) is None
    assert pop_all(waiting, may_upload=True) == [common]
    assert [waiting.pop_pinned(1) for _ in range(3)] == [flood[1], flood[2], None]
