"""The status with which this process ends."""

from __future__ import annotations

import atexit
import os
import sys

_failed = False


def exit_with_failure() -> None:
    """Have this process end with status 1: ``twistd`` ends with 0 whenever its reactor is stopped."""
    global _failed
    _failed = True


@atexit.register  # early, so that it comes after what others have registered
def _exit() -> None:
    if _failed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
