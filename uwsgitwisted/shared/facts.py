"""What a service tells its processes of itself: what its workers do and have done, and how large its log is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from uwsgitwisted.shared.client import Client
from uwsgitwisted.wire.calls import encode_number


class Facts:
    """Answers the questions of workers and mules. The front reads no file of each worker for that.

    :param workers: returns a dict for each worker, of types that JSON has, with at least ``requests``.
    :param log_size: returns how many bytes the log file has.
    """

    def __init__(self, workers: Callable[[], list[dict[str, Any]]], log_size: Callable[[], int]) -> None:
        self._workers = workers
        self._log_size = log_size

    def workers(self, client: Client) -> Sequence[bytes]:
        """Return the dicts of all workers, as JSON."""
        return (json.dumps(self._workers()).encode(),)

    def total_requests(self, client: Client) -> Sequence[bytes]:
        """Return how many requests all workers have answered."""
        return (encode_number(sum(worker["requests"] for worker in self._workers())),)

    def log_size(self, client: Client) -> Sequence[bytes]:
        """Return how many bytes the log file has."""
        return (encode_number(self._log_size()),)
