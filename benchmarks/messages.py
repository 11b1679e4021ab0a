"""What the benchmarks send."""

from __future__ import annotations

#: The small message: that of the examples.
SMALL = ("mytemplate.txt", {"fib_sequence": [1, 1, 2, 3, 5, 8, 13], "whattimeisit": 1.0})

# What the handler of the node does, by modifier2.
ECHO, COMPUTE, MAKE = 17, 1, 2


def large(kind: str, size: int) -> object:
    """Return an object of about *size* bytes when it is marshalled: ``bytes``, or ``rows`` of a table."""
    if kind == "bytes":
        return b"x" * size
    # A row takes about 39 bytes in marshal's version 2.
    return [(number, f"name {number:08}", number / 7) for number in range(size // 39)]


#: The file in which each run of a task leaves a byte, in the directory where all processes run.
MARKS = "marks"
