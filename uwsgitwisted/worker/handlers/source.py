"""Has the code of handlers imported from its source, never from cached bytecode.

Python takes a ``.pyc`` for current if the source has the size and, in whole seconds, the time that it had when
the ``.pyc`` was written. A handler that is changed twice within a second and keeps its size, or is copied with
the time of its predecessor, would run its old code after a reload. Libraries, which installers write once, keep
their bytecode, so that a worker still starts quickly.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Mapping
from importlib.abc import PathEntryFinder
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)
from typing import NoReturn


class _SourceLoader(SourceFileLoader):
    """Compiles a module whenever it is imported, and writes no bytecode."""

    def path_stats(self, path: object) -> NoReturn:
        """Tell the import system that there is nothing to compare bytecode with, as it provides for."""
        raise OSError("bytecode is not used for this module")


_make_finder = FileFinder.path_hook((ExtensionFileLoader, EXTENSION_SUFFIXES), (_SourceLoader, SOURCE_SUFFIXES))


def _library_directories() -> tuple[str, ...]:
    """Return the directories of the standard library and of what was installed."""
    paths: Mapping[str, str] = sysconfig.get_paths()
    installed = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(
        os.path.join(os.path.realpath(path), "")
        for path in (*installed, *site.getsitepackages(), site.getusersitepackages())
    )


_LIBRARIES = _library_directories()


def _find_in(path: str) -> PathEntryFinder:
    """Return a finder for *path*; as every path hook, raise ``ImportError`` to leave it to the next one."""
    if os.path.join(os.path.realpath(path), "").startswith(_LIBRARIES):
        raise ImportError("a library keeps its bytecode", path=path)
    return _make_finder(path)


def import_from_source() -> None:
    """Have this process import what is outside of the library directories from its source from now on."""
    if _find_in not in sys.path_hooks:
        sys.path_hooks.insert(0, _find_in)
        sys.path_importer_cache.clear()
