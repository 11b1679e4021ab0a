"""The messages of the benchmarks."""

from __future__ import annotations

#: The small message, as in the examples.
SMALL = ("mytemplate.txt", {"fib_sequence": [1, 1, 2, 3, 5, 8, 13], "whattimeisit": 1.0})

# The operations of the node's handler, by modifier2.
ECHO, COMPUTE, MAKE, PRETEND = 17, 1, 2, 3

#: How many seconds an item takes with PRETEND, and how much slower the slow node is.
COST, SLOWNESS = 0.004, 4


def large(kind: str, size: int) -> object:
    """Make an object whose marshalled size is about *size* bytes: ``bytes``, or ``rows`` of a table."""
    if kind == "bytes":
        return b"x" * size
    # A row takes about 39 bytes in marshal's version 2.
    return [(number, f"name {number:08}", number / 7) for number in range(size // 39)]


#: The file to which each run of a task appends a byte, in the working directory of all processes.
MARKS = "marks"
