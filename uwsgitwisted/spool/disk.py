"""Brings file names to the disk."""

from __future__ import annotations

import os


def sync_directory(path: str) -> None:
    """Bring the names in the directory *path* to the disk: a file without its name is lost too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
