"""The memory of processes that are this package's own: services and their workers.

A program that only uses a client keeps the allocator as it was.
"""

from __future__ import annotations

#: Size of the block that is taken and freed, in bytes: glibc then keeps up to twice as much.
KEPT_BLOCK = 8 * 1024 * 1024


def keep_large_blocks() -> None:
    """Have this process keep the memory of large messages.

    glibc would give it back to the system and take it anew for the next message, which costs more than all else
    that is done with a message of 1 MB. It raises its threshold when a large block is freed. The block's pages
    are never touched.
    """
    bytes(KEPT_BLOCK)
