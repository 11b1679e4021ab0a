"""Runs ``twistd`` so that it is killed at a named point: ``killing_twistd.py POINT NUMBER arguments...``.

The process gets SIGKILL when it comes to the point for the NUMBER-th time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from twisted.scripts.twistd import run

from uwsgitwisted.responders.spool import SpoolResponder
from uwsgitwisted.spool.group_commit import GroupCommit
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.transport.server.session import ServerSession


def _before(function: Callable[..., Any], kill: Callable[..., None]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        kill(*args)
        return function(*args)

    return call


def _after(function: Callable[..., Any], kill: Callable[..., None]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        result = function(*args)
        kill(*args)
        return result

    return call


def _settles(_store: SqliteStore, settlements: object, *_: object) -> bool:
    """Return whether a cycle of the loop writes outcomes."""
    return bool(settlements)


#: What each point wraps: the class, the method, whether before or after it, and in which calls.
POINTS: dict[str, tuple[type, str, Callable[..., Any], Callable[..., bool]]] = {
    "after the read": (SpoolResponder, "respond", _before, lambda *_: True),
    "before the commit": (SqliteStore, "add", _before, lambda *_: True),
    "after the commit": (SqliteStore, "add", _after, lambda *_: True),
    "before the answer": (GroupCommit, "_commit_succeeded", _before, lambda *_: True),
    "after the answer": (ServerSession, "_flush", _after, lambda *_: True),
    "before the done mark": (SqliteStore, "advance", _before, _settles),
    "after the done mark": (SqliteStore, "advance", _after, _settles),
}


def main() -> None:
    """Arm the point and become ``twistd``."""
    point, number, *arguments = sys.argv[1:]
    owner, name, when, counts = POINTS[point]
    left = int(number)

    def kill(*args: Any) -> None:
        nonlocal left
        left -= counts(*args)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, when(getattr(owner, name), kill))
    sys.argv = ["twistd", *arguments]
    run()


if __name__ == "__main__":
    main()
