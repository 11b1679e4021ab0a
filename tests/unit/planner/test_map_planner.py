"""The decisions of a map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.planner.farm import Farm
from uwsgitwisted.balancer import FIRST_PAUSE
from uwsgitwisted.errors import (
    Busy,
    ConnectionBroken,
    ConnectionFailed,
    Interrupted,
    MisuseError,
    NoAnswer,
    RemoteError,
    RequestTimeout,
    Unavailable,
    UnencodableMessage,
    UnknownModifier,
    UnsafeObject,
    WorkerDied,
)
from uwsgitwisted.planner.map import MapPlanner
from uwsgitwisted.planner.piece import Sending
from uwsgitwisted.planner.settings import Settings
from uwsgitwisted.wire.bundle import Outcome


def test_values_in_order() -> None:
    """Results come in the order of the items, whichever is answered first."""
    farm = Farm([10, 20])
    assert farm.sent("a") == [10]
    assert farm.sent("b") == [20]
    farm.answer(20, later=1)
    assert farm.results == []
    assert not farm.planner.finished
    farm.answer(10)
    assert farm.values == [("answer", 10), ("answer", 20)]
    assert [result.index for result in farm.results] == [0, 1]
    assert [result.node for result in farm.results] == ["a", "b"]
    assert [result.seconds for result in farm.results] == [1, 1]
    assert farm.planner.finished
    assert farm.wake is None


def test_as_completed() -> None:
    """Without an order, a result comes as soon as it is there."""
    farm = Farm([10, 20], ordered=False)
    farm.answer(20)
    assert [result.index for result in farm.results] == [1]


def test_misuse() -> None:
    """Settings that can't be meant are refused."""
    for values in ({"chunk": 0, "chunked": True}, {"chunk": 1.5, "chunked": True}, {"chunk": 2}):
        with pytest.raises(MisuseError, match="chunk"):
            Farm([], **values)
    with pytest.raises(MisuseError, match="on_error is 'ignore'"):
        Farm([], on_error="ignore")
    with pytest.raises(MisuseError, match="can't be iterated over"):
        Farm(5)  # type: ignore[arg-type]


