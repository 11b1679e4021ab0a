"""Makes the store that a description such as ``sqlite:PATH`` means."""

from __future__ import annotations

from collections.abc import Callable

from uwsgitwisted.errors import SpoolError, StartupError
from uwsgitwisted.spool.stores.bounds import NO_BOUNDS, Bounds
from uwsgitwisted.spool.stores.interface import KEEP_RESULTS, ISpoolStore
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore


def _sqlite(description: str, keep: float, bounds: Bounds) -> ISpoolStore:
    path = description.partition(":")[2]
    if path.startswith((":", "file:")):  # to SQLite, such as :memory:, these are no names of files
        raise SpoolError(
            f"the spool {description!r} names no file, and tasks have to outlive their spooler; write for "
            "example sqlite:spool.sqlite"
        )
    return SqliteStore(path, keep=keep, bounds=bounds)


def _postgres(description: str, keep: float, bounds: Bounds) -> ISpoolStore:
    # Only here, since it needs a library that not everybody has.
    from uwsgitwisted.spool.stores.postgres.store import PostgresStore

    return PostgresStore(description, keep=keep, bounds=bounds)


#: By the prefix of a description: what makes the store, and an example.
STORES: dict[str, tuple[Callable[[str, float, Bounds], ISpoolStore], str]] = {
    "sqlite": (_sqlite, "sqlite:spool.sqlite"),
    "postgresql": (_postgres, "postgresql://user:password@host/database"),
}


def is_store(text: str) -> bool:
    """Whether *text* describes a store rather than the address of a spooler."""
    return text.partition(":")[0] in STORES


def make_store(description: str, keep: float = KEEP_RESULTS, bounds: Bounds = NO_BOUNDS) -> ISpoolStore:
    """Make the store that *description* means. It is not opened yet: nothing changes on the disk.

    :param description: ``sqlite:PATH`` or ``postgresql://...``.
    :param keep: how long a finished task is kept, in seconds.
    :param bounds: what it holds at most.
    :raises StartupError: if there is no such kind of store, or the description is incomplete.
    """
    prefix, colon, rest = description.partition(":")
    known = STORES.get(prefix) if colon else None
    if known is None:
        examples = ", ".join(example for _, example in STORES.values())
        raise StartupError(f"the spool {description!r} is of no known kind; write for example {examples}")
    make, example = known
    if not rest.strip():
        raise StartupError(f"the spool {description!r} doesn't say where it is; write for example {example}")
    try:
        return make(description, keep, bounds)
    except SpoolError as error:
        raise StartupError(str(error)) from error
