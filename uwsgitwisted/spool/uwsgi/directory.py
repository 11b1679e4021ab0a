"""The spool directory of a real uWSGI: takes its tasks out, and puts tasks in that its spooler runs.

What uWSGI does there (core/spooler.c of 2.0.31): each task is a file whose name begins with
``uwsgi_spoolfile_on_``, of a packet of modifier1 17 and, up to its end, the body. Who writes a file has a POSIX
lock on it from just after its creation, under its final name, until it is whole; who runs it has one meanwhile.
A time in the future is the file's modification time. With the option ``spooler-ordered``, subdirectories whose
names are numbers are gone through in their order, before the files beside them; without it, none is.

Where the tasks are stored that are taken out is the caller's business.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import random
import re
import socket
import stat
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, SpoolError, StoreUnavailable, UwsgiError
from uwsgitwisted.spool.task import LATEST, PRIORITY_LIMIT, UNPRIORITIZED, Task, new_task
from uwsgitwisted.wire.packet import SPOOL, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.terms import MAX_MESSAGE

#: How the names of task files begin. uWSGI looks at no others.
PREFIX = "uwsgi_spoolfile_on_"
#: Where broken files are moved to. It is no number, so that no uWSGI looks in there.
BROKEN = "broken"
#: A file that looks broken is left alone until it was unchanged for this long, in seconds: its writer may have
#: created it only just now, or not lock it while it writes, as ``cp`` does.
GRACE = 60.0
#: How many files are taken at a time, each of which is open meanwhile, and how many bytes they may have before
#: the next one is left for later.
BATCH_LIMIT, BATCH_SIZE = 100, 16 * 1024 * 1024

_NUMBER = re.compile("[0-9]+")
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class _Folder:
    """An open directory with task files in it.

    :param label: what stands before the names of its files in texts, such as ``5/``.
    :param priority: of its tasks.
    """

    descriptor: int
    label: str = ""
    priority: int = UNPRIORITIZED


class Batch:
    """Task files that were taken: locked, so that nobody else runs them, and still there.

    They are given back when the next batch is asked for.
    """

    def __init__(self, folder: _Folder, opened: ExitStack) -> None:
        #: What they hold. A task without an idempotency key has one made of its file, so that it is stored once
        #: even if it is taken again.
        self.tasks: list[Task] = []
        #: Which files were found broken, and why; they are in the subdirectory :data:`BROKEN` now.
        self.set_aside: list[str] = []
        #: What could not be taken, and why, apart from the files that somebody else has.
        self.left: list[str] = []
        self._folder = folder
        self._opened = opened
        self._names: list[str] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self.tasks) + len(self.set_aside) + len(self.left)

    def remove(self) -> None:
        """Delete the files, durably. Call it when the tasks are stored just as durably.

        :raises StoreUnavailable: if that fails; what is still there comes again, with the same keys.
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
            with _explained("the spool directory can't be brought to the disk"):
                os.fsync(self._folder.descriptor)

    def _has_room(self, limit: int) -> bool:
        return len(self) < limit and self._size < BATCH_SIZE

    def _add(self, name: str, task: Task, opened: ExitStack) -> None:
        self.tasks.append(task)
        self._names.append(name)
        self._size += task.size
        self._opened.push(opened)