class TestFailures:
    def test_safe_elsewhere(self) -> None:
        """A request that was not started goes to another node, and its node is left out for a pause."""
        farm = Farm([1, 2])
        farm.answer(2, 1.0, later=1)
        farm.fail(1, ConnectionFailed("refused"))
        assert farm.sent("b") == [1]
        assert farm.wake == 1 + FIRST_PAUSE
        farm.answer(1)
        assert farm.values == [("answer", 1), ("answer", 2)]

    @pytest.mark.parametrize(
        "error", [ConnectionBroken(), NoAnswer(), WorkerDied(), RequestTimeout(), Interrupted()]
    )
    def test_perhaps_started(self, error: Exception) -> None:
        """A request that may have run goes to another node only if it is idempotent."""
        farm = Farm([1])
        farm.fail(1, error)
        assert farm.values == [error]
        assert farm.planner.finished
        farm = Farm([1], idempotent=True)
        farm.fail(1, error)
        assert farm.sent("b") == [1]

    @pytest.mark.parametrize(
        "error", [RemoteError(type="KeyError"), UnencodableMessage("no"), UnsafeObject("no")]
    )
    def test_an_error_that_is_an_answer(self, error: Exception) -> None:
        """What would fail anywhere is not tried again, and its node goes on."""
        farm = Farm([1, 2, 3], "a", idempotent=True)
        farm.fail(1, error)
        assert farm.values == [error]
        assert farm.sent("a") == [2]

    def test_three_nodes(self) -> None:
        """An item that has failed on three nodes has failed; the rest goes on."""
        farm = Farm([1, 2], "abcd", idempotent=True)
        farm.answer(2, 0.1, later=1)
        errors = [WorkerDied(str(number)) for number in range(3)]
        places = []
        for error in errors:
            places.append(farm.find(1).node)
            farm.fail(1, error)
        assert len(set(places)) == 3
        assert farm.values == [errors[2], ("answer", 2)]

    def test_busy(self) -> None:
        """A node that is full gets fewer requests, and what it refused counts as no failure."""
        farm = Farm(range(100), "a")
        farm.planner.set_terms("a", 8, 1000, farm.now)
        farm.poll()
        assert len(farm.sent()) == 8
        for _ in range(5):
            farm.fail(farm.sent()[-1], Busy("full"))
        assert farm.values == []
        assert len(farm.sent()) < 8
        while not farm.planner.finished:
            farm.answer(farm.sent()[0], 0.1, later=0.1)
        assert farm.values == [("answer", number) for number in range(100)]

    def test_a_node_that_comes_back(self) -> None:
        """After its pause, one request tries a node; if that works, it gets as much as before."""
        farm = Farm(range(10), "a")
        farm.fail(0, ConnectionFailed())
        assert farm.sent() == []
        farm.pass_time(FIRST_PAUSE)
        assert farm.sent() == [0]
        farm.fail(0, ConnectionFailed())
        assert farm.wake == farm.now + 2 * FIRST_PAUSE
        farm.pass_time(2 * FIRST_PAUSE)
        farm.answer(0, 0.1, later=0.1)
        assert farm.sent() == [1, 2]

    def test_all_nodes_are_down(self) -> None:
        """When no node has been well for too long, the map ends with the reason."""
        farm = Farm([1], "a", timeout=5)
        refused = ConnectionFailed("refused")
        for pause in (0.5, 1, 2):
            farm.fail(1, refused)
            assert farm.sent() == []
            farm.pass_time(pause)
        farm.fail(1, refused, later=0.5)
        assert farm.wake == 5
        with pytest.raises(Unavailable, match="no node was well for 5 s: refused") as caught:
            farm.pass_time(1)
        assert caught.value.__cause__ is refused
        assert farm.planner.finished

    def test_no_node(self) -> None:
        """Nodes may join later; without any, the map ends."""
        farm = Farm([1], "", timeout=5)
        farm.planner.add_node("c", 1.0)
        farm.poll()
        assert farm.sent("c") == [1]
        farm = Farm([1], "", timeout=5)
        with pytest.raises(Unavailable, match="there was no node for 5 s"):
            farm.pass_time(5)

    def test_on_error(self) -> None:
        """What is behind an item that failed is withdrawn; what is before it is waited for."""
        farm = Farm(range(10), "abc", on_error="raise")
        error = RemoteError(type="ValueError")
        farm.fail(1, error)
        assert farm.sent() == [0]
        assert [sending.message for sending in farm.cancelled] == [2]
        farm.answer(0)
        assert farm.values == [("answer", 0), error]
        assert farm.planner.finished


class TestCopies:
    def test_the_oldest_pieces(self) -> None:
        """An idle node gets a copy of the oldest piece; the first answer counts, the other is cancelled."""
        farm = Farm(range(8), idempotent=True)
        while farm.sent("b"):
            sending = farm.find(farm.sent("b")[0])
            if sending.piece.sent != [sending]:
                break
            farm.answer(sending.message, 1.0, later=1)
        assert farm.sent("a") == [0]
        assert farm.sent("b") == [0]
        farm.flying.reverse()
        farm.answer(0, 1.0, later=1)
        assert [sending.node for sending in farm.cancelled] == ["a"]
        assert farm.values == [("answer", number) for number in range(8)]
        assert farm.planner.finished

    def test_not_without_idempotent(self) -> None:
        """Otherwise an item is given to one node only."""
        farm = Farm(range(3))
        farm.answer(1, 1.0, later=1)
        farm.answer(2, 1.0, later=1)
        assert farm.sent() == [0]

    def test_a_copy_that_fails(self) -> None:
        """The other one is still waited for, and counts."""
        farm = Farm(range(2), idempotent=True)
        farm.answer(1, 1.0, later=1)
        assert len(farm.sent()) == 2
        farm.fail(0, NoAnswer())
        assert len(farm.sent()) == 1
        farm.answer(0)
        assert farm.values == [("answer", 0), ("answer", 1)]

    def test_a_copy_of_a_piece_that_has_failed_thrice(self) -> None:
        """While a copy is in flight, the piece has not failed."""
        farm = Farm(range(4), "abcd", idempotent=True)
        for item in (1, 2, 3):
            farm.answer(item, 1.0, later=1)
        first, copy = farm.flying
        first.piece.failed_on = ["x", "y"]
        farm.fail(0, NoAnswer())
        assert farm.flying == [copy]
        assert farm.values == []
        farm.answer(0)
        assert farm.values == [("answer", number) for number in range(4)]


