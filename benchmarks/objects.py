"""Measures the cost of checking: our loads and dumps against marshal's: ``python -m benchmarks.objects``."""

from __future__ import annotations

import marshal
import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness import Relation, Row, Scale, Table, main
from benchmarks.messages import SMALL
from uwsgitwisted.wire import objects

VALUES: dict[str, Any] = {
    "the small message": SMALL,
    "10,000 ints": list(range(1_000, 11_000)),
    "10,000 floats": [number / 7 for number in range(10_000)],
    "10,000 strings": [f"string number {number}" for number in range(10_000)],
    "10,000 ints and floats in turn": [number if number % 2 else number / 2 for number in range(10_000)],
    "1,000 rows of (int, str, float)": [(number, f"name {number}", number / 7) for number in range(1_000)],
    "a dict of 1,000 str: int": {f"key {number}": number for number in range(1_000)},
    "64,000 bytes": bytes(64_000),
}


def microseconds(function: Callable[[], object], seconds: float) -> float:
    """Return the shortest time of a call, over five parts of that many seconds."""
    best = float("inf")
    calls = 1
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter() - start) / calls)
        calls = max(1, int(seconds / 5 / best))
    return best * 1e6


def _row(name: str, ours: Callable[[], object], bare: Callable[[], object], scale: Scale) -> Row:
    seconds = scale.seconds / 10
    samples, bare_times = [], []
    for _ in range(scale.rounds):
        bare_times.append(microseconds(bare, seconds))
        samples.append(microseconds(ours, seconds) / bare_times[-1])
    return Row(f"{name} (marshal: {min(bare_times):.2f} us)", samples=samples)


def _loads(name: str, value: Any, number: int, scale: Scale) -> Row:
    data = marshal.dumps(value, number)
    return _row(name, lambda: objects.loads(data), lambda: marshal.loads(data), scale)


def _dumps(name: str, value: Any, scale: Scale) -> Row:
    return _row(name, lambda: objects.dumps(value), lambda: marshal.dumps(value, 2), scale)


def run(scale: Scale) -> list[Table]:
    """Measure each value in each direction."""
    items = VALUES.items()
    found = {
        f"loads, marshal version {number}": [_loads(name, value, number, scale) for name, value in items]
        for number in (2, 4)
    }
    found["dumps"] = [_dumps(name, value, scale) for name, value in items]
    unit = "times as long as marshal"
    return [Table(title, unit, Relation.NONE, rows) for title, rows in found.items()]


if __name__ == "__main__":
    main(__doc__, run)
