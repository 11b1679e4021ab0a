"""The modules of ``--imports``: filters and helpers for every template."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

from uwsgitwisted.errors import StartupError
from uwsgitwisted.worker.handlers.module import load_module


def public_names(module: str) -> Mapping[str, object]:
    """Import a module, and return what it has for templates: its ``__all__``, or what is public.

    :raises StartupError: if it can't be imported.
    """
    imported = load_module(module, "imports")
    names: list[str] | None = getattr(imported, "__all__", None)
    if names is not None:
        missing = [name for name in names if not hasattr(imported, name)]
        if missing:
            raise StartupError(f"--imports {module}: its __all__ has {missing[0]!r}, which isn't there")
        return {name: getattr(imported, name) for name in names}
    return {
        name: value
        for name, value in vars(imported).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }


def fingerprint(module: str) -> tuple[list[str], str]:
    """Return what compiled templates depend on of a module: its public names, and its source, hashed.

    The code of a Mako template imports the names. Jinja2 applies a filter to a constant when it compiles.

    :raises StartupError: as :func:`public_names`.
    """
    names = sorted(public_names(module))
    source = b""
    with contextlib.suppress(AttributeError, OSError):  # it may be in C, or in an archive
        source = Path(str(load_module(module, "imports").__file__)).read_bytes()
    return names, blake2b(source).hexdigest()
