"""Sets broken task files aside, so that nobody tries them again."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress

from uwsgitwisted.spool.uwsgi.files import Folder, opened_subdirectory

#: Where broken files are moved to. It is no number, so that no uWSGI looks in there.
BROKEN = "broken"


def set_aside(top: int, folder: Folder, name: str, reason: str) -> None:
    """Move a broken file to the subdirectory for them, with the reason in a file beside it.

    :param top: the descriptor of the spool directory.
    :raises OSError: if that can't be done; the file is still there then.
    """
    with opened_subdirectory(top, BROKEN) as broken:
        target, note = _reserve_name(broken, name)
        try:
            with open(note, "w") as file:
                file.write(f"{reason}\n")
            os.rename(name, target, src_dir_fd=folder.descriptor, dst_dir_fd=broken)
        except BaseException:
            with suppress(OSError):
                os.unlink(f"{target}.reason", dir_fd=broken)
            raise
        os.fsync(broken)
    os.fsync(folder.descriptor)


def _reserve_name(broken: int, name: str) -> tuple[str, int]:
    """Create a file for a reason.

    :return: the name for the broken file, which nobody else uses since the other's name is made of it, and the
        descriptor of the file for the reason.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    target, numbers = name, itertools.count(1)
    while True:
        try:
            return target, os.open(f"{target}.reason", flags, 0o600, dir_fd=broken)
        except FileExistsError:
            target = f"{name}.{next(numbers)}"
