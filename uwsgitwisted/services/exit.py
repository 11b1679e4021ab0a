"""Sets the exit status of this process."""

from __future__ import annotations

import atexit
import os
import sys

_failed = False


def exit_with_failure() -> None:
    """Make this process exit with status 1; ``twistd`` exits with 0 whenever its reactor is stopped."""
    global _failed
    _failed = True


@atexit.register  # registered early, so that it runs after the functions that others register
def _exit() -> None:
    if _failed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
