"""Watches files and directories for uWSGI's file monitors, with Linux's inotify."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from uwsgitwisted.errors import MisuseError


class FileWatches:
    """The files and directories that are watched.

    A file is watched by way of its directory, so that it may be replaced, removed or created. A directory that
    is removed is not watched any more.

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
                self._notify = _open_notify(self._reactor)
            changes = (
                inotify.IN_MODIFY
                | inotify.IN_ATTRIB
                | inotify.IN_CLOSE_WRITE
                | inotify.IN_CREATE
                | inotify.IN_DELETE
                | inotify.IN_MOVED_FROM
                | inotify.IN_MOVED_TO
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
            with contextlib.suppress(KeyError):  # the directory is gone
                self._notify.ignore(FilePath(directory))

    def stop(self) -> None:
        """Watch nothing any more."""
        if self._notify is not None:
            self._notify.close()
            self._notify = None


def _open_notify(reactor: Any) -> Any:
    """Return Twisted's inotify, which is closed by ``close()`` only, and reads events."""
    from twisted.internet.inotify import INotify

    class Notify(INotify):
        def loseConnection(self, *args: Any) -> None:
            """Go on: Twisted would end all watches when one directory is removed."""

        def close(self) -> None:
            super().loseConnection()  # type: ignore[no-untyped-call]

    notify: Any = Notify(reactor)  # type: ignore[no-untyped-call]
    notify.startReading()
    return notify
