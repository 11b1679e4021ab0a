"""Takes tasks out of a uWSGI spool directory, in batches of locked files."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, SpoolError, StoreUnavailable, UwsgiError
from uwsgitwisted.spool.task import LATEST, PRIORITY_LIMIT, Task, new_task
from uwsgitwisted.spool.uwsgi.broken import set_aside
from uwsgitwisted.spool.uwsgi.files import (
    PREFIX,
    Folder,
    numbered_subdirectories,
    opened_directory,
    translated_errors,
)
from uwsgitwisted.spool.uwsgi.pickled import has_pickle
from uwsgitwisted.wire.packet import SPOOL, PacketDecoder

#: A file that looks broken is left alone until it was unchanged for this long, in seconds: its writer may have
#: created it only just now, or not lock it while it writes, as ``cp`` does.
GRACE = 60.0
#: How many files are taken at a time, each of which is open meanwhile, and how many bytes they may have before
#: the next one is left for later.
BATCH_LIMIT, BATCH_SIZE = 100, 16 * 1024 * 1024

PICKLED = (
    "its arguments are pickled, so only the uWSGI that wrote it can run it: start that one's spooler again"
)
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


class TaskFileBatch:
    """Task files that were taken: locked, so that nobody else runs them, and still there.

    The locks are released when the next batch is asked for.
    """

    def __init__(self, folder: Folder, opened: ExitStack) -> None:
        #: The tasks in them. One without an idempotency key has one made of its file, so that it is stored once
        #: even if it is taken again.
        self.tasks: list[Task] = []
        #: Which files were found broken, and why; they are in the subdirectory ``broken`` now.
        self.set_aside: list[str] = []
        #: What could not be taken, and why, apart from the files that somebody else has.
        self.left: list[str] = []
        self._folder = folder
        self._opened = opened
        self._names: list[str] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self.tasks) + len(self.set_aside) + len(self.left)

    def has_room(self, limit: int) -> bool:
        """Return whether the batch may have another file; *limit* is the most."""
        return len(self) < limit and self._size < BATCH_SIZE

    def add(self, name: str, task: Task, opened: ExitStack) -> None:
        """Add a task and its file, which *opened* closes."""
        self.tasks.append(task)
        self._names.append(name)
        self._size += task.size
        self._opened.push(opened)

    def remove(self) -> None:
        """Delete the files, durably. Call it when the tasks are stored just as durably.

        :raises StoreUnavailable: if that fails; the remaining files come again, with the same keys.
        """
        failures: list[tuple[str, OSError]] = []
        for name in self._names:
            try:
                os.unlink(name, dir_fd=self._folder.descriptor)
            except FileNotFoundError:
                continue
            except OSError as error:
                failures.append((name, error))
        if failures:
            name, first = failures[0]
            raise StoreUnavailable(
                f"the tasks of {len(failures)} spool files are stored, but the files can't be deleted, such as "
                f"{self._folder.label}{name}: {first.strerror}. Let this user write into the directory"
            ) from first
        if self._names:
            with translated_errors("the spool directory can't be brought to the disk"):
                os.fsync(self._folder.descriptor)


class TaskFileTaker:
    """Goes through a spool directory once and takes its task files.

    :param top: the descriptor of the directory.
    :param limit: how many files a batch has at most.
    :param max_size: the largest file that is taken, in bytes; a larger one counts as broken.
    :param now: the wall clock, in unix seconds.
    """

    def __init__(self, top: int, *, limit: int, max_size: int, now: Callable[[], float]) -> None:
        self._top = top
        self._limit = limit
        self._max_size = max_size
        self._now = now

    def take_all(self) -> Generator[TaskFileBatch, None, None]:
        """Yield batches, those of the lowest priority number first."""
        for number in numbered_subdirectories(self._top):
            yield from self._take_numbered(number)
        yield from self._take_folder(Folder(self._top))

    def _take_numbered(self, number: str) -> Generator[TaskFileBatch, None, None]:
        with ExitStack() as opened:
            try:
                descriptor = opened.enter_context(opened_directory(number, self._top))
            except FileNotFoundError:
                return
            except OSError as error:
                batch = TaskFileBatch(Folder(self._top), opened)
                batch.left.append(f"{number}/: {error.strerror}")
                yield batch
                return
            yield from self._take_folder(Folder(descriptor, f"{number}/", min(int(number), PRIORITY_LIMIT)))

    def _take_folder(self, folder: Folder) -> Generator[TaskFileBatch, None, None]:
        with os.scandir(folder.descriptor) as entries:
            names = (entry.name for entry in entries if entry.name.startswith(PREFIX))
            for name in names:
                with ExitStack() as opened:
                    batch = TaskFileBatch(folder, opened)
                    self._take_file(batch, folder, name)
                    while batch.has_room(self._limit) and (following := next(names, "")):
                        self._take_file(batch, folder, following)
                    if len(batch):
                        yield batch

    def _take_file(self, batch: TaskFileBatch, folder: Folder, name: str) -> None:
        """Lock and read a file, unless somebody else has it, or it is gone."""
        with ExitStack() as opened:
            try:
                task = self._read_task(folder, name, _lock_file(folder, name, opened))
            except (BlockingIOError, FileNotFoundError):
                return
            except OSError as error:
                batch.left.append(f"{folder.label}{name}: {error.strerror}")
            except UwsgiError as error:
                self._reject_file(batch, folder, name, error.text)
            else:
                if has_pickle(task.variables):
                    batch.left.append(f"{folder.label}{name}: {PICKLED}")
                else:
                    batch.add(name, task, opened.pop_all())

    def _read_task(self, folder: Folder, name: str, descriptor: int) -> Task:
        """Return the task in a file.

        :raises UwsgiError: if the file is broken.
        """
        status = os.fstat(descriptor)
        size, limit = status.st_size, self._max_size
        if size > limit:
            raise MessageTooLarge(f"it has {size} bytes; {limit} is the most", size=size, limit=limit)
        if status.st_mtime > LATEST:
            raise SpoolError("its modification time is after the year 9999")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(size)
        variables, body = _split_content(content)
        task = new_task(variables, self._now(), body)
        origin = f"{folder.label}{name}\0{status.st_ino}\0{status.st_mtime_ns}\0"
        digest = sha256(origin.encode(errors="surrogateescape") + content).hexdigest()
        # As for uWSGI, the file's place and its time count, not what its variables say about these.
        return replace(
            task,
            at=max(status.st_mtime, 0.0),
            priority=folder.priority,
            queue="",
            key=task.key or f"spoolfile-{digest}",
        )

    def _reject_file(self, batch: TaskFileBatch, folder: Folder, name: str, reason: str) -> None:
        """Set a broken file aside, unless somebody may still write it."""
        shown = f"{folder.label}{name}: {reason}"
        try:
            status = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
            # By the time that nobody can set: the modification time is the task's.
            if stat.S_ISREG(status.st_mode) and self._now() < status.st_ctime + GRACE:
                batch.left.append(f"{shown}; perhaps somebody still writes it")
                return
            set_aside(self._top, folder, name, reason)
        except OSError as error:
            batch.left.append(f"{shown}; it can't be set aside: {error.strerror}")
        else:
            batch.set_aside.append(shown)


def _lock_file(folder: Folder, name: str, opened: ExitStack) -> int:
    """Open a task file and lock it, as whoever runs it does, until *opened* is closed.

    :return: its descriptor.
    :raises SpoolError: if it is no file.
    :raises OSError: if it can't be opened; ``BlockingIOError`` if somebody else has it, and
        ``FileNotFoundError`` if it is gone.
    """
    status = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise SpoolError(f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file")
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder.descriptor)
    opened.callback(os.close, descriptor)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Whoever had the lock until now may have run the task to its end and deleted the file.
    present = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
    if not os.path.samestat(os.fstat(descriptor), present):
        raise FileNotFoundError
    return descriptor


def _split_content(content: bytes) -> tuple[bytes, bytes]:
    """Return the vars block and the body in a file's *content*.

    :raises MalformedPacket: if it is no spool file, or not all of one.
    """
    if content and content[0] != SPOOL:
        raise MalformedPacket(f"it begins with the modifier1 {content[0]}; a task's is {SPOOL}")
    decoder = PacketDecoder(count=1)
    packets = decoder.receive(content)
    if not packets:
        raise MalformedPacket(f"it ends after {len(content)} bytes, within its variables")
    return packets[0].payload, decoder.rest()
