"""The access log of a service: opened at its start, and again at a reload."""

from __future__ import annotations

import os

from twisted.logger import Logger

from uwsgitwisted.access_log import AccessLog, Entry, open_log
from uwsgitwisted.errors import StartupError


class ServiceAccessLog:
    """Owns the file of an access log.

    :param path: of the file; ``-`` for the standard output; empty for no log.
    :param form: the name of a format in :data:`uwsgitwisted.access_log.FORMATS`.
    """

    _log = Logger()

    def __init__(self, path: str, form: str) -> None:
        self._path = path
        self._form = form
        self._writer: AccessLog | None = None
        #: The open file; -1 if there is none.
        self.descriptor = -1

    def open(self) -> bool:
        """Open the file, or open it again, as it may have been renamed; return whether it is another one now.

        :raises StartupError: if that is not possible, and it isn't open yet.
        """
        if not self._path:
            return False
        try:
            opened = open_log(self._path)
        except OSError as error:
            if self._writer is None:
                raise StartupError(f"--access-log {self._path}: {error.strerror}") from error
            self._log.error("--access-log {path}: {error}", path=self._path, error=error.strerror)
            return False
        self._writer = AccessLog(opened, self._form)
        if self.descriptor != -1:
            os.close(self.descriptor)
        self.descriptor = opened
        return True

    def write(self, entry: Entry) -> None:
        """Write a line, if there is a log."""
        if self._writer is not None:
            self._writer.write(entry)
