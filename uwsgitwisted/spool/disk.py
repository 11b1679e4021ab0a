"""What has to be on the disk besides a file's bytes."""

from __future__ import annotations

import os


def sync_directory(path: str) -> None:
    """Have the names in the directory *path* on the disk: a file without its name is lost too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
