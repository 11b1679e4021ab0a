"""Files that the router sends itself: those below a directory, and nothing outside of it."""

from __future__ import annotations

import contextlib
import mimetypes
import os
import re
import stat
from dataclasses import dataclass
from typing import IO, NamedTuple

#: Each part of a path is opened in the one before, and no link is followed: it could lead anywhere. A pipe
#: doesn't hold up the open.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_RANGE = re.compile(rb"bytes=(\d*)-(\d*)")
#: The most digits of a position.
_MAX_DIGITS = 20


class OpenFile(NamedTuple):
    """A file to send.

    :param file: the open file.
    :param size: in bytes.
    :param modified: when it was changed last, in seconds since the epoch.
    :param content_type: by its name.
    """

    file: IO[bytes]
    size: int
    modified: int
    content_type: str


class Part(NamedTuple):
    """The part of a file that is asked for.

    :param start: where it starts.
    :param size: how many bytes it has.
    """

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class StaticFiles:
    """The files below a directory, at the paths below a prefix.

    :param prefix: such as ``/static``.
    :param directory: the directory; it may be a link itself.
    """

    prefix: str
    directory: str

    def name_of(self, path: bytes) -> bytes | None:
        """Return the name below the directory that a request's *path* means; None if it isn't below the prefix.

        :param path: decoded, without ``..``.
        """
        prefix = os.fsencode(self.prefix).rstrip(b"/") + b"/"
        return path[len(prefix) :] if path.startswith(prefix) else None

    def open(self, name: bytes) -> OpenFile | None:
        """Open a file by its name below the directory; None if there is none that may be sent.

        A link is none, wherever it leads.
        """
        *directories, last = name.split(b"/")
        with contextlib.ExitStack() as stack:
            try:
                current = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, current)
                for each in directories:
                    current = os.open(each, _FLAGS | os.O_DIRECTORY, dir_fd=current)
                    stack.callback(os.close, current)
                descriptor = os.open(last, _FLAGS, dir_fd=current)
            except (OSError, ValueError):
                return None
        return _regular(descriptor, os.fsdecode(last))


def _regular(descriptor: int, name: str) -> OpenFile | None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        return None
    file = os.fdopen(descriptor, "rb", buffering=0)
    return OpenFile(file, found.st_size, int(found.st_mtime), _content_type(name))


def _content_type(name: str) -> str:
    kind, encoding = mimetypes.guess_type(name)
    if kind is None or encoding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def parse_range(text: bytes, size: int) -> Part | None:
    """Parse a Range header; None stands for the whole file.

    Several ranges at once stand for the whole file too, as a server may answer.

    :param size: of the file.
    :raises ValueError: if the range lies outside of the file.
    """
    match = _RANGE.fullmatch(text)
    if match is None or not (match[1] or match[2]) or max(map(len, match.groups())) > _MAX_DIGITS:
        return None
    first, last = match[1], match[2]
    if not first:  # the last bytes
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < start:
            return None
    if start >= size:
        raise ValueError(f"the file has {size} bytes")
    return Part(start, end - start)
