"""A good caller beside an attack; the tests assert what it measures.

A limit on a duration is asserted of the best of a few tries. A busy machine makes any single one longer, but
only the fault that the attack is about makes them all long.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from uwsgitwisted import blocking
from uwsgitwisted.errors import UwsgiError

#: How often a measurement is repeated before its limit counts as exceeded.
TRIES = 3
#: Seconds between two calls of a witness.
_PAUSE = 0.005


class Witness:
    """Calls a service repeatedly from its own thread, and records the results.

    :param call: one call; it raises ``UwsgiError`` if it fails.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        #: How long each call that succeeded took, in seconds.
        self.durations: list[float] = []
        #: The errors of the calls that failed.
        self.errors: list[UwsgiError] = []

    @property
    def slowest(self) -> float:
        """How long the slowest call took, in seconds."""
        return max(self.durations)

    def percentile(self, part: float) -> float:
        """Return the duration that *part* of the calls, from 0 to 1, did not exceed, in seconds."""
        ordered = sorted(self.durations)
        return ordered[min(int(part * len(ordered)), len(ordered) - 1)]

    def _run(self) -> None:
        while not self._stopping.wait(_PAUSE):
            began = time.monotonic()
            try:
                self._call()
            except UwsgiError as error:
                self.errors.append(error)
            else:
                self.durations.append(time.monotonic() - began)
        blocking.close()

    def start(self) -> None:
        """Start calling."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the call in flight, and stop; at least one call has been made then."""
        while self._thread.is_alive() and not (self.durations or self.errors):
            self._stopping.wait(_PAUSE)
        self._stopping.set()
        self._thread.join()


@contextlib.contextmanager
def watching(call: Callable[[], object]) -> Iterator[Witness]:
    """Let a witness make *call* while the block runs; its last call has ended when the block is left.

    :raises AssertionError: if not one call succeeded, so that nothing was measured.
    """
    witness = Witness(call)
    witness.start()
    try:
        yield witness
    finally:
        witness.stop()
    assert witness.durations, f"no call succeeded: {witness.errors[:3]}"


def pinging(address: object, timeout: float = 30.0) -> Callable[[], object]:
    """Return a call that pings *address* on a connection of its own."""
    return lambda: blocking.ping(address, timeout)  # type: ignore[arg-type]


def assert_within(limit: float, measure: Callable[[], float], what: str, tries: int = TRIES) -> None:
    """Assert that *measure* gives at most *limit* seconds at the best of *tries*."""
    measured: list[float] = []
    while len(measured) < tries:
        measured.append(measure())
        if measured[-1] <= limit:
            return
    took = ", ".join(f"{seconds:.3f}" for seconds in measured)
    raise AssertionError(f"{what} took {took} s; {limit:g} s is the most")
