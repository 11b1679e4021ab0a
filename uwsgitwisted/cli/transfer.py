"""Imports and exports tasks, as lines of JSON in a file or a pipe, or as a real uWSGI's spool directory."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

from uwsgitwisted.cli.lines import read_line, write_line
from uwsgitwisted.cli.places import Place
from uwsgitwisted.cli.progress import progress
from uwsgitwisted.errors import ConnectionFailed, MisuseError, RequestTimeout, SpoolError, UwsgiError
from uwsgitwisted.spool.disk import sync_directory
from uwsgitwisted.spool.task import UNPRIORITIZED, Task
from uwsgitwisted.spool.uwsgi.directory import SpoolDirectory

#: The name of the standard input or output, and the prefix of a spool directory's path.
STANDARD, DIRECTORY = "-", "dir:"
#: The number of tasks, and their size in bytes, at which a batch is full.
BATCH_LIMIT, BATCH_BYTES = 1_000, 8 * 1024 * 1024
#: How many tasks to fetch at once.
PAGE = 500

Advance = Callable[[float], None]


# In.


def import_tasks(place: Place, source: str, warn: Callable[[str], None]) -> int:
    """Enqueue the tasks in *source*.

    :param source: a file's path, ``-`` for the standard input, or ``dir:PATH``.
    :param warn: called with the reason for each task that can't be imported.
    :return: the number of imported tasks.
    :raises SpoolError: if a line can't be read, or tasks can't be enqueued; the text says which were imported.
    """
    if source.startswith(DIRECTORY):
        return _drain(place, SpoolDirectory(source.removeprefix(DIRECTORY)), warn)
    with _input(source) as (lines, size), progress("importing", size) as advance:
        return sum(_enqueue(place, batch, advance) for batch in _batches(lines))


def _drain(place: Place, directory: SpoolDirectory, warn: Callable[[str], None]) -> int:
    """Move the tasks out of a spool directory; each is deleted there after it has been stored here."""
    directory.check()
    number = 0
    with progress("importing", None) as advance, closing(directory.batches()) as batches:
        for batch in batches:
            for tasks in _portions(batch.tasks):
                place.add(tasks)
            batch.remove()
            number += len(batch.tasks)
            advance(len(batch.tasks))
            for text in batch.set_aside:
                warn(f"set aside: {text}")
            for text in batch.left:
                warn(f"left: {text}")
    return number


def _portions(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Split tasks into portions that a spooler accepts."""
    portion = _Portion()
    for task in tasks:
        portion.add(task)
        if portion.full:
            yield portion.tasks
            portion = _Portion()
    if portion.tasks:
        yield portion.tasks


@contextmanager
def _input(source: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """Open a file; yield it and its size in bytes, or None if it is a pipe."""
    if source == STANDARD:
        yield sys.stdin.buffer, None
        return
    with open(source, "rb") as file:
        status = os.fstat(file.fileno())
        yield file, status.st_size if stat.S_ISREG(status.st_mode) else None


@dataclass(slots=True)
class _Portion:
    """Tasks that are enqueued together."""

    tasks: list[Task] = field(default_factory=list)
    size: int = 0

    def add(self, task: Task) -> None:
        """Add a task."""
        self.tasks.append(task)
        self.size += task.size

    @property
    def full(self) -> bool:
        """Whether to enqueue the tasks before adding more."""
        return len(self.tasks) >= BATCH_LIMIT or self.size >= BATCH_BYTES


@dataclass(slots=True)
class _Lines(_Portion):
    """The tasks of consecutive lines.

    :param first: the number of the first line.
    :param last: the number of the last line.
    :param read: the size of the lines in bytes.
    """

    first: int = 1
    last: int = 0
    read: int = 0

    def add_line(self, number: int, line: bytes) -> None:
        """Add the line with this number; a blank line has no task."""
        if line.strip():
            self.add(read_line(line, time.time()))
        self.last = number
        self.read += len(line)


def _batches(lines: Iterable[bytes]) -> Iterator[_Lines]:
    batch = _Lines()
    for number, line in enumerate(lines, 1):
        try:
            batch.add_line(number, line)
        except SpoolError as error:
            yield batch
            raise SpoolError(f"line {number}: {error.text}{_done(number)}") from error
        if batch.full:
            yield batch
            batch = _Lines(first=number + 1)
    yield batch


def _enqueue(place: Place, batch: _Lines, advance: Advance) -> int:
    if batch.tasks:
        try:
            place.add(batch.tasks)
        except (ConnectionFailed, RequestTimeout) as error:
            unknown = f"whether the lines {batch.first} to {batch.last} are imported is not known"
            raise SpoolError(f"{error}; {unknown}{_done(batch.first)}") from error
        except UwsgiError as error:
            raise SpoolError(f"lines {batch.first} to {batch.last}: {error}{_done(batch.first)}") from error
    advance(batch.read)
    return len(batch.tasks)


def _done(number: int) -> str:
    """Return the end of an error's text, about the lines before this one."""
    return "; those before are imported" if number > 1 else ""


# Out.


def export_tasks(place: Place, target: str, states: Sequence[str], queue: str | None, *, ordered: bool) -> int:
    """Write the tasks in certain states to *target*; they stay in the queue.

    :param target: the path of a new file, ``-`` for the standard output, or ``dir:PATH``.
    :param queue: the queue's name; None for all queues.
    :param ordered: see :class:`~uwsgitwisted.spool.uwsgi.directory.SpoolDirectory`.
    :return: the number of exported tasks.
    """
    total = sum(row[state] for row in place.call("stats") if queue in (None, row["queue"]) for state in states)
    number = 0
    with _output(target, ordered) as write, progress("exporting", total) as advance:
        for task in _exported(place, states, queue):
            write(task)
            number += 1
            advance(1)
    return number


def _exported(place: Place, states: Sequence[str], queue: str | None) -> Iterator[Mapping[str, Any]]:
    """Yield each task once, even if its state changes during the export."""
    seen: set[int] = set()
    for state in states:
        after = 0
        while page := place.call("export", state=state, queue=queue, after=after, limit=PAGE):
            after = page[-1]["id"]
            yield from (task for task in page if task["id"] not in seen)
            seen.update(task["id"] for task in page)


@contextmanager
def _output(target: str, ordered: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Open *target*; yield a function that writes a task."""
    if target.startswith(DIRECTORY):
        directory = SpoolDirectory(target.removeprefix(DIRECTORY), ordered=ordered)
        directory.check()
        yield lambda task: _write_file(directory, task)
        return
    with _text_output(target) as file:
        yield lambda task: print(write_line(task), file=file)


def _write_file(directory: SpoolDirectory, task: Mapping[str, Any]) -> None:
    priority = UNPRIORITIZED if task["priority"] is None else task["priority"]
    directory.write(Task(task["variables"], task["at"], task["created"], priority, body=task["body"]))


@contextmanager
def _text_output(target: str) -> Iterator[IO[str]]:
    """Open a file for writing; at the end it is complete and on the disk, or it doesn't exist."""
    if target == STANDARD:
        yield sys.stdout
        return
    if os.path.exists(target):
        raise MisuseError(f"{target} already exists; remove it, or name another file")
    directory, name = os.path.split(os.path.abspath(target))
    descriptor, temporary = tempfile.mkstemp(".part", f"{name}.", directory)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, target)
        sync_directory(directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
