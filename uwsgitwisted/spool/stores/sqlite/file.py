"""The SQLite file of a spool: recognises, creates, opens and shrinks it. :mod:`.store` knows its content."""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import quote

from uwsgitwisted.errors import SpoolCorrupt, SpoolError, StoreUnavailable
from uwsgitwisted.spool.disk import sync_directory
from uwsgitwisted.spool.stores.sqlite.schema import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, UPGRADES

#: Larger files are not checked when they are opened: it would take seconds a gibibyte, before the first task is
#: accepted. Damage in one is noticed when the damaged page is read.
QUICK_CHECK_LIMIT = 256 * 1024 * 1024
#: What the write-ahead log is truncated to after a burst, in bytes.
_LOG_LIMIT = 64 * 1024 * 1024
#: How many free pages a file keeps for new tasks; more are returned to the disk. Four mebibytes.
SLACK_PAGES = 1_024
#: How many pages are returned at once. It takes a few milliseconds, in which nothing else can be written.
_SHRINK_PAGES = 256
#: New tasks are refused when the file system has less left than this, or than a tenth of it if that is less:
#: the outcomes of the tasks there are have to be written, to the log first, then to the file.
_DISK_RESERVE, _DISK_PART = 64 * 1024 * 1024, 10
#: How long to wait for another program's lock on the file, such as the ``sqlite3`` shell's, in seconds.
_LOCK_WAIT = 5.0

# https://www.sqlite.org/fileformat.html, "The Database Header": big-endian, user_version at 60, application_id
# at 68.
_MAGIC = b"SQLite format 3\0"
_HEADER = struct.Struct(">16s44xI4xI28x")

#: What SQLite's errors mean for whoever runs the spooler. By their text, since Python 3.10 gives no codes.
_MEANINGS: tuple[tuple[str, type[SpoolError], str], ...] = (
    ("disk is full", StoreUnavailable, "nothing was written; it goes on when there is space again"),
    (
        "disk I/O error",
        StoreUnavailable,
        "nothing was written; look at the disk and at the limit on file sizes",
    ),
    ("readonly", StoreUnavailable, "nothing was written; make the file, its directory and the disk writable"),
    (
        "unable to open",
        StoreUnavailable,
        "nothing was changed; look at the rights of the file and its directory",
    ),
    ("locked", StoreUnavailable, "nothing was changed; another program works on the file"),
    ("malformed", SpoolCorrupt, "the file is damaged; nothing was changed. Restore it, or move it away"),
    ("not a database", SpoolCorrupt, "the file is damaged; nothing was changed. Restore it, or move it away"),
)


@contextmanager
def translated_errors(path: str) -> Iterator[None]:
    """Turn SQLite's exceptions about the file *path* into ours."""
    try:
        yield
    except sqlite3.Error as error:
        for words, kind, meaning in _MEANINGS:
            if words in str(error):
                raise kind(f"the spool {path}: {error}; {meaning}") from error
        raise SpoolError(f"the spool {path}: {error}") from error


def prepare_file(path: str) -> None:
    """Make sure that a spool is at *path*; create it if nothing is there.

    Call it only while you hold the lock: it reads the file by itself, and to close the file would drop the
    locks of an SQLite connection in the same process.

    :raises SpoolCorrupt: if the file is no spool, a damaged one, or one of a newer version; it was left
        unchanged.
    :raises SpoolError: if it can't be read or created.
    """
    with translated_errors(path):
        if _is_spool(path):
            _verify(path)
        else:
            _create(path)


