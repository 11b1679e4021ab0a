"""Caches, the queue, metrics and locks, without a process."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from uwsgitwisted.errors import MisuseError, UwsgiError
from uwsgitwisted.shared.cache import MAX_KEY, OVERHEAD, Cache, CacheLimits
from uwsgitwisted.shared.client import Client
from uwsgitwisted.shared.ring import QueueLimits
from uwsgitwisted.shared.state import SharedLimits, SharedState


class Caller:
    """A client of a state, and the answers that it got."""

    def __init__(self, state: SharedState) -> None:
        self._state = state
        self.client: Client = state.connect(1)
        self.answers: list[Sequence[bytes] | Exception] = []

    def __call__(self, *items: bytes) -> Sequence[bytes] | Exception | None:
        """Call an operation; return the answer, or None if it is to come."""
        before = len(self.answers)
        self._state.call(self.client, items, self.answers.append)
        return (
            tuple(self.answers[-1])
            if len(self.answers) > before and isinstance(self.answers[-1], Sequence)
            else (self.answers[-1] if len(self.answers) > before else None)
        )

    def end(self) -> None:
        """End, as a thread does."""
        self._state.lost(self.client)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> SharedState:
    return SharedState(clock.seconds, SharedLimits(queue=QueueLimits(slots=3, size=10)))


def cache(clock: Clock, **limits: int) -> Cache:
    """Return a cache."""
    return Cache(CacheLimits(**limits), clock.seconds)  # type: ignore[arg-type]


def test_expiry(clock: Clock) -> None:
    """An item is gone at its time and not before, and makes room for another one."""
    one = cache(clock, items=1)
    assert one.set(b"a", b"1", 5)
    clock.advance(4.9)
    assert one.get(b"a") == b"1"
    assert not one.set(b"b", b"2")
    clock.advance(0.1)
    assert one.set(b"b", b"2")
    clock.advance(5)
    assert one.set(b"b", b"3", 5, replace=True)
    clock.advance(5)
    assert one.get(b"b") is None
    assert one.set(b"b", b"2")
    assert one.keys() == [b"b"]


def test_replacing_keeps_no_old_expiry(clock: Clock) -> None:
    """A value that was replaced lives as long as the last one, and old times of expiry don't pile up."""
    one = cache(clock)
    for _ in range(1_000):
        one.set(b"a", b"1", 5, replace=True)
    assert len(one._expiries) < 100
    one.set(b"a", b"2", 0, replace=True)
    clock.advance(10)
    assert one.get(b"a") == b"2"


def test_full(clock: Clock) -> None:
    """A full cache refuses a new item, and takes a replacement that fits."""
    one = cache(clock, items=2, size=2 * OVERHEAD + 8)
    assert one.set(b"a", b"123")
    assert one.set(b"b", b"123")
    assert not one.set(b"c", b"1")
    assert not one.set(b"a", b"12345", replace=True)
    assert one.set(b"a", b"1", replace=True)
    assert not one.calculate(b"inc", b"n", 1)


def test_least_recently_used(clock: Clock) -> None:
    """With lru, the item that was unused for longest makes room."""
    one = Cache(CacheLimits(items=2, lru=True), clock.seconds)
    for key in (b"a", b"b"):
        one.set(key, b"1")
    one.get(b"a")
    assert one.set(b"c", b"1")
    assert one.keys() == [b"a", b"c"]


def test_what_is_refused(clock: Clock) -> None:
    """As in uWSGI, an empty key, an empty value and a key that is too long are not stored."""
    one = cache(clock)
    assert not one.set(b"", b"1")
    assert not one.set(b"a", b"")
    assert not one.set(bytes(MAX_KEY + 1), b"1")


@pytest.mark.parametrize(
    ("calculations", "number"),
    [
        ([(b"inc", 1), (b"inc", 5), (b"dec", 2), (b"mul", 3), (b"div", 2)], 6),
        ([(b"dec", 7)], -7),
        ([(b"dec", 7), (b"div", 2)], -3),
        ([(b"inc", 7), (b"div", 0)], 0),
        ([(b"inc", 2**63 - 1), (b"inc", 1)], -(2**63)),
    ],
)
def test_numbers(state: SharedState, calculations: list[tuple[bytes, int]], number: int) -> None:
    """Numbers are those of C with 64 bits, as uWSGI's are."""
    call = Caller(state)
    for name, by in calculations:
        assert call(b"cache_calculate", name, b"n", b"%d" % by, b"0", b"") == (b"1",)
    assert call(b"cache_num", b"n", b"") == (b"%d" % number,)


