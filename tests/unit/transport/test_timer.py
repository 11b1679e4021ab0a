"""One time limit for many things, with one timer."""

from __future__ import annotations

from twisted.internet.task import Clock

from uwsgitwisted.transport.timer import Deadlines


def test_expiry() -> None:
    """Each thing expires after its time, unless it is discarded, whenever the timer was set."""
    clock, late = Clock(), list[tuple[float, str]]()
    deadlines: Deadlines[str] = Deadlines(clock, 5, lambda thing: late.append((clock.seconds(), thing)))
    deadlines.add("a")
    clock.advance(1)
    deadlines.add("b")
    deadlines.discard("a")
    clock.advance(1)
    deadlines.add("c")
    deadlines.discard("c")
    deadlines.discard("nothing")
    clock.pump([1] * 10)
    assert late == [(6, "b")]
    assert clock.getDelayedCalls() == []


def test_one_timer() -> None:
    """However many things come and go, the timer is set once; it stops when nothing is left and it is told."""
    clock = Clock()
    deadlines: Deadlines[int] = Deadlines(clock, 5, lambda thing: None)
    deadlines.add(0)
    (timer,) = clock.getDelayedCalls()
    for number in range(1, 4):
        deadlines.discard(number - 1)
        deadlines.add(number)
    deadlines.rest()
    assert clock.getDelayedCalls() == [timer]
    deadlines.discard(3)
    assert clock.getDelayedCalls() == [timer]
    deadlines.rest()
    assert clock.getDelayedCalls() == []
