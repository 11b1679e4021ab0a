"""What a service tells its processes of itself: what its workers do and have done, and how large its log is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from uwsgitwisted.shared.client import Client
from uwsgitwisted.wire.calls import encode_number

#: What was found out of the workers is told again for so many times as long as that took, so that handlers that
#: ask without end take a twentieth of the front's time, however many workers there are; but for so many seconds
#: at most. With few workers, it is less than a millisecond.
_FRESH, _LONGEST = 20, 0.1


class Facts:
    """Answers the questions of workers and mules. The front reads no file of each worker for that.

    :param workers: returns a dict for each worker, of types that JSON has, with at least ``requests``.
    :param log_size: returns how many bytes the log file has.
    :param now: the time in seconds.
    """

    def __init__(
        self,
        workers: Callable[[], list[dict[str, Any]]],
        log_size: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self._find_workers = workers
        self._log_size = log_size
        self._now = now
        self._fresh_until = 0.0
        self._workers = self._requests = b""

    def workers(self, client: Client) -> Sequence[bytes]:
        """Return the dicts of all workers, as JSON."""
        self._refresh()
        return (self._workers,)

    def total_requests(self, client: Client) -> Sequence[bytes]:
        """Return how many requests all workers have answered."""
        self._refresh()
        return (self._requests,)

    def _refresh(self) -> None:
        began = self._now()
        if self._workers and began < self._fresh_until:
            return
        workers = self._find_workers()
        self._workers = json.dumps(workers).encode()
        self._requests = encode_number(sum(worker["requests"] for worker in workers))
        ended = self._now()
        self._fresh_until = ended + min(_LONGEST, _FRESH * (ended - began))

    def log_size(self, client: Client) -> Sequence[bytes]:
        """Return how many bytes the log file has."""
        return (encode_number(self._log_size()),)
