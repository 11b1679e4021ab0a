"""Bundles of tiny items: when there are any, and what becomes of each item."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.planner.farm import Farm, content
from uwsgitwisted.errors import (
    Busy,
    ConnectionFailed,
    Interrupted,
    MalformedAnswer,
    MisuseError,
    NoAnswer,
    RemoteError,
    RequestTimeout,
    UnknownModifier,
    UwsgiError,
    WorkerDied,
)
from uwsgitwisted.planner.piece import Sending
from uwsgitwisted.planner.settings import Settings
from uwsgitwisted.wire.bundle import MAX_BUNDLE, MAX_BUNDLE_SIZE, decode_bundle
from uwsgitwisted.wire.objects import loads

#: How long a tiny item takes, in seconds.
TINY = 0.00001


def items_of(sending: Sending) -> list[Any]:
    return content(sending) if sending.bundled else [content(sending)]


def work(farm: Farm, each: float = TINY) -> list[int]:
    """Answer the oldest request until the map has ended; return how many items each had."""
    sizes = []
    while not farm.planner.finished:
        sending = farm.flying[0]
        items = items_of(sending)
        sizes.append(len(items))
        took = each * len(items)
        if sending.bundled:
            farm.answer_bundle(sending, *items, took=took, later=took + 0.0001)
        else:
            farm.answer(items[0], took, later=took + 0.0001)
    return sizes


def bundled(items: Any = range(100), nodes: str = "a", *, chunk: int | None = 5, **settings: Any) -> Farm:
    """Return a farm in which a bundle of five is in flight; the map's first request was answered."""
    return Farm(items, nodes, bundle=MAX_BUNDLE, chunk=chunk, **settings)