def open_database(path: str) -> sqlite3.Connection:
    """Open the spool that :func:`prepare_file` found or made.

    Every commit on the connection is on the disk when it returns.

    :raises SpoolError: if it can't be opened.
    """
    with translated_errors(path):
        # From one thread at a time, but not always from the same one.
        connection = sqlite3.connect(path, timeout=_LOCK_WAIT, isolation_level=None, check_same_thread=False)
        try:
            _make_durable(connection, path)
            _upgrade(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def _is_spool(path: str) -> bool:
    """Return whether a spool of ours is at *path*, or nothing; anything else raises.

    It reads the bytes of the header, since SQLite would begin to recover any database that it opens.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        _refuse_orphans(path)
        return False
    except OSError as error:
        raise SpoolError(f"can't look at the spool {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SpoolError(f"the spool {path} is not a file; name a file, which is created where there is none")
    if not status.st_size:
        _refuse_orphans(path)
        return False
    _check_header(path)
    return True


def _refuse_orphans(path: str) -> None:
    """Refuse to create a file beside a log that holds tasks: SQLite would delete the log."""
    for orphan in (f"{path}-wal", f"{path}-journal"):
        if _has_bytes(orphan):
            raise SpoolCorrupt(
                f"the spool {path} is missing or empty, but {orphan} is not; nothing was changed. Restore the "
                "file that belongs to it, or move it away"
            )


def _has_bytes(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0


def _check_header(path: str) -> None:
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
    except OSError as error:
        raise SpoolError(f"can't read the spool {path}: {error.strerror}") from error
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise SpoolCorrupt(f"{path} is not an SQLite database; nothing was changed. Name another file")
    _, version, application = _HEADER.unpack(header)
    if application != APPLICATION_ID:
        raise SpoolCorrupt(
            f"{path} is an SQLite database of something else; nothing was changed. Name another file"
        )
    _check_version(path, version)


def _check_version(path: str, version: int) -> None:
    if version != SCHEMA_VERSION and version not in UPGRADES:
        raise SpoolCorrupt(
            f"the spool {path} has version {version}, this program knows {SCHEMA_VERSION}; nothing was "
            "changed. Use the release that wrote it"
        )


def _verify(path: str) -> None:
    """Check the spool at *path* over a read-only connection, which leaves even a damaged one as it is."""
    # Without a log there is nothing to share with other readers; "immutable" keeps SQLite from creating one.
    way = "mode=ro" if _has_bytes(f"{path}-wal") else "mode=ro&immutable=1"
    uri = f"file:{quote(path)}?{way}"
    connection = sqlite3.connect(uri, uri=True, timeout=_LOCK_WAIT, isolation_level=None)
    with closing(connection):
        _check_version(path, _version(connection))
        if os.path.getsize(path) > QUICK_CHECK_LIMIT:
            return
        (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise SpoolCorrupt(
                f"the spool {path} is damaged ({result}); nothing was changed. Restore it, or move it away"
            )


def _create(path: str) -> None:
    """Create an empty spool under another name and rename it to *path*: it is there whole, or not at all."""
    directory = os.path.dirname(path)
    try:
        descriptor, temporary = tempfile.mkstemp(".new", f"{os.path.basename(path)}.", directory)
        os.close(descriptor)
        try:
            with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only possible before there is a table
                connection.executescript(SCHEMA)
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        sync_directory(directory)
    except OSError as error:
        raise SpoolError(f"can't create the spool {path}: {error.strerror}") from error


def _upgrade(connection: sqlite3.Connection) -> None:
    """Upgrade a spool that an earlier release wrote."""
    while (version := _version(connection)) != SCHEMA_VERSION:
        connection.executescript(UPGRADES[version])


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _make_durable(connection: sqlite3.Connection, path: str) -> None:
    """Set what durability rests on and read it back, since SQLite doesn't say when it can't do it."""
    (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    if (journal, synchronous) != ("wal", 2):
        raise SpoolError(
            f"the spool {path} can't be made durable: journal_mode is {journal}, not wal, or synchronous is "
            f"{synchronous}, not 2; put it on a local file system"
        )
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_LIMIT}")


# How a file becomes smaller again.


def can_shrink(connection: sqlite3.Connection) -> bool:
    """Return whether the file can shrink; files of earlier releases can't, unless vacuumed."""
    (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    return bool(mode == 2)


def free_pages(connection: sqlite3.Connection) -> int:
    """Return how many pages of the file are free."""
    (pages,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(pages)


def shrink(connection: sqlite3.Connection) -> bool:
    """Return some pages to the disk, in a transaction of its own; return whether that was possible."""
    try:
        # As a script, since ``execute`` ends such a statement after its first page.
        connection.executescript(f"PRAGMA incremental_vacuum({_SHRINK_PAGES})")
        if free_pages(connection) <= SLACK_PAGES:  # only the log says so far that the file is shorter
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    except sqlite3.Error:  # a full disk: the log needs space for it first
        return False
    return True


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return how many bytes the used pages take."""
    sizes = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    pages, size = sizes
    return int((pages - free_pages(connection)) * size)


def spare_bytes(path: str) -> int | None:
    """Return how many bytes the file system of *path* has left for new tasks; None if it doesn't say."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    reserve = min(_DISK_RESERVE, status.f_blocks * status.f_frsize // _DISK_PART)
    return status.f_bavail * status.f_frsize - reserve
