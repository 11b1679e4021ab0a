"""Finds the store that a description such as ``sqlite:PATH`` means."""

from __future__ import annotations

from collections.abc import Callable

from uwsgitwisted.errors import StartupError
from uwsgitwisted.spool.sqlite import SqliteStore
from uwsgitwisted.spool.stores import ISpoolStore

#: What makes a store of the text behind its prefix.
STORES: dict[str, Callable[[str], ISpoolStore]] = {
    "sqlite": SqliteStore,
}


def make_store(description: str) -> ISpoolStore:
    """Return the store that *description* means, not opened yet: nothing is touched on the disk.

    :param description: ``sqlite:PATH``.
    :raises StartupError: if there is no such kind of store, or the description is incomplete.
    """
    prefix, colon, rest = description.partition(":")
    maker = STORES.get(prefix) if colon else None
    if maker is None:
        known = ", ".join(f"{name}:" for name in STORES)
        raise StartupError(f"the spool {description!r} is of no known kind; it begins with one of: {known}")
    if not rest:
        raise StartupError(
            f"the spool {description!r} doesn't say where it is; write for example {prefix}:spool.{prefix}"
        )
    return maker(rest)
