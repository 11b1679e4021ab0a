"""Tunes the memory allocator of this package's own processes, services and workers.

In a program that only uses a client, the allocator stays as it was.
"""

from __future__ import annotations

#: Size of the block that is allocated and freed, in bytes: glibc then keeps up to twice as much.
KEPT_BLOCK = 8 * 1024 * 1024


def keep_large_blocks() -> None:
    """Make this process keep the memory of large messages.

    By default, glibc returns that memory to the system and allocates it again for the next message. For a
    message of 1 MB, this costs more than all other work. Freeing a large block makes glibc raise its threshold.
    The block's pages are never touched.
    """
    bytes(KEPT_BLOCK)
