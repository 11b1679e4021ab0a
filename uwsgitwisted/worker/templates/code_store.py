"""Compiled templates on disk (``--module-directory``), so that the next worker need not compile them again.

What is kept depends on the template's content, never on times: an entry is found by a hash of all that the
code is made from, the modules of ``--imports`` included. So a changed template never gets old code.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import stat
import sys
import tempfile
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from types import CodeType

from uwsgitwisted.errors import StartupError
from uwsgitwisted.worker.templates.imports import fingerprint
from uwsgitwisted.worker.templates.interface import EngineSettings

#: How many entries are kept; beyond it the oldest are removed.
MAX_ENTRIES = 4_096
_SUFFIX = ".template"
_LIBRARIES = ("mako", "jinja2", "uwsgitwisted")


class CodeStore:
    """The compiled templates in a directory.

    Whoever can write there can run code here, so nobody else may.

    :param directory: it is made, if it doesn't exist.
    :param settings: how the templates are compiled.
    :raises StartupError: if it can't be used, others may write there, or a module of ``--imports`` fails.
    """

    def __init__(self, directory: str, settings: EngineSettings) -> None:
        self._directory = directory
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            status = os.stat(directory)
        except OSError as error:
            raise StartupError(f"--module-directory {directory}: {error.strerror}") from error
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StartupError(
                f"--module-directory {directory}: others may write there, and so run code in the workers; "
                "make it yours, with chmod go-w"
            )
        versions = [_version(library) for library in _LIBRARIES]
        imports = [fingerprint(module) for module in settings.imports]
        self._conditions = repr((sys.version, versions, settings, imports)).encode()

    def get(self, engine: str, name: str, source: bytes) -> CodeType | None:
        """Return the code of a template; None if it isn't there."""
        try:
            with open(self._path(engine, name, source), "rb") as file:
                code = marshal.load(file)  # noqa: S302 - nobody else may write there
        except (OSError, EOFError, ValueError, TypeError):
            return None
        return code if isinstance(code, CodeType) else None

    def put(self, engine: str, name: str, source: bytes, code: CodeType) -> None:
        """Keep the code of a template. A full disk only means that it isn't kept."""
        with contextlib.suppress(OSError):
            descriptor, path = tempfile.mkstemp(dir=self._directory)
            try:
                with open(descriptor, "wb") as file:
                    marshal.dump(code, file)
                os.replace(path, self._path(engine, name, source))
            except OSError:
                os.unlink(path)
                raise
            self._remove_oldest()

    def _path(self, engine: str, name: str, source: bytes) -> str:
        key = blake2b(digest_size=20)
        for part in (self._conditions, engine.encode(), name.encode(), source):
            key.update(b"%d:" % len(part) + part)
        return os.path.join(self._directory, key.hexdigest() + _SUFFIX)

    def _remove_oldest(self) -> None:
        with os.scandir(self._directory) as entries:
            ours = [entry for entry in entries if entry.name.endswith(_SUFFIX)]
        if len(ours) > MAX_ENTRIES:
            for entry in sorted(ours, key=lambda entry: entry.stat().st_mtime_ns)[: MAX_ENTRIES // 4]:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
