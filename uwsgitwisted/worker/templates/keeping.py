"""How a worker tells the front that it may keep a page, and of which files that was made.

The answer to a caller is behind that, so the front doesn't parse it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from weakref import WeakValueDictionary

from uwsgitwisted.worker.templates.directories import File, Stamp
from uwsgitwisted.worker.templates.results import PER_FILE

#: The modifier1 of an answer in this form, which never reaches a caller.
MAY_KEEP = 251
_LENGTH = 4
#: How many files are known, at most, to pages that will be kept.
_MAX_FILES = 4_096


class Sources:
    """The files that a page was made from.

    :param files: the files.
    :param size: how many bytes this takes.
    """

    __slots__ = ("__weakref__", "_files", "size")

    def __init__(self, files: tuple[File, ...], size: int) -> None:
        self._files = files
        self.size = size

    def are_unchanged(self) -> bool:
        """Whether all of them are what they were."""
        return all(file.is_unchanged() for file in self._files)


def encode(files: Iterable[File], answer: bytes) -> bytes:
    """Put the files that a page was made from before the answer that it is."""
    head = json.dumps([(file.path, file.earlier, file.stamp) for file in files]).encode()
    return b"".join((len(head).to_bytes(_LENGTH, "little"), head, answer))


class Decoder:
    """Takes apart what :func:`encode` has put together. Pages of the same files share what is known of them."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[bytes, Sources] = WeakValueDictionary()
        self._files: dict[tuple[object, ...], File] = {}

    def decode(self, payload: bytes) -> tuple[Sources, bytes]:
        """Return the files, and the answer."""
        end = _LENGTH + int.from_bytes(payload[:_LENGTH], "little")
        head = payload[_LENGTH:end]
        sources = self._known.get(head)
        if sources is None:
            files = tuple(
                self._file(path, tuple(earlier), Stamp(*stamp)) for path, earlier, stamp in json.loads(head)
            )
            sources = self._known[head] = Sources(files, len(head) + PER_FILE * len(files))
        return sources, payload[end:]

    def _file(self, path: str, earlier: tuple[str, ...], stamp: Stamp) -> File:
        """Return a file, which is in memory once, whichever pages were made from it."""
        if len(self._files) >= _MAX_FILES:
            self._files.clear()
        return self._files.setdefault((path, earlier, stamp), File(path, earlier, stamp))
