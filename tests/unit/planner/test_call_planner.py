"""The nodes of single calls."""

from __future__ import annotations

from random import Random

import pytest

from uwsgitwisted.balancer import FIRST_PAUSE
from uwsgitwisted.errors import Busy, ConnectionFailed, RemoteError, Unavailable, WorkerDied
from uwsgitwisted.planner.calls import Attempts, CallPlanner
from uwsgitwisted.planner.retry import RULES, Node, Retry, may_retry, rule_of


def make(nodes: str) -> CallPlanner:
    planner = CallPlanner(Random(1))
    for node in nodes:
        planner.add_node(node)
    return planner


def test_the_shorter_wait() -> None:
    """Of two nodes, the one with the shorter expected wait gets the call: in flight, times what one takes."""
    planner = make("ab")
    for node, took in (("a", 0.1), ("b", 0.4)):
        sending = planner.begin(0.0, [other for other in "ab" if other != node])
        assert sending is not None
        assert sending.node == node
        planner.end(sending, took + 0.001, took=took)
    chosen = [planner.begin(1.0) for _ in range(5)]
    assert [sending.node for sending in chosen if sending] == ["a", "a", "a", "a", "b"] or [
        sending.node for sending in chosen if sending
    ] == ["a", "a", "a", "b", "a"]


def test_workers_count() -> None:
    """A node with more workers gets more calls at once."""
    planner = make("ab")
    planner.set_terms("a", 8)
    planner.set_terms("unknown", 8)
    for node in "ab":
        sending = planner.begin(0.0, [other for other in "ab" if other != node])
        assert sending is not None
        planner.end(sending, 0.1, took=0.1)
    chosen = [planner.begin(1.0) for _ in range(9)]
    assert [sending.node for sending in chosen if sending].count("a") >= 7


def test_a_node_that_fails() -> None:
    """It is left out, then tried by one call, and used again after an answer."""
    planner = make("ab")
    sending = planner.begin(0.0, "b")
    assert sending is not None
    planner.end(sending, 0.0, error=ConnectionFailed())
    assert {sending.node for sending in (planner.begin(0.1) for _ in range(4)) if sending} == {"b"}
    tries = [planner.begin(FIRST_PAUSE) for _ in range(4)]
    assert sorted(sending.node for sending in tries if sending) == ["a", "b", "b", "b"]
    back = next(sending for sending in tries if sending and sending.node == "a")
    planner.end(back, FIRST_PAUSE, error=RemoteError())
    assert "a" in {sending.node for sending in (planner.begin(1.0) for _ in range(9)) if sending}


def test_none_is_well() -> None:
    """A call still goes to the node that may be back first; with none left, there is none."""
    planner = make("ab")
    for node in "ab":
        sending = planner.begin(0.0, [other for other in "ab" if other != node])
        assert sending is not None
        planner.end(sending, 0.0 if node == "b" else 0.2, error=ConnectionFailed())
    sending = planner.begin(0.3)
    assert sending is not None
    assert sending.node == "b"
    assert planner.begin(0.3, "ab") is None
    planner.end(sending, 0.3, error=Busy())
    planner.remove_node("a")
    planner.remove_node("b")
    planner.remove_node("b")
    assert planner.begin(0.3) is None


def test_what_follows_from_errors() -> None:
    """The table has a rule for each class of errors, by the nearest base that it names."""
    assert rule_of(KeyError()) == RULES[BaseException]
    assert rule_of(Busy()) == (Retry.ALWAYS, Node.FULL)
    assert may_retry(ConnectionFailed(), idempotent=False)
    assert not may_retry(RemoteError(), idempotent=True)


class TestAttempts:
    def test_other_nodes(self) -> None:
        """A call is tried on three nodes; then the last error is the caller's."""
        planner = make("abcd")
        attempts = Attempts(planner, idempotent=True, until=10.0)
        places = []
        for number in range(3):
            sending = attempts.begin(1.0)
            places.append(sending.node)
            attempts.failed(sending, WorkerDied(str(number)))
        assert len(set(places)) == 3
        with pytest.raises(WorkerDied, match="2"):
            attempts.begin(1.0)

    def test_not_safe(self) -> None:
        """What may have run is not tried again, unless it may run twice."""
        attempts = Attempts(make("ab"), idempotent=False, until=10.0)
        sending = attempts.begin(0.0)
        with pytest.raises(WorkerDied):
            attempts.failed(sending, WorkerDied())
        attempts.failed(sending, ConnectionFailed())
        assert attempts.begin(0.0).node != sending.node

    def test_no_time(self) -> None:
        """A call that has timed out is not tried again, and no node counts it."""
        planner = make("ab")
        attempts = Attempts(planner, idempotent=False, until=10.0)
        sending = attempts.begin(0.0)
        planner.end(sending, 11.0, error=ConnectionFailed("refused"))
        attempts.failed(sending, ConnectionFailed("refused"))
        with pytest.raises(ConnectionFailed, match="refused"):
            attempts.begin(11.0)
        assert [lane.in_flight for lane in planner._lanes.values()] == [0, 0]

    def test_no_node(self) -> None:
        """Without nodes there is no attempt."""
        with pytest.raises(Unavailable, match="the cluster has no node"):
            Attempts(make(""), idempotent=True, until=1.0).begin(0.0)
