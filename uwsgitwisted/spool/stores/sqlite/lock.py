"""Locks a file for one spooler; the end of its process releases them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat

from uwsgitwisted.errors import SpoolError, SpoolInUse

# The files that this process holds, by device and inode. Check it before you open such a file: closing any
# descriptor of it would drop the locks that SQLite keeps on it (https://sqlite.org/howtocorrupt.html, 2.2).
_held: set[tuple[int, int]] = set()

_ELSEWHERE = "which opened it under another name, or whose .lock file was removed"


class FileLock:
    """Holds a file, by two locks.

    One is on ``PATH.lock`` beside it, since the file itself may not exist yet, and says who holds it. That file
    stays when the lock is released: if it were removed, two openers could hold locks on two files of the same
    name. The other lock is on the file itself, in case somebody removes ``PATH.lock`` or moves the file. A file
    with a second name (a hard link) is refused: SQLite finds the log by the file's name, so under the other
    name it would miss what the log holds.

    ``flock``, because SQLite's own locks are of the other kind (``fcntl``), which on Linux don't see these.
    Where they do, as on NFS, SQLite says that the file is locked: nothing breaks.

    :param path: the file to hold, which need not exist.
    """

    def __init__(self, path: str) -> None:
        self._guarded = path
        self._path = f"{path}.lock"
        self._descriptor: int | None = None
        self._file: int | None = None
        self._identity: tuple[int, int] | None = None

    def acquire(self) -> None:
        """Take the locks; that on the file itself if there is one.

        :raises SpoolInUse: if another holds it.
        :raises SpoolError: if the lock can't be made, or the file has several names.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(f"can't make the lock {self._path}: {error.strerror}") from error
        self._descriptor = descriptor
        try:
            self._lock(descriptor, self._path, _holder(descriptor))
            self.hold_file()
            self._write_holder(descriptor)
        except BaseException:
            self.release()
            raise

    def hold_file(self) -> None:
        """Lock the file itself, if it exists and is not locked yet; call it after creating the file."""
        try:
            status = os.stat(self._guarded)
        except OSError:  # the caller fails to open it, and says why
            return
        if self._file is not None or not stat.S_ISREG(status.st_mode):
            return
        if status.st_nlink > 1:
            raise SpoolError(
                f"{self._guarded} has {status.st_nlink} names (hard links), under each of which its log would "
                "be another; keep one of them and remove the others"
            )
        identity = (status.st_dev, status.st_ino)
        if identity in _held:
            raise self._in_use(_ELSEWHERE)
        try:
            descriptor = os.open(self._guarded, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SpoolError(f"can't open {self._guarded}: {error.strerror}") from error
        try:
            self._lock(descriptor, self._guarded, _ELSEWHERE)
        except BaseException:
            os.close(descriptor)
            raise
        _held.add(identity)
        self._file, self._identity = descriptor, identity

    def _lock(self, descriptor: int, path: str, holder: str) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise SpoolError(
                    f"can't lock {path}: {error.strerror}; put the spool on a local file system"
                ) from error
            raise self._in_use(holder) from error

    def _in_use(self, holder: str) -> SpoolInUse:
        return SpoolInUse(
            f"{self._guarded} is in use by another spooler ({holder}); stop that one first, or give this one a "
            "file of its own"
        )

    def _write_holder(self, descriptor: int) -> None:
        """Write who holds the lock into its file; on a full disk nobody's name is in it."""
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError:
            pass

    def release(self) -> None:
        """Release the locks. Call it after SQLite has closed the file."""
        file, self._file = self._file, None
        descriptor, self._descriptor = self._descriptor, None
        if file is not None:
            os.close(file)
        if self._identity is not None:
            _held.discard(self._identity)
            self._identity = None
        if descriptor is not None:
            os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Return what the holder of a lock wrote into its file."""
    return os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "which did not say who it is"