class SpoolDirectory:
    """A spool directory that a real uWSGI uses, has used, or will.

    Tasks are taken out safely beside a uWSGI that runs, and beside other processes that take them out; but only
    once at a time within one process, since POSIX locks are between processes. uWSGI 0.9 has other locks, and
    must be stopped.

    :param path: of the directory, which exists.
    :param max_size: the largest file that is taken, in bytes; a larger one counts as broken.
    :param ordered: whether the uWSGI that is to run what is written has the option ``spooler-ordered``. Without
        that, it looks into no subdirectory, so that all tasks have to be side by side.
    :param now: the time of day, in unix seconds.
    """

    def __init__(
        self,
        path: str,
        *,
        max_size: int = MAX_MESSAGE,
        ordered: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._max_size = max_size
        self._ordered = ordered
        self._now = now
        self._counter = itertools.count(1)

    def check(self) -> None:
        """Find out whether the directory can be used.

        :raises SpoolError: if it can't; the text says why.
        """
        with _explained(f"the spool directory {self.path} can't be used"), _opened_directory(self.path):
            if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
                raise SpoolError(
                    f"the spool directory {self.path} can't be read and written by the user {os.getuid()}; run "
                    "this as the user of its uWSGI"
                )

    # Taking out.

    def batches(self, limit: int = BATCH_LIMIT) -> Generator[Batch, None, None]:
        """Go through the directory once and take its tasks, those of the lowest priority number first.

        Store the tasks of a batch, then call its ``remove``. If this process ends between the two, the tasks
        come again, with the same keys. Close the iterator if you don't go through to its end, or files stay
        locked.

        :param limit: how many files a batch has at most.
        :raises StoreUnavailable: if the directory can't be read.
        """
        with _explained(f"the spool directory {self.path} can't be read"), _opened_directory(self.path) as top:
            for number in _numbers(top):
                yield from self._numbered(top, number, limit)
            yield from self._batches(top, _Folder(top), limit)

    def _numbered(self, top: int, number: str, limit: int) -> Generator[Batch, None, None]:
        with ExitStack() as opened:
            try:
                descriptor = opened.enter_context(_opened_directory(number, top))
            except FileNotFoundError:
                return
            except OSError as error:
                batch = Batch(_Folder(top), opened)
                batch.left.append(f"{number}/: {error.strerror}")
                yield batch
                return
            folder = _Folder(descriptor, f"{number}/", min(int(number), PRIORITY_LIMIT))
            yield from self._batches(top, folder, limit)

    def _batches(self, top: int, folder: _Folder, limit: int) -> Generator[Batch, None, None]:
        with os.scandir(folder.descriptor) as entries:
            names = (entry.name for entry in entries if entry.name.startswith(PREFIX))
            for name in names:
                with ExitStack() as opened:
                    batch = Batch(folder, opened)
                    self._take(batch, top, name)
                    while batch._has_room(limit) and (following := next(names, "")):
                        self._take(batch, top, following)
                    if len(batch):
                        yield batch

    def _take(self, batch: Batch, top: int, name: str) -> None:
        """Lock and read a file, unless somebody else has it, or it is gone."""
        folder = batch._folder
        with ExitStack() as opened:
            try:
                task = self._read(folder, name, _locked(folder, name, opened))
            except (BlockingIOError, FileNotFoundError):
                return
            except OSError as error:
                batch.left.append(f"{folder.label}{name}: {error.strerror}")
            except UwsgiError as error:
                self._reject(batch, top, name, error.text)
            else:
                batch._add(name, task, opened.pop_all())

    def _read(self, folder: _Folder, name: str, descriptor: int) -> Task:
        """Return the task in a file.

        :raises UwsgiError: if it is broken.
        """
        status = os.fstat(descriptor)
        size, limit = status.st_size, self._max_size
        if size > limit:
            raise MessageTooLarge(f"it has {size} bytes; {limit} is the most", size=size, limit=limit)
        if status.st_mtime > LATEST:
            raise SpoolError("its modification time is after the year 9999")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(size)
        task = new_task(*_parse(content, self._now()))
        origin = f"{folder.label}{name}\0{status.st_ino}\0{status.st_mtime_ns}\0"
        digest = sha256(origin.encode(errors="surrogateescape") + content).hexdigest()
        # As for uWSGI, it tells where the file is and what its time is, not what its variables say of that.
        return replace(
            task,
            at=max(status.st_mtime, 0.0),
            priority=folder.priority,
            queue="",
            key=task.key or f"spoolfile-{digest}",
        )

    def _reject(self, batch: Batch, top: int, name: str, reason: str) -> None:
        """Set a broken file aside, unless it may still be written."""
        folder = batch._folder
        shown = f"{folder.label}{name}: {reason}"
        try:
            status = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
            # By the time that nobody can set: the modification time is the task's.
            if stat.S_ISREG(status.st_mode) and self._now() < status.st_ctime + GRACE:
                batch.left.append(f"{shown}; perhaps somebody still writes it")
                return
            _set_aside(top, folder, name, reason)
        except OSError as error:
            batch.left.append(f"{shown}; it can't be set aside: {error.strerror}")
        else:
            batch.set_aside.append(shown)

    # Putting in.

    def write(self, task: Task) -> str:
        """Write *task* into a file, durably, for uWSGI's spooler to run.

        A priority below 0 becomes 0, the first that uWSGI looks at; a task without one is put beside the
        numbered subdirectories. What uWSGI doesn't know is lost: the attempts, the idempotency key.

        :return: the file's name within the directory.
        :raises StoreUnavailable: if it can't be written, or not durably.
        """
        with _explained(f"the spool directory {self.path} can't be written"), ExitStack() as opened:
            folder = opened.enter_context(_opened_directory(self.path))
            name = self._new_name()
            if not self._ordered or task.priority >= UNPRIORITIZED:
                self._write(folder, name, task)
                return name
            number = str(max(task.priority, 0))
            self._write(opened.enter_context(_subdirectory(folder, number)), name, task)
            return f"{number}/{name}"

    def _new_name(self) -> str:
        seconds, microseconds = divmod(time.time_ns() // 1_000, 1_000_000)
        number, chance = next(self._counter), random.getrandbits(31)
        return f"{PREFIX}{socket.gethostname()}_{os.getpid()}_{number}_{chance}_{seconds}_{microseconds}"

    def _write(self, folder: int, name: str, task: Task) -> None:
        """Write the file under a name that uWSGI leaves alone, then give it its own."""
        temporary = f".{name}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(encode_packet(Packet(SPOOL, 0, task.variables)))
                file.write(task.body)
                file.flush()
                if task.at > self._now():
                    # uWSGI looks at whole seconds, and a task must not run too early.
                    os.utime(descriptor, (math.ceil(task.at),) * 2)
                os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        os.fsync(folder)


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    """Turn an error of the operating system into one of ours."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"{problem}: {error.strerror}") from error


@contextmanager
def _opened_directory(path: str, parent: int | None = None) -> Iterator[int]:
    """Open a directory; within *parent*, a symbolic link to one is refused."""
    flags = os.O_RDONLY | os.O_DIRECTORY | (0 if parent is None else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _subdirectory(parent: int, name: str) -> Iterator[int]:
    """Open a subdirectory, which is made if it isn't there."""
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
        os.fsync(parent)
    with _opened_directory(name, parent) as descriptor:
        yield descriptor


def _numbers(top: int) -> list[str]:
    """Return the names of the numbered subdirectories, in their order."""
    with os.scandir(top) as entries:
        names = [
            entry.name
            for entry in entries
            if _NUMBER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    return sorted(names, key=lambda name: (int(name), name))


def _locked(folder: _Folder, name: str, opened: ExitStack) -> int:
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


def _parse(content: bytes, now: float) -> tuple[bytes, float, bytes]:
    """Return what the task is made of that a file's *content* is.

    :raises MalformedPacket: if it is no spool file, or not all of one.
    """
    if content and content[0] != SPOOL:
        raise MalformedPacket(f"it begins with the modifier1 {content[0]}; a task's is {SPOOL}")
    decoder = PacketDecoder(count=1)
    packets = decoder.receive(content)
    if not packets:
        raise MalformedPacket(f"it ends after {len(content)} bytes, within its variables")
    return packets[0].payload, now, decoder.rest()


def _set_aside(top: int, folder: _Folder, name: str, reason: str) -> None:
    """Move a broken file to the subdirectory for them, with the reason in a file beside it."""
    with _subdirectory(top, BROKEN) as broken:
        target, note = _reserve(broken, name)
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


def _reserve(broken: int, name: str) -> tuple[str, int]:
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
