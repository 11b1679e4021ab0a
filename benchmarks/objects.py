"""What checking costs: our loads and dumps beside the bare ones of marshal. Run it as it is."""

from __future__ import annotations

import marshal
import platform
import time
from collections.abc import Callable

from uwsgitwisted.wire import objects

EXAMPLE = ("mytemplate.txt", {"fib_sequence": [1, 1, 2, 3, 5, 8, 13], "whattimeisit": 1.0})
VALUES: dict[str, object] = {
    "the message of the examples": EXAMPLE,
    "10,000 ints": list(range(1_000, 11_000)),
    "10,000 floats": [number / 7 for number in range(10_000)],
    "10,000 strings": [f"string number {number}" for number in range(10_000)],
    "10,000 ints and floats in turn": [number if number % 2 else number / 2 for number in range(10_000)],
    "1,000 rows of (int, str, float)": [(number, f"name {number}", number / 7) for number in range(1_000)],
    "a dict of 1,000 str: int": {f"key {number}": number for number in range(1_000)},
    "64,000 bytes": bytes(64_000),
}


def microseconds(function: Callable[[], object]) -> float:
    """Return the least time that a call took, over rounds of about 20 ms."""
    best = float("inf")
    calls = 1
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter() - start) / calls)
        calls = max(1, int(0.02 / best))
    return best * 1e6


def row(name: str, ours: float, bare: float) -> str:
    return f"{name:42} {ours:10.2f} {bare:10.2f} {ours / bare:7.2f}"


def main() -> None:
    print(f"Python {platform.python_version()}; microseconds a call")
    print(f"{'':42} {'ours':>10} {'marshal':>10} {'ratio':>7}")
    for name, value in VALUES.items():
        for version in (2, 4):
            data = marshal.dumps(value, version)
            ours = microseconds(lambda data=data: objects.loads(data))  # type: ignore[misc]
            bare = microseconds(lambda data=data: marshal.loads(data))  # type: ignore[misc]
            print(row(f"loads v{version}: {name}", ours, bare))
    for name, value in VALUES.items():
        ours = microseconds(lambda value=value: objects.dumps(value))  # type: ignore[misc]
        bare = microseconds(lambda value=value: marshal.dumps(value, 2))  # type: ignore[misc]
        print(row(f"dumps: {name}", ours, bare))


if __name__ == "__main__":
    main()
