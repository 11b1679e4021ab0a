"""Makes Python import handlers' code from its source, never from cached bytecode.

Python considers a ``.pyc`` current if the source still has the size and, in whole seconds, the modification
time that the ``.pyc`` recorded. A handler that changes twice within a second and keeps its size, or is copied
with the time of its predecessor, would run its old code after a reload. Libraries, which installers write once,
keep their bytecode, so a worker still starts quickly.
"""

from __future__ import annotations

import contextlib
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
    """Compiles a module at each import, and writes no bytecode."""

    def path_stats(self, path: object) -> NoReturn:
        """Raise OSError: the import system then neither reads nor writes bytecode."""
        raise OSError("bytecode is not used for this module")


_make_finder = FileFinder.path_hook((ExtensionFileLoader, EXTENSION_SUFFIXES), (_SourceLoader, SOURCE_SUFFIXES))


def _library_directories() -> tuple[str, ...]:
    """Return the directories of the standard library and of installed packages."""
    paths: Mapping[str, str] = sysconfig.get_paths()
    installed = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(
        os.path.join(os.path.realpath(path), "")
        for path in (*installed, *site.getsitepackages(), site.getusersitepackages())
    )


_LIBRARIES = _library_directories()


def _find_in(path: str) -> PathEntryFinder:
    """Return a finder for *path*; as a path hook, raise ``ImportError`` to pass a path on to the next hook."""
    if os.path.join(os.path.realpath(path), "").startswith(_LIBRARIES):
        raise ImportError("a library keeps its bytecode", path=path)
    return _make_finder(path)


def import_from_source() -> None:
    """Make this process import modules outside the library directories from their source from now on.

    The cache of finders keeps all its paths: Twisted's plugins warn of a loaded module whose path it lacks.
    """
    if _find_in in sys.path_hooks:
        return
    sys.path_hooks.insert(0, _find_in)
    for path in list(sys.path_importer_cache):
        with contextlib.suppress(ImportError):
            sys.path_importer_cache[path] = _find_in(path)
