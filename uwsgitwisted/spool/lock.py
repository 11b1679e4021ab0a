"""One spooler a file: a lock that its holder's end releases, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket

from uwsgitwisted.errors import SpoolError, SpoolInUse


class FileLock:
    """Holds ``PATH.lock``, a file beside the one that it guards.

    ``flock`` on a file of its own, since closing any descriptor of the database would drop the POSIX locks
    that SQLite keeps on it. It also keeps out a second opener in the same process. The file stays when the
    lock is released: removing it would let two openers hold locks on two files of the same name.

    :param path: the file to guard, which need not exist.
    """

    def __init__(self, path: str) -> None:
        self._guarded = path
        self._path = f"{path}.lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        :raises SpoolInUse: if another holds it.
        :raises SpoolError: if the file can't be made.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(f"can't make the lock {self._path}: {error.strerror}") from error
        try:
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise SpoolError(f"can't lock {self._path}: {error.strerror}") from error
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            raise SpoolInUse(
                f"{self._guarded} is in use by another spooler ({holder or 'which did not say who it is'}); "
                "stop that one first, or give this one a file of its own"
            ) from error
        self._write_holder(descriptor)

    def _write_holder(self, descriptor: int) -> None:
        """Say who holds the lock; on a full disk it is held without a name."""
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError:
            pass

    def release(self) -> None:
        """Give the lock up, if it is held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
