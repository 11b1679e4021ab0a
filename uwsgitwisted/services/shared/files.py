"""Watches files and directories for uWSGI's file monitors, with Linux's inotify."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from uwsgitwisted.errors import MisuseError


class FileWatches:
    """The files and directories that are watched.

    A file is watched by way of its directory, so that it may be replaced, removed or created.

    :param reactor: reads the events.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._notify: Any = None
        # By directory, and by the name in it, or None for the directory itself.
        self._callbacks: dict[str, list[tuple[str | None, Callable[[], None]]]] = {}

    def watch(self, path: str, on_change: Callable[[], None]) -> Callable[[], object]:
        """Watch *path*.

        :param on_change: called when it has changed.
        :return: ends the watch.
        :raises MisuseError: if it can't be watched.
        """
        directory, name = (path, None) if os.path.isdir(path) else os.path.split(path)
        if not os.path.isdir(directory):
            raise MisuseError(f"add_file_monitor: there is no directory {directory}")
        entry = (name, on_change)
        callbacks = self._callbacks.setdefault(directory, [])
        if not callbacks:
            self._start(directory)
        callbacks.append(entry)
        return lambda: self._end(directory, entry)

    def _start(self, directory: str) -> None:
        try:
            # Imported late: few services watch files, and not every system has it.
            from twisted.internet import inotify
            from twisted.python.filepath import FilePath

            if self._notify is None:
                self._notify = inotify.INotify(self._reactor)
                self._notify.startReading()
            changes = (
                inotify.IN_MODIFY
                | inotify.IN_ATTRIB
                | inotify.IN_CLOSE_WRITE
                | inotify.IN_CREATE
                | inotify.IN_DELETE
                | inotify.IN_MOVED_FROM
                | inotify.IN_MOVED_TO
                | inotify.IN_DELETE_SELF
            )
            self._notify.watch(FilePath(directory), changes, callbacks=[self._on_event(directory)])
        except (ImportError, OSError, inotify.INotifyError) as error:
            del self._callbacks[directory]
            raise MisuseError(f"add_file_monitor: {directory} can't be watched: {error}") from error

    def _on_event(self, directory: str) -> Callable[[Any, Any, int], None]:
        def changed(watch: Any, path: Any, mask: int) -> None:
            name = os.fsdecode(path.basename())
            for wanted, on_change in list(self._callbacks.get(directory, ())):
                if wanted is None or wanted == name:
                    on_change()

        return changed

    def _end(self, directory: str, entry: tuple[str | None, Callable[[], None]]) -> None:
        from twisted.python.filepath import FilePath

        callbacks = self._callbacks.get(directory, [])
        if entry in callbacks:
            callbacks.remove(entry)
        if not callbacks and self._callbacks.pop(directory, None) is not None:
            self._notify.ignore(FilePath(directory))

    def stop(self) -> None:
        """Watch nothing any more."""
        if self._notify is not None:
            self._notify.loseConnection()
            self._notify = None
