"""The template directories: finds files by names, and notices when they change.

It never reads a file outside of them.

A template is the operator's code and may do whatever Python can. Its name is not trusted: it comes from the
network, or from ``<%include file="${...}"/>`` in a template that got it from the network. So every file is
opened by :func:`uwsgitwisted.files.open_below`, which follows no link that leads out of the directory.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from uwsgitwisted.files import LEADS_OUT, open_below, why_refused
from uwsgitwisted.worker.templates.errors import TemplateMissing, TemplateRefused, quote, refusal

#: In nanoseconds. If a file was changed less than this before it was read, it may change again and keep its
#: size and its times, since file systems count time in steps of up to two seconds. Its status then proves
#: nothing.
SETTLED_AFTER = 2_000_000_000


def name_from(value: object) -> str:
    """Return the name of a template as text; Python 2 peers send it as bytes.

    :raises TemplateRefused: if it is neither text nor UTF-8.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise TemplateRefused("the template's name is not UTF-8") from None
    raise TemplateRefused(
        f"the template's name is a {type(value).__name__}; send text such as 'mail/welcome.txt'"
    )


def check_name(name: str) -> str:
    """Return *name* if it is allowed.

    :raises TemplateRefused: if it isn't; nothing was looked up.
    """
    reason = why_refused(name)
    if reason is not None:
        raise refusal(name, f"{reason}; name a file as 'mail/welcome.txt' does")
    return name


def resolve(value: object, relative_to: str | None) -> str:
    """Return the name below the template directories for a name in a template.

    ``/base.html`` is relative to the template directory, and ``base.html``, ``./base.html`` and
    ``../base.html`` are relative to the template that contains them. The result has no leading slash and no
    dots.

    :param relative_to: the name of the template that contains it; None if there is none.
    :raises TemplateRefused: if it leads out of the template directory, or :func:`check_name` refuses it.
    """
    name = name_from(value)
    parts = [] if relative_to is None or name.startswith("/") else relative_to.split("/")[:-1]
    for part in name.removeprefix("/").split("/"):
        if part == "..":
            if not parts:
                raise refusal(name, "'..' leads out of the template directory")
            parts.pop()
        elif part != ".":
            parts.append(part)
    return check_name("/".join(parts))


class Stamp(NamedTuple):
    """Identifies one state of a file. It includes ctime besides mtime, since nobody can set ctime back."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Return the stamp of a file with this status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class File:
    """One state of the file that a name stands for.

    :param path: where it is.
    :param earlier: the paths in the directories before, where there is none.
    :param stamp: its state.
    """

    path: str
    earlier: tuple[str, ...]
    stamp: Stamp

    def is_unchanged(self) -> bool:
        """Whether the name still stands for this file, and its status is what it was.

        The name was checked when the file was read. A link that has been turned since leads to another inode.
        """
        try:
            for path in self.earlier:
                if _exists(path):
                    return False
            status = os.stat(self.path)
        except OSError:
            return False
        # What changes most often comes first.
        device, inode, size, modified, changed = self.stamp
        return (
            status.st_ctime_ns == changed
            and status.st_ino == inode
            and status.st_size == size
            and status.st_mtime_ns == modified
            and status.st_dev == device
        )


@dataclass(frozen=True, slots=True)
class Found(File):
    """A file, as it was read.

    :param source: its content.
    :param settled: whether its status shows any later change of it.
    """

    source: bytes
    settled: bool

    def is_current(self) -> bool:
        """Whether the file is still the same and unchanged, as far as one look at its status shows that."""
        return self.settled and self.is_unchanged()


def _exists(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class Directories:
    """The template directories.

    :param directories: the directories to search, in order.
    """

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = tuple(directories)

    def read(self, name: str) -> Found:
        """Read the first file with that name, which :func:`check_name` has allowed.

        :raises TemplateRefused: if it is no regular file, or a link leads out of its directory.
        :raises TemplateMissing: if it doesn't exist, or can't be read.
        """
        directory, descriptor = self._open(name)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise refusal(name, "it is not a regular file")
            settled = time.time_ns() - status.st_ctime_ns > SETTLED_AFTER
            with open(descriptor, "rb", closefd=False) as stream:
                source = stream.read()
        finally:
            os.close(descriptor)
        paths = [f"{path}/{name}" for path in self._directories[: directory + 1]]
        return Found(paths[-1], tuple(paths[:-1]), Stamp.of(status), source, settled)

    def _open(self, name: str) -> tuple[int, int]:
        """Open the first file with that name; return the number of its directory, and its descriptor."""
        for number, directory in enumerate(self._directories):
            try:
                return number, open_below(directory, name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno == LEADS_OUT:
                    raise refusal(name, "a symbolic link leads out of the template directory") from None
                raise TemplateMissing(
                    f"the template {quote(name)} can't be opened: {error.strerror}", name=name
                ) from None
        raise TemplateMissing(f"there is no template {quote(name)} in the template directories", name=name)

    def names(self) -> list[str]:
        """Return the names of all files, sorted; links to directories are not followed."""
        found = {name for directory in self._directories for name in _files_below(directory)}
        return sorted(name for name in found if why_refused(name) is None)


def _files_below(directory: str) -> Iterator[str]:
    for path, folders, files in os.walk(directory):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for file in files:
            if not file.startswith(".") and not file.endswith("~"):
                yield os.path.relpath(os.path.join(path, file), directory)
