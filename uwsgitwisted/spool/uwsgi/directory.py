"""The spool directory of a real uWSGI: takes its tasks out, and puts tasks in that uWSGI's spooler runs.

:mod:`.files` says what uWSGI does there. To store the tasks that are taken out is the caller's business.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import socket
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress

from uwsgitwisted.errors import SpoolError
from uwsgitwisted.spool.task import UNPRIORITIZED, Task
from uwsgitwisted.spool.uwsgi.files import PREFIX, opened_directory, opened_subdirectory, translated_errors
from uwsgitwisted.spool.uwsgi.taking import BATCH_LIMIT, TaskFileBatch, TaskFileTaker
from uwsgitwisted.wire.packet import SPOOL, Packet, encode_packet
from uwsgitwisted.wire.terms import MAX_MESSAGE


class SpoolDirectory:
    """A spool directory that a real uWSGI uses, has used, or will.

    Tasks are taken out safely while a uWSGI runs, and while other processes take them out; but only once at a
    time within one process, since POSIX locks are between processes. uWSGI 0.9 has other locks, and must be
    stopped.

    :param path: of the directory, which exists.
    :param max_size: the largest file that is taken, in bytes; a larger one counts as broken.
    :param ordered: whether the uWSGI that is to run what is written has the option ``spooler-ordered``. Without
        that, it looks into no subdirectory, so all tasks have to be side by side.
    :param now: the wall clock, in unix seconds.
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
        """Check that the directory can be used.

        :raises SpoolError: if it can't; the text says why.
        """
        with translated_errors(f"the spool directory {self.path} can't be used"), opened_directory(self.path):
            if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
                raise SpoolError(
                    f"the spool directory {self.path} can't be read and written by the user {os.getuid()}; run "
                    "this as the user of its uWSGI"
                )

    def batches(self, limit: int = BATCH_LIMIT) -> Generator[TaskFileBatch, None, None]:
        """Go through the directory once and take its tasks, those of the lowest priority number first.

        Store the tasks of a batch, then call its ``remove``. If this process ends between the two, the tasks
        come again, with the same keys. Close the iterator if you don't go through to its end, or files stay
        locked.

        :param limit: how many files a batch has at most.
        :raises StoreUnavailable: if the directory can't be read.
        """
        with (
            translated_errors(f"the spool directory {self.path} can't be read"),
            opened_directory(self.path) as top,
        ):
            yield from TaskFileTaker(top, limit=limit, max_size=self._max_size, now=self._now).take_all()

    def write(self, task: Task) -> str:
        """Write *task* into a file, durably, for uWSGI's spooler to run.

        A priority below 0 becomes 0, the first that uWSGI looks at; a task without one is put beside the
        numbered subdirectories. What uWSGI doesn't know is lost: the attempts, the idempotency key.

        :return: the file's name within the directory.
        :raises StoreUnavailable: if it can't be written, or not durably.
        """
        with translated_errors(f"the spool directory {self.path} can't be written"), ExitStack() as opened:
            folder = opened.enter_context(opened_directory(self.path))
            name = self._new_name()
            if not self._ordered or task.priority >= UNPRIORITIZED:
                self._write_file(folder, name, task)
                return name
            number = str(max(task.priority, 0))
            self._write_file(opened.enter_context(opened_subdirectory(folder, number)), name, task)
            return f"{number}/{name}"

    def _new_name(self) -> str:
        seconds, microseconds = divmod(time.time_ns() // 1_000, 1_000_000)
        number, chance = next(self._counter), random.getrandbits(31)
        return f"{PREFIX}{socket.gethostname()}_{os.getpid()}_{number}_{chance}_{seconds}_{microseconds}"

    def _write_file(self, folder: int, name: str, task: Task) -> None:
        """Write the file under a name that uWSGI leaves alone, then rename it."""
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
