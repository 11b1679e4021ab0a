"""Files below a directory: opens them by names that a peer has chosen, and knows what HTTP says about them.

Each directory of a path is opened relative to the one before it. So each check is part of opening the file, and
it doesn't help an attacker to put a link there in between. Hard links and mounts are not detected; creating one
takes the permission to write to the directory.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import re
from collections.abc import Callable
from typing import NamedTuple

#: The error number of a symbolic link that leads out of its directory, as Linux has it for RESOLVE_BENEATH.
LEADS_OUT = errno.EXDEV

# O_PATH needs only the permission to pass through a directory, not to list it. Only Linux has it.
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK, since opening a pipe would wait for its other end.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: The longest name by which a link is followed: that takes time for each part of it. It is Linux's PATH_MAX.
_MAX_NAME = 4_096

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

#: Checks that refuse a name, and the reasons to give.
_REFUSED: tuple[tuple[Callable[[str], object], str], ...] = (
    (lambda name: not name, "it is empty"),
    (_UNPRINTABLE.search, "it holds a character that doesn't print"),
    (lambda name: "\\" in name, "it holds a backslash; '/' parts directories"),
    (lambda name: name.startswith("/"), "it begins with '/'; it is looked for below a directory"),
    (lambda name: not {"", ".", ".."}.isdisjoint(name.split("/")), "a part of it is empty, '.' or '..'"),
)

_RANGE = re.compile(rb"bytes=(\d*)-(\d*)", re.IGNORECASE)
#: The most digits of a position.
_MAX_DIGITS = 20
#: Types besides ``text/...`` whose text has a charset.
_TEXTS = frozenset({"application/javascript"})


def why_refused(name: str) -> str | None:
    """Return why *name* can't be that of a file below a directory; None if it can. Nothing is looked up."""
    return next((reason for is_refused, reason in _REFUSED if is_refused(name)), None)


def open_below(directory: str, name: str) -> int:
    """Open the file *name* below *directory* for reading.

    It follows symbolic links whose targets are below *directory*, which may be a link itself.

    :param name: a name that :func:`why_refused` doesn't refuse.
    :return: the file descriptor.
    :raises OSError: if the file doesn't exist or can't be opened, or with :data:`LEADS_OUT`.
    """
    try:
        return open_without_links(directory, name)
    except OSError as error:
        # The errors of O_NOFOLLOW at a symbolic link: ELOOP without O_DIRECTORY, ENOTDIR with it.
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
    if len(name) > _MAX_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    root = os.path.realpath(directory)
    path = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath((root, path)) != root:
        raise OSError(LEADS_OUT, "a symbolic link leads out of the directory")
    return open_without_links(root, os.path.relpath(path, root))


def open_without_links(directory: str, name: str) -> int:
    """Open the file *name* below *directory* for reading, and follow no symbolic link on the way.

    :param directory: may be a link itself.
    :param name: has no part ``..``, and doesn't begin with ``/``.
    :return: the file descriptor.
    :raises OSError: if the file doesn't exist or can't be opened, or a part of its path is a link.
    """
    *parents, last = name.split("/")
    descriptor = os.open(directory, _DIRECTORY)
    try:
        for parent in parents:
            inner = os.open(parent, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        return os.open(last, _FILE, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def content_type(name: str) -> str:
    """Return the Content-Type of a file by its name."""
    # The function takes a URL: without './', a name may look like one of the scheme data.
    kind, encoding = mimetypes.guess_type(f"./{name}")
    if kind is None or encoding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind in _TEXTS else kind


class Part(NamedTuple):
    """The part of a file that is asked for.

    :param start: where it starts.
    :param size: how many bytes it has.
    """

    start: int
    size: int


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
