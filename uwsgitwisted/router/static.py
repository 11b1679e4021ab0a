"""Files that the router sends itself: those below a directory, and nothing outside of it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import IO, NamedTuple

from uwsgitwisted.files import content_type, open_without_links


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
        text = os.fsdecode(name)
        try:
            descriptor = open_without_links(self.directory, text)
        except (OSError, ValueError):
            return None
        return _regular(descriptor, text)


def _regular(descriptor: int, name: str) -> OpenFile | None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        return None
    file = os.fdopen(descriptor, "rb", buffering=0)
    return OpenFile(file, found.st_size, int(found.st_mtime), content_type(name))
