"""The nodes that a list stands for at the moment: what is in its files, and what its names stand for.

A file that can't be read, or a look-up that fails, changes nothing: what it said before still counts, and a
warning says so. Whoever owns a :class:`Sources` looks up the names that are due, with sockets or Deferreds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from uwsgitwisted.address import Address, AddressLike
from uwsgitwisted.errors import MisuseError, UwsgiError
from uwsgitwisted.sources.names import Name, parse_node, read_lines

#: Seconds between two looks at a file, and between two look-ups of a name.
FILE_INTERVAL, NAME_INTERVAL = 1.0, 10.0
#: Seconds for a look-up.
LOOK_UP_TIMEOUT = 5.0
#: The largest file of nodes, in bytes: some ten thousand lines.
MAX_FILE = 1024 * 1024
#: What begins the path of a file.
FILE_MARK = "@"

#: What a program may pass as the nodes of a cluster.
Nodes = str | Iterable[AddressLike]


class _File:
    """A file of nodes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: object = None
        self.nodes: list[Address | Name] = []
        self.error = ""

    def __str__(self) -> str:
        return f"{FILE_MARK}{self._path}"

    def read(self) -> None:
        """Read the file if it has changed.

        :raises MisuseError: if it can't be read, or is no list of nodes; nothing has changed then.
        """
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_mtime_ns, status.st_size, status.st_ino)
                if seen == self._seen:
                    if self.error:
                        raise MisuseError(self.error)
                    return
                data = file.read(MAX_FILE + 1)
        except OSError as error:
            raise MisuseError(error.strerror or str(error)) from error
        self._seen = seen
        self.error = ""
        try:
            if len(data) > MAX_FILE:
                raise MisuseError(f"it is larger than {MAX_FILE} bytes")
            self.nodes = read_lines(data.decode())
        except UnicodeDecodeError as error:
            self.error = f"it is not UTF-8: {error}"
        except MisuseError as error:
            self.error = str(error)
        if self.error:
            raise MisuseError(self.error)


@dataclass(slots=True)
class _LookUp:
    """What is known about a name.

    :param due: when to look it up next.
    """

    due: float
    addresses: list[Address] = field(default_factory=list)
    running: bool = False


class Sources:
    """The nodes of a cluster, as they are now.

    :param nodes: addresses, names and files: ``"10.0.0.5:3033"``, ``"dns:farm.example.com:3033"``,
        ``"srv:_uwsgi._tcp.example.com"`` and ``"@nodes.txt"``; a single one needs no list.
    :param warn: called with a text when a file or a name fails, once for each failure, and when it is well
        again.
    :param now: the monotonic clock's time, in seconds.
    :raises MisuseError: if one of the nodes is invalid, or a file can't be read.
    """

    def __init__(self, nodes: Nodes, warn: Callable[[str], None], now: float) -> None:
        self._warn = warn
        self._failures: dict[str, str] = {}
        self._look_ups: dict[Name, _LookUp] = {}
        self._parts: list[Address | Name | _File] = []
        self._addresses: list[Address] | None = None
        for node in [nodes] if isinstance(nodes, str) else nodes:
            if isinstance(node, str) and node.startswith(FILE_MARK):
                self._parts.append(self._open(node))
            else:
                self._parts.append(parse_node(node))
        if not self._parts:
            raise MisuseError("there are no nodes")
        self._files = [part for part in self._parts if isinstance(part, _File)]
        self._files_due = now + FILE_INTERVAL
        self._update_names(now)

    def _open(self, node: str) -> _File:
        file = _File(node.removeprefix(FILE_MARK))
        try:
            file.read()
        except MisuseError as error:
            raise MisuseError(f"{node}: {error}") from error
        return file

    @property
    def addresses(self) -> list[Address]:
        """The addresses of all nodes, each once: the same list until they may have changed."""
        if self._addresses is None:
            found: dict[Address, None] = {}
            for node in self._nodes():
                addresses = [node] if isinstance(node, Address) else self._look_ups[node].addresses
                found.update(dict.fromkeys(addresses))
            self._addresses = list(found)
        return self._addresses

    @property
    def settled(self) -> bool:
        """Whether every name has been looked up at least once, or has failed."""
        return all(each.addresses or str(name) in self._failures for name, each in self._look_ups.items())

    @property
    def next_check(self) -> float | None:
        """When :meth:`check` has something to do next; None if never: there are only addresses."""
        times = [each.due for each in self._look_ups.values() if not each.running]
        if self._files:
            times.append(self._files_due)
        return min(times, default=None)

    @property
    def failures(self) -> dict[str, str]:
        """The files and names that fail now, with the reasons."""
        return dict(self._failures)

    def check(self, now: float) -> list[Name]:
        """Read the files that have changed, and return the names to look up now.

        Report the result of each to :meth:`found` or :meth:`failed`.
        """
        if self._files and now >= self._files_due:
            self._files_due = now + FILE_INTERVAL
            for file in self._files:
                self._reread(file)
            self._update_names(now)
        due = [name for name, each in self._look_ups.items() if now >= each.due and not each.running]
        for name in due:
            self._look_ups[name].running = True
        return due

    def found(self, name: Name, addresses: Iterable[Address], now: float) -> None:
        """Use what a look-up has found; nothing found is a failure."""
        known = list(addresses)
        if not known:
            self.failed(name, MisuseError("it has no addresses"), now)
        elif self._finish(name, now):
            self._look_ups[name].addresses = known
            self._addresses = None
            self._recover(str(name))

    def failed(self, name: Name, error: UwsgiError, now: float) -> None:
        """Keep what *name* stood for before, since looking it up has failed."""
        if self._finish(name, now):
            self._fail(str(name), error.text)

    def abandoned(self, name: Name) -> None:
        """Have *name* looked up again, since the look-up was given up."""
        if name in self._look_ups:
            self._look_ups[name].running = False

    def _finish(self, name: Name, now: float) -> bool:
        """Plan the next look-up; return whether *name* is still one of the nodes."""
        look_up = self._look_ups.get(name)
        if look_up is not None:
            look_up.running = False
            look_up.due = now + NAME_INTERVAL
        return look_up is not None

    def _reread(self, file: _File) -> None:
        try:
            file.read()
        except MisuseError as error:
            self._fail(str(file), error.text)
        else:
            self._recover(str(file))

    def _fail(self, what: str, reason: str) -> None:
        if self._failures.get(what) != reason:
            self._failures[what] = reason
            self._warn(f"{what}: {reason}; what it named before still counts")

    def _recover(self, what: str) -> None:
        if self._failures.pop(what, None) is not None:
            self._warn(f"{what}: it is well again")

    def _nodes(self) -> list[Address | Name]:
        nodes: list[Address | Name] = []
        for part in self._parts:
            nodes += part.nodes if isinstance(part, _File) else [part]
        return nodes

    def _update_names(self, now: float) -> None:
        """Begin to look up new names, and forget those that are no longer in a file."""
        names = dict.fromkeys(node for node in self._nodes() if not isinstance(node, Address))
        for name in self._look_ups.keys() - names.keys():
            self._failures.pop(str(name), None)
        self._look_ups = {name: self._look_ups.get(name) or _LookUp(now) for name in names}
        self._addresses = None