@given(st.lists(st.tuples(st.sampled_from("sgdx"), st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 40))))
def test_cache_never_exceeds_its_limits(steps: list[tuple[str, bytes, int]]) -> None:
    """Whatever is done, a cache knows its size, and keeps within its limits."""
    clock = Clock()
    limits = CacheLimits(items=2, size=2 * OVERHEAD + 50, lru=bool(len(steps) % 2))
    one = Cache(limits, clock.seconds)
    for step, key, number in steps:
        if step == "s":
            one.set(key, bytes(number), number % 3, replace=True)
        elif step == "g":
            one.get(key)
        elif step == "d":
            one.delete(key)
        else:
            clock.advance(number / 10)
        stored = {key: one.get(key) for key in one.keys()}  # noqa: SIM118 - it is no dict
        assert one.size == sum(len(key) + len(value or b"") + OVERHEAD for key, value in stored.items())
        assert one.size <= limits.size
        assert len(one) <= limits.items


def test_lock_is_passed_on(state: SharedState) -> None:
    """Those who wait get a lock in their order: when it is released, and when its holder ends."""
    first, second, third = Caller(state), Caller(state), Caller(state)
    assert first(b"lock", b"0") == ()
    assert second(b"lock", b"0") is None
    assert third(b"lock", b"0") is None
    first(b"unlock", b"0")
    assert second.answers == [()]
    assert not third.answers
    second.end()
    assert third.answers == [()]
    assert first(b"is_locked", b"0") == (b"1",)
    third.end()
    assert first(b"is_locked", b"0") == ()


def test_waiting_for_a_lock_ends(state: SharedState) -> None:
    """Who has ended, or calls for something else, while it waits for a lock, doesn't get it."""
    first, second, third = Caller(state), Caller(state), Caller(state)
    first(b"lock", b"0")
    second(b"lock", b"0")
    third(b"lock", b"0")
    second.end()
    assert third(b"unlock", b"0") == ()
    first(b"unlock", b"0")
    assert first(b"is_locked", b"0") == ()


def test_lock_mistakes(state: SharedState) -> None:
    """A lock that is held already, and one that isn't there, are errors; to release another's does nothing."""
    first, second = Caller(state), Caller(state)
    first(b"lock", b"0")
    assert "holds it already" in str(first(b"lock", b"0"))
    assert "Invalid lock number 256" in str(first(b"lock", b"256"))
    assert second(b"unlock", b"0") == ()
    assert second(b"is_locked", b"0") == (b"1",)


def test_queue_keeps_its_order(state: SharedState) -> None:
    """A full queue replaces the oldest item, and pull goes on with the oldest that is left."""
    call = Caller(state)
    for item in (b"1", b"2", b"3", b"4"):
        assert call(b"queue_push", item) == (b"1",)
    assert call(b"queue_last", b"3") == (b"4", b"3", b"2")
    assert [call(b"queue_pull") for _ in range(4)] == [(b"2",), (b"3",), (b"4",), ()]
    assert [call(b"queue_pop"), call(b"queue_push", b"5"), call(b"queue_pull")] == [(), (b"1",), (b"5",)]


def test_queue_is_bounded(state: SharedState) -> None:
    """An item that is too large is not stored, nor an empty one, nor one beside the slots."""
    call = Caller(state)
    assert call(b"queue_push", bytes(8)) == (b"1",)
    assert call(b"queue_push", bytes(3)) == ()
    assert call(b"queue_push", b"") == ()
    assert call(b"queue_set", b"3", b"1") == ()
    assert call(b"queue_set", b"1", b"1") == (b"1",)
    assert (call(b"queue_slot"), call(b"queue_pull_slot")) == ((b"1",), (b"0",))


def test_metrics(state: SharedState) -> None:
    """A metric counts from 0, has a largest number, and there are only so many."""
    call = Caller(state)
    for change, by in (b"inc", b"9"), (b"set_max", b"4"), (b"set_min", b"7"), (b"mul", b"3"), (b"div", b"2"):
        assert call(b"metric_change", change, b"m", by) == (b"1",)
    assert call(b"metric_get", b"m") == (b"10",)
    assert call(b"metric_change", b"div", b"m", b"0") == ()
    call(b"metric_change", b"set", b"m", b"%d" % (2**63 - 1))
    call(b"metric_change", b"inc", b"m", b"1")
    assert call(b"metric_get", b"m") == (b"%d" % (2**63 - 1),)
    for number in range(999):
        call(b"metric_change", b"inc", b"m%d" % number, b"1")
    assert "1000 metrics already" in str(call(b"metric_change", b"inc", b"more", b"1"))
    for name in b"", bytes(256):
        assert "1 to 255 bytes" in str(call(b"metric_change", b"inc", name, b"1"))


@pytest.mark.parametrize(
    "items",
    [
        (),
        (b"nothing",),
        (b"signal", b"1"),
        (b"lock",),
        (b"lock", b"x"),
        (b"lock", b"9" * 30),
        (b"queue_last", b"9"),
    ],
)
def test_calls_that_are_none(state: SharedState, items: tuple[bytes, ...]) -> None:
    """A call that can't be understood gets an error of ours, and nothing else happens."""
    answer = Caller(state)(*items)
    assert isinstance(answer, UwsgiError)
    assert isinstance(answer, MisuseError) or items[0] == b"lock"
