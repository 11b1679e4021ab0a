"""Which node gets the next request."""

from __future__ import annotations

from uwsgitwisted.balancer import FIRST_PAUSE, MAX_PAUSE, Balancer


class Time:
    """A clock."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(nodes: str = "abc", limit: int = 100) -> tuple[Balancer[str], Time]:
    time = Time()
    return Balancer(nodes, time, limit), time


def test_the_fewest_first() -> None:
    """The node with the fewest requests in flight is next; of those, the one that has waited longest."""
    balancer, _ = make()
    assert [balancer.choose() for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]
    for node in "bbc":
        balancer.finish(node)
    assert [balancer.choose() for _ in range(4)] == ["b", "c", "b", "c"]
    for node in "aaa":
        balancer.finish(node)
    assert balancer.choose() == "a"


def test_turns() -> None:
    """Requests one after another go round."""
    balancer, _ = make()
    chosen = []
    for _ in range(6):
        node = balancer.choose()
        assert node is not None
        balancer.finish(node)
        chosen.append(node)
    assert "".join(chosen) == "abcabc"


def test_excluded_nodes() -> None:
    """Nodes that were tried are not chosen again; if no other is left, none is."""
    balancer, _ = make()
    assert balancer.choose("a") == "b"
    assert balancer.choose("abc") is None


def test_the_limit() -> None:
    """A node that has as many requests as it may have gets only those that have failed elsewhere."""
    balancer, _ = make("ab", 2)
    assert [balancer.choose() for _ in range(5)] == ["a", "b", "a", "b", None]
    assert balancer.any_well
    assert balancer.choose("a") == "b"
    balancer.finish("b")
    assert balancer.choose() is None
    balancer.finish("b")
    assert balancer.choose() == "b"
    balancer.fail("a")
    assert balancer.any_well
    balancer.fail("b")
    assert not balancer.any_well


def test_a_node_that_fails() -> None:
    """It is left out until it has recovered, for longer after each failure, but never for too long."""
    balancer, time = make("ab")
    assert balancer.pause("a") is None
    assert balancer.fail("a")
    assert balancer.choose() == "b"
    assert balancer.choose("b") is None
    pauses = []
    for _ in range(8):
        pause = balancer.pause("a")
        assert pause is not None
        pauses.append(pause)
        time.now += pause
        assert balancer.pause("a") == 0.0
        assert balancer.choose("b") is None  # a pause that is over is no recovery
        assert not balancer.fail("a")
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == MAX_PAUSE
    assert balancer.recover("a")
    assert not balancer.recover("a")
    assert balancer.choose() == "a"
    assert balancer.fail("a")
    assert balancer.pause("a") == FIRST_PAUSE


def test_failures_of_requests_on_their_way() -> None:
    """Failures within the pause don't make it longer."""
    balancer, time = make()
    balancer.fail("a")
    time.now += FIRST_PAUSE / 2
    assert not balancer.fail("a")
    assert balancer.pause("a") == FIRST_PAUSE / 2


def test_a_node_that_is_late() -> None:
    """It is left out only while there is another one."""
    balancer, time = make("ab")
    assert balancer.fail_unless_last("a")
    assert not balancer.fail_unless_last("b")
    assert balancer.choose() == "b"
    time.now += FIRST_PAUSE
    assert not balancer.fail_unless_last("a")
    assert balancer.pause("a") == 2 * FIRST_PAUSE


def test_the_shortest_pause() -> None:
    """A client that gets no node is told when the first one may be back."""
    balancer, time = make("ab")
    balancer.fail("a")
    time.now += 0.25
    balancer.fail("b")
    assert balancer.shortest_pause == FIRST_PAUSE - 0.25
    balancer.recover("a")
    assert balancer.shortest_pause == 0.0


def test_dead_for_hours() -> None:
    """A node may fail any number of times; the pause stays the longest, and it can come back."""
    balancer, time = make("ab")
    for _ in range(2_000):
        balancer.fail("a")
        time.now += MAX_PAUSE
    balancer.fail("a")
    assert balancer.pause("a") == MAX_PAUSE
    assert balancer.recover("a")
    assert balancer.pause("a") is None