class TestSizes:
    def test_chunks_by_time(self) -> None:
        """Chunks grow to the time that they should take, and shrink toward the end."""
        farm = Farm(range(10_000), "a", chunked=True, target=0.2)
        sizes = []
        while farm.flying:
            start, stop = farm.flying[0].message  # type: ignore[misc]
            sizes.append(stop - start)
            farm.answer([start, stop], 0.001 * (stop - start), later=0.001 * (stop - start))
        assert sum(sizes) == 10_000
        assert sizes[0] == 1
        assert max(sizes) == 200
        assert sizes[-1] < 20

    def test_fixed_chunks(self) -> None:
        """A fixed size is kept, except by the last chunk."""
        farm = Farm(iter(range(10)), "a", chunked=True, chunk=4)
        for chunk in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9]):
            farm.answer(chunk, 0.1, later=0.1)
        assert [result.index for result in farm.results] == [0, 4, 8]
        assert [result.count for result in farm.results] == [4, 4, 2]

    def test_a_range_with_a_step(self) -> None:
        """The bounds of a part have the step if it isn't 1."""
        farm = Farm(range(0, 10, 5), "a", chunked=True, chunk=2)
        assert farm.sent() == [[0, 10, 5]]

    def test_tiny_items(self) -> None:
        """A node gets so many tiny items that its worker never waits for the next one."""
        farm = Farm(range(1000), "a")
        for _ in range(30):
            farm.answer(farm.sent()[0], 0.0001, later=0.0002)
        assert 40 <= len(farm.sent()) <= 65

    def test_long_items(self) -> None:
        """Each worker has one item, and one more waits."""
        farm = Farm(range(1000), "a")
        farm.planner.set_terms("a", 4, 1000, 0.0)
        for _ in range(30):
            farm.answer(farm.sent()[0], 1.0, later=1.0)
        assert len(farm.sent()) == 5

    def test_unknown_workers(self) -> None:
        """How many requests a plain server runs at once is found out."""
        farm = Farm(range(500), "")
        farm.planner.add_node("p", 0.0)
        farm.poll()
        for _ in range(200):  # it answers four at once
            for message in farm.sent()[:4]:
                sending = farm.find(message)
                farm.flying.remove(sending)
                farm.now += 0.0001
                farm.planner.answered(sending, message, farm.now)
            farm.now += 0.1
            farm.poll()
            if farm.planner.finished:
                break
        assert farm.planner.finished

    def test_the_limit_of_a_node(self) -> None:
        """A node never has more requests than it accepts."""
        farm = Farm(range(1000), "")
        farm.planner.add_node("a", 0.0, workers=10, most=3)
        farm.poll()
        for _ in range(20):
            assert len(farm.sent()) <= 3
            farm.answer(farm.sent()[0], 0.001, later=0.001)


