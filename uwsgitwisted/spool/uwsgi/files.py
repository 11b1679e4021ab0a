"""What a uWSGI spool directory looks like, and access to it by descriptors.

What uWSGI does there (core/spooler.c of 2.0.31): each task is a file whose name begins with
``uwsgi_spoolfile_on_``, of a packet of modifier1 17 and, up to its end, the body. Whoever writes a file has a
POSIX lock on it from just after its creation, under its final name, until it is whole; whoever runs it has one
meanwhile. A time in the future is the file's modification time. With the option ``spooler-ordered``,
subdirectories whose names are numbers are gone through in their order, before the files beside them; without
it, none is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from uwsgitwisted.errors import StoreUnavailable
from uwsgitwisted.spool.task import UNPRIORITIZED

#: How the names of task files begin. uWSGI looks at no others.
PREFIX = "uwsgi_spoolfile_on_"

_NUMBER = re.compile("[0-9]+")


@dataclass(frozen=True, slots=True)
class Folder:
    """An open directory with task files in it.

    :param label: what stands before the names of its files in texts, such as ``5/``.
    :param priority: of its tasks.
    """

    descriptor: int
    label: str = ""
    priority: int = UNPRIORITIZED


@contextmanager
def translated_errors(problem: str) -> Iterator[None]:
    """Turn an error of the operating system into one of ours."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"{problem}: {error.strerror}") from error


@contextmanager
def opened_directory(path: str, parent: int | None = None) -> Iterator[int]:
    """Open a directory; within *parent*, a symbolic link to one is refused."""
    flags = os.O_RDONLY | os.O_DIRECTORY | (0 if parent is None else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_subdirectory(parent: int, name: str) -> Iterator[int]:
    """Open a subdirectory; create it if it doesn't exist."""
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
        os.fsync(parent)
    with opened_directory(name, parent) as descriptor:
        yield descriptor


def numbered_subdirectories(top: int) -> list[str]:
    """Return the names of the numbered subdirectories, in their order."""
    with os.scandir(top) as entries:
        names = [
            entry.name
            for entry in entries
            if _NUMBER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    return sorted(names, key=lambda name: (int(name), name))
