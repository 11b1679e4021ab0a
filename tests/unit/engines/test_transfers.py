"""How many bytes of large answers arrive at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.engines.transfers import Transfers

LIMIT = 100


class Worker:
    """Sends an answer."""

    def __init__(self) -> None:
        self.reading = True

    def set_reading(self, reading: bool) -> None:
        self.reading = reading


def test_those_that_began_last_wait() -> None:
    """Answers are read in the order in which they began, as far as they are together within the limit."""
    transfers, workers = Transfers(LIMIT), [Worker() for _ in range(4)]
    for worker, size in zip(workers, (60, 40, 70, 30), strict=True):
        transfers.update(worker, size)
    assert [worker.reading for worker in workers] == [True, True, False, False]
    transfers.update(workers[0], 0)
    assert [worker.reading for worker in workers] == [True, True, False, False]
    transfers.update(workers[1], 0)
    assert [worker.reading for worker in workers] == [True, True, True, True]


def test_the_first_is_always_read() -> None:
    """One that is over the limit by itself does not wait, and the others wait for it."""
    transfers, workers = Transfers(LIMIT), [Worker() for _ in range(2)]
    transfers.update(workers[0], 2 * LIMIT)
    transfers.update(workers[1], 1)
    assert [worker.reading for worker in workers] == [True, False]
    transfers.update(workers[0], 0)
    assert workers[1].reading


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, LIMIT))))
def test_any_order(steps: list[tuple[int, int]]) -> None:
    """Whatever begins and ends, what is read is within the limit, and something is, while there is anything."""
    transfers, workers = Transfers(LIMIT), [Worker() for _ in range(5)]
    sizes: dict[int, int] = {}
    for number, size in steps:
        transfers.update(workers[number], size)
        if size:
            sizes[number] = size
        else:
            sizes.pop(number, None)
        assert all(worker.reading for place, worker in enumerate(workers) if place not in sizes)
        assert sum(sizes[place] for place in sizes if workers[place].reading) <= LIMIT
        assert not sizes or any(workers[place].reading for place in sizes)