class TestItems:
    def test_a_generator_is_read_as_needed(self) -> None:
        """A generator is not read faster than the work goes, nor than results are taken."""
        read = []

        def items() -> Iterator[int]:
            for number in range(100_000):
                read.append(number)
                yield number

        farm = Farm(items(), "a")
        assert read == [0]
        first = farm.flying.pop()
        farm.planner.answered(first, None, 0.1, 0.1)
        farm.poll()
        assert len(read) == 3
        planner = farm.planner
        for _ in range(20_000):  # nobody takes the results any more
            if not farm.flying:
                break
            planner.answered(farm.flying.pop(), None, 0.2, 0.0001)
            farm.flying += planner.poll(0.2).send
        assert len(read) < 1_100

    def test_a_generator_that_raises(self) -> None:
        """Its error ends the map, and what is in flight is withdrawn."""

        def items() -> Iterator[int]:
            yield 1
            raise KeyError("broken")

        planner = MapPlanner(items(), Settings(), 0.0)
        planner.add_node("a", 0.0, workers=2)
        actions = planner.poll(0.0)
        with pytest.raises(KeyError, match="broken"):
            planner.take()
        assert planner.finished
        assert actions.send == actions.cancel == [] or actions.cancel

    def test_no_items(self) -> None:
        """There is nothing to do."""
        for nothing in ([], iter([]), range(0)):
            assert Farm(nothing).planner.finished


class TestNodes:
    def test_joining_and_leaving(self) -> None:
        """A node that leaves finishes what it has; one that joins gets work at once."""
        farm = Farm(range(10), "a")
        farm.planner.remove_node("a", 0.0)
        farm.planner.add_node("b", 0.0)
        farm.poll()
        assert farm.sent("a") == [0]
        assert farm.sent("b") == [1]
        farm.answer(0, 0.1, later=0.1)
        assert farm.sent("a") == []
        farm.planner.remove_node("b", 0.2)
        farm.planner.remove_node("c", 0.2)
        farm.planner.add_node("b", 0.2)
        while not farm.planner.finished:
            farm.answer(farm.sent("b")[0], 0.1, later=0.1)
        assert farm.values == [("answer", number) for number in range(10)]

    def test_progress(self) -> None:
        """The progress has the numbers of all, and of each node."""
        farm = Farm(range(10), "ab")
        farm.fail(1, RemoteError(type="KeyError"), later=1)
        farm.answer(0, 2.0, later=1)
        progress = farm.planner.progress(farm.now)
        assert progress[:3] == (1, 1, 10)
        assert progress.rate == pytest.approx(1)
        assert progress.remaining == pytest.approx(8)
        assert progress.elapsed == 2
        a, b = progress.nodes
        assert (a.node, a.done, a.speed, a.in_flight, a.failures) == ("a", 1, 0.5, 2, 0)
        assert (b.node, b.done, b.failures, b.left_out) == ("b", 0, 0, False)
        farm.planner.close()
        actions = farm.planner.poll(farm.now)
        assert len(actions.cancel) == 3
        assert actions.wake is None


