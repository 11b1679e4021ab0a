"""Whose turn it is, and how many requests of a peer may wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.peers import peer_at
from uwsgitwisted.access import NOBODY, Peer
from uwsgitwisted.engines.fair import FairQueue
from uwsgitwisted.engines.job import Job
from uwsgitwisted.interfaces import Request
from uwsgitwisted.wire.packet import MARSHAL, Packet

ANN, BOB, EVE = (peer_at(f"192.0.2.{number}") for number in (1, 2, 3))


def job(peer: Peer) -> Job:
    """Return a request of *peer*."""
    return Job(Request(Packet(MARSHAL, 0), peer), 0.0, lambda job: None)


def fill(queue: FairQueue, peer: Peer) -> int:
    """Have as many requests of *peer* wait as may; return how many those are."""
    number = 0
    while queue.refusal(peer) is None:
        queue.append(job(peer))
        number += 1
    return number


def pop_all(queue: FairQueue) -> list[Job]:
    """Take out everything."""
    return [queue.pop() for _ in range(queue.length)]


def test_turns() -> None:
    """Each peer has its first request run in turn, its own in their order."""
    queue = FairQueue(10)
    jobs = {name: job(peer) for name, peer in [("e1", EVE), ("e2", EVE), ("e3", EVE), ("a1", ANN), ("b1", BOB)]}
    for waiting in jobs.values():
        queue.append(waiting)
    assert pop_all(queue) == [jobs[name] for name in ("e1", "a1", "b1", "e2", "e3")]
    assert queue.length == 0


@pytest.mark.parametrize(("limit", "shares"), [(1_000, [750, 188, 47]), (4, [3, 1, 0]), (1, [1, 0, 0])])
def test_shares(limit: int, shares: list[int]) -> None:
    """A peer that takes all it gets leaves places for the next one."""
    queue = FairQueue(limit)
    assert [fill(queue, peer) for peer in (EVE, ANN, BOB)] == shares
    assert "--max-queue" in str(queue.refusal(EVE))


def test_nobodys_requests() -> None:
    """A spooler's own tasks may take all places."""
    assert fill(FairQueue(100), NOBODY) == 100


def test_put_back() -> None:
    """What a worker gives back waits in front of the others, in its order."""
    queue = FairQueue(10)
    jobs = [job(peer) for peer in (ANN, EVE, BOB, ANN)]
    for waiting in jobs:
        queue.append(waiting)
    queue.put_back([queue.pop(), queue.pop()])
    assert pop_all(queue) == jobs


@given(st.lists(st.tuples(st.sampled_from([ANN, BOB, EVE]), st.integers(0, 3))))
def test_any_order(steps: list[tuple[Peer, int]]) -> None:
    """Whatever is appended, removed, cancelled and put back: each job is there once, and counted."""
    queue = FairQueue(1_000)
    waiting: list[Job] = []
    taken: list[Job] = []
    for peer, what in steps:
        if what == 0 and waiting:
            taken.append(queue.pop())
            waiting.remove(taken[-1])
        elif what == 1 and waiting:
            gone = waiting.pop(len(waiting) // 2)
            assert queue.discard(gone)
            assert not queue.discard(gone)
        elif what == 2:
            queue.put_back(taken)
            waiting += taken
            taken = []
        else:
            waiting.append(job(peer))
            queue.append(waiting[-1])
        assert queue.length == len(waiting)
    assert set(pop_all(queue)) == set(waiting)