class TestSizes:
    def test_growth(self) -> None:
        """The first request has one item; then there are as many as take 2 ms, and few toward the end."""
        farm = Farm(range(10_000), "a", bundle=MAX_BUNDLE)
        sizes = work(farm)
        assert sum(sizes) == 10_000
        assert sizes[:2] == [1, 8]
        assert max(sizes) == 200
        assert sizes[-1] < 20
        assert [result.index for result in farm.results] == list(range(10_000))
        assert farm.values[:3] == [("answer", 0), 1, 2]

    def test_shares(self) -> None:
        """A bundle is at most half of the node's share of what is left, so that no node waits for others."""
        farm = Farm(range(100), "ab", bundle=MAX_BUNDLE)
        farm.answer(0, TINY, later=0.001)
        farm.answer(1, TINY, later=0.001)
        for node in "ab":
            assert max(len(items_of(sending)) for sending in farm.sent_to(node)) <= 25
        assert max(work(farm)) <= 25

    def test_number(self) -> None:
        """A bundle has no more items than the node accepts."""
        assert max(work(Farm(range(5_000), "a", bundle=50))) == 50

    def test_items_that_take_longer(self) -> None:
        """Where a message costs little beside the items, each has its own."""
        assert set(work(Farm(range(300), "a", bundle=MAX_BUNDLE), each=0.0006)) == {1}

    def test_nodes_without_bundles(self) -> None:
        """A node that accepts no bundles gets single items, also where the caller says how many."""
        farm = Farm(range(300), "", bundle=MAX_BUNDLE)
        farm.planner.add_node("old", 0.0, workers=1)
        farm.poll()
        assert set(work(farm)) == {1}
        farm = Farm(range(30), "", bundle=MAX_BUNDLE, chunk=5)
        farm.planner.add_node("old", 0.0, workers=1)
        farm.poll()
        assert set(work(farm)) == {1}

    def test_terms(self) -> None:
        """A node may say later that it accepts bundles."""
        farm = Farm(range(30), "", bundle=MAX_BUNDLE, chunk=5)
        farm.planner.add_node("a", 0.0)
        farm.poll()
        farm.planner.set_terms("a", 1, 1000, 0.0, 3)
        farm.poll()
        assert work(farm)[:2] == [1, 3]

    def test_the_callers_number(self) -> None:
        """``chunk=1`` is for no bundles; another number is that of each, except of the last one."""
        assert set(work(Farm(range(300), "a", bundle=MAX_BUNDLE, chunk=1))) == {1}
        assert work(Farm(range(12), "a", bundle=MAX_BUNDLE, chunk=5)) == [5, 5, 2]

    def test_misuse(self) -> None:
        """Other items can't be bundled, and chunks are none."""
        with pytest.raises(MisuseError, match="modifier1 33"):
            Settings(chunk=2)
        assert not Settings(bundled=True, chunked=True).bundles

    def test_large_items(self) -> None:
        """A bundle ends before an item that is too large for it."""
        large, huge = "x" * (MAX_BUNDLE_SIZE // 2), "x" * MAX_BUNDLE_SIZE
        farm = bundled([1, 2, huge, 3, 4, large, large, 5])
        sent = []
        while farm.flying:
            sent.append(items_of(farm.flying[0]))
            work_one(farm)
        assert sent == [[1, 2], [huge], [3, 4, large], [large], [5]]
        farm = bundled(["x" * MAX_BUNDLE_SIZE] * 3)
        assert work(farm) == [1, 1, 1]

    def test_an_item_that_can_not_be_sent(self) -> None:
        """A bundle ends before it, and it is left to the shell, alone."""
        obstacle = object()
        farm = bundled([1, 2, obstacle, 3])
        assert farm.sent() == [[1, 2]]
        work_one(farm)
        assert farm.sent() == [obstacle, 3]
        farm.fail(obstacle, MisuseError("no"))
        assert farm.sent() == [3]


def work_one(farm: Farm) -> None:
    sending = farm.flying[0]
    if sending.bundled:
        farm.answer_bundle(sending, *items_of(sending), took=TINY)
    else:
        farm.answer(content(sending), TINY)


class TestSending:
    def test_requests(self) -> None:
        """The shell gets the request of a bundle, and what decodes its answer."""
        farm = bundled([1, 2, 3], chunk=2)
        (first,) = farm.flying
        farm.answer_bundle(first, 1, 2)
        (second,) = farm.flying
        assert first.request is not None
        assert [loads(packet.payload) for packet in decode_bundle(first.request)] == [1, 2]
        assert second.request is not None
        assert (second.request.modifier1, second.bundled) == (33, False)
        with pytest.raises(MalformedAnswer):
            first.decode(second.request)
        assert second.decode(second.request) == 3

    def test_times(self) -> None:
        """Each item's time is that of its bundle, and the progress counts items."""
        farm = bundled(range(5), ordered=False)
        farm.answer_bundle(farm.flying[0], 10, RemoteError(type="KeyError"), 12, 13, 14, took=TINY, later=2)
        assert [(each.index, each.value, each.seconds, each.count) for each in farm.results] == [
            (0, 10, 2, 1),
            (1, None, 2, 1),
            (2, 12, 2, 1),
            (3, 13, 2, 1),
            (4, 14, 2, 1),
        ]
        progress = farm.planner.progress(farm.now)
        assert progress[:3] == (4, 1, 5)
        assert progress.nodes[0].done == 4
        assert farm.planner.finished


class TestFailures:
    def test_an_item(self) -> None:
        """An item that has failed fails alone, with its node's address."""
        farm = bundled(range(5))
        error = RemoteError(type="KeyError")
        farm.answer_bundle(farm.flying[0], 0, 1, error, 3, 4)
        assert farm.values == [0, 1, error, 3, 4]
        assert error.address == "a"

    def test_on_error(self) -> None:
        """With ``on_error="raise"``, what is behind it is dropped, in its bundle and in others."""
        farm = bundled(range(30), on_error="raise")
        farm.planner.set_terms("a", 3, 1000, 0.0, MAX_BUNDLE)
        farm.poll()
        first, second, third = farm.flying
        farm.answer_bundle(second, 5, 6, RemoteError(type="KeyError"), 8, 9)
        assert farm.cancelled == [third]
        assert farm.flying == [first]
        farm.answer_bundle(first, *range(5))
        assert [result.index for result in farm.results] == list(range(8))
        assert farm.planner.finished

    def test_what_was_not_begun(self) -> None:
        """Items without an outcome go out again, one by one, and nothing has failed."""
        farm = bundled(range(5), idempotent=False)
        farm.answer_bundle(farm.flying[0], 0, 1, took=1.0, later=1)
        assert farm.values == [0, 1]
        assert farm.planner.progress(farm.now).nodes[0].speed == 2
        assert farm.sent() == [2, 3]
        while farm.flying:
            farm.answer(farm.sent()[0])
        assert len(farm.values) == 5
        assert farm.planner.progress(0.0).failed == 0
        assert farm.planner.finished

    @pytest.mark.parametrize("error", [NoAnswer(), WorkerDied(), RequestTimeout(), Interrupted()])
    def test_perhaps_begun(self, error: UwsgiError) -> None:
        """If nobody knows which items have run, each has the error, or is tried again alone if it may be."""
        farm = bundled(range(5))
        farm.fail([0, 1, 2, 3, 4], error)
        assert farm.values == [error] * 5
        assert farm.planner.progress(0.0).failed == 5
        farm = bundled(range(5), "ab", idempotent=True)
        farm.fail([0, 1, 2, 3, 4], error)
        assert farm.values == []
        assert farm.sent("b") == [0]

    @pytest.mark.parametrize("nodes", ["a", "abcd"])
    def test_an_item_that_kills(self, nodes: str) -> None:
        """An item that kills each worker costs itself only."""
        farm = bundled(range(20), nodes, idempotent=True)
        error = WorkerDied("killed")
        while not farm.planner.finished:
            sending = farm.flying[0]
            if 7 in items_of(sending):
                farm.fail(content(sending), error)
            else:
                work_one(farm)
        assert [result.index for result in farm.results if result.error] == [7]

    def test_an_item_that_kills_late(self) -> None:
        """So it does if its bundle could not be sent to other nodes before."""
        farm = bundled(range(5), "abc", idempotent=True)
        for _ in range(2):
            farm.fail([0, 1, 2, 3, 4], ConnectionFailed())
        farm.fail([0, 1, 2, 3, 4], WorkerDied())
        assert farm.values == []
        assert farm.sent() == [0]

    def test_not_begun(self) -> None:
        """A bundle that was refused goes to another node as it is, or item by item if that takes no bundles."""
        farm = bundled(range(5), "ab")
        farm.fail([0, 1, 2, 3, 4], Busy("full"))
        assert farm.sent() == [[0, 1, 2, 3, 4]]
        farm.fail([0, 1, 2, 3, 4], ConnectionFailed("refused"), later=1)
        assert farm.sent("b") == [[0, 1, 2, 3, 4]]
        farm = bundled(range(5))
        farm.planner.add_node("old", 0.0, workers=2)
        farm.fail([0, 1, 2, 3, 4], ConnectionFailed("refused"))
        assert farm.sent("old") == [0, 1]
        farm.answer(0, TINY, later=TINY)
        assert farm.sent("old") == [1, 2, 3, 4]

    def test_a_node_that_knows_no_bundles(self) -> None:
        """A node that was replaced by an older one gets the items one by one, and nothing has failed."""
        farm = bundled(range(20))
        farm.fail([0, 1, 2, 3, 4], UnknownModifier(modifier1=35))
        assert farm.sent() == [0]
        assert set(work(farm)) == {1}
        assert [result.index for result in farm.results] == list(range(20))

    def test_too_many_outcomes(self) -> None:
        """A node that answers more than it was asked has failed the bundle."""
        farm = bundled(range(5))
        farm.answer_bundle(farm.flying[0], *range(6))
        assert [type(value) for value in farm.values] == [MalformedAnswer] * 5


class TestCopies:
    def test_a_bundle(self) -> None:
        """An idle node gets a copy of a bundle; the first answer counts, and the other is cancelled."""
        farm = bundled(range(10), "ab", idempotent=True)
        first, second = farm.flying
        farm.answer_bundle(second, *range(5, 10), took=TINY, later=1)
        assert farm.sent("b") == [[0, 1, 2, 3, 4]]
        farm.answer_bundle(farm.sent_to("b")[0], *range(5), took=TINY, later=1)
        assert farm.cancelled == [first]
        assert farm.values == list(range(10))
        assert farm.planner.finished

    def test_a_copy_that_fails(self) -> None:
        """While the other copy is in flight, the bundle is left alone."""
        farm = bundled(range(10), "ab", idempotent=True)
        farm.answer_bundle(farm.flying[1], *range(5, 10), took=TINY, later=1)
        farm.fail([0, 1, 2, 3, 4], WorkerDied())
        assert farm.sent() == [[0, 1, 2, 3, 4]]
        farm.fail([0, 1, 2, 3, 4], WorkerDied())
        assert 0 in farm.sent()

    def test_not_to_a_node_without_bundles(self) -> None:
        """A node that takes no bundles gets no copy of one."""
        farm = Farm(range(6), "a", bundle=MAX_BUNDLE, chunk=5, idempotent=True)
        farm.planner.add_node("old", 0.0, workers=1)
        farm.poll()
        farm.answer(5, TINY, later=1)
        assert farm.sent("old") == []


def test_results_that_wait() -> None:
    """Nodes go on for a while though the first bundle has no answer, but not without end."""
    farm = Farm(range(100_000), "ab", bundle=MAX_BUNDLE, chunk=200)
    first = farm.flying[0]
    while others := [sending for sending in farm.flying if sending is not first]:
        assert others[0].node == "b"
        farm.answer_bundle(others[0], *items_of(others[0]), took=0.002, later=0.002)
    done = farm.planner.progress(farm.now).done
    assert 2_000 < done < 20_000
    assert farm.results == []


class TestGenerators:
    def test_reading(self) -> None:
        """What is read at once is bounded; the next poll, at once, goes on."""
        read = []

        def items() -> Iterator[int]:
            for number in range(100_000):
                read.append(number)
                yield number

        farm = Farm(items(), "a", bundle=MAX_BUNDLE)
        farm.answer(0, TINY, later=TINY)
        planner = farm.planner
        for _ in range(50):
            before = len(read)
            for sending in farm.flying:
                planner.answered(sending, [(None, None)] * sending.piece.bundled or None, farm.now, TINY)
            actions = planner.poll(farm.now)
            farm.flying = list(actions.send)
            assert len(read) - before <= 128
            if len(read) - before == 128:
                assert actions.wake == farm.now
        assert 1_000 < len(read) < 20_000  # nobody takes the results

    def test_a_generator_that_ends(self) -> None:
        """The number of items may be unknown until the end."""
        farm = Farm(iter(range(1_000)), "ab", bundle=MAX_BUNDLE)
        work(farm)
        assert [result.index for result in farm.results] == list(range(1_000))

    def test_a_generator_that_raises(self) -> None:
        """Its error ends the map, also if it is one of ours."""

        def items() -> Iterator[int]:
            yield from range(3)
            raise MisuseError("the generator's own")

        with pytest.raises(MisuseError, match="the generator's own"):
            bundled(items())