class Chaos(Farm):
    """A farm in which anything may happen; it checks that no rule is broken.

    :param workers: how many workers each node says it has.
    """

    ERRORS: ClassVar[dict[str, type[Exception]]] = {
        "busy": Busy,
        "refused": ConnectionFailed,
        "lost": NoAnswer,
        "raised": RemoteError,
        "unknown": UnknownModifier,
    }

    def __init__(
        self, count: int, workers: list[int], *, idempotent: bool, chunk: int | None, **values: Any
    ) -> None:
        bundle = 0 if chunk is None else 256
        values |= {"idempotent": idempotent, "chunk": chunk}
        super().__init__(list(range(count)), "", bundle=bundle, timeout=1e9, **values)
        self.copies = 2 if idempotent else 1
        self.most: dict[Any, int] = {node: 2 + node for node in range(len(workers))}
        for node, number in enumerate(workers):
            accepted = bundle * (node % 3 != 2)  # every third node is an older one
            self.planner.add_node(node, 0.0, workers=number, most=self.most[node], bundle=accepted)
        self.poll()

    def step(self, place: int, what: str, seconds: float) -> None:
        """Let one thing happen."""
        self.now += seconds
        node = place % (len(self.most))
        if what == "join":
            self.planner.add_node(node, self.now, most=self.most[node])
        elif what == "leave":
            self.planner.remove_node(node, self.now)
        elif self.flying and what != "wait":
            self.end(self.flying.pop(place % len(self.flying)), what)
        self.poll()
        self.check()

    def end(self, sending: Sending, what: str) -> None:
        bundled = sending.piece.bundled
        if what == "answer":
            value = [Outcome(None, None)] * bundled if bundled else sending.message
            self.planner.answered(sending, value, self.now, 0.05)
        elif what == "mixed" and bundled:  # some raise, some are not begun
            outcomes = [Outcome(None, RemoteError() if place % 3 == 1 else None) for place in range(bundled)]
            self.planner.answered(sending, outcomes[: max(1, bundled - 2)], self.now, 0.05)
        elif what == "mixed":
            self.planner.failed(sending, RemoteError(), self.now)
        else:
            self.planner.failed(sending, self.ERRORS[what](), self.now)

    def finish(self) -> None:
        """Answer all requests from now on, until the map has ended."""
        self.most["last"] = 5
        self.planner.add_node("last", self.now, most=5)
        self.poll()
        for _ in range(1_000):
            if self.planner.finished:
                return
            self.now = self.now + 0.1 if self.flying else max(self.now, self.wake or 0.0)
            for sending in self.flying[:1]:
                self.flying.remove(sending)
                self.end(sending, "answer")
            self.poll()
            self.check()

    def check(self) -> None:
        carried = [sending.piece for sending in self.flying]
        assert all(carried.count(piece) <= self.copies for piece in carried)
        assert all(len(self.sent_to(node)) <= limit for node, limit in self.most.items())


@given(
    count=st.integers(0, 40),
    workers=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    steps=st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from(
                ["answer"] * 6
                + ["mixed", "busy", "refused", "lost", "raised", "unknown", "join", "leave", "wait"]
            ),
            st.floats(0, 2),
        ),
        max_size=60,
    ),
    idempotent=st.booleans(),
    ordered=st.booleans(),
    chunked=st.booleans(),
    chunk=st.sampled_from([None, 1, 2, 7]),
)
@settings(max_examples=150, deadline=None)
def test_any_order(
    count: int, workers: list[int], steps: list[tuple[int, str, float]], *, ordered: bool, **values: Any
) -> None:
    """Whatever happens, in any order, every item has exactly one result, and no rule is broken.

    Of chunks and bundles there are some of a fixed size; each third node accepts no bundles.
    """
    farm = Chaos(count, workers, ordered=ordered, **values)
    for step in steps:
        farm.step(*step)
    farm.finish()
    assert farm.planner.finished
    assert farm.flying == []
    indices = [index for result in farm.results for index in range(result.index, result.index + result.count)]
    assert sorted(indices) == list(range(count))
    assert not ordered or indices == list(range(count))
    # Second copies are no more than 5% of the items, or one piece.
    assert sum(farm.copied) <= max([*farm.copied[:1], 0.05 * count])
    assert farm.planner.progress(farm.now).nodes or not count
    assert sum(farm.planner.progress(farm.now)[:2]) == count


def test_doubtful_failures() -> None:
    """A node whose request got no answer, as when a plain handler raises, is left out only the second time."""
    farm = Farm(range(5), "a")
    farm.fail(0, NoAnswer())
    assert farm.sent() == [1]
    farm.answer(1)
    farm.fail(farm.sent()[0], NoAnswer())
    assert farm.sent()
    farm.fail(farm.sent()[0], NoAnswer())
    assert farm.wake == FIRST_PAUSE


def test_joining_again() -> None:
    """A node that has left, and joins while it still has something, goes on."""
    farm = Farm(range(5), "a")
    farm.planner.remove_node("a", 0.0)
    farm.planner.add_node("a", 0.0)
    farm.answer(0, 0.1, later=0.1)
    assert farm.sent("a") == [1, 2]
