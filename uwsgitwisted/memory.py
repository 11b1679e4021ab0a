"""The memory of our own processes: how they keep that of large messages, and how much each takes.

In a program that only uses a client, the allocator stays as it was.
"""

from __future__ import annotations

import resource

#: Size of the block that is allocated and freed, in bytes: glibc then keeps up to twice as much.
KEPT_BLOCK = 8 * 1024 * 1024


def keep_large_blocks() -> None:
    """Make this process keep the memory of large messages.

    By default, glibc returns that memory to the system and allocates it again for the next message. For a
    message of 1 MB, this costs more than all other work. Freeing a large block makes glibc raise its threshold.
    The block's pages are never touched.
    """
    bytes(KEPT_BLOCK)


_PAGE = resource.getpagesize()


def memory_of(pid: int) -> tuple[int, int]:
    """Return the resident and the virtual memory of a process, in bytes; 0 where the system doesn't say."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            virtual, resident = map(int, file.read().split()[:2])
    except (OSError, ValueError):  # a process that has ended may leave an empty file
        return 0, 0
    return resident * _PAGE, virtual * _PAGE
